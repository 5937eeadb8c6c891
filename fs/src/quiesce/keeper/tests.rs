//! The daemon's side against guards that die, hang and lie. They are shell scripts: what a guard has frozen is played
//! by the agent being frozen from the start. The real guard's tests are in `ctl/tests`.

use std::os::unix::fs::PermissionsExt;
use std::time::Instant as Clock;

use tempfile::TempDir;

use super::*;
use crate::quiesce::testing::{FILESYSTEMS, Scripted};

const LIMITS: Limits = Limits {
    answer: Duration::from_millis(200),
    freeze: Duration::from_millis(200),
    hold: Duration::from_millis(300),
    patience: Duration::from_secs(20),
};

struct Fake {
    quiesce: Quiesce,
    _dir: TempDir,
}

/// A guard that does `script`; `say` tells something.
fn fake(agent: &Scripted, script: &str) -> Fake {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("guard");
    let text = format!("#!/bin/sh\nsay() {{ echo \"$1\" >&0; }}\n{script}\n");
    // By a copy: a file that somebody has open for writing cannot be run, and a fork of another test would have it.
    std::fs::write(dir.path().join("text"), text).unwrap();
    std::fs::copy(dir.path().join("text"), &program).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let quiesce = Quiesce { agent: agent.path().to_owned(), program, limits: LIMITS };
    Fake { quiesce, _dir: dir }
}

const FROZEN: &str = "say '\"freezing\"'; say '{\"frozen\": {\"filesystems\": 2}}'";

fn frozen_agent() -> Scripted {
    let agent = Scripted::usual();
    agent.set_frozen(true);
    agent
}

#[tokio::test]
async fn a_guard_that_dies_before_freezing_touched_nothing() {
    let agent = frozen_agent();
    for script in ["exit 1", "kill -9 $$", "say nonsense; sleep 60", "say '{\"thawed\": 1}'; sleep 60", "exec sleep 60"]
    {
        let error = fake(&agent, script).quiesce.freeze().await.unwrap_err();
        assert!(matches!(error.kind(), Kind::Gone | Kind::Io), "{script}: {}", chain(&error));
        assert!(agent.is_frozen(), "{script}: what somebody else froze stays so");
    }
    let nothing = Quiesce { agent: agent.path().to_owned(), program: "/nonexistent/pullfs".into(), limits: LIMITS };
    let error = chain(&nothing.freeze().await.unwrap_err());
    assert!(error.starts_with("cannot quiesce the guest: cannot start /nonexistent/pullfs"), "{error}");
}

#[tokio::test]
async fn what_the_guard_says_is_what_the_user_gets() {
    let agent = frozen_agent();
    let guard = fake(&agent, "say '{\"failed\": {\"cause\": \"busy\", \"why\": \"by somebody else\"}}'");
    let error = guard.quiesce.freeze().await.unwrap_err();
    assert_eq!((error.kind(), chain(&error)), (Kind::Busy, "cannot quiesce the guest: by somebody else".to_owned()));
    assert!(agent.is_frozen());
}

#[tokio::test]
async fn a_guard_that_dies_while_freezing_is_thawed_after() {
    for script in [
        "kill -9 $$",
        "exec sleep 60",
        "say '\"freezing\"'; sleep 60",
        "say \"$(head -c 40000 /dev/zero | tr '\\0' x)\"",
    ] {
        let agent = frozen_agent();
        let error = fake(&agent, &format!("say '\"freezing\"'\n{script}")).quiesce.freeze().await.unwrap_err();
        assert!(matches!(error.kind(), Kind::Gone | Kind::Io), "{script}: {}", chain(&error));
        assert!(!agent.is_frozen(), "{script}");
    }
}

#[tokio::test]
async fn a_guard_that_dies_while_frozen_is_replaced_at_once() {
    let agent = frozen_agent();
    let guard = fake(&agent, &format!("{FROZEN}\nexec sleep 60"));
    let frozen = guard.quiesce.freeze().await.unwrap();
    assert_eq!(frozen.filesystems(), FILESYSTEMS);
    let pid = rustix::process::Pid::from_raw(i32::try_from(frozen.guard()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let began = Clock::now();
    // Nobody asks: the transaction may take its time.
    while agent.is_frozen() {
        assert!(began.elapsed() < Duration::from_secs(5));
        sleep(Duration::from_millis(5)).await;
    }
    let error = frozen.thaw().await.unwrap_err();
    assert!(chain(&error).contains("before the point in time was complete"), "{}", chain(&error));
}

#[tokio::test]
async fn a_guard_that_hangs_is_replaced_too() {
    let agent = frozen_agent();
    // It leaves its limit pass.
    let frozen = fake(&agent, &format!("{FROZEN}\nexec sleep 60")).quiesce.freeze().await.unwrap();
    let began = Clock::now();
    while agent.is_frozen() {
        assert!(began.elapsed() < Duration::from_secs(10));
        sleep(Duration::from_millis(5)).await;
    }
    assert!(frozen.thaw().await.is_err());

    // It dies of being asked: everything was frozen until then, and that is what counts.
    agent.set_frozen(true);
    let frozen = fake(&agent, &format!("{FROZEN}\nread word; exit 1")).quiesce.freeze().await.unwrap();
    frozen.thaw().await.unwrap();
    assert!(!agent.is_frozen());
}

#[tokio::test]
async fn what_was_thawed_before_is_not_quiesced() {
    let agent = Scripted::usual();
    for told in ["{\"filesystems\": 1, \"early\": null}", "{\"filesystems\": 2, \"early\": \"the limit passed\"}"] {
        let guard = fake(&agent, &format!("{FROZEN}\nread word; say '{{\"thawed\": {told}}}'"));
        let error = guard.quiesce.freeze().await.unwrap().thaw().await.unwrap_err();
        assert!(chain(&error).contains("not quiesced"), "{}", chain(&error));
    }
    let guard = fake(&agent, &format!("{FROZEN}\nread word; say '{{\"thawed\": {{\"filesystems\": 2}}}}'"));
    guard.quiesce.freeze().await.unwrap().thaw().await.unwrap();
}

#[tokio::test]
async fn who_drops_it_thaws() {
    let agent = Scripted::usual();
    let dir = tempfile::tempdir().unwrap();
    let note = dir.path().join("note");
    // A guard sees the end of its socket when it is dropped, and when freezing is given up.
    let script = format!("{FROZEN}\nread word || echo closed >{}", note.display());
    let closed = || std::fs::read_to_string(&note).is_ok_and(|text| text == "closed\n");
    drop(fake(&agent, &script).quiesce.freeze().await.unwrap());
    let began = Clock::now();
    while !closed() {
        assert!(began.elapsed() < Duration::from_secs(5));
        sleep(Duration::from_millis(5)).await;
    }
    std::fs::remove_file(&note).unwrap();
    let guard = fake(&agent, &format!("sleep 0.2\n{script}"));
    assert!(timeout(Duration::from_millis(20), guard.quiesce.freeze()).await.is_err());
    let began = Clock::now();
    while !closed() {
        assert!(began.elapsed() < Duration::from_secs(5));
        sleep(Duration::from_millis(5)).await;
    }
}
