//! A QMP connection: lines of JSON over a unix socket, which takes descriptors as well, or over TCP, with TLS or without.
//!
//! One task owns the connection and all that is in flight on it; callers send it requests and wait outside, so giving
//! up on an answer never harms the connection. A second task cuts the stream into lines. When the stream ends, all
//! that wait are told, and the next request connects anew.
//!
//! ```text
//! callers ──Request──▶ ┌────────┐ ──bytes, descriptors──▶ ┌──────┐
//!         ◀──reply──── │ driver │                         │ QEMU │
//! events  ◀─broadcast─ └────────┘ ◀──Line── line cutter ◀─ └──────┘
//! ```
//! Unknown events are passed on like any other; unknown fields do no harm (QEMU docs/interop/qmp-spec.rst).

mod connection;
#[cfg(test)]
mod tests;
pub(crate) mod wire;
mod writer;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::{Instant, timeout_at};

use self::connection::Connection;
use self::wire::Incoming;
use super::monitor::Monitor;
use crate::error::{Error, Kind, Result};

/// How long QEMU may take to greet, and to each step before that. It greets at once unless another client has the socket.
pub const GREETING_LIMIT: Duration = Duration::from_secs(5);

/// How long the answer to a command may take; QEMU waits for the guest's I/O in some. It does one after another, so the time
/// of a command begins with the last answer to another one.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(30);

/// The same as long as an answer is overdue that was waited for in vain: QEMU answers in order, so nothing else comes
/// before it. Whoever undoes many steps then must not wait [`COMMAND_LIMIT`] for each.
const OVERDUE_LIMIT: Duration = Duration::from_secs(5);

/// Commands that another one waits for at most: so many steps are under way at once (docs/adr/020-steps-of-all-disks-at-once.md),
/// but for itself.
const MOST_BEFORE: u32 = 7;

/// Requests waiting for the driver; a caller waits for room.
const MAX_QUEUED: usize = 64;

/// Events kept for a receiver that is slow.
const MAX_EVENTS: usize = 1024;

/// An event of QEMU's, or the end of the connection.
#[derive(Debug, Clone)]
pub enum Message {
    /// Name and data of an event.
    Event {
        /// Such as `JOB_STATUS_CHANGE`.
        name: String,
        /// Its `data`, or null.
        data: Value,
    },
    /// The stream ended, and why.
    Disconnected(String),
}

/// A command that QEMU refused.
#[derive(Debug, thiserror::Error)]
#[error("{description}")]
pub struct Refusal {
    /// QEMU's error class, such as `GenericError`.
    pub class: String,
    /// QEMU's own words.
    pub description: String,
}

/// Nobody listens on a socket of this host, so the machine whose monitor it was has ended.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct Ended(#[from] io::Error);

struct Request {
    command: Value,
    descriptor: Option<OwnedFd>,
    reply: oneshot::Sender<Result<Value>>,
}

/// A handle to a QMP connection; clones share it.
#[derive(Clone)]
pub struct Qmp {
    requests: mpsc::Sender<Request>,
    messages: broadcast::Sender<Message>,
    descriptors: bool,
    /// Set when an answer did not come in time; taken back by whatever answer comes, and by the end of the connection.
    overdue: Arc<AtomicBool>,
    /// When the last answer came.
    answered: watch::Receiver<Instant>,
}

impl Qmp {
    /// Connects, waits for the greeting and leaves negotiation mode.
    ///
    /// # Errors
    /// [`Kind::Busy`] when nobody greets in time, [`Kind::Gone`] when nobody listens, [`Kind::Denied`] when TLS shows
    /// that it is somebody else, or that we are not wanted.
    pub async fn connect(monitor: &Monitor) -> Result<Self> {
        let (messages, _) = broadcast::channel(MAX_EVENTS);
        let (requests, inbox) = mpsc::channel(MAX_QUEUED);
        let connection = Connection::open(monitor).await?;
        let overdue = Arc::<AtomicBool>::default();
        let (tell, answered) = watch::channel(Instant::now());
        let driver = Driver {
            answered: tell,
            monitor: monitor.clone(),
            overdue: overdue.clone(),
            messages: messages.clone(),
            waiting: HashMap::new(),
            next_id: 1,
            connection: Some(connection),
        };
        tokio::spawn(driver.run(inbox));
        Ok(Self { requests, messages, overdue, answered, descriptors: monitor.passes_descriptors() })
    }

    /// Whether [`Qmp::execute_with`] is possible.
    pub fn passes_descriptors(&self) -> bool {
        self.descriptors
    }

    /// Sends a command and waits for its answer at most [`COMMAND_LIMIT`].
    ///
    /// # Errors
    /// [`Kind::Gone`] when the connection ends, [`Kind::Timeout`]; otherwise the source is a [`Refusal`].
    pub async fn execute(&self, name: &str, arguments: Value) -> Result<Value> {
        self.send(name, arguments, None).await
    }

    /// The same with a descriptor that travels beside the command (`add-fd`, `getfd`).
    ///
    /// # Errors
    /// As [`Qmp::execute`]; the connection ends if it is one that takes no descriptors.
    pub async fn execute_with(&self, name: &str, arguments: Value, descriptor: OwnedFd) -> Result<Value> {
        self.send(name, arguments, Some(descriptor)).await
    }

