//! A real guest, with Debian's qemu-guest-agent, is frozen for a moment, and whoever is killed in it, it goes on.
//!
//! Here the test is the daemon's side of the guard; what `begin` makes of it is at the end of the file.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use pullfs_fs::error::{Kind, chain};
use pullfs_fs::quiesce::{Frozen, Quiesce, SUBCOMMAND};
use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::guest::Guest;
use pullfs_tests::leftovers::Leftovers;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::{self, Mount};
use pullfs_tests::oracle;
use pullfs_tests::process::{self, ok, signal_child, wait_until};
use pullfs_tests::tools;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::runtime::Runtime;

/// How long the guard keeps a guest frozen at most.
const HOLD: Duration = Duration::from_secs(5);

/// What an emulated guest on a busy machine may add to anything.
const SLACK: Duration = Duration::from_secs(5);

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
}

fn freeze(runtime: &Runtime, guest: &Guest) -> pullfs_fs::error::Result<Frozen> {
    runtime.block_on(Quiesce::new(guest.agent(), tools::pullfs()).freeze())
}

/// The guest's number, which does not grow for a second.
#[track_caller]
fn stands_still(guest: &Guest) -> u64 {
    // What it had counted before may still be on its way to the console.
    thread::sleep(Duration::from_millis(300));
    let counter = guest.counter();
    thread::sleep(Duration::from_secs(1));
    assert_eq!(guest.counter(), counter, "a frozen guest writes nothing");
    counter
}

on!(a_frozen_guest_stands_still: new = New, old = Old);
fn a_frozen_guest_stands_still(flavor: Flavor) {
    let guest = Guest::boot_with_agent(flavor);
    let runtime = runtime();
    for _ in 0..2 {
        let began = Instant::now();
        let frozen = freeze(&runtime, &guest).expect("a frozen guest");
        assert_eq!(frozen.filesystems(), 2, "vda and vdb");
        let counter = stands_still(&guest);
        // What is on the disk is all there is, without a journal to replay.
        let copy = guest.machine().copy("vdb", "vdb.frozen");
        let told = runtime.block_on(frozen.thaw()).expect("a thawed guest");
        let took = began.elapsed();
        oracle::quiesced_ext4(&copy);
        let on_disk = oracle::counter_in(&copy);
        assert!((counter..=counter + 1).contains(&on_disk), "{on_disk} on the disk, {counter} on the console");

        assert!(told >= Duration::from_millis(1300) && told <= took, "{told:?} of {took:?}");
        assert_eq!(guest.ask_agent("guest-fsfreeze-status"), "thawed");
        guest.wait_past(counter + 5);
    }
    // Nothing to do in between, and the guest is frozen for next to nothing.
    let frozen = freeze(&runtime, &guest).expect("a frozen guest");
    let freezing = frozen.freezing();
    let told = runtime.block_on(frozen.thaw()).expect("a thawed guest");
    assert!(told < freezing + Duration::from_secs(1), "{told:?}, of which freezing took {freezing:?}");
    guest.wait_past(guest.counter());
}

on!(whoever_is_killed_the_guest_goes_on: new = New);
fn whoever_is_killed_the_guest_goes_on(flavor: Flavor) {
    let guest = Guest::boot_with_agent(flavor);
    the_guard_is_killed(&guest);
    the_daemon_is_killed(&guest);
    the_limit_passes(&guest);
    somebody_else_froze_it(&guest);
}

fn the_guard_is_killed(guest: &Guest) {
    let runtime = runtime();
    let frozen = freeze(&runtime, guest).expect("a frozen guest");
    let counter = stands_still(guest);
    let guard = Pid::from_raw(i32::try_from(frozen.guard()).expect("a process id"));
    kill_process(guard.expect("a process id"), Signal::KILL).expect("the guard runs");
    let began = Instant::now();
    guest.wait_past(counter + 1);
    assert!(began.elapsed() < SLACK, "thawed after {:?}", began.elapsed());
    let error = chain(&runtime.block_on(frozen.thaw()).expect_err("it was not frozen until now"));
    assert!(error.contains("before the point in time was complete"), "{error}");
    assert_eq!(guest.ask_agent("guest-fsfreeze-status"), "thawed");
}

