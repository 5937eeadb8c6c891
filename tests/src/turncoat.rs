//! A relay between pullfs and a machine's monitor that turns hostile when it is told to, and back.
//!
//! It passes lines, not descriptors, so it is for monitors that take none (qemu-storage-daemon's).

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use tempfile::TempDir;

/// What it does from then on, to those who are connected and those who come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hostility {
    /// Passes nothing on and says nothing.
    Silence,
    /// Sends a line without an end.
    EndlessLine,
    /// Sends events without an end, and answers nothing.
    Events,
    /// Sends what is not JSON.
    Garbage,
}

#[derive(Debug, Default)]
struct State {
    hostile: Option<Hostility>,
    clients: Vec<UnixStream>,
    /// Those who are told nothing.
    ignored: Vec<UnixStream>,
}

/// A listening relay; its threads end with the process.
#[derive(Debug)]
pub struct Turncoat {
    dir: TempDir,
    state: Arc<Mutex<State>>,
}

impl Turncoat {
    /// Relays to the monitor at `socket`.
    pub fn before(socket: &Path) -> Self {
        let dir = tempfile::Builder::new().prefix("pullfs-turncoat-").tempdir().expect("a temporary directory");
        let listener = UnixListener::bind(dir.path().join("qmp")).expect("a socket");
        let state = Arc::<Mutex<State>>::default();
        let (known, socket) = (Arc::clone(&state), PathBuf::from(socket));
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let mut state = known.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(how) = state.hostile {
                    state.torment(client, how);
                    continue;
                }
                let server = UnixStream::connect(&socket).expect("the monitor");
                let (from, to) = (client.try_clone().expect("a socket"), server.try_clone().expect("a socket"));
                state.clients.push(client.try_clone().expect("a socket"));
                for (from, to) in [(from, to), (server, client)] {
                    let known = Arc::clone(&known);
                    thread::spawn(move || relay(&from, to, &known));
                }
            }
        });
        Self { dir, state }
    }

    /// What pullfs mounts.
    pub fn source(&self) -> String {
        format!("qmp:{}", self.dir.path().join("qmp").display())
    }

    /// From now on it is hostile.
    pub fn turn(&self, how: Hostility) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.hostile = Some(how);
        for client in std::mem::take(&mut state.clients) {
            state.torment(client, how);
        }
    }

    /// From now on it is a relay again, to those who come.
    pub fn relent(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.hostile = None;
        for client in state.ignored.drain(..) {
            let _ = client.shutdown(std::net::Shutdown::Both);
        }
    }
}

/// Passes on lines until one side is gone, or it turns hostile.
fn relay(from: &UnixStream, mut to: UnixStream, state: &Mutex<State>) {
    for line in BufReader::new(from).lines().map_while(Result::ok) {
        let state = state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.hostile.is_none() && to.write_all(format!("{line}\n").as_bytes()).is_err() {
            break;
        }
    }
    // The other direction notices by itself.
    let _ = to.shutdown(std::net::Shutdown::Write);
}

impl State {
    /// Does to a client what it is there for, until that hangs up.
    fn torment(&mut self, mut client: UnixStream, how: Hostility) {
        let (once, forever): (&str, &str) = match how {
            Hostility::Silence => return self.ignored.push(client),
            Hostility::EndlessLine => ("{\"return\": \"", "x"),
            Hostility::Events => {
                ("", "{\"event\": \"JOB_STATUS_CHANGE\", \"data\": {\"id\": \"x\", \"status\": \"running\"}}\n")
            }
            Hostility::Garbage => ("this is not JSON\n", "\u{7}\n"),
        };
        let forever = forever.repeat(1000);
        thread::spawn(move || {
            // A client that hangs up is what is hoped for.
            if client.write_all(once.as_bytes()).is_ok() {
                while client.write_all(forever.as_bytes()).is_ok() {}
            }
        });
    }
}
