//! Over TCP.

use nbd_pool::testing::pki::Authority;
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::error::chain;

async fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let source = format!("qmp:{}", listener.local_addr().unwrap());
    (listener, source)
}

fn plain(source: &str) -> Monitor {
    Monitor::new(source.parse().unwrap(), None, true).unwrap()
}

/// Greets, takes the negotiation, and answers one command.
async fn serve(stream: TcpStream) -> Value {
    let mut stream = BufReader::new(stream);
    stream.get_mut().write_all(GREETING).await.unwrap();
    let mut line = String::new();
    stream.read_line(&mut line).await.unwrap();
    stream.get_mut().write_all(b"{\"return\": {}}\n").await.unwrap();
    line.clear();
    stream.read_line(&mut line).await.unwrap();
    let command: Value = serde_json::from_str(&line).unwrap();
    let answer = json!({"return": 5, "id": command["id"]});
    stream.get_mut().write_all(format!("{answer}\n").as_bytes()).await.unwrap();
    // Until the other side hangs up.
    stream.read_line(&mut line).await.ok();
    command
}

#[tokio::test]
async fn commands_travel_and_descriptors_do_not() {
    let (listener, source) = listener().await;
    let server = tokio::spawn(async move { serve(listener.accept().await.unwrap().0).await });
    let qmp = Qmp::connect(&plain(&source)).await.unwrap();
    assert!(!qmp.passes_descriptors());
    assert_eq!(qmp.execute("one", json!({})).await.unwrap(), json!(5));
    let file = OwnedFd::from(tempfile::tempfile().unwrap());
    let error = qmp.execute_with("add-fd", json!({}), file).await.unwrap_err();
    assert!(chain(&error).contains("no descriptor travels over TCP"), "{}", chain(&error));
    assert_eq!(server.await.unwrap()["execute"], "one");
}

#[tokio::test]
async fn plain_text_is_not_taken_for_tls() {
    let dir = tempfile::tempdir().unwrap();
    Authority::new("CA").client(dir.path()).unwrap();
    let (listener, source) = listener().await;
    // Greets as QEMU does, and would be content with plain text.
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(GREETING).await.unwrap();
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).await.ok();
        heard
    });
    let monitor = Monitor::new(source.parse().unwrap(), Some(dir.path()), true).unwrap();
    let error = Qmp::connect(&monitor).await.err().unwrap();
    assert_eq!(error.kind(), Kind::Gone);
    assert!(chain(&error).contains("does not speak TLS"), "{}", chain(&error));
    let heard = server.await.unwrap();
    assert!(!heard.windows(4).any(|bytes| bytes == b"qmp_"), "nothing of QMP was said in plain text");
}

#[tokio::test(start_paused = true)]
async fn a_silent_port_may_wait_for_tls() {
    let (_listener, source) = listener().await;
    let error = Qmp::connect(&plain(&source)).await.err().unwrap();
    assert_eq!(error.kind(), Kind::Busy);
    assert!(error.to_string().contains("tls=") && error.to_string().contains(&source), "{error}");
}

#[tokio::test]
async fn a_port_where_nobody_listens_is_gone() {
    let (free, source) = listener().await;
    drop(free);
    let error = Qmp::connect(&plain(&source)).await.err().unwrap();
    assert_eq!(error.kind(), Kind::Gone);
    assert!(error.to_string().contains("nobody listens there"), "{error}");
}
