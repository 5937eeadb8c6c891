//! Which connections there are, when the next may be dialled, and who dials.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

use super::Inner;
use crate::config::Config;
use crate::connection::Connection;
use crate::error::{Error, ErrorKind};
use crate::info::ExportInfo;

/// Requests in flight from which on a connection counts as busy: QEMU serves 16 of a connection
/// side by side, so a few keep one busy and leave no reason for another.
const BUSY: usize = 4;

/// A server that would not take one more client (QEMU's `max-connections`) is not asked again
/// for this long.
const GROW_AGAIN: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// The export is another one now.
    Changed,
    Closed,
}

pub(super) struct Slots {
    state: State,
    live: Vec<Arc<Connection>>,
    /// The task that dials one more connection beside those there are.
    growing: Option<AbortHandle>,
    grow_after: Instant,
    backoff_min: Duration,
    backoff_max: Duration,
    /// The next wait after a failure.
    backoff: Duration,
    /// No dialling to replace a connection before this.
    not_before: Instant,
    last_failure: Option<Arc<Error>>,
}

impl Slots {
    pub(super) fn new(first: Arc<Connection>, config: &Config) -> Self {
        let now = Instant::now();
        Self {
            state: State::Open,
            live: vec![first],
            growing: None,
            grow_after: now,
            backoff_min: config.backoff_min,
            backoff_max: config.backoff_max,
            backoff: config.backoff_min,
            not_before: now,
            last_failure: None,
        }
    }

    pub(super) fn close(&mut self) -> (Vec<Arc<Connection>>, Option<AbortHandle>) {
        self.state = State::Closed;
        (std::mem::take(&mut self.live), self.growing.take())
    }

    pub(super) fn alive(&self) -> usize {
        self.live.iter().filter(|connection| connection.death().is_none()).count()
    }

    pub(super) fn last_failure(&self) -> Option<Arc<Error>> {
        self.last_failure.clone()
    }

    /// Lets go of connections that have ended, and learns from how they did.
    fn prune(&mut self) {
        let (live, dead) = std::mem::take(&mut self.live)
            .into_iter()
            .map(|connection| (connection.death(), connection))
            .partition::<Vec<_>, _>(|(death, _)| death.is_none());
        self.live = live.into_iter().map(|(_, connection)| connection).collect();
        for (cause, proven) in dead.into_iter().filter_map(|(death, _)| death) {
            if proven {
                self.backoff = self.backoff_min;
            }
            self.failed(cause);
        }
    }

    /// Notes a failure: the next attempt waits, the one after it longer.
    fn failed(&mut self, cause: Arc<Error>) {
        self.not_before = Instant::now() + self.backoff;
        self.backoff = self.backoff.saturating_mul(2).min(self.backoff_max);
        self.last_failure = Some(cause);
    }

    fn check(&self) -> Result<(), Error> {
        match self.state {
            State::Open => Ok(()),
            State::Closed => Err(Error::new(ErrorKind::Closed, "no requests any more")),
            State::Changed => {
                let error = Error::new(ErrorKind::Changed, "no requests any more");
                Err(match self.last_failure() {
                    Some(cause) => error.with_source(cause),
                    None => error,
                })
            }
        }
    }
}

impl Inner {
    /// A connection to send a request on: the least loaded, or a new one if none is left.
    pub(super) async fn connection(self: &Arc<Self>) -> Result<Arc<Connection>, Error> {
        if let Some(connection) = self.pick()? {
            return Ok(connection);
        }
        let _turn = self.dial_turn.acquire().await.expect("this semaphore is never closed");
        loop {
            if let Some(connection) = self.pick()? {
                return Ok(connection);
            }
            let not_before = self.slots().not_before;
            sleep_until(not_before).await;
            match self.dialer.dial().await {
                Ok(connection) => {
                    self.adopt(connection)?;
                    self.counters.reconnects.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => {
                    tracing::debug!(%error, "reconnect failed");
                    // A server that is there and says no gave its answer.
                    let answer =
                        matches!(error.kind(), ErrorKind::Refused | ErrorKind::Unsupported | ErrorKind::Untrusted);
                    let error = Arc::new(error);
                    self.slots().failed(Arc::clone(&error));
                    if answer {
                        let kind = error.kind();
                        return Err(Error::new(kind, "on reconnect").with_source(error));
                    }
                }
            }
        }
    }

    /// The least-loaded connection; if even that is busy, one more is dialled beside the work.
    pub(super) fn pick(self: &Arc<Self>) -> Result<Option<Arc<Connection>>, Error> {
        let mut slots = self.slots();
        slots.check()?;
        slots.prune();
        let loads = slots.live.iter().map(|connection| (connection.load(), connection));
        let Some((load, best)) = loads.min_by_key(|(load, _)| *load) else {
            return Ok(None);
        };
        let best = Arc::clone(best);
        if load >= BUSY
            && self.info.multi_conn
            && slots.live.len() < self.dialer.config.connections
            && slots.growing.is_none()
            && slots.grow_after <= Instant::now()
        {
            let task = self.runtime.spawn(grow(Arc::downgrade(self), Arc::clone(&self.dialer)));
            // The task locks the slots before it ends, so this comes before its `growing = None`.
            slots.growing = Some(task.abort_handle());
        }
        Ok(Some(best))
    }

    /// Takes a new connection in, if it leads to the same export.
    fn adopt(&self, connection: Connection) -> Result<(), Error> {
        let now = &connection.negotiated().info;
        let differs = difference(&self.info, now);
        let mut slots = self.slots();
        slots.check()?;
        if let Some(differs) = differs {
            let cause = Error::new(ErrorKind::Changed, format!("{}: {differs}", self.dialer));
            tracing::warn!(error = %cause, "NBD export changed");
            slots.state = State::Changed;
            slots.last_failure = Some(Arc::new(cause));
            slots.live.clear();
            return slots.check();
        }
        // One that was dialled beside may have come first.
        let most = if self.info.multi_conn { self.dialer.config.connections } else { 1 };
        if slots.live.len() < most {
            slots.live.push(Arc::new(connection));
        }
        Ok(())
    }
}

/// What makes `now` another export than `before`, if anything does.
fn difference(before: &ExportInfo, now: &ExportInfo) -> Option<String> {
    if before.size != now.size {
        return Some(format!("{} bytes, it had {}", now.size, before.size));
    }
    if before.contexts != now.contexts {
        return Some("other metadata contexts".to_owned());
    }
    // Requests have been cut to these.
    (before.block_size != now.block_size).then(|| "other block sizes".to_owned())
}

/// Dials one more connection for a pool that may be gone by then.
async fn grow(pool: Weak<Inner>, dialer: Arc<super::Dialer>) {
    let dialled = dialer.dial().await;
    let Some(inner) = pool.upgrade() else { return };
    let result = dialled.and_then(|connection| inner.adopt(connection));
    let mut slots = inner.slots();
    slots.growing = None;
    if let Err(error) = result {
        tracing::debug!(%error, "no further connection");
        slots.grow_after = Instant::now() + GROW_AGAIN;
    }
}
