//! The way to another host's libvirt by ssh(1), for a daemon that may start no program.
//!
//! ```text
//! daemon, libvirt's library ── socket ──▶ relay ── pipes ──▶ ssh ═══▶ virt-ssh-helper ──▶ libvirt
//! ```
//! libvirt's library would start ssh itself. So a process that is started before the daemon gives up its privileges does it in
//! its place: it listens in the mount's own directory, and each connection has an ssh of its own, which ends with it. It ends
//! with the daemon, too. See docs/adr/041-libvirt-by-ssh.md.

pub mod process;

#[cfg(test)]
mod tests;

use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use super::elsewhere::Way;
use crate::error::{Error, Kind, Result, printable};

/// The subcommand of the program that is [`process::run`].
pub const SUBCOMMAND: &str = "ssh-relay";

/// The program itself, even after its file was replaced.
const PROGRAM: &str = "/proc/self/exe";

/// What the name of the socket in the mount's directory begins with. The rest is the process that has the relay: that of the daemon may
/// end just when that of the guardian begins.
const NAME: &str = "ssh-";

/// For a relay to listen, and to end, on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(20);
const END_LIMIT: Duration = Duration::from_secs(5);

/// How long words may take from a relay to here.
const WORDS_LIMIT: Duration = Duration::from_millis(500);

/// What a relay says, in bytes: at most so long a line.
const MAX_LINE: u64 = 4096;

/// What ssh is always told (`ssh_config(5)`): it asks nobody, ends when the network is away, and nothing of it stays or leads to
/// anywhere else.
const ALWAYS: [&str; 9] = [
    "BatchMode=yes",
    "ConnectTimeout=10",
    "ServerAliveInterval=5",
    "ServerAliveCountMax=3",
    "ControlMaster=no",
    "ClearAllForwardings=yes",
    "ForwardAgent=no",
    "ForwardX11=no",
    "RemoteCommand=none",
];

/// How ssh is started.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Call {
    program: String,
    arguments: Vec<String>,
}

impl Call {
    /// What a URI says of it (libvirt.org/uri.html, "ssh transport"): host, user, port, `command=` and `keyfile=`.
    ///
    /// # Errors
    /// What cannot be done, in words.
    pub(super) fn of(way: &Way<'_>) -> std::result::Result<Self, String> {
        let host = way.host.ok_or("it names no host")?;
        if !["/system", "/session"].contains(&way.path) {
            return Err(format!("take qemu+ssh://{host}/system"));
        }
        let mut program = "ssh".to_owned();
        let mut arguments: Vec<String> = ["-T", "-e", "none"].map(str::to_owned).into();
        arguments.extend(ALWAYS.iter().flat_map(|option| ["-o".to_owned(), (*option).to_owned()]));
        let mut give = |option: &str, value: &str| arguments.extend([option.to_owned(), value.to_owned()]);
        if let Some(user) = way.user {
            give("-l", user);
        }
        if let Some(port) = way.port {
            give("-p", &port.to_string());
        }
        for (name, value) in way.parameters() {
            match name {
                "command" => value.clone_into(&mut program),
                "keyfile" => give("-i", value),
                // It never asks on a terminal.
                "no_tty" => {}
                _ => {
                    return Err(format!(
                        "{name}= is not understood; what ssh is to be told of {host} belongs to ~/.ssh/config"
                    ));
                }
            }
        }
        let plain = |text: &str| !text.is_empty() && !text.contains(['%', '\0']);
        if !arguments.iter().chain([&program]).all(|text| plain(text)) {
            return Err(
                "it may have no empty value in it, and no %; what else ssh is to be told belongs to ~/.ssh/config"
                    .to_owned(),
            );
        }
        arguments.extend(["--".to_owned(), host.to_owned(), format!("virt-ssh-helper 'qemu://{}'", way.path)]);
        Ok(Self { program, arguments })
    }
}

/// A process that leads to a libvirt by ssh. It ends with this, or with the process that has it.
#[derive(Debug)]
pub struct Relay {
    child: Child,
    /// Its end tells the other process to end.
    leash: Option<UnixStream>,
    listener: Option<JoinHandle<()>>,
    socket: PathBuf,
    words: Words,
}

