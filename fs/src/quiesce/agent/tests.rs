//! The client against an agent that does not do what it should.

use super::*;
use crate::error::chain;
use crate::quiesce::testing::{Act, Scripted};

const LIMIT: Duration = Duration::from_millis(300);

async fn open(agent: &Scripted) -> Agent {
    Agent::open(agent.path(), LIMIT).await.unwrap()
}

#[tokio::test]
async fn what_was_left_in_the_line_is_dropped() {
    let greetings: [&[u8]; 5] = [
        b"",
        b"{\"return\": \"frozen\"}\n{\"ret",
        b"\xff{\"return\": 17}\n\xff\xff",
        b"\xff\x00\xfe garbage \xff{\"return\": {}}\n",
        Box::leak(vec![b'x'; 70_000].into_boxed_slice()),
    ];
    for greeting in greetings {
        let script = Scripted::greeting(greeting, |_, _| Act::Usual);
        assert!(!open(&script).await.is_frozen(LIMIT).await.unwrap(), "{greeting:?}");
    }
}

#[tokio::test]
async fn a_late_answer_is_not_taken_for_the_next() {
    let script = Scripted::new(|command, before| match (command, before) {
        ("guest-fsfreeze-freeze", 0) => Act::Late(2 * LIMIT),
        _ => Act::Usual,
    });
    let mut agent = open(&script).await;
    assert_eq!(agent.freeze(LIMIT).await.unwrap_err().kind(), Kind::Timeout);
    assert!(agent.is_frozen(10 * LIMIT).await.unwrap(), "not the number of file systems");
    assert_eq!(agent.thaw(LIMIT).await.unwrap(), 2);
}

#[tokio::test]
async fn who_gives_up_finds_the_line_in_order() {
    let script = Scripted::new(|command, before| match (command, before) {
        ("guest-fsfreeze-freeze", 0) => Act::Late(LIMIT / 2),
        _ => Act::Usual,
    });
    let mut agent = open(&script).await;
    assert!(!agent.is_frozen(LIMIT).await.unwrap());
    timeout(LIMIT / 10, agent.freeze(LIMIT)).await.unwrap_err();
    assert_eq!(agent.thaw(4 * LIMIT).await.unwrap(), 2);
}

#[tokio::test]
async fn an_agent_that_is_not_there_is_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("none");
    let error = Agent::open(&path, LIMIT).await.err().unwrap();
    assert_eq!(error.kind(), Kind::Gone);
    assert!(error.to_string().contains("no such socket"), "{error}");

    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let error = Agent::open(&path, LIMIT).await.err().unwrap();
    assert_eq!(error.kind(), Kind::Gone);
    assert!(error.to_string().contains("does the machine run"), "{error}");

    // Connected to, and never served: another client has it, or nothing runs in the guest.
    let script = Scripted::usual();
    let mut first = open(&script).await;
    first.is_frozen(LIMIT).await.unwrap();
    let error = open(&script).await.is_frozen(LIMIT).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Timeout);
    for word in ["not installed", "another client"] {
        assert!(error.to_string().contains(word), "{error}");
    }
}

#[tokio::test]
async fn refusals_are_told_apart_and_cleaned() {
    let script = Scripted::new(|command, _| match command {
        "guest-fsfreeze-freeze" => Act::Refuse("GenericError", "failed to freeze /mnt\u{1b}[31m\nInput/output error"),
        "guest-fsfreeze-thaw" => Act::Refuse("CommandNotFound", "Command guest-fsfreeze-thaw has been disabled"),
        _ => Act::Usual,
    });
    let mut agent = open(&script).await;
    let error = agent.freeze(LIMIT).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Io);
    let expected = "guest-fsfreeze-freeze failed in the guest: failed to freeze /mnt [31m Input/output error";
    assert_eq!(chain(&error), expected);
    let error = agent.thaw(LIMIT).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported);
    assert!(!agent.is_frozen(LIMIT).await.unwrap(), "the connection goes on");
}

#[tokio::test]
async fn commands_that_are_not_allowed_are_found_before() {
    let info = br#"{"return": {"supported_commands": [{"name": "guest-fsfreeze-freeze", "enabled": true},
        {"name": "guest-fsfreeze-thaw", "enabled": false}]}}"#;
    let line = [&info.iter().map(|&byte| if byte == b'\n' { b' ' } else { byte }).collect::<Vec<u8>>()[..], b"\n"];
    for answer in [line.concat(), b"{\"return\": {}}\n".to_vec(), b"{\"return\": []}\n".to_vec()] {
        let script = Scripted::new(move |command, _| match command {
            "guest-info" => Act::Send(answer.clone()),
            _ => Act::Usual,
        });
        let mut agent = open(&script).await;
        let error = agent.require(&[FREEZE, THAW], LIMIT).await.unwrap_err();
        let named = error.kind() == Kind::Unsupported && error.to_string().contains("guest-fsfreeze-thaw");
        assert!(named || error.kind() == Kind::Invalid, "{error}");
    }
    open(&Scripted::usual()).await.require(&[FREEZE, THAW], LIMIT).await.unwrap();
}

#[tokio::test]
async fn answers_without_bounds_or_sense_are_errors() {
    let answers = [
        (vec![b'x'; MAX_ANSWER + 4096], Kind::Gone),
        (b"this is not JSON\n".to_vec(), Kind::Invalid),
        (b"{\"return\": 3\n".to_vec(), Kind::Invalid),
        (b"{\"return\": \"melted\"}\n".to_vec(), Kind::Invalid),
        (b"{\"event\": \"NEW\"}\n[]\n{}\n".to_vec(), Kind::Timeout),
        (vec![b'['; 10_000], Kind::Timeout),
        (format!("{}\n", "[".repeat(10_000)).into_bytes(), Kind::Invalid),
        (b"{\"error\": 1}\n".to_vec(), Kind::Io),
    ];
    for (answer, kind) in answers {
        let shown = String::from_utf8_lossy(&answer[..answer.len().min(40)]).into_owned();
        let script = Scripted::new(move |command, _| match command {
            "guest-fsfreeze-status" => Act::Send(answer.clone()),
            _ => Act::Usual,
        });
        let error = open(&script).await.is_frozen(LIMIT).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{shown}: {error}");
    }
    let script = Scripted::new(|_, _| Act::HangUp);
    assert_eq!(open(&script).await.is_frozen(LIMIT).await.unwrap_err().kind(), Kind::Gone);
}
