//! A guard's life, played by the daemon's end of its socket and by the agent.

use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::*;
use crate::quiesce::report;
use crate::quiesce::testing::{Act, FILESYSTEMS, Scripted};

const LIMITS: Limits = Limits {
    answer: Duration::from_millis(600),
    freeze: Duration::from_millis(600),
    hold: Duration::from_secs(1),
    patience: Duration::from_secs(20),
};

/// More than anything takes here on a busy machine.
const SOON: Duration = Duration::from_secs(10);

/// The daemon's end of a guard that runs, and how to tell it to end.
fn guard(agent: &Scripted) -> (Lines, oneshot::Sender<()>, tokio::task::JoinHandle<()>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (tell, told) = oneshot::channel();
    let path = agent.path().to_owned();
    let life = tokio::spawn(async move {
        // A sender that is dropped tells nothing.
        let told = async {
            if told.await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        serve(&path, Lines::new(theirs), LIMITS, told).await;
    });
    (Lines::new(ours), tell, life)
}

/// The next report, but for the one that thawing begins.
async fn hear(daemon: &mut Lines) -> Report {
    loop {
        let report = tokio::time::timeout(SOON, Report::receive(daemon)).await.expect("a report").unwrap();
        if report != Report::Thawing {
            return report;
        }
    }
}

async fn until_frozen(daemon: &mut Lines) {
    assert_eq!(hear(daemon).await, Report::Freezing);
    assert!(matches!(hear(daemon).await, Report::Frozen { filesystems: FILESYSTEMS, .. }));
}

#[tokio::test]
async fn it_freezes_and_thaws_when_asked() {
    let agent = Scripted::greeting(b"{\"return\": 7}\n", |_, _| Act::Usual);
    let (mut daemon, _tell, life) = guard(&agent);
    until_frozen(&mut daemon).await;
    assert!(agent.is_frozen());
    daemon.write(&[report::THAW, b"\n"].concat()).await.unwrap();
    let Report::Thawed { filesystems: FILESYSTEMS, early: None, frozen } = hear(&mut daemon).await else { panic!() };
    assert!(!agent.is_frozen());
    assert!(frozen >= agent.frozen_for().unwrap(), "no less than it was");
    life.await.unwrap();
}

#[tokio::test]
async fn it_thaws_when_the_daemon_is_gone() {
    let agent = Scripted::usual();
    let (mut daemon, _tell, life) = guard(&agent);
    until_frozen(&mut daemon).await;
    drop(daemon);
    life.await.unwrap();
    assert!(!agent.is_frozen());
    assert!(agent.frozen_for().unwrap() < LIMITS.hold);
}

#[tokio::test]
async fn it_thaws_by_itself_and_says_so() {
    let agent = Scripted::usual();
    let (mut daemon, tell, _life) = guard(&agent);
    until_frozen(&mut daemon).await;
    let Report::Thawed { filesystems: FILESYSTEMS, early: Some(why), .. } = hear(&mut daemon).await else { panic!() };
    assert!(why.contains("limit"), "{why}");
    assert!(agent.frozen_for().unwrap() >= LIMITS.hold);
    drop(tell);

    let (mut daemon, tell, _life) = guard(&agent);
    until_frozen(&mut daemon).await;
    tell.send(()).unwrap();
    let Report::Thawed { early: Some(why), .. } = hear(&mut daemon).await else { panic!() };
    assert!(why.contains("told to end"), "{why}");
    assert!(!agent.is_frozen());
}

#[tokio::test]
async fn a_daemon_that_goes_before_the_freeze_prevents_it() {
    let agent = Scripted::new(|command, _| match command {
        "guest-fsfreeze-status" => Act::Late(LIMITS.answer / 2),
        _ => Act::Usual,
    });
    let (daemon, _tell, life) = guard(&agent);
    drop(daemon);
    life.await.unwrap();
    assert!(!agent.commands().iter().any(|command| command == FREEZE));
}

#[tokio::test]
async fn what_somebody_else_froze_stays_frozen() {
    let agent = Scripted::usual();
    agent.set_frozen(true);
    let (mut daemon, _tell, life) = guard(&agent);
    let Report::Failed { cause: report::Cause::Busy, why } = hear(&mut daemon).await else { panic!() };
    assert!(why.contains("somebody else"), "{why}");
    life.await.unwrap();
    assert!(agent.is_frozen());
}

#[tokio::test]
async fn a_freeze_that_hangs_is_thawed_when_it_comes_back() {
    let agent = Scripted::new(|command, before| match (command, before) {
        ("guest-fsfreeze-freeze", 0) => Act::Late(5 * LIMITS.freeze),
        _ => Act::Usual,
    });
    let (mut daemon, _tell, life) = guard(&agent);
    let began = Instant::now();
    assert_eq!(hear(&mut daemon).await, Report::Freezing);
    let Report::Failed { cause: report::Cause::Timeout, why } = hear(&mut daemon).await else { panic!() };
    assert!(began.elapsed() < 5 * LIMITS.freeze, "told before the agent came back");
    assert!(why.contains("may still be frozen"), "{why}");
    life.await.unwrap();
    assert!(!agent.is_frozen());
    assert!(agent.frozen_for().is_some(), "it was frozen late, and thawed");
}

#[tokio::test]
async fn a_guard_that_dies_while_the_freeze_hangs_leaves_a_thaw_behind_it() {
    let agent = Scripted::new(|command, before| match (command, before) {
        ("guest-fsfreeze-freeze", 0) => Act::Late(5 * LIMITS.freeze),
        _ => Act::Usual,
    });
    let (mut daemon, _tell, life) = guard(&agent);
    assert_eq!(hear(&mut daemon).await, Report::Freezing);
    tokio::time::sleep(2 * LIMITS.freeze).await;
    // As a kill would: nothing of it runs any more, and its sockets are closed.
    life.abort();
    drop(daemon);
    tokio::task::spawn_blocking(move || {
        let end = Instant::now() + SOON;
        while agent.frozen_for().is_none() {
            assert!(Instant::now() < end, "{:?}", agent.commands());
            std::thread::sleep(Duration::from_millis(5));
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_freeze_that_fails_is_thawed_too() {
    for act in [Act::Refuse("GenericError", "failed to freeze /srv"), Act::HangUp, Act::Send(b"nonsense\n".to_vec())] {
        let shown = format!("{act:?}");
        let mut act = Some(act);
        let agent = Scripted::new(move |command, _| match command {
            "guest-fsfreeze-freeze" => act.take().unwrap_or(Act::Usual),
            _ => Act::Usual,
        });
        let (mut daemon, _tell, life) = guard(&agent);
        assert_eq!(hear(&mut daemon).await, Report::Freezing);
        let Report::Failed { why, .. } = hear(&mut daemon).await else { panic!("{shown}") };
        assert!(!why.contains("may still"), "{shown}: {why}");
        life.await.unwrap();
        assert!(!agent.is_frozen(), "{shown}");
        assert!(agent.commands().iter().any(|command| command == THAW), "{shown}");
    }
}

#[tokio::test]
async fn what_cannot_be_frozen_is_said() {
    let refused = || Act::Refuse("CommandNotFound", "disabled");
    let none = || Act::Send(b"{\"return\": 0}\n".to_vec());
    for (act, word) in [(refused as fn() -> Act, "does not allow"), (none, "no file system")] {
        let agent = Scripted::new(move |command, _| match command {
            "guest-fsfreeze-freeze" => act(),
            _ => Act::Usual,
        });
        let (mut daemon, _tell, life) = guard(&agent);
        assert_eq!(hear(&mut daemon).await, Report::Freezing);
        let Report::Failed { cause: report::Cause::Unsupported, why } = hear(&mut daemon).await else { panic!() };
        assert!(why.contains(word), "{why}");
        life.await.unwrap();
    }
}

#[tokio::test]
async fn a_thaw_that_fails_is_tried_until_it_works() {
    let acts: [fn() -> Act; 4] = [
        || Act::Refuse("GenericError", "no memory"),
        || Act::Send(b"]\n".to_vec()),
        || Act::Send(Vec::new()),
        || Act::Late(2 * LIMITS.answer),
    ];
    let agent = Scripted::new(move |command, before| match command {
        "guest-fsfreeze-thaw" if before < acts.len() => acts[before](),
        _ => Act::Usual,
    });
    let (mut daemon, _tell, life) = guard(&agent);
    until_frozen(&mut daemon).await;
    daemon.write(&[report::THAW, b"\n"].concat()).await.unwrap();
    let Report::Failed { why, .. } = hear(&mut daemon).await else { panic!() };
    assert!(why.contains("could not be thawed at once"), "{why}");
    life.await.unwrap();
    assert!(!agent.is_frozen());
}

#[tokio::test]
async fn a_machine_that_ended_needs_no_thawing() {
    let agent = Scripted::new(|command, _| match command {
        "guest-fsfreeze-thaw" => Act::HangUp,
        _ => Act::Usual,
    });
    let (mut daemon, _tell, life) = guard(&agent);
    until_frozen(&mut daemon).await;
    // Takes the socket away; the connection stays.
    std::fs::remove_file(agent.path()).unwrap();
    daemon.write(&[report::THAW, b"\n"].concat()).await.unwrap();
    let began = Instant::now();
    life.await.unwrap();
    assert!(began.elapsed() < SOON, "it does not go on until its patience ends");
}
