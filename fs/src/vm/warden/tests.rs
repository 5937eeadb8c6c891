//! A warden, with machines that are silent, slow or late.

use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixListener;
use tokio::time::timeout;

use super::*;
use crate::vm::qmp::monitor::Monitor;
use crate::vm::qmp::session::Session;
use crate::vm::qmp::transport::Qmp;

/// A QEMU that answers `{}` to all commands but `silent`, and to none after it; the commands that it got.
async fn qemu(listener: UnixListener, silent: &'static str, heard: mpsc::Sender<String>) {
    let (stream, _) = listener.accept().await.unwrap();
    let (reader, mut writer) = stream.into_split();
    let mut lines = BufReader::new(reader).lines();
    writer.write_all(b"{\"QMP\": {}}\n").await.unwrap();
    let mut mute = false;
    while let Some(line) = lines.next_line().await.unwrap() {
        let command: Value = serde_json::from_str(&line).unwrap();
        let name = command["execute"].as_str().unwrap();
        heard.send(name.to_owned()).await.unwrap();
        mute |= name == silent;
        if !mute {
            let answer =
                json!({"return": if name == "query-block" { json!([]) } else { json!({}) }, "id": command["id"]});
            writer.write_all(format!("{answer}\n").as_bytes()).await.unwrap();
        }
    }
}

async fn watched(silent: &'static str) -> (Warden, broadcast::Receiver<Event>, mpsc::Receiver<String>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("qmp");
    let (tell, mut heard) = mpsc::channel(64);
    tokio::spawn(qemu(UnixListener::bind(&path).unwrap(), silent, tell));
    let qmp = Qmp::connect(&Monitor::unix(&path)).await.unwrap();
    let (events, told) = broadcast::channel(4);
    let warden = Warden::start(Arc::new(Session { qmp }), events, None);
    let file = tempfile::tempfile().unwrap();
    let scratch = Arc::new(vec![ScratchFile { node: "scratch".to_owned(), file }]);
    let held = Held { number: 5, jobs: vec!["job".to_owned()], scratch };
    warden.hold(held).await.unwrap();
    assert_eq!(heard.recv().await.unwrap(), "qmp_capabilities");
    assert_eq!(heard.recv().await.unwrap(), "block-set-write-threshold", "before the guest's writes are held up");
    (warden, told, heard)
}

#[tokio::test]
async fn a_write_that_failed_lets_go_of_the_guest_at_once() {
    let (warden, mut told, mut heard) = watched("none").await;
    warden.alarm().failed().await;
    let told = timeout(SILENCE_LIMIT, told.recv()).await.expect("it is told");
    let Event::Lost { number: 5, reason: Reason::Scratch, words } = told.unwrap() else { panic!("it is given up") };
    assert!(words.contains("scratch space"), "{words}");
    loop {
        let command = timeout(SILENCE_LIMIT, heard.recv()).await.expect("the jobs are cancelled").unwrap();
        if command == "job-cancel" {
            break;
        }
        assert!(command.starts_with("query-"), "{command} comes before the guest");
    }
}

#[tokio::test(start_paused = true)]
async fn a_qemu_that_is_silent_loses_its_clients() {
    let began = Instant::now();
    let (_warden, mut told, _heard) = watched("query-migrate").await;
    let Event::Lost { number: 5, reason: Reason::Silent, words } = told.recv().await.unwrap() else {
        panic!("it is given up")
    };
    assert!(words.contains("did not answer"), "{words}");
    assert!(began.elapsed() < 2 * SILENCE_LIMIT, "before the command's own limit");
}

/// Says what it is asked for, and answers to so many marks alone.
struct Hearing(mpsc::Sender<&'static str>, AtomicU32);

#[async_trait]
impl Guest for Hearing {
    async fn warn_beyond(&self, _: &str, _: u64) -> Result<bool> {
        if self.1.fetch_sub(1, Ordering::Relaxed) == 0 {
            self.0.send("asked").await.unwrap();
            std::future::pending::<()>().await;
        }
        Ok(true)
    }

    async fn migrates(&self) -> Result<bool> {
        Ok(false)
    }

    async fn let_go(&self, _: &[String]) -> Result<bool> {
        self.0.send("let go").await.unwrap();
        Ok(false)
    }

    async fn go_on(&self) -> Result<bool> {
        self.0.send("go on").await.unwrap();
        Ok(true)
    }
}

async fn next(heard: &mut mpsc::Receiver<&'static str>) -> &'static str {
    timeout(SILENCE_LIMIT, heard.recv()).await.expect("it is asked for something").expect("it lives")
}

#[tokio::test(start_paused = true)]
async fn a_guest_whose_stop_is_heard_of_late_goes_on() {
    let (events, _told) = broadcast::channel(4);
    let (tell, mut heard) = mpsc::channel(4);
    let warden = Warden::start(Arc::new(Hearing(tell, AtomicU32::new(u32::MAX))), events, None);
    warden.alarm().failed().await;
    let held = || {
        let scratch = ScratchFile { node: "scratch".to_owned(), file: tempfile::tempfile().unwrap() };
        Held { number: 5, jobs: Vec::new(), scratch: Arc::new(vec![scratch]) }
    };
    warden.hold(held()).await.unwrap();
    warden.alarm().failed().await;
    warden.alarm().failed().await;
    assert_eq!(next(&mut heard).await, "let go", "what happened before was not because of this");
    assert_eq!(next(&mut heard).await, "go on");
    warden.hold(held()).await.unwrap();
    warden.end().await;
    warden.alarm().failed().await;
    assert_eq!(next(&mut heard).await, "go on", "it had ended in good order");
    sleep(AFTERMATH).await;
    warden.alarm().failed().await;
    warden.hold(held()).await.unwrap();
    assert!(heard.try_recv().is_err(), "somebody else's fault");
}

#[tokio::test]
async fn who_answers_late_does_not_hide_that_the_room_ends() {
    let (events, mut told) = broadcast::channel(4);
    let (tell, mut heard) = mpsc::channel(4);
    let warden = Warden::start(Arc::new(Hearing(tell, AtomicU32::new(1))), events, Some(2 * LEAST));
    let file = tempfile::tempfile().unwrap();
    let grows = file.try_clone().unwrap();
    let scratch = Arc::new(vec![ScratchFile { node: "scratch".to_owned(), file }]);
    warden.hold(Held { number: 5, jobs: Vec::new(), scratch }).await.unwrap();
    warden.alarm().grew();
    assert_eq!(next(&mut heard).await, "asked");
    let bytes = vec![7; usize::try_from(4 * LEAST).unwrap()];
    std::os::unix::fs::FileExt::write_all_at(&grows, &bytes, 0).unwrap();
    let told = timeout(SILENCE_LIMIT, told.recv()).await.expect("it is told").unwrap();
    let Event::Lost { number: 5, reason: Reason::Scratch, words } = told else { panic!("it is given up") };
    assert!(words.contains("scratch_limit="), "{words}");
    assert_eq!(next(&mut heard).await, "let go");
}
