//! A relay between pullfs and a machine's monitor: it passes lines and descriptors, counts the commands that change
//! something, and kills at one of them.
//!
//! ```text
//! pullfs, its guardian, `pullfs recover` ──▶ relay ──▶ QEMU      one client at a time, as at QEMU's own socket
//! ```
//! A kill comes either [`Moment::Before`] QEMU gets a command, or [`Moment::After`] QEMU has answered it but nobody has
//! got the answer. Between the two lies all that can happen: QEMU drops the commands of a client that is gone. The
//! relay then hangs up, and serves whoever comes next.

use std::io::{ErrorKind, IoSlice, IoSliceMut, Result};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::cmsg_space;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use serde_json::Value;
use tempfile::TempDir;

use crate::process::kill_at_once;

/// Commands that only look, beside those that begin with `query-` or `x-debug-query-`.
const LOOKS: [&str; 4] = ["qmp_capabilities", "qom-get", "qom-list", "device-list-properties"];

/// When a kill comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// QEMU never gets the command.
    Before,
    /// QEMU has answered, and nobody gets the answer.
    After,
}

/// Both of them.
pub const MOMENTS: [Moment; 2] = [Moment::Before, Moment::After];

/// A listening relay; its thread ends with the process.
#[derive(Debug)]
pub struct Relay {
    dir: TempDir,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    commands: Vec<String>,
    /// All commands, those that only look included.
    all: usize,
    /// Commands that waited for an answer, at most at once.
    at_once: usize,
    kill: Option<Kill>,
    killed: bool,
}

#[derive(Debug)]
struct Kill {
    nth: usize,
    moment: Moment,
    pids: Vec<u32>,
}

impl Relay {
    /// Relays to the monitor at `socket`.
    pub fn before(socket: &Path) -> Self {
        Self::start(socket, true)
    }

    /// The same without events: what pullfs then knows, it has asked for.
    pub fn deaf(socket: &Path) -> Self {
        Self::start(socket, false)
    }

    fn start(socket: &Path, events: bool) -> Self {
        let dir = tempfile::Builder::new().prefix("pullfs-relay-").tempdir().expect("a temporary directory");
        let listener = UnixListener::bind(dir.path().join("qmp")).expect("a socket");
        let state = Arc::<Mutex<State>>::default();
        let (socket, shared) = (PathBuf::from(socket), Arc::clone(&state));
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                // A machine that has ended takes nobody any more; either side may hang up.
                let _ = UnixStream::connect(&socket).and_then(|server| relay(client, server, events, &shared));
            }
        });
        Self { dir, state }
    }

    /// What pullfs mounts.
    pub fn source(&self) -> String {
        format!("qmp:{}", self.dir.path().join("qmp").display())
    }

    /// The names of the commands that changed something, since [`Relay::count`] or [`Relay::kill_at`].
    pub fn commands(&self) -> Vec<String> {
        self.lock().commands.clone()
    }

    /// All commands since then, and how many of them waited for an answer at most at once.
    pub fn traffic(&self) -> (usize, usize) {
        let state = self.lock();
        (state.all, state.at_once)
    }

    /// Counts from nothing, and kills nobody.
    pub fn count(&self) {
        *self.lock() = State::default();
    }

    /// Counts from nothing, and kills these processes at the `nth` command, from 1.
    pub fn kill_at(&self, nth: usize, moment: Moment, pids: &[u32]) {
        let kill = Some(Kill { nth, moment, pids: pids.to_vec() });
        *self.lock() = State { kill, ..State::default() };
    }

    /// Whether the kill has come.
    pub fn has_killed(&self) -> bool {
        self.lock().killed
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Counts a command; when the kill comes, if it comes at this one.
    fn meet(&mut self, command: &str) -> Option<Moment> {
        self.commands.push(command.to_owned());
        self.kill.as_ref().filter(|kill| kill.nth == self.commands.len()).map(|kill| kill.moment)
    }

    fn strike(&mut self) {
        if let Some(kill) = &self.kill {
            kill_at_once(&kill.pids);
        }
        self.killed = true;
    }
}