fn the_daemon_is_killed(guest: &Guest) {
    let (ours, theirs) = UnixStream::pair().expect("a socketpair");
    let told = guest.machine().dir().join("told");
    // Reads that the guest is going to be frozen, that it is, and then does what a busy daemon does.
    let mut daemon = Command::new("sh");
    daemon.args(["-c", r#"read -r freezing; read -r frozen; echo "$frozen" >"$0"; exec sleep 60"#]).arg(&told);
    let mut daemon = daemon.stdin(Stdio::from(OwnedFd::from(ours))).spawn().expect("sh");
    let mut guard = Command::new(tools::pullfs());
    guard.arg(SUBCOMMAND).arg(guest.agent()).stdin(Stdio::from(OwnedFd::from(theirs)));
    let mut child = guard.spawn().expect("the guard");
    // Its description keeps the guard's end of the pair open.
    drop(guard);
    wait_until("a frozen guest", SLACK * 4, || {
        std::fs::read_to_string(&told).is_ok_and(|text| text.contains("frozen"))
    });
    let counter = stands_still(guest);
    signal_child(&daemon, Signal::KILL);
    let began = Instant::now();
    guest.wait_past(counter + 1);
    assert!(began.elapsed() < SLACK, "thawed after {:?}", began.elapsed());
    assert!(child.wait().expect("the guard").success());
    daemon.wait().expect("sh");
    assert_eq!(guest.ask_agent("guest-fsfreeze-status"), "thawed");
}

fn the_limit_passes(guest: &Guest) {
    let runtime = runtime();
    let frozen = freeze(&runtime, guest).expect("a frozen guest");
    let began = Instant::now();
    let counter = stands_still(guest);
    guest.wait_past(counter + 1);
    let took = began.elapsed();
    assert!(took + Duration::from_secs(1) > HOLD && took < HOLD + SLACK, "{took:?}");
    let error = chain(&runtime.block_on(frozen.thaw()).expect_err("it was not frozen until now"));
    assert!(error.contains("the limit of 5s passed"), "{error}");
}

fn somebody_else_froze_it(guest: &Guest) {
    assert_eq!(guest.ask_agent("guest-fsfreeze-freeze"), 2);
    let error = freeze(&runtime(), guest).expect_err("frozen already");
    assert_eq!(error.kind(), Kind::Busy, "{}", chain(&error));
    let counter = stands_still(guest);
    assert_eq!(guest.ask_agent("guest-fsfreeze-thaw"), 2, "theirs was left alone");
    guest.wait_past(counter + 1);
}

on!(what_cannot_be_thawed_is_not_frozen: new = New);
fn what_cannot_be_thawed_is_not_frozen(flavor: Flavor) {
    let guest = Guest::boot_with_port(flavor, "pullfs.agent=guest-fsfreeze-thaw");
    guest.ask_agent("guest-ping");
    let error = freeze(&runtime(), &guest).expect_err("thawing is not allowed");
    assert_eq!(error.kind(), Kind::Unsupported);
    assert!(chain(&error).contains("does not allow guest-fsfreeze-thaw"), "{}", chain(&error));
    guest.wait_past(guest.counter() + 1);
}

on!(a_guest_without_an_agent_is_said_to_be_one: new = New);
fn a_guest_without_an_agent_is_said_to_be_one(flavor: Flavor) {
    let guest = Guest::boot_with_port(flavor, "");
    let error = freeze(&runtime(), &guest).expect_err("there is no agent");
    assert_eq!(error.kind(), Kind::Timeout);
    assert!(chain(&error).contains("not installed or does not run"), "{}", chain(&error));
    guest.wait_past(guest.counter() + 1);
    let socket = guest.agent();
    drop(guest);
    let error = runtime().block_on(Quiesce::new(socket, tools::pullfs()).freeze()).expect_err("no machine");
    assert_eq!(error.kind(), Kind::Gone);
}

fn agent(guest: &Guest) -> String {
    format!("agent={}", guest.agent().display())
}

on!(begin_freezes_the_guest_for_the_instant: new = New, old = Old);
fn begin_freezes_the_guest_for_the_instant(flavor: Flavor) {
    let guest = Guest::boot_with_agent(flavor);
    let mount = Mount::with(guest.machine(), &agent(&guest));
    guest.wait_past(5);
    let before = guest.counter();
    mount.command(&["begin", "--quiesce", "--checkpoint", "monday"]).success();
    let point = mount.status()["point"].clone();
    assert_eq!((&point["quiesced"], &point["checkpoint"]), (&json!(true), &json!("monday")), "{point}");
    guest.wait_past(guest.counter() + 5);
    for id in ["vda", "vdb"] {
        let copy = mount.beside(id);
        ok(tools::tool("cp").arg(mount.disk(id)).arg(&copy));
        // Clean as it is: what was synced is there, and no journal has to be replayed.
        oracle::quiesced_ext4(&copy);
        assert!(oracle::counter_in(&copy) >= before, "{id}: what was synced before is there");
    }
    mount.checkpoint("create", "tuesday").success();
    assert_eq!(mount.status()["point"]["quiesced"], false);
    assert_eq!(guest.ask_agent("guest-fsfreeze-status"), "thawed");
    assert!(mount.unmount().success());
}

on!(a_daemon_killed_while_the_guest_is_frozen_leaves_it_thawed: new = New);
fn a_daemon_killed_while_the_guest_is_frozen_leaves_it_thawed(flavor: Flavor) {
    let guest = Guest::boot_with_agent(flavor);
    let mut mount = Mount::with(guest.machine(), &agent(&guest));
    let counter = guest.counter();
    let run_dir = std::path::Path::new("/run/pullfs").join(mount.id());
    thread::scope(|scope| {
        let control = mount.path("control");
        // The command never comes to an end: its daemon is killed.
        let begin = scope.spawn(move || std::fs::write(control, "begin quiesce").is_err());
        wait_until("a guard", SLACK * 4, || guard_of(mount.pid()).is_some());
        kill_process(Pid::from_raw(mount.pid().cast_signed()).expect("a process id"), Signal::KILL).expect("it runs");
        assert!(begin.join().expect("a thread"), "the daemon is gone");
    });
    mount.ended();
    wait_until("the guardian", SLACK * 4, || !run_dir.exists() && !mount::is_mounted(&mount.mnt()));
    guest.wait_past(counter + 2);
    wait_until("a thawed guest", SLACK * 2, || guest.ask_agent("guest-fsfreeze-status") == "thawed");
}

/// The guard that a daemon has started.
fn guard_of(daemon: u32) -> Option<u32> {
    process::children(daemon, "thaw-guard").first().copied()
}

#[test]
fn quiescing_without_an_agent_is_refused_with_the_reason() {
    if !Flavor::New.available() {
        return;
    }
    let machine = Machine::build(Flavor::New).disk(Disk::qcow2("vda", MIB)).start();
    let nothing = Leftovers::of(&machine);
    let mount = Mount::of(&machine);
    let refused = mount.command(&["begin", "--quiesce"]);
    assert!(refused.stderr.contains("agent=PATH"), "{refused}");
    refused.refused(2);
    assert!(mount.unmount().success());
    // An agent that is not there: nothing of the point in time or the checkpoint is left.
    let mount = Mount::with(&machine, "agent=/nonexistent/agent");
    mount.command(&["begin", "--quiesce", "--checkpoint", "monday"]).refused(2);
    assert_eq!(Leftovers::of(&machine), nothing);
    assert_eq!(mount.state(), "none");
    assert!(mount.unmount().success());
}
