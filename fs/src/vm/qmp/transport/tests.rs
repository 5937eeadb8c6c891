//! The transport against a scripted QEMU. TLS is shown by real ones (`tests/tests/it/tls.rs`).

mod tcp;

use std::path::Path;

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use super::*;

const GREETING: &[u8] = b"{\"QMP\": {\"version\": {}, \"capabilities\": []}}\n";

struct Script {
    listener: UnixListener,
    monitor: Monitor,
    _dir: TempDir,
}

/// The server's end of one connection.
struct Peer(BufReader<UnixStream>);

impl Script {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qmp");
        Self { listener: UnixListener::bind(&path).unwrap(), monitor: Monitor::unix(&path), _dir: dir }
    }

    /// Accepts, greets and negotiates.
    async fn accept(&self) -> Peer {
        let mut peer = Peer(BufReader::new(self.listener.accept().await.unwrap().0));
        peer.send(GREETING).await;
        let command = peer.command().await;
        assert_eq!(command["execute"], "qmp_capabilities");
        peer.send(b"{\"return\": {}}\r\n").await;
        peer
    }

    async fn connected(&self) -> (Qmp, Peer) {
        let (qmp, peer) = tokio::join!(Qmp::connect(&self.monitor), self.accept());
        (qmp.unwrap(), peer)
    }
}

impl Peer {
    async fn send(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).await.unwrap();
    }

    async fn command(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).await.unwrap();
        serde_json::from_str(&line).unwrap()
    }

    async fn answer(&mut self, command: &Value, value: &Value) {
        self.send(format!("{}\n", json!({"return": value, "id": command["id"]})).as_bytes()).await;
    }
}

