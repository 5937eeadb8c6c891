//! A synchronous QMP client for the test's own socket, independent of the one in the product.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::net::sockopt::socket_peercred;
use serde_json::{Value, json};

/// How long QEMU may take to answer a command.
const REPLY_LIMIT: Duration = Duration::from_secs(30);

/// A QMP connection past its greeting.
#[derive(Debug)]
pub struct Qmp {
    reader: BufReader<UnixStream>,
    /// A line that has not arrived whole.
    partial: Vec<u8>,
    events: Vec<Value>,
}

impl Qmp {
    /// Connects to `path`, waiting up to `limit` for the socket and the greeting.
    ///
    /// # Errors
    /// Nobody listens, or whoever does is not a QMP server that talks to us.
    pub fn connect(path: &Path, limit: Duration) -> Result<Self> {
        let end = Instant::now() + limit;
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(e) if Instant::now() >= end => {
                    return Err(e).with_context(|| format!("connecting to {}", path.display()));
                }
                Err(_) => thread::sleep(Duration::from_millis(10)),
            }
        };
        let mut qmp = Self { reader: BufReader::new(stream), partial: Vec::new(), events: Vec::new() };
        let greeting = qmp.line(end)?.context("no greeting")?;
        if greeting["QMP"].is_null() {
            bail!("not a QMP greeting: {greeting}");
        }
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// The process id of whoever listens.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn peer(&self) -> Result<u32> {
        let peer = socket_peercred(self.reader.get_ref()).context("who listens")?;
        u32::try_from(peer.pid.as_raw_nonzero().get()).context("a process id")
    }

    /// Executes a command; its return value.
    ///
    /// # Errors
    /// What QEMU says against it, or that it does not answer.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let mut request = json!({ "execute": command });
        request["arguments"] = arguments;
        let line = format!("{request}\n");
        self.reader.get_mut().write_all(line.as_bytes()).with_context(|| format!("sending {command}"))?;
        let end = Instant::now() + REPLY_LIMIT;
        loop {
            let mut message = self.line(end)?.with_context(|| format!("no answer to {command}"))?;
            if !message["event"].is_null() {
                self.events.push(message);
            } else if !message["error"].is_null() {
                bail!("{command}: {}", message["error"]["desc"].as_str().unwrap_or("?"));
            } else {
                return Ok(message["return"].take());
            }
        }
    }

    /// Executes a command that must succeed.
    #[track_caller]
    pub fn must(&mut self, command: &str, arguments: Value) -> Value {
        self.execute(command, arguments).unwrap_or_else(|e| panic!("{e:#}"))
    }

    /// Takes the events that have arrived, oldest first.
    pub fn events(&mut self) -> Vec<Value> {
        while let Ok(Some(message)) = self.line(Instant::now() + Duration::from_millis(5)) {
            self.events.push(message);
        }
        std::mem::take(&mut self.events)
    }

    /// Waits for an event `name` that `matches`, and drops what came before it.
    #[track_caller]
    pub fn wait_event(&mut self, name: &str, limit: Duration, matches: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + limit;
        loop {
            let found = self.events.iter().position(|event| event["event"] == name && matches(&event["data"]));
            if let Some(index) = found {
                return self.events.drain(..=index).next_back().expect("the event that was found");
            }
            match self.line(end) {
                Ok(Some(message)) => self.events.push(message),
                other => panic!("no event {name} within {limit:?}: {other:?}"),
            }
        }
    }

    /// The next message, or `None` at `end`.
    fn line(&mut self, end: Instant) -> Result<Option<Value>> {
        loop {
            let left = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            self.reader.get_ref().set_read_timeout(Some(left))?;
            match self.reader.read_until(b'\n', &mut self.partial) {
                Ok(_) if self.partial.ends_with(b"\n") => {
                    let line = std::mem::take(&mut self.partial);
                    return serde_json::from_slice(&line).map(Some).context("a message that is not JSON");
                }
                Ok(_) => bail!("QEMU closed the QMP connection"),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    if Instant::now() >= end {
                        return Ok(None);
                    }
                }
                Err(e) => return Err(e).context("reading from QMP"),
            }
        }
    }
}
