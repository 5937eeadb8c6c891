//! A session of pullfs with a real QEMU, recorded once, and a server that plays it again up to where it turns hostile.
//!
//! A line that begins with `>` is what pullfs sent, one with `<` what QEMU did: connecting, a point in time with a new
//! checkpoint, its release, the deletion of the checkpoint. The schema and the list of commands are cut down to what is
//! asked of them. The mount id that was recorded stands for that of the mount.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

/// The mount id of the recordings.
const RECORDED: &str = "pullfs-000000";

/// A session: its lines, with what each begins with.
#[derive(Debug)]
pub(crate) struct Session(Vec<(char, String)>);

impl Session {
    pub(crate) fn qemu_10(mount: &str) -> Self {
        Self::parse(include_str!("qemu-10.session"), mount)
    }

    pub(crate) fn qemu_7_2(mount: &str) -> Self {
        Self::parse(include_str!("qemu-7.2.session"), mount)
    }

    fn parse(text: &str, mount: &str) -> Self {
        let line = |line: &str| {
            let message: Value = serde_json::from_str(&line[2..].replace(RECORDED, mount)).expect("a recorded line");
            (line.chars().next().expect("no blank lines"), message.to_string())
        };
        Self(text.lines().map(line).collect())
    }

    /// Bytes that QEMU sent.
    pub(crate) fn bytes(&self) -> usize {
        self.said().map(|line| line.len() + 1).sum()
    }

    /// Lines that QEMU sent.
    pub(crate) fn said(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter(|(who, _)| *who == '<').map(|(_, line)| line.as_str())
    }
}

/// What the server does in place of a line of QEMU's, which it is given with its number.
#[derive(Debug)]
pub(crate) enum Act {
    /// Sends this instead, and goes on.
    Say(Vec<u8>),
    /// Sends this, closes the connection, and takes no other.
    Cut(Vec<u8>),
    /// Sends this and nothing more; the clock need not be waited for from here on.
    Mute(Vec<u8>),
}

/// A listening server.
#[derive(Debug)]
pub(crate) struct Server {
    listener: UnixListener,
    dir: TempDir,
}

impl Server {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let listener = UnixListener::bind(dir.path().join("qmp")).expect("a socket");
        for name in ["run", "scratch"] {
            std::fs::create_dir(dir.path().join(name)).expect("a directory");
        }
        Self { listener, dir }
    }

    /// A place of the mount's: `qmp`, `run`, `scratch`.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Plays a session to each client that comes; ends when it is cut.
    pub(crate) async fn play(&self, session: &Session, act: impl Fn(usize, &str) -> Act) {
        loop {
            let stream = self.listener.accept().await.expect("a client").0;
            // A client that hangs up is what is to be expected.
            if let Ok(true) = converse(stream, session, &act, &self.path("qmp")).await {
                return;
            }
        }
    }
}

/// Whether it was cut.
async fn converse(
    stream: UnixStream,
    session: &Session,
    act: impl Fn(usize, &str) -> Act,
    socket: &Path,
) -> std::io::Result<bool> {
    let mut stream = BufReader::new(stream);
    let (mut said, mut id) = (0, Value::Null);
    for (who, line) in &session.0 {
        if *who == '>' {
            let Some(command) = command(&mut stream).await? else { return Ok(false) };
            id = command["id"].clone();
            let expected: Value = serde_json::from_str(line).expect("a recorded command");
            if command["execute"] != expected["execute"] {
                return improvise(stream, command).await;
            }
            continue;
        }
        let mut line: Value = serde_json::from_str(line).expect("a recorded line");
        // After a reconnect the ids are others.
        if line.get("id").is_some() {
            line["id"] = id.clone();
        }
        match act(said, &line.to_string()) {
            Act::Say(bytes) => stream.write_all(&bytes).await?,
            Act::Cut(bytes) => {
                // Whoever comes from now on finds nobody.
                std::fs::remove_file(socket)?;
                stream.write_all(&bytes).await?;
                return Ok(true);
            }
            Act::Mute(bytes) => {
                stream.write_all(&bytes).await?;
                tokio::time::pause();
                std::future::pending::<()>().await;
            }
        }
        said += 1;
    }
    match command(&mut stream).await? {
        Some(command) => improvise(stream, command).await,
        None => Ok(false),
    }
}

/// Answers what was never asked in the recording: there is nothing of anything, and nothing can be done.
async fn improvise(mut stream: BufReader<UnixStream>, mut next: Value) -> std::io::Result<bool> {
    loop {
        let refused = json!({"class": "GenericError", "desc": "this is not as it was recorded"});
        let answer = match next["execute"].as_str() {
            Some(query) if query.starts_with("query-") => json!({"return": [], "id": next["id"]}),
            _ => json!({"error": refused, "id": next["id"]}),
        };
        stream.write_all(format!("{answer}\n").as_bytes()).await?;
        next = match command(&mut stream).await? {
            Some(command) => command,
            None => return Ok(false),
        };
    }
}

async fn command(stream: &mut BufReader<UnixStream>) -> std::io::Result<Option<Value>> {
    let mut line = String::new();
    if stream.read_line(&mut line).await? == 0 {
        return Ok(None);
    }
    Ok(Some(serde_json::from_str(&line).expect("pullfs sends JSON")))
}
