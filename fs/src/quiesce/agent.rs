//! A client of qemu-guest-agent.
//!
//! The agent has no greeting and its answers no ids, it serves one client at a time, and what a client before us left
//! unanswered or half said is still in the line. So every connection begins with `guest-sync-delimited`: a byte 0xFF makes
//! the agent forget a half command, and everything up to the 0xFF before the answer with our number is dropped. After an
//! answer that did not come in time the same is done again.
//!
//! Whatever answers is the guest's: lengths are bounded, and its words are cleaned before they are shown.

#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::error::{Error, Kind, Result};
use crate::lines::Lines;

const INFO: &str = "guest-info";
const STATUS: &str = "guest-fsfreeze-status";
pub(super) const FREEZE: &str = "guest-fsfreeze-freeze";
pub(super) const THAW: &str = "guest-fsfreeze-thaw";

/// Longest answer, in bytes; `guest-info` of the newest agent has less than 10 KB.
const MAX_ANSWER: usize = 1 << 20;

/// How much of an error message of the guest's is shown, in characters.
const MAX_WORDS: usize = 200;

/// No valid text has it; it begins and ends what is to be ignored.
const SENTINEL: u8 = 0xff;

/// A connection whose next answer is to our next command.
pub(super) struct Agent {
    lines: Lines,
    path: PathBuf,
    /// Whether a command of ours may not have been answered.
    unanswered: bool,
    /// Whether a command waits behind another.
    queued: bool,
}

impl Agent {
    /// Connects within `limit`; the first question synchronises.
    pub(super) async fn open(path: &Path, limit: Duration) -> Result<Self> {
        let stream = timeout(limit, UnixStream::connect(path))
            .await
            .map_err(|_| silent(path, limit))?
            .map_err(|error| unreachable_socket(path, error))?;
        Ok(Self { lines: Lines::new(stream), path: path.to_owned(), unanswered: true, queued: false })
    }

    /// Whether the agent holds the guest's file systems frozen, by whoever asked it to.
    pub(super) async fn is_frozen(&mut self, limit: Duration) -> Result<bool> {
        match self.ask(STATUS, limit).await?.as_str() {
            Some("frozen") => Ok(true),
            Some("thawed") => Ok(false),
            _ => Err(odd(STATUS)),
        }
    }

    /// Refuses an agent that does not allow all of `commands`. To be asked while thawed: a frozen one allows few.
    pub(super) async fn require(&mut self, commands: &[&str], limit: Duration) -> Result<()> {
        let info = self.ask(INFO, limit).await?;
        let known = info["supported_commands"].as_array().ok_or_else(|| odd(INFO))?;
        let allowed = |name: &str| known.iter().any(|each| each["name"] == name && each["enabled"] == true);
        match commands.iter().find(|name| !allowed(name)) {
            None => Ok(()),
            Some(name) => Err(Error::new(
                Kind::Unsupported,
                format!(
                    "the guest agent does not allow {name}: in the guest, look for block-rpcs (or blacklist) in \
                     qemu-ga.conf and on qemu-ga's command line"
                ),
            )),
        }
    }

    /// Freezes all file systems; how many there were.
    pub(super) async fn freeze(&mut self, limit: Duration) -> Result<u64> {
        self.ask(FREEZE, limit).await?.as_u64().ok_or_else(|| odd(FREEZE))
    }

    /// Thaws all file systems; how many were frozen.
    pub(super) async fn thaw(&mut self, limit: Duration) -> Result<u64> {
        self.ask(THAW, limit).await?.as_u64().ok_or_else(|| odd(THAW))
    }

    /// Sends a command and waits for its answer, both within `limit`.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] when the guest does not allow the command, [`Kind::Io`] when it failed in the guest;
    /// otherwise it may or may not have been done.
    async fn ask(&mut self, command: &str, limit: Duration) -> Result<Value> {
        if self.unanswered {
            timeout(limit, self.synchronise()).await.map_err(|_| silent(&self.path, limit))??;
        }
        self.unanswered = true;
        let answer = timeout(limit, self.exchange(command)).await.map_err(|_| late(command, limit))??;
        self.unanswered = false;
        answer
    }

    /// If a command hangs, sends this one behind it without waiting: it will be done then even if nobody is there any
    /// more to ask for it. Once a connection; more would pile up.
    pub(super) async fn queue_behind(&mut self, command: &str, limit: Duration) -> Result<()> {
        if !self.unanswered || std::mem::replace(&mut self.queued, true) {
            return Ok(());
        }
        let mut line = vec![SENTINEL];
        line.extend(line_of(&json!({ "execute": command })));
        let written = timeout(limit, self.lines.write(&line)).await.map_err(|_| late(command, limit))?;
        written.map_err(|error| self.broken(error))
    }

