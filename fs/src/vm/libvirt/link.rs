//! The way to a domain: one connection, made when it is needed and made again when it broke.
//!
//! libvirt's calls block. Each runs on a thread of the runtime's pool of those, with a time limit outside. A connection has one
//! call at a time: before 10.4, libvirt's library may use memory that it gave back when a second thread, or its own timer of
//! signs of life, wakes one that waits for an answer (CVE-2024-4418), and then the daemon dies. Where a call takes too long,
//! the next ones get another connection; no more than [`MAX_CALLS`] wait for answers at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use libvirt::{Code, Connection, Domain, Event, Subscription};
use tokio::sync::{Mutex, Semaphore, mpsc, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::elsewhere::Way;
use super::ssh::Lead;
use crate::error::{Error, Kind, Result};

/// Calls under way at once, on as many connections.
const MAX_CALLS: usize = 16;

/// How long a call may take. libvirt itself waits for half a minute where something else is going on in the domain.
pub(super) const LIMIT: Duration = Duration::from_secs(45);

/// How long connecting may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(20);

/// Those who want the connection; more wait for room.
const MAX_QUEUED: usize = 64;

/// Events that wait to be looked at. One that does not fit is as bad as a broken connection, and taken for it.
const MAX_EVENTS: usize = 1024;

/// Which domain, of which libvirt.
#[derive(Debug, Clone)]
pub struct Target {
    /// Its name or its UUID.
    pub domain: String,
    /// The libvirt (mount option `uri=`).
    pub uri: String,
    /// The way there, if that is not libvirt's own.
    lead: Option<Lead>,
}

impl Target {
    /// A domain of the libvirt at `uri`.
    pub fn new(domain: impl Into<String>, uri: impl Into<String>) -> Self {
        Self { domain: domain.into(), uri: uri.into(), lead: None }
    }

    /// The same, reached by a relay.
    #[must_use]
    pub fn by(self, lead: Lead) -> Self {
        Self { lead: Some(lead), ..self }
    }

    /// Connects to the libvirt; blocks. `what` cannot be done if that fails.
    ///
    /// # Errors
    /// [`Kind::Gone`], [`Kind::Denied`], [`Kind::Unsupported`] where there is no library.
    pub(super) fn connect(&self, what: &str) -> Result<Connection> {
        let Some(lead) = &self.lead else {
            return Connection::open(Some(&self.uri)).map_err(|error| explain(what, error));
        };
        lead.begin();
        let local = format!("qemu+unix://{}?socket={}", Way::of(&self.uri).path, lead.socket.display());
        Connection::open(Some(&local)).map_err(|error| match lead.why() {
            Some(words) => Error::with_source(Kind::Gone, what, words),
            None => explain(what, error),
        })
    }
}

/// What happens; called in a task, so it must not wait.
pub(super) type OnEvent = Box<dyn Fn(&Event) + Send + Sync>;

/// A handle to the task that owns the connection; it ends with the last clone.
#[derive(Clone)]
pub(super) struct Link {
    wants: mpsc::Sender<oneshot::Sender<Result<Arc<Line>>>>,
    calls: Arc<Semaphore>,
}

/// A connection, to those who call.
struct Line {
    domain: Domain,
    /// Who holds it may call.
    turn: Arc<Mutex<()>>,
    /// A call did not end in time, or there is no such domain any more; there may be another one of its name.
    is_stale: AtomicBool,
}

struct Open {
    line: Arc<Line>,
    connection: Connection,
    /// Events are told for as long as it lives. None once this is dropped.
    subscription: Option<Subscription>,
}

impl Drop for Open {
    /// Taking leave waits for the other end, and for the call that is under way; so nobody waits for it.
    fn drop(&mut self) {
        let (line, subscription) = (self.line.clone(), self.subscription.take());
        let leave = move || {
            let turn = line.turn.clone().blocking_lock_owned();
            drop((subscription, line, turn));
        };
        if let Err(error) = std::thread::Builder::new().name("libvirt-leave".to_owned()).spawn(leave) {
            tracing::debug!("no thread to take leave of libvirt: {error}");
        }
    }
}

impl Link {
    /// Starts the task; connects at the first call.
    pub(super) fn start(target: Target, on_event: OnEvent) -> Self {
        let (wants, inbox) = mpsc::channel(MAX_QUEUED);
        let calls = Arc::new(Semaphore::new(MAX_CALLS));
        tokio::spawn(own(target, on_event, calls.clone(), inbox));
        Self { wants, calls }
    }

    /// Runs a call on the domain. When the limit passes the call goes on, and nobody learns what became of it.
    ///
    /// # Errors
    /// [`Kind::Gone`] when libvirt or the domain is not there, [`Kind::Timeout`]; whatever the call fails of.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        what: &str,
        limit: Duration,
        call: impl FnOnce(&Domain) -> libvirt::Result<T> + Send + 'static,
    ) -> Result<T> {
        let run = async {
            let (reply, answer) = oneshot::channel();
            let ended = || Error::new(Kind::Gone, "the connection to libvirt is ending");
            self.wants.send(reply).await.map_err(|_| ended())?;
            let line = answer.await.map_err(|_| ended())??;
            let turn = line.turn.clone().lock_owned().await;
            let permit = self.calls.clone().acquire_owned().await.map_err(|_| ended())?;
            let mut awaited = Awaited(Some(line.clone()));
            let outcome = spawn_blocking(move || {
                let outcome = call(&line.domain);
                drop((turn, permit));
                outcome
            });
            let outcome = outcome.await;
            let line = awaited.0.take();
            let outcome = outcome.map_err(|error| Error::with_source(Kind::Io, "a call of libvirt panicked", error))?;
            if let (Err(error), Some(line)) = (&outcome, line)
                && error.code() == Code::NoDomain
            {
                line.is_stale.store(true, Ordering::Relaxed);
            }
            outcome.map_err(|error| explain(&format!("libvirt cannot {what}"), error))
        };
        let slow = || Error::new(Kind::Timeout, format!("libvirt did not {what} within {} s", limit.as_secs()));
        timeout(limit, run).await.unwrap_or_else(|_| Err(slow()))
    }
}

