//! The guard of a frozen guest as a process: whoever of the two is killed, the guest is thawed. The agent is scripted;
//! `tests/tests/it/quiesce.rs` does the same with a real guest.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pullfs_fs::error::chain;
use pullfs_fs::quiesce::testing::{Act, FILESYSTEMS, Scripted};
use pullfs_fs::quiesce::{Frozen, Quiesce, SUBCOMMAND};
use rustix::process::{Pid, Signal, kill_process};

const PULLFS: &str = env!("CARGO_BIN_EXE_pullfs");

/// What the guard allows itself.
const HOLD: Duration = Duration::from_secs(5);

/// What a busy machine may add to anything.
const SLACK: Duration = Duration::from_secs(3);

fn quiesce(agent: &Scripted) -> Quiesce {
    Quiesce::new(agent.path(), PULLFS)
}

fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

fn error_of(outcome: pullfs_fs::error::Result<Duration>) -> String {
    chain(&outcome.unwrap_err())
}

/// Waits, while the daemon's side goes on, until the guest is thawed.
async fn thawed(agent: &Scripted) {
    let began = Instant::now();
    while agent.is_frozen() {
        assert!(began.elapsed() < SLACK, "{:?}", agent.commands());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn freeze_and_thaw() {
    let agent = Scripted::usual();
    for _ in 0..3 {
        let frozen = quiesce(&agent).freeze().await.unwrap();
        assert!(agent.is_frozen());
        assert_eq!(frozen.filesystems(), FILESYSTEMS);
        tokio::time::sleep(Duration::from_millis(100)).await;
        let told = frozen.thaw().await.unwrap();
        assert!(!agent.is_frozen());
        assert!(told >= agent.frozen_for().unwrap(), "no less than it was");
        assert!(told < SLACK, "{told:?}");
    }
}

#[tokio::test]
async fn dropping_it_thaws() {
    let agent = Scripted::usual();
    drop(quiesce(&agent).freeze().await.unwrap());
    thawed(&agent).await;
}

#[tokio::test]
async fn a_guard_that_is_killed_is_noticed() {
    let agent = Scripted::usual();
    let frozen = quiesce(&agent).freeze().await.unwrap();
    signal(frozen.guard(), Signal::KILL);
    thawed(&agent).await;
    let error = error_of(frozen.thaw().await);
    assert!(error.contains("not quiesced") && error.contains("guard"), "{error}");
}

#[tokio::test]
async fn a_guard_that_is_told_to_end_thaws_first() {
    for told in [Signal::TERM, Signal::INT, Signal::HUP] {
        let agent = Scripted::usual();
        let frozen = quiesce(&agent).freeze().await.unwrap();
        signal(frozen.guard(), told);
        thawed(&agent).await;
        let error = error_of(frozen.thaw().await);
        assert!(error.contains("told to end") && error.contains("not quiesced"), "{error}");
    }
}

#[tokio::test]
async fn a_guard_that_is_stopped_is_replaced() {
    let agent = Scripted::usual();
    let frozen: Frozen = quiesce(&agent).freeze().await.unwrap();
    signal(frozen.guard(), Signal::STOP);
    let outcome = frozen.thaw().await;
    assert!(!agent.is_frozen());
    // The guest was frozen until the guard was asked, and that is what counts.
    assert!(outcome.unwrap() < Duration::from_secs(2) + SLACK);
}

#[tokio::test]
async fn a_guard_that_is_stopped_does_not_outlast_its_limit() {
    let agent = Scripted::usual();
    let frozen = quiesce(&agent).freeze().await.unwrap();
    signal(frozen.guard(), Signal::STOP);
    tokio::time::sleep(HOLD).await;
    thawed(&agent).await;
    assert!(error_of(frozen.thaw().await).contains("it let its limit pass"));
}

#[tokio::test]
async fn the_limit_of_a_transaction_is_kept() {
    let agent = Scripted::usual();
    let frozen = quiesce(&agent).freeze().await.unwrap();
    tokio::time::sleep(HOLD + Duration::from_secs(1)).await;
    assert!(!agent.is_frozen());
    assert!(agent.frozen_for().unwrap() < HOLD + SLACK, "{:?}", agent.frozen_for());
    let error = error_of(frozen.thaw().await);
    assert!(error.contains("before the point in time was complete: the limit"), "{error}");
}

/// A guard whose daemon's end is nobody's but the returned child's.
fn guard_of_a_daemon(agent: &Scripted) -> (Child, Child) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let daemon = Command::new("sleep").arg("60").stdin(Stdio::from(OwnedFd::from(ours))).spawn().unwrap();
    let mut guard = Command::new(PULLFS);
    guard.arg(SUBCOMMAND).arg(agent.path()).stdin(Stdio::from(OwnedFd::from(theirs)));
    (daemon, guard.spawn().unwrap())
}

#[test]
fn a_daemon_that_is_killed_leaves_a_thawed_guest() {
    let agent = Scripted::usual();
    let (mut daemon, mut guard) = guard_of_a_daemon(&agent);
    agent.wait(true, SLACK);
    daemon.kill().unwrap();
    agent.wait(false, SLACK);
    assert!(guard.wait().unwrap().success());
    daemon.wait().unwrap();
}

#[test]
fn a_daemon_that_hangs_leaves_a_thawed_guest() {
    let agent = Scripted::usual();
    let (mut daemon, mut guard) = guard_of_a_daemon(&agent);
    agent.wait(true, SLACK);
    signal(daemon.id(), Signal::STOP);
    agent.wait(false, HOLD + SLACK);
    assert!(agent.frozen_for().unwrap() >= HOLD);
    assert!(guard.wait().unwrap().success());
    daemon.kill().unwrap();
    daemon.wait().unwrap();
}

#[test]
fn the_guard_is_in_a_session_of_its_own() {
    let agent = Scripted::usual();
    let (mut daemon, mut guard) = guard_of_a_daemon(&agent);
    agent.wait(true, SLACK);
    let session = rustix::process::getsid(Pid::from_raw(i32::try_from(guard.id()).unwrap())).unwrap();
    assert_eq!(session, Pid::from_child(&guard));
    let open: Vec<_> = std::fs::read_dir(format!("/proc/{}/fd", guard.id()))
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
        .map(|target| target.to_string_lossy().into_owned())
        .filter(|target| target.starts_with('/') && !target.starts_with("/dev/"))
        .collect();
    assert!(open.len() <= 2, "it holds nothing that the daemon has open, but for standard output and error: {open:?}");
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    guard.wait().unwrap();
}

#[test]
fn a_slow_agent_holds_up_nobody_for_ever() {
    let agent = Scripted::new(|command, before| match (command, before) {
        ("guest-fsfreeze-freeze", 0) => Act::Late(Duration::from_secs(12)),
        _ => Act::Usual,
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let error = runtime.block_on(quiesce(&agent).freeze()).unwrap_err();
    let error = chain(&error);
    assert!(error.contains("did not answer to guest-fsfreeze-freeze within 10s"), "{error}");
    agent.wait(false, SLACK);
    assert!(agent.frozen_for().is_some());
}

#[test]
fn it_is_not_for_people() {
    let finished = Command::new(PULLFS).args([SUBCOMMAND, "/nonexistent"]).stdin(Stdio::null()).output().unwrap();
    assert_eq!(finished.status.code(), Some(1));
    let said = String::from_utf8_lossy(&finished.stderr).into_owned();
    assert!(said.contains("for pullfs itself"), "{said}");
    let help = Command::new(PULLFS).arg("--help").output().unwrap();
    assert!(!String::from_utf8_lossy(&help.stdout).contains(SUBCOMMAND));
}