    async fn send(&self, name: &str, arguments: Value, descriptor: Option<OwnedFd>) -> Result<Value> {
        let (reply, answer) = oneshot::channel();
        let request = Request { command: json!({"execute": name, "arguments": arguments}), descriptor, reply };
        let ended = || Error::new(Kind::Gone, "the connection to QEMU is closed");
        let exchange = async {
            self.requests.send(request).await.map_err(|_| ended())?;
            answer.await.map_err(|_| ended())?
        };
        let limit = if self.overdue.load(Ordering::Relaxed) { OVERDUE_LIMIT } else { COMMAND_LIMIT };
        let (sent, mut exchange) = (Instant::now(), pin!(exchange));
        let turn = || (*self.answered.borrow()).clamp(sent, sent + limit * MOST_BEFORE);
        let mut since = sent;
        loop {
            if let Ok(answer) = timeout_at(since + limit, &mut exchange).await {
                return answer.map_err(|error| error.context(format!("QMP command {name} failed")));
            }
            // Others were answered meanwhile: it had to wait for them.
            match turn() {
                later if later > since => since = later,
                _ => break,
            }
        }
        self.overdue.store(true, Ordering::Relaxed);
        let limit = limit.as_secs();
        Err(Error::new(Kind::Timeout, format!("QMP command {name} was not answered within {limit} s")))
    }

    /// Events from now on.
    pub fn messages(&self) -> broadcast::Receiver<Message> {
        self.messages.subscribe()
    }
}

/// Whether QEMU itself refused the command, so that it surely had no effect.
pub fn refused(error: &Error) -> Option<&Refusal> {
    caused_by(error)
}

/// Whether the machine has surely ended, and all that was in it.
pub fn has_ended(error: &Error) -> bool {
    caused_by::<Ended>(error).is_some()
}

fn caused_by<E: std::error::Error + 'static>(error: &Error) -> Option<&E> {
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        if let Some(found) = cause.downcast_ref() {
            return Some(found);
        }
        next = cause.source();
    }
    None
}

struct Driver {
    monitor: Monitor,
    messages: broadcast::Sender<Message>,
    waiting: HashMap<u64, oneshot::Sender<Result<Value>>>,
    next_id: u64,
    connection: Option<Connection>,
    overdue: Arc<AtomicBool>,
    answered: watch::Sender<Instant>,
}

impl Driver {
    async fn run(mut self, mut inbox: mpsc::Receiver<Request>) {
        loop {
            let Some(connection) = &mut self.connection else {
                match inbox.recv().await {
                    Some(request) => self.reconnect_and_serve(request).await,
                    None => return,
                }
                continue;
            };
            tokio::select! {
                request = inbox.recv() => match request {
                    Some(request) => self.serve(request).await,
                    None => return,
                },
                line = connection.next() => {
                    if let Err(why) = line.and_then(|line| self.dispatch(&line)) {
                        self.disconnected(&why);
                    }
                }
            }
        }
    }

    async fn reconnect_and_serve(&mut self, request: Request) {
        match Connection::open(&self.monitor).await {
            Ok(connection) => {
                self.connection = Some(connection);
                self.serve(request).await;
            }
            Err(error) => {
                request.reply.send(Err(error)).ok();
            }
        }
    }

    async fn serve(&mut self, request: Request) {
        let Some(connection) = &mut self.connection else { return };
        let id = self.next_id;
        self.next_id += 1;
        self.waiting.retain(|_, reply| !reply.is_closed());
        let mut command = request.command;
        command["id"] = json!(id);
        match connection.write(&command, request.descriptor).await {
            Ok(()) => {
                self.waiting.insert(id, request.reply);
            }
            Err(error) => {
                self.disconnected(&error.to_string());
                request.reply.send(Err(error)).ok();
            }
        }
    }

    /// Passes a line on to whom it is for. What cannot be understood ends the connection.
    fn dispatch(&mut self, line: &[u8]) -> std::result::Result<(), String> {
        match Incoming::parse(line)? {
            Incoming::Event { name, data } => {
                // Nobody may be listening.
                self.messages.send(Message::Event { name: name.to_owned(), data }).ok();
            }
            Incoming::Answer { id: Some(id), outcome } => {
                self.overdue.store(false, Ordering::Relaxed);
                self.answered.send_replace(Instant::now());
                let Entry::Occupied(waiting) = self.waiting.entry(id) else { return Ok(()) };
                let answer = match outcome {
                    Ok(raw) => Ok(wire::value(raw)?),
                    Err(refusal) => Err(Error::with_source(Kind::Unsupported, "QEMU refused", refusal)),
                };
                waiting.remove().send(answer).ok();
            }
            // An answer to nothing of ours, or something of a later version.
            Incoming::Answer { id: None, .. } | Incoming::Greeting | Incoming::Other => {}
        }
        Ok(())
    }

    fn disconnected(&mut self, why: &str) {
        self.connection = None;
        self.overdue.store(false, Ordering::Relaxed);
        for (_, reply) in self.waiting.drain() {
            reply.send(Err(Error::new(Kind::Gone, why))).ok();
        }
        self.messages.send(Message::Disconnected(why.to_owned())).ok();
    }
}