/// The way by a relay, to those who go it.
#[derive(Debug, Clone)]
pub struct Lead {
    /// Where the relay listens.
    pub(super) socket: PathBuf,
    words: Words,
}

impl Lead {
    /// Before it is gone: what was said before is no reason.
    pub(super) fn begin(&self) {
        self.words.forget();
    }

    /// Why the way could not be gone, as far as ssh says. It says so before the connection ends.
    pub(super) fn why(&self) -> Option<String> {
        self.words.take()
    }
}

/// What was said last.
#[derive(Debug, Clone, Default)]
struct Words(Arc<(Mutex<Option<String>>, Condvar)>);

impl Words {
    fn put(&self, words: String) {
        let (last, changed) = &*self.0;
        *last.lock().unwrap_or_else(PoisonError::into_inner) = Some(words);
        changed.notify_all();
    }

    fn forget(&self) {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Waits for a moment: they may be on their way.
    fn take(&self) -> Option<String> {
        let (last, changed) = &*self.0;
        let last = last.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = changed.wait_timeout_while(last, WORDS_LIMIT, |last| last.is_none());
        waited.unwrap_or_else(PoisonError::into_inner).0.take()
    }
}

impl Relay {
    /// Starts one for the libvirt at `uri`, which listens in `dir`, a directory that is nobody else's; blocks until it does. None if
    /// ssh does not lead there.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(uri: &str, dir: &Path) -> Result<Option<Self>> {
        if !Way::of(uri).is_ssh() {
            return Ok(None);
        }
        let unable = |error| Error::with_source(Kind::Io, format!("cannot start what leads to {uri}"), error);
        let socket = dir.join(format!("{NAME}{}", std::process::id()));
        let (ours, theirs) = UnixStream::pair().map_err(unable)?;
        let mut command = Command::new(PROGRAM);
        command.arg(SUBCOMMAND).arg(uri).arg(&socket);
        command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null()).stderr(Stdio::piped());
        let child = command.spawn().map_err(unable)?;
        // Its copy of the other end goes with the command.
        drop(command);
        let relay = Self { child, leash: Some(ours), listener: None, socket, words: Words::default() };
        relay.wait_until_it_listens().map_err(unable)?;
        Ok(Some(relay))
    }

    fn wait_until_it_listens(&self) -> std::io::Result<()> {
        let Some(mut leash) = self.leash.as_ref() else { return Ok(()) };
        leash.set_read_timeout(Some(START_LIMIT))?;
        leash.read_exact(&mut [0])
    }

    /// The way by it.
    pub fn lead(&self) -> Lead {
        Lead { socket: self.socket.clone(), words: self.words.clone() }
    }

    /// Listens to what it says from now on, on a thread of its own.
    pub fn listen(&mut self) {
        let Some(stderr) = self.child.stderr.take() else { return };
        let words = self.words.clone();
        let listen = move || {
            let mut lines = BufReader::new(stderr);
            let mut line = Vec::new();
            while lines.by_ref().take(MAX_LINE).read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
                let said = printable(String::from_utf8_lossy(&line).trim());
                tracing::info!("{said}");
                words.put(said);
                line.clear();
            }
        };
        match std::thread::Builder::new().name("ssh-words".to_owned()).spawn(listen) {
            Ok(listener) => self.listener = Some(listener),
            Err(error) => tracing::debug!("no thread for what ssh says: {error}"),
        }
    }
}

impl Drop for Relay {
    /// Waits for its end, so that nothing of it is left.
    fn drop(&mut self) {
        self.leash = None;
        let deadline = Instant::now() + END_LIMIT;
        while Instant::now() < deadline && matches!(self.child.try_wait(), Ok(None)) {
            sleep(Duration::from_millis(2));
        }
        // It has ended, or must.
        self.child.kill().ok();
        self.child.wait().ok();
        std::fs::remove_file(&self.socket).ok();
        self.listener.take().map(JoinHandle::join);
    }
}
