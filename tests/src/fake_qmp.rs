//! QMP servers that are not what pullfs hopes for: scripted, one client at a time.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;

use serde_json::{Value, json};
use tempfile::TempDir;

/// What the server says.
#[derive(Clone, Copy, Debug)]
pub enum Script {
    /// Greets as this version and knows no command but the negotiation and `query-version`.
    Version(u32, u32),
    /// Says something that is not QMP.
    NotQmp,
    /// Accepts and says nothing, as QEMU does to the second client of a socket.
    Silent,
    /// Greets, and hangs up at the first command.
    HangsUp,
    /// Negotiates, and answers the first command with a line without an end.
    EndlessLine,
    /// Greets, and sends events without an end.
    Events,
    /// Answers everything with a number.
    Numbers,
}

/// A listening server; its thread ends with the process.
#[derive(Debug)]
pub struct FakeQmp {
    dir: TempDir,
}

impl FakeQmp {
    /// Listens on a socket of its own.
    pub fn start(script: Script) -> Self {
        let dir = tempfile::Builder::new().prefix("pullfs-fake-").tempdir().expect("a temporary directory");
        let listener = UnixListener::bind(dir.path().join("qmp")).expect("a socket");
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that goes is no concern of ours.
                let _ = serve(stream, script);
            }
        });
        Self { dir }
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("qmp")
    }

    /// What pullfs mounts.
    pub fn source(&self) -> String {
        format!("qmp:{}", self.socket().display())
    }

    /// A directory of its own.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

fn serve(mut stream: UnixStream, script: Script) -> std::io::Result<()> {
    let (major, minor) = match script {
        Script::Version(major, minor) => (major, minor),
        Script::NotQmp => return stream.write_all(b"220 mail.example ESMTP\r\n"),
        _ => (10, 0),
    };
    let version = json!({"qemu": {"major": major, "minor": minor, "micro": 0}, "package": ""});
    if !matches!(script, Script::Silent) {
        say(&mut stream, &json!({"QMP": {"version": version, "capabilities": ["oob"]}}))?;
    }
    for line in BufReader::new(stream.try_clone()?).lines() {
        let request: Value = serde_json::from_str(&line?).unwrap_or_default();
        match (script, request["execute"].as_str()) {
            (Script::HangsUp, _) => return Ok(()),
            (Script::Silent, _) => {}
            (Script::Events, _) => loop {
                stream.write_all("{\"event\": \"STOP\"}\n".repeat(1000).as_bytes())?;
            },
            (Script::EndlessLine, Some("query-version")) => loop {
                stream.write_all(&[b'['; 8192])?;
            },
            (Script::Numbers, _) => say(&mut stream, &json!({"return": 5, "id": request["id"]}))?,
            (_, Some("qmp_capabilities")) => {
                say(&mut stream, &json!({"return": {}, "id": request["id"]}))?;
            }
            (_, Some("query-version")) => say(&mut stream, &json!({"return": version, "id": request["id"]}))?,
            (_, command) => {
                let text = format!("The command {} has not been found", command.unwrap_or("?"));
                say(&mut stream, &json!({"error": {"class": "CommandNotFound", "desc": text}, "id": request["id"]}))?;
            }
        }
    }
    Ok(())
}

fn say(stream: &mut UnixStream, message: &Value) -> std::io::Result<()> {
    stream.write_all(format!("{message}\r\n").as_bytes())
}
