//! The process of one domain: a daemon as of any mount, in the process group of the host's until it has mounted.
//!
//! It is on a leash ([`crate::leash`]): it ends when the host's does.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child as Process, ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::time::Duration;

use pullfs_fs::fuse::mount::detach_dead;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;

use super::policy::Id;
use crate::daemon::READY;
use crate::service;

/// What is kept of what it says, in bytes: its last words, of which the last line is why it ended.
const WORDS: usize = 4096;

/// What is read of standard output, in bytes.
const WORDS_READ: u64 = 4096;

/// How long they are waited for after its end: they are there, unless somebody else holds the pipe.
const WORDS_LIMIT: Duration = Duration::from_secs(1);

/// What becomes of a process.
pub(super) enum News {
    /// Its mount answers.
    Mounted(Id),
    /// It has ended; why, if that is not as it should be.
    Ended(Id, Option<String>),
    /// Whether what was to be unmounted is.
    Unmounted(Id, bool),
}

/// A process that was not looked after yet.
pub(super) struct Child {
    id: Id,
    process: Process,
    source: String,
    mount_point: PathBuf,
    /// Its last words, when it has said them.
    words: JoinHandle<Vec<u8>>,
    tell: mpsc::Sender<News>,
}

impl Child {
    /// Starts it; `source` is to be mounted on `mount_point`.
    pub(super) fn start(
        id: Id,
        mut command: Command,
        source: String,
        mount_point: PathBuf,
        tell: mpsc::Sender<News>,
    ) -> io::Result<Self> {
        // The other end of its standard input is the leash.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = command.spawn()?;
        let words = tokio::spawn(listen(id, process.stdout.take(), process.stderr.take(), tell.clone()));
        Ok(Self { id, process, source, mount_point, words, tell })
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.id()
    }

    pub(super) fn signal(&self, signal: Signal) {
        // Its number is nobody else's before it was waited for.
        kill_process(Pid::from_child(&self.process), signal).ok();
    }

    /// How it ended, if it has.
    pub(super) fn ended(&mut self) -> Option<io::Result<ExitStatus>> {
        self.process.try_wait().transpose()
    }

    /// Tells of its end, when nothing of it is mounted.
    pub(super) fn bury(self, how: io::Result<ExitStatus>) {
        tokio::spawn(async move {
            let Self { id, source, mount_point, words, tell, .. } = self;
            let words = timeout(WORDS_LIMIT, words).await.ok().and_then(Result::ok).unwrap_or_default();
            // Its guardian does the same; whoever looks next is not to meet a dead mount.
            spawn_blocking(move || detach_dead(&mount_point, &source)).await.ok();
            let why = match how {
                Ok(status) if status.success() => None,
                Ok(status) => Some(reason(&words, status)),
                Err(error) => Some(format!("its daemon cannot be waited for: {error}")),
            };
            tell.send(News::Ended(id, why)).await.ok();
        });
    }
}

/// Tells when it has mounted, and gives its last words.
async fn listen(id: Id, stdout: Option<ChildStdout>, stderr: Option<ChildStderr>, tell: mpsc::Sender<News>) -> Vec<u8> {
    let receive = |pipe: Option<OwnedFd>| pipe.map(Receiver::from_owned_fd).transpose();
    let pipes = (receive(stdout.map(OwnedFd::from)), receive(stderr.map(OwnedFd::from)));
    let (Ok(Some(mut stdout)), Ok(Some(stderr))) = pipes else { return Vec::new() };
    let ready = async {
        let mut said = Vec::new();
        // It says one word there, and lets go of both.
        (&mut stdout).take(WORDS_READ).read_to_end(&mut said).await.ok();
        if said.trim_ascii() == READY.as_bytes() {
            tell.send(News::Mounted(id)).await.ok();
        }
    };
    tokio::join!(ready, last_words(stderr)).1
}

async fn last_words(mut stderr: Receiver) -> Vec<u8> {
    let mut words = Vec::new();
    let mut more = [0; 1024];
    while let Ok(length @ 1..) = stderr.read(&mut more).await {
        words.extend_from_slice(&more[..length]);
        words.drain(..words.len().saturating_sub(WORDS));
    }
    words
}

fn reason(words: &[u8], status: ExitStatus) -> String {
    let words = String::from_utf8_lossy(words);
    let last = words.lines().rev().map(str::trim).find(|line| !line.is_empty());
    match (status.signal(), last) {
        (Some(signal), _) => format!("its daemon was ended by signal {signal}"),
        (None, Some(line)) => line.strip_prefix("pullfs: ").unwrap_or(line).to_owned(),
        (None, None) => format!("its daemon ended with {status}"),
    }
}

/// What mounts a domain.
pub(super) fn command(options: &[String], verbose: u8, source: &str, mount_point: &Path) -> Command {
    let mut command = Command::new(crate::daemon::SELF);
    command.args(["mount", "--foreground", "--announce", "--leashed"]);
    command.args(std::iter::repeat_n("-v", verbose.into()));
    for option in options {
        command.args(["-o", option]);
    }
    // Whoever started the host waits for that alone.
    command.env_remove(service::SOCKET).arg("--").arg(source).arg(mount_point);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_says_why() {
        let code = ExitStatus::from_raw(32 << 8);
        assert_eq!(reason(b"WARN more\npullfs: cannot reach it\n\n", code), "cannot reach it");
        assert_eq!(reason(b"", code), "its daemon ended with exit status: 32");
        assert_eq!(reason(b"pullfs: no\n", ExitStatus::from_raw(9)), "its daemon was ended by signal 9");
    }
}
