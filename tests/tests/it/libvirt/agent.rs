//! Quiescing through the agent's channel, which libvirt keeps for itself.

use std::thread;
use std::time::{Duration, Instant};

use pullfs_tests::flavor::Flavor;
use pullfs_tests::guest::Guest;
use pullfs_tests::mount::{self, Mount};
use pullfs_tests::oracle;
use pullfs_tests::process::{ok, signal_pid, wait_until};
use pullfs_tests::tools::tool;
use rustix::process::Signal;
use serde_json::json;

use super::{DISKS, LIMIT, has_backup, last_error, nothing_is_left};

on!(begin_freezes_the_guest_through_libvirt: libvirt = Libvirt, libvirt_old = LibvirtOld);
fn begin_freezes_the_guest_through_libvirt(flavor: Flavor) {
    let guest = Guest::boot_with_agent(flavor);
    let mount = Mount::of(guest.machine());
    guest.wait_past(5);
    let before = guest.counter();
    mount.command(&["begin", "--quiesce", "--checkpoint", "monday"]).success();
    let point = mount.status()["point"].clone();
    assert_eq!((&point["quiesced"], &point["checkpoint"]), (&json!(true), &json!("monday")), "{point}");
    guest.wait_past(guest.counter() + 5);
    for id in DISKS {
        let copy = mount.beside(id);
        ok(tool("cp").arg(mount.disk(id)).arg(&copy));
        // Clean as it is: what was synced is there, and no journal has to be replayed.
        oracle::quiesced_ext4(&copy);
        assert!(oracle::counter_in(&copy) >= before, "{id}: what was synced before is there");
    }
    assert_eq!(guest.ask_agent("guest-fsfreeze-status"), "thawed");
    mount.command(&["release"]).success();
    the_daemon_is_killed(&guest, mount);
}

/// Between freeze and thaw.
fn the_daemon_is_killed(guest: &Guest, mut mount: Mount) {
    let run_dir = std::path::Path::new("/run/pullfs").join(mount.id());
    let counter = guest.counter();
    thread::scope(|scope| {
        let control = mount.path("control");
        // The command never comes to an end: its daemon is killed.
        let begin = scope.spawn(move || std::fs::write(control, "begin quiesce").is_err());
        let is_noted = || {
            let files = std::fs::read_dir(&run_dir).into_iter().flatten().flatten();
            files
                .map(|file| std::fs::read_to_string(file.path()).unwrap_or_default())
                .any(|text| text.contains("frozen"))
        };
        let end = Instant::now() + LIMIT;
        while !is_noted() {
            assert!(Instant::now() < end, "nothing is noted of a freeze");
            thread::sleep(Duration::from_millis(1));
        }
        signal_pid(mount.pid(), Signal::KILL);
        assert!(begin.join().expect("a thread"), "the daemon is gone");
    });
    mount.ended();
    wait_until("the guardian", LIMIT, || !run_dir.exists() && !mount::is_mounted(&mount.mnt()));
    guest.wait_past(counter + 2);
    wait_until("a thawed guest", LIMIT, || guest.ask_agent("guest-fsfreeze-status") == "thawed");
    wait_until("the end of the backup", LIMIT, || !has_backup(guest.machine()));
}

on!(an_agent_that_does_not_answer_is_no_reason_to_wait: libvirt = Libvirt, libvirt_old = LibvirtOld);
fn an_agent_that_does_not_answer_is_no_reason_to_wait(flavor: Flavor) {
    let guest = Guest::boot_with_port(flavor, "");
    let mount = Mount::of(guest.machine());
    let began = Instant::now();
    let refused = mount.command(&["begin", "--quiesce", "--checkpoint", "monday"]);
    assert_eq!(refused.code, Some(2), "{refused}");
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    let why = last_error(&mount);
    assert!(why.contains("cannot freeze the guest's file systems") && why.contains("agent"), "{why}");
    guest.wait_past(guest.counter() + 1);
    nothing_is_left(guest.machine(), &mount);
    assert_eq!(guest.machine().domain().virsh("checkpoint-list", &["--name"]).success().trim(), "");
    assert!(mount.unmount().success());
}