#[tokio::test]
async fn answers_find_those_who_asked_in_any_order() {
    let script = Script::new();
    let (qmp, mut peer) = script.connected().await;
    let server = async {
        let (one, two) = (peer.command().await, peer.command().await);
        let (one, two) = if one["execute"] == "one" { (one, two) } else { (two, one) };
        peer.answer(&two, &json!(2)).await;
        peer.send(b"{\"event\": \"BRAND_NEW\", \"data\": {\"x\": 1}, \"timestamp\": {}}\n").await;
        peer.send(b"{\"return\": \"nobody asked\", \"id\": 999}\n").await;
        // An answer may come in pieces.
        let answer = json!({"return": 1, "id": one["id"]}).to_string();
        let (head, tail) = answer.split_at(5);
        peer.send(head.as_bytes()).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
        peer.send(format!("{tail}\n").as_bytes()).await;
    };
    let mut messages = qmp.messages();
    let (one, two, ()) = tokio::join!(qmp.execute("one", json!({})), qmp.execute("two", json!({})), server);
    assert_eq!((one.unwrap(), two.unwrap()), (json!(1), json!(2)));
    match messages.recv().await.unwrap() {
        Message::Event { name, data } => assert_eq!((name.as_str(), data), ("BRAND_NEW", json!({"x": 1}))),
        other @ Message::Disconnected(_) => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_refusal_is_told_apart_from_a_failure() {
    let script = Script::new();
    let (qmp, mut peer) = script.connected().await;
    let server = async {
        let command = peer.command().await;
        let error = json!({"error": {"class": "GenericError", "desc": "no such node"}, "id": command["id"]});
        peer.send(format!("{error}\n").as_bytes()).await;
    };
    let (outcome, ()) = tokio::join!(qmp.execute("blockdev-del", json!({})), server);
    let error = outcome.unwrap_err();
    assert_eq!(refused(&error).unwrap().description, "no such node");
    assert_eq!(crate::error::chain(&error), "QMP command blockdev-del failed: QEMU refused: no such node");
}

#[tokio::test]
async fn whoever_gives_up_harms_nobody() {
    let script = Script::new();
    let (qmp, mut peer) = script.connected().await;
    let slow = tokio::time::timeout(Duration::from_millis(20), qmp.execute("slow", json!({}))).await;
    assert!(slow.is_err());
    let server = async {
        let slow = peer.command().await;
        peer.answer(&slow, &json!("too late")).await;
        let next = peer.command().await;
        peer.answer(&next, &json!("right")).await;
    };
    let (answer, ()) = tokio::join!(qmp.execute("next", json!({})), server);
    assert_eq!(answer.unwrap(), json!("right"));
}

#[tokio::test]
async fn nobody_waits_long_behind_an_overdue_answer() {
    let script = Script::new();
    let (qmp, mut peer) = script.connected().await;
    // From here on nothing is said, so that only the clock can end a wait.
    tokio::time::pause();
    let began = Instant::now();
    for limit in [COMMAND_LIMIT, COMMAND_LIMIT + OVERDUE_LIMIT] {
        assert_eq!(qmp.execute("hangs", json!({})).await.unwrap_err().kind(), Kind::Timeout);
        assert!(began.elapsed() >= limit && began.elapsed() < limit + Duration::from_secs(1), "{:?}", began.elapsed());
    }
    tokio::time::resume();
    let server = async {
        for _ in 0..3 {
            let command = peer.command().await;
            peer.answer(&command, &json!("at last")).await;
        }
    };
    let (answer, ()) = tokio::join!(qmp.execute("next", json!({})), server);
    assert_eq!(answer.unwrap(), json!("at last"));
    assert!(!qmp.overdue.load(Ordering::Relaxed));
}

#[tokio::test]
async fn the_time_of_a_command_begins_when_those_before_it_are_done() {
    let script = Script::new();
    let (qmp, mut peer) = script.connected().await;
    tokio::time::pause();
    let began = Instant::now();
    let server = async {
        let commands = [peer.command().await, peer.command().await, peer.command().await];
        for command in &commands {
            // Each takes long, and all of them longer than one may.
            tokio::time::sleep(COMMAND_LIMIT * 2 / 3).await;
            peer.answer(command, &json!({})).await;
        }
        // Nothing is said of the fourth.
        let _heard = peer.command().await;
        std::future::pending::<()>().await;
    };
    let run = || qmp.execute("waits", json!({}));
    let client = async {
        let done = tokio::join!(run(), run(), run());
        assert!(done.0.is_ok() && done.1.is_ok() && done.2.is_ok(), "{done:?}");
        assert!(began.elapsed() >= COMMAND_LIMIT * 2);
        let last = Instant::now();
        assert_eq!(run().await.unwrap_err().kind(), Kind::Timeout);
        assert!(last.elapsed() < COMMAND_LIMIT + Duration::from_secs(1), "{:?}", last.elapsed());
    };
    tokio::select! {
        () = server => unreachable!("it waits for ever"),
        () = client => {}
    }
}

#[tokio::test]
async fn what_is_not_read_is_given_up() {
    let script = Script::new();
    let (qmp, mut peer) = script.connected().await;
    tokio::time::pause();
    // More than a socket holds.
    let error = qmp.execute("x", json!({"long": "x".repeat(4 << 20)})).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Timeout);
    // The next one finds no connection and nobody who greets: nothing may follow half a line.
    assert!(qmp.execute("y", json!({})).await.is_err());
    tokio::time::resume();
    let mut sent = Vec::new();
    peer.0.read_to_end(&mut sent).await.unwrap();
    assert!(!sent.is_empty() && !sent.contains(&b'\n'));
}

#[tokio::test]
async fn the_end_of_the_stream_is_told_and_the_next_command_connects_anew() {
    let script = Script::new();
    let (qmp, mut peer) = script.connected().await;
    let mut messages = qmp.messages();
    let server = async {
        peer.command().await;
        drop(peer);
    };
    let (outcome, ()) = tokio::join!(qmp.execute("lost", json!({})), server);
    assert_eq!(outcome.unwrap_err().kind(), Kind::Gone);
    assert!(matches!(messages.recv().await.unwrap(), Message::Disconnected(_)));
    let server = async {
        let mut peer = script.accept().await;
        let command = peer.command().await;
        peer.answer(&command, &json!(7)).await;
        peer
    };
    let (answer, _peer) = tokio::join!(qmp.execute("again", json!({})), server);
    assert_eq!(answer.unwrap(), json!(7));
}

#[tokio::test]
async fn a_machine_has_ended_when_nobody_listens_and_not_when_it_hangs_up() {
    let script = Script::new();
    let (qmp, mut peer) = script.connected().await;
    let server = async {
        peer.command().await;
        drop(peer);
    };
    let (outcome, ()) = tokio::join!(qmp.execute("lost", json!({})), server);
    assert!(!has_ended(&outcome.unwrap_err()));
    drop(script.listener);
    assert!(has_ended(&qmp.execute("again", json!({})).await.unwrap_err()));
}

#[tokio::test]
async fn nonsense_ends_the_connection() {
    for nonsense in [&b"this is not JSON\n"[..], b"{\"return\": \n", b"\xff\xfe\n"] {
        let script = Script::new();
        let (qmp, mut peer) = script.connected().await;
        let server = async {
            peer.command().await;
            peer.send(nonsense).await;
            let mut rest = Vec::new();
            // The other side hangs up.
            peer.0.read_to_end(&mut rest).await.ok();
        };
        let (outcome, ()) = tokio::join!(qmp.execute("x", json!({})), server);
        assert_eq!(outcome.unwrap_err().kind(), Kind::Gone);
    }
}

#[tokio::test]
async fn what_greets_otherwise_is_no_qmp_socket() {
    let script = Script::new();
    let server = async {
        let mut stream = script.listener.accept().await.unwrap().0;
        stream.write_all(b"{\"hello\": 1}\n").await.unwrap();
        stream
    };
    let (outcome, _stream) = tokio::join!(Qmp::connect(&script.monitor), server);
    assert!(crate::error::chain(&outcome.err().unwrap()).contains("does not speak QMP"));
}

#[tokio::test(start_paused = true)]
async fn a_socket_in_use_is_named_for_what_it_is() {
    let script = Script::new();
    let began = std::time::Instant::now();
    let error = Qmp::connect(&script.monitor).await.err().unwrap();
    assert_eq!(error.kind(), Kind::Busy);
    assert!(error.to_string().contains("one client per QMP socket"), "{error}");
    assert!(began.elapsed() < GREETING_LIMIT, "virtual time");
}

#[tokio::test]
async fn a_missing_socket_is_gone_at_once() {
    let error = Qmp::connect(&Monitor::unix(Path::new("/nonexistent/qmp"))).await.err().unwrap();
    assert_eq!(error.kind(), Kind::Gone);
    assert!(error.to_string().contains("no such socket"));
    assert!(has_ended(&error));
}