    /// Drops what is in the line before the answer to a question of ours.
    async fn synchronise(&mut self) -> Result<()> {
        let mut number = [0; 4];
        rustix::rand::getrandom(&mut number, rustix::rand::GetRandomFlags::empty())
            .map_err(|error| Error::with_source(Kind::Io, "the kernel has no random numbers", error))?;
        let number = u32::from_ne_bytes(number);
        let mut line = vec![SENTINEL];
        line.extend(line_of(&json!({"execute": "guest-sync-delimited", "arguments": {"id": number}})));
        self.lines.write(&line).await.map_err(|error| self.broken(error))?;
        loop {
            if !self.lines.skip_past(SENTINEL).await.map_err(|error| self.broken(error))? {
                return Err(self.closed());
            }
            let line = self.line().await?;
            let line = line.rsplit(|&byte| byte == SENTINEL).next().unwrap_or_default();
            let answer: Option<Value> = serde_json::from_slice(line).ok();
            // Others may be the late answers to those before us.
            if answer.is_some_and(|answer| answer["return"] == number) {
                self.unanswered = false;
                return Ok(());
            }
        }
    }

    /// The outer error is the connection's, the inner one the guest's answer.
    async fn exchange(&mut self, command: &str) -> Result<Result<Value>> {
        self.lines.write(&line_of(&json!({ "execute": command }))).await.map_err(|error| self.broken(error))?;
        loop {
            let mut answer: Value = serde_json::from_slice(&self.line().await?).map_err(|error| {
                Error::with_source(Kind::Invalid, format!("the guest agent's answer to {command} is not JSON"), error)
            })?;
            if let Some(error) = answer.get("error") {
                return Ok(Err(refusal(command, error)));
            }
            if let Some(result) = answer.get_mut("return") {
                return Ok(Ok(result.take()));
            }
        }
    }

    async fn line(&mut self) -> Result<Vec<u8>> {
        match self.lines.next(MAX_ANSWER).await {
            Ok(Some(line)) => Ok(line),
            Ok(None) => Err(self.closed()),
            Err(error) => Err(self.broken(error)),
        }
    }

    fn closed(&self) -> Error {
        Error::new(Kind::Gone, format!("QEMU closed the guest agent's socket {}", self.path.display()))
    }

    fn broken(&self, error: io::Error) -> Error {
        Error::with_source(
            Kind::Gone,
            format!("the connection to the guest agent {} broke", self.path.display()),
            error,
        )
    }
}

fn line_of(command: &Value) -> Vec<u8> {
    let mut line = command.to_string().into_bytes();
    line.push(b'\n');
    line
}

fn refusal(command: &str, error: &Value) -> Error {
    let words: String = error["desc"].as_str().unwrap_or("it does not say why").chars().take(MAX_WORDS).collect();
    let words = words.replace(|letter: char| letter.is_control(), " ");
    if error["class"] == "CommandNotFound" {
        return Error::new(Kind::Unsupported, format!("the guest agent does not allow {command}: {words}"));
    }
    Error::new(Kind::Io, format!("{command} failed in the guest: {words}"))
}

fn odd(command: &str) -> Error {
    Error::new(Kind::Invalid, format!("the guest agent's answer to {command} is not understood"))
}

fn late(command: &str, limit: Duration) -> Error {
    Error::new(Kind::Timeout, format!("the guest did not answer to {command} within {limit:?}"))
}

fn silent(path: &Path, limit: Duration) -> Error {
    Error::new(
        Kind::Timeout,
        format!(
            "the guest agent does not answer on {} within {limit:?}: qemu-guest-agent is not installed or does not run \
             in the guest, or another client has its socket, which serves one",
            path.display()
        ),
    )
}

fn unreachable_socket(path: &Path, error: io::Error) -> Error {
    let (kind, what) = match error.kind() {
        io::ErrorKind::NotFound => (Kind::Gone, "there is no such socket"),
        io::ErrorKind::ConnectionRefused => (Kind::Gone, "nobody listens there; does the machine run?"),
        io::ErrorKind::PermissionDenied => (Kind::Denied, "this user may not connect to it"),
        io::ErrorKind::WouldBlock => (Kind::Busy, "other clients wait for it already; it serves one"),
        _ => (Kind::Gone, "connecting failed"),
    };
    Error::with_source(kind, format!("cannot reach the guest agent's socket {}: {what}", path.display()), error)
}