fn changes_something(command: &str) -> bool {
    let looks = command.starts_with("query-") || command.starts_with("x-debug-query-") || LOOKS.contains(&command);
    !looks
}

/// Serves one client until it hangs up, QEMU does, or somebody was killed.
fn relay(client: UnixStream, server: UnixStream, events: bool, state: &Mutex<State>) -> Result<()> {
    let (mut client, mut server) = (Wire::new(client), Wire::new(server));
    // The id of the command whose answer is not to be seen.
    let mut fatal: Option<Value> = None;
    let mut unanswered: usize = 0;
    loop {
        let mut ready = [&client, &server].map(|wire| PollFd::new(&wire.stream, PollFlags::IN));
        retry_on_intr(|| poll(&mut ready, None))?;
        let [from_client, from_server] = ready.map(|ready| !ready.revents().is_empty());
        if from_client {
            for (line, descriptors) in client.read()? {
                let request: Value = serde_json::from_slice(&line).unwrap_or_default();
                let command = request["execute"].as_str().unwrap_or_default();
                unanswered += 1;
                let mut counted = state.lock().unwrap_or_else(PoisonError::into_inner);
                counted.all += 1;
                counted.at_once = counted.at_once.max(unanswered);
                drop(counted);
                if changes_something(command) {
                    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
                    match state.meet(command) {
                        Some(Moment::Before) => {
                            state.strike();
                            return Ok(());
                        }
                        Some(Moment::After) => fatal = Some(request["id"].clone()),
                        None => {}
                    }
                }
                server.write(&line, &descriptors)?;
            }
        }
        if from_server {
            for (line, descriptors) in server.read()? {
                let message: Value = serde_json::from_slice(&line).unwrap_or_default();
                let event = message.get("event").is_some();
                unanswered = unanswered.saturating_sub(usize::from(!event));
                if !event && fatal.as_ref() == Some(&message["id"]) {
                    state.lock().unwrap_or_else(PoisonError::into_inner).strike();
                    return Ok(());
                }
                if events || !event {
                    client.write(&line, &descriptors)?;
                }
            }
        }
    }
}

/// A line and the descriptors that came with it.
type Line = (Vec<u8>, Vec<OwnedFd>);

/// A socket that carries lines and descriptors.
struct Wire {
    stream: UnixStream,
    /// A line that has not arrived whole.
    partial: Line,
}

impl Wire {
    fn new(stream: UnixStream) -> Self {
        Self { stream, partial: Line::default() }
    }

    /// The lines that have become whole.
    fn read(&mut self) -> Result<Vec<Line>> {
        let mut bytes = vec![0; 64 << 10];
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(8))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let into = &mut [IoSliceMut::new(&mut bytes)];
        let got = retry_on_intr(|| recvmsg(&self.stream, into, &mut control, RecvFlags::CMSG_CLOEXEC))?.bytes;
        if got == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(more) = message {
                descriptors.extend(more);
            }
        }
        let mut lines = Vec::new();
        let mut parts = bytes[..got].split_inclusive(|&byte| byte == b'\n').peekable();
        while let Some(part) = parts.next() {
            self.partial.0.extend_from_slice(part);
            if parts.peek().is_none() {
                // The system lets no read go past what was sent with descriptors.
                self.partial.1.append(&mut descriptors);
            }
            if part.ends_with(b"\n") {
                lines.push(std::mem::take(&mut self.partial));
            }
        }
        Ok(lines)
    }

    fn write(&self, mut line: &[u8], descriptors: &[OwnedFd]) -> Result<()> {
        let mut descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        while !line.is_empty() {
            let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(8))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
                return Err(Errno::INVAL.into());
            }
            let sent =
                retry_on_intr(|| sendmsg(&self.stream, &[IoSlice::new(line)], &mut control, SendFlags::NOSIGNAL))?;
            line = &line[sent..];
            // They travel with the first byte.
            descriptors.clear();
        }
        Ok(())
    }
}
