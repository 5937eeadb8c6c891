//! A relay between pullfs and a machine's monitor that loses all events: what pullfs then knows, it has asked for.
//!
//! It passes lines, not descriptors, so it is for monitors that take none (qemu-storage-daemon's).

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;

use serde_json::Value;
use tempfile::TempDir;

/// A listening relay; its threads end with the process.
#[derive(Debug)]
pub struct DeafQmp {
    dir: TempDir,
}

impl DeafQmp {
    /// Relays to the monitor at `socket`.
    pub fn before(socket: &Path) -> Self {
        let dir = tempfile::Builder::new().prefix("pullfs-deaf-").tempdir().expect("a temporary directory");
        let listener = UnixListener::bind(dir.path().join("qmp")).expect("a socket");
        let socket = PathBuf::from(socket);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let server = UnixStream::connect(&socket).expect("the monitor");
                let (from, to) = (client.try_clone().expect("a socket"), server.try_clone().expect("a socket"));
                thread::spawn(move || relay(&from, to, |_| true));
                thread::spawn(move || relay(&server, client, |message| message.get("event").is_none()));
            }
        });
        Self { dir }
    }

    /// What pullfs mounts.
    pub fn source(&self) -> String {
        format!("qmp:{}", self.dir.path().join("qmp").display())
    }
}

/// Passes on the lines that `pass` wants until one side is gone.
fn relay(from: &UnixStream, mut to: UnixStream, pass: impl Fn(&Value) -> bool) {
    for line in BufReader::new(from).lines().map_while(Result::ok) {
        let wanted = serde_json::from_str(&line).is_ok_and(|message| pass(&message));
        if wanted && to.write_all(format!("{line}\n").as_bytes()).is_err() {
            break;
        }
    }
    // The other direction notices by itself.
    let _ = to.shutdown(std::net::Shutdown::Write);
}