/// A call that somebody waits for. When nobody does any more and it has not ended, the next calls must not wait for it: a
/// guest may have to be thawed.
struct Awaited(Option<Arc<Line>>);

impl Drop for Awaited {
    fn drop(&mut self) {
        if let Some(line) = &self.0 {
            line.is_stale.store(true, Ordering::Relaxed);
        }
    }
}

/// An error of libvirt, with what it was about.
pub(super) fn explain(what: &str, error: libvirt::Error) -> Error {
    let kind = match error.code() {
        Code::NoLibrary | Code::Unsupported => Kind::Unsupported,
        Code::Connection => Kind::Gone,
        Code::Denied => Kind::Denied,
        Code::NoDomain | Code::NoCheckpoint | Code::NoBackup | Code::NoPool | Code::NoVolume => Kind::NotFound,
        Code::Timeout | Code::Invalid => Kind::Busy,
        Code::Inconsistent | Code::Agent | Code::Other => Kind::Io,
    };
    Error::with_source(kind, what, error)
}

async fn own(
    target: Target,
    on_event: OnEvent,
    calls: Arc<Semaphore>,
    mut inbox: mpsc::Receiver<oneshot::Sender<Result<Arc<Line>>>>,
) {
    let (tell, mut told) = mpsc::channel(MAX_EVENTS);
    let mut open: Option<Open> = None;
    loop {
        tokio::select! {
            biased;
            event = told.recv() => {
                let Some(event) = event else { return };
                if event == Event::Closed {
                    open = None;
                }
                on_event(&event);
            }
            want = inbox.recv() => {
                let Some(reply) = want else { return };
                let unusable = |open: &Open| !open.connection.is_alive() || open.line.is_stale.load(Ordering::Relaxed);
                if open.as_ref().is_some_and(unusable) {
                    open = None;
                    on_event(&Event::Closed);
                }
                let line = match &open {
                    Some(open) => Ok(open.line.clone()),
                    None => connect(&target, &calls, tell.clone()).await.map(|opened| open.insert(opened).line.clone()),
                };
                // Who asked may have given up.
                reply.send(line).ok();
            }
        }
    }
}

async fn connect(target: &Target, calls: &Arc<Semaphore>, tell: mpsc::Sender<Event>) -> Result<Open> {
    let whom = || format!("cannot reach domain {} of libvirt at {}", target.domain, target.uri);
    let hangs = |_| Error::new(Kind::Gone, format!("{}: {MAX_CALLS} calls wait for its answer already", whom()));
    let permit = calls.clone().try_acquire_owned().map_err(hangs)?;
    let (reached, what) = (target.clone(), whom());
    let opened = spawn_blocking(move || {
        let _permit = permit;
        let connection = reached.connect(&what)?;
        subscribe(connection, &reached.domain, tell).map_err(|error| explain(&what, error))
    });
    let slow = |_| Error::new(Kind::Timeout, format!("{}: no answer within {} s", whom(), CONNECT_LIMIT.as_secs()));
    let opened = timeout(CONNECT_LIMIT, opened).await.map_err(slow)?;
    opened.map_err(|error| Error::with_source(Kind::Io, whom(), error))?
}

/// Whether libvirt takes it for a UUID: 32 hexadecimal digits, with hyphens or without (util/viruuid.c).
fn is_uuid(text: &str) -> bool {
    let digits = text.bytes().filter(|byte| *byte != b'-');
    digits.clone().count() == 32 && digits.clone().all(|byte| byte.is_ascii_hexdigit())
}

/// Finds the domain, and has its events told.
fn subscribe(connection: Connection, domain: &str, tell: mpsc::Sender<Event>) -> libvirt::Result<Open> {
    // A UUID first: another domain may have it for its name.
    let known = if is_uuid(domain) { connection.domain_by_uuid(domain).ok() } else { None };
    let found = known.map_or_else(|| connection.domain_by_name(domain), Ok)?;
    let sink = move |event| {
        if tell.try_send(event).is_err() {
            // There is no room: what is lost is made up for by connecting again.
            tell.try_send(Event::Closed).ok();
        }
    };
    let subscription = Some(connection.subscribe(Some(&found), sink)?);
    let line = Line { domain: found, turn: Arc::default(), is_stale: AtomicBool::new(false) };
    Ok(Open { line: Arc::new(line), connection, subscription })
}
