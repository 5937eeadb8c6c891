//! The way to a domain: one connection, made when it is needed and made again when it broke.
//!
//! libvirt's calls block. Each runs on a thread of the runtime's pool of those, with a time limit outside, and no more than
//! [`MAX_CALLS`] at once; a daemon that hangs ends them all, because libvirt's library misses its signs of life.

use std::sync::Arc;
use std::time::Duration;

use libvirt::{Code, Connection, Domain, Event, Subscription};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;

use crate::error::{Error, Kind, Result};

/// Calls under way at once.
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its name or its UUID.
    pub domain: String,
    /// The libvirt (mount option `uri=`).
    pub uri: String,
}

/// What happens; called in a task, so it must not wait.
pub(super) type OnEvent = Box<dyn Fn(&Event) + Send + Sync>;

/// A handle to the task that owns the connection; it ends with the last clone.
#[derive(Clone)]
pub(super) struct Link {
    wants: mpsc::Sender<oneshot::Sender<Result<Arc<Domain>>>>,
    calls: Arc<Semaphore>,
    _task: Arc<Ends>,
}

struct Ends(JoinHandle<()>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Open {
    connection: Connection,
    domain: Arc<Domain>,
    /// Events are told for as long as it lives.
    subscription: Subscription,
}

impl Link {
    /// Starts the task; connects at the first call.
    pub(super) fn start(target: Target, on_event: OnEvent) -> Self {
        let (wants, inbox) = mpsc::channel(MAX_QUEUED);
        let task = tokio::spawn(own(target, on_event, inbox));
        Self { wants, calls: Arc::new(Semaphore::new(MAX_CALLS)), _task: Arc::new(Ends(task)) }
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
        let slow = |limit: Duration| {
            let message = format!("libvirt did not {what} within {} s", limit.as_secs());
            Error::new(Kind::Timeout, message)
        };
        let run = async {
            let (reply, answer) = oneshot::channel();
            let ended = || Error::new(Kind::Gone, "the connection to libvirt is ending");
            self.wants.send(reply).await.map_err(|_| ended())?;
            let domain = answer.await.map_err(|_| ended())??;
            let permit = self.calls.clone().acquire_owned().await.map_err(|_| ended())?;
            let called = spawn_blocking(move || {
                let outcome = call(&domain);
                drop(permit);
                outcome
            });
            let outcome =
                called.await.map_err(|error| Error::with_source(Kind::Io, "a call of libvirt panicked", error))?;
            outcome.map_err(|error| explain(&format!("libvirt cannot {what}"), error))
        };
        timeout(limit, run).await.map_err(|_| slow(limit))?
    }
}

/// An error of libvirt, with what it was about.
pub(super) fn explain(what: &str, error: libvirt::Error) -> Error {
    let kind = match error.code() {
        Code::NoLibrary | Code::Unsupported => Kind::Unsupported,
        Code::Connection => Kind::Gone,
        Code::Denied => Kind::Denied,
        Code::NoDomain | Code::NoCheckpoint | Code::NoBackup => Kind::NotFound,
        Code::Timeout | Code::Invalid => Kind::Busy,
        Code::Inconsistent | Code::Agent | Code::Other => Kind::Io,
    };
    Error::with_source(kind, what, error)
}

async fn own(target: Target, on_event: OnEvent, mut inbox: mpsc::Receiver<oneshot::Sender<Result<Arc<Domain>>>>) {
    let (tell, mut told) = mpsc::channel(MAX_EVENTS);
    let mut open: Option<Open> = None;
    loop {
        tokio::select! {
            biased;
            event = told.recv() => {
                let Some(event) = event else { return };
                if event == Event::Closed {
                    close(open.take()).await;
                }
                on_event(&event);
            }
            want = inbox.recv() => {
                let Some(reply) = want else {
                    close(open.take()).await;
                    return;
                };
                if open.as_ref().is_some_and(|open| !open.connection.is_alive()) {
                    close(open.take()).await;
                    on_event(&Event::Closed);
                }
                let domain = match &open {
                    Some(open) => Ok(open.domain.clone()),
                    None => connect(&target, tell.clone()).await.map(|opened| open.insert(opened).domain.clone()),
                };
                // Who asked may have given up.
                reply.send(domain).ok();
            }
        }
    }
}

/// Taking leave waits for the other end, and so for nobody.
async fn close(open: Option<Open>) {
    let Some(Open { connection, domain, subscription }) = open else { return };
    let left = spawn_blocking(move || drop((subscription, domain, connection)));
    timeout(CONNECT_LIMIT, left).await.ok();
}

async fn connect(target: &Target, tell: mpsc::Sender<Event>) -> Result<Open> {
    let Target { domain, uri } = target.clone();
    let opened = spawn_blocking(move || {
        let connection = Connection::open(Some(&uri))?;
        let found = match connection.domain_by_name(&domain) {
            Err(error) if error.code() == Code::NoDomain => connection.domain_by_uuid(&domain).map_err(|_| error),
            other => other,
        }?;
        let sink = move |event| {
            if tell.try_send(event).is_err() {
                // There is no room: what is lost is made up for by connecting again.
                tell.try_send(Event::Closed).ok();
            }
        };
        let subscription = connection.subscribe(Some(&found), sink)?;
        Ok(Open { connection, domain: Arc::new(found), subscription })
    });
    let whom = || format!("cannot reach domain {} of libvirt at {}", target.domain, target.uri);
    let slow = |_| Error::new(Kind::Timeout, format!("{}: no answer within {} s", whom(), CONNECT_LIMIT.as_secs()));
    let opened = timeout(CONNECT_LIMIT, opened).await.map_err(slow)?;
    let opened = opened.map_err(|error| Error::with_source(Kind::Io, whom(), error))?;
    opened.map_err(|error: libvirt::Error| explain(&whom(), error))
}
