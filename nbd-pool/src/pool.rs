//! The pool: cuts reads into requests, keeps the bounds, chooses and replaces connections.
//!
//! * Permits come first (one request, then its bytes), the connection after. Permits return when
//!   the reply is whole, whether or not anybody still waits; so a read larger than the whole bound
//!   goes through piece by piece, and two such reads cannot starve each other.
//! * One caller at a time dials; the others wait for its connection. A connection that was lost is
//!   replaced no sooner than the back-off allows, which grows until a server proves itself by a
//!   whole reply.
//! * What a lost connection owed is issued again, until the caller's time is up. Three protocol
//!   faults on the same request are taken as the server's answer.

mod begin;
mod dial;
mod read;
mod slots;
mod status;

use std::fmt;
use std::future::Future;
use std::ops::{ControlFlow, Range};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::BytesMut;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use crate::config::{Address, Config};
use crate::connection::Permits;
use crate::error::{Error, ErrorKind};
use crate::extent::Extent;
use crate::info::{ExportInfo, Stats};
use crate::meter::Meter;
use crate::wide;
use dial::Dialer;
use slots::Slots;

/// Block-status rounds at a time: a reply may take 2^20 extents of 24 bytes.
const STATUS_ROUNDS: usize = 2;

/// Bytes that one trim names at most: servers take 32 bits, and do it in one go.
const MAX_TRIM: u64 = 1 << 30;

/// Protocol faults in answer to one request, after which it fails.
const MAX_FAULTS: u32 = 3;

/// Connections to one export of one NBD server. Clones share everything.
#[derive(Clone)]
pub struct Pool {
    inner: Arc<Inner>,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { dialer, info, .. } = &*self.inner;
        f.debug_struct("Pool").field("server", &dialer.to_string()).field("info", info).finish()
    }
}

/// Is told how a read ended, on whatever thread finds out: it must not wait.
pub type Begun = Box<dyn FnOnce(Result<BytesMut, Error>) + Send>;

struct Inner {
    /// For what has to wait.
    runtime: Handle,
    dialer: Arc<Dialer>,
    info: ExportInfo,
    /// Size of a read request in bytes: a multiple of the minimum block, within all bounds.
    request_size: u64,
    counters: Arc<Meter>,
    requests: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    status_rounds: Semaphore,
    /// Held, by one permit, by whoever dials because no connection is left.
    dial_turn: Semaphore,
    closed: watch::Sender<bool>,
    /// Outer lock: a connection's table may be locked within it, never the other way round. Not
    /// held over an await.
    slots: Mutex<Slots>,
}

impl Pool {
    /// Connects to `export` at `address` and asks for the metadata `contexts`; those that the
    /// server does not have are missing from [`ExportInfo::contexts`]. One attempt is made.
    ///
    /// # Errors
    /// `Connect` and `Handshake` (their time limits included), `Disconnected`, `Refused` where the
    /// server says no, `Unsupported` for a server without structured replies or `NBD_OPT_GO`.
    pub async fn connect(address: Address, export: &str, contexts: &[String], config: Config) -> Result<Pool, Error> {
        let config = config.normalised();
        let counters = Arc::clone(&config.meter);
        let dialer = Dialer::new(address, export, contexts, config, Arc::clone(&counters));
        let first = dialer.dial().await?;
        let info = first.negotiated().info.clone();
        let config = &dialer.config;
        let minimum = u64::from(info.block_size.minimum);
        let most = u64::from(info.block_size.maximum).min(wide(config.max_in_flight_bytes));
        let request_size = u64::from(config.request_size).min(most).max(minimum);
        let request_size = request_size - request_size % minimum;
        // One request must always fit.
        let bytes = usize::try_from(request_size).unwrap_or(usize::MAX);
        let bytes = bytes.max(config.max_in_flight_bytes).min(Semaphore::MAX_PERMITS);
        let inner = Inner {
            runtime: Handle::current(),
            info,
            request_size,
            counters,
            requests: Arc::new(Semaphore::new(config.max_in_flight_requests)),
            bytes: Arc::new(Semaphore::new(bytes)),
            status_rounds: Semaphore::new(STATUS_ROUNDS),
            dial_turn: Semaphore::new(1),
            closed: watch::Sender::new(false),
            slots: Mutex::new(Slots::new(Arc::new(first), config)),
            dialer: Arc::new(dialer),
        };
        Ok(Pool { inner: Arc::new(inner) })
    }

    /// What the server said of the export; it stays true for the life of the pool.
    pub fn info(&self) -> &ExportInfo {
        &self.inner.info
    }

    /// Fills `buf`, whose `len()` is the length of the read, with what is at `offset`.
    ///
    /// The same allocation comes back. The read is cut into requests and spread over connections;
    /// requests that a lost connection owed are issued again.
    ///
    /// # Errors
    /// `OutOfRange`; `Server` with what the server reported, never retried; `Timeout` after
    /// [`Config::request_timeout`]; `Protocol`, `Changed`, `Closed`; on reconnect also `Refused`
    /// and `Unsupported`. The buffer is gone then.
    pub async fn read(&self, offset: u64, buf: BytesMut) -> Result<BytesMut, Error> {
        let length = wide(buf.len());
        let end = offset.checked_add(length);
        self.inner.check_range(offset, end)?;
        let what = || format!("read of {length} bytes at {offset}");
        self.inner.limited(what, self.inner.read_pieces(offset, buf)).await
    }

    /// Begins what [`Pool::read`] does, without waiting; any thread may. `begun` is told how it ends, as there, and gets the
    /// buffer.
    ///
    /// The time limit is that of a request on its connection, and once more for what has to be issued again.
    pub fn begin_read(&self, offset: u64, buf: BytesMut, begun: Begun) {
        self.inner.begin(offset, buf, begun);
    }

    /// Gives the extents of `range` in one metadata context to `sink`, in order, without gaps,
    /// cut to the range, until its end or until `sink` breaks off.
    ///
    /// Adjacent extents with equal flags are merged within a reply of the server, not between
    /// replies.
    ///
    /// # Errors
    /// As [`Pool::read`]; `Unsupported` where the server did not grant `context`. The time limit
    /// is that of one round, and for the whole range that of each request that it takes at least, and
    /// of one more: a server that tells of it in crumbs does not keep anybody for ever.
    pub async fn block_status(
        &self,
        context: &str,
        range: Range<u64>,
        mut sink: impl FnMut(Extent) -> ControlFlow<()> + Send,
    ) -> Result<(), Error> {
        let inner = &self.inner;
        inner.check_range(range.start, Some(range.end))?;
        let index = inner.info.contexts.iter().position(|granted| granted == context);
        let index = index.ok_or_else(|| {
            let reason = format!("the context {context:?} was not granted");
            Error::new(ErrorKind::Unsupported, reason)
        })?;
        let limit = inner.status_limit(&range);
        let rounds = async {
            let mut at = range.start;
            while at < range.end {
                let what = || format!("block status of {} bytes at {at}", range.end - at);
                let extents = inner.limited(what, inner.status_round(index, at..range.end)).await?;
                // Possible where the server ends an extent within one of its own blocks.
                if extents.last().is_none_or(|last| last.end() <= at) {
                    return Err(Error::protocol(format!("{} got nowhere", what())));
                }
                for extent in &extents {
                    at = at.max(extent.end());
                    if let Some(extent) = extent.clamp(&range)
                        && sink(extent).is_break()
                    {
                        return Ok(());
                    }
                }
            }
            Ok(())
        };
        timeout(limit, rounds).await.unwrap_or_else(|_| {
            let what = format!("block status of {} bytes at {}", range.end - range.start, range.start);
            Err(Error::new(ErrorKind::Timeout, format!("{what}, in many small answers, within {limit:?}")))
        })
    }

    /// Says that `range` is not needed any more. What reading it gives from then on is the server's business; whoever
    /// asks must not need it.
    ///
    /// # Errors
    /// As [`Pool::read`]; `Unsupported` where the export does not take that ([`ExportInfo::can_trim`]).
    pub async fn trim(&self, range: Range<u64>) -> Result<(), Error> {
        let inner = &self.inner;
        inner.check_range(range.start, Some(range.end))?;
        if !inner.info.can_trim {
            return Err(Error::new(ErrorKind::Unsupported, "the export takes no trim"));
        }
        let mut at = range.start;
        while at < range.end {
            let end = range.end.min(at + MAX_TRIM);
            let what = || format!("trim of {} bytes at {at}", end - at);
            inner.limited(what, inner.trim_piece(at..end)).await?;
            at = end;
        }
        Ok(())
    }

    /// Ends every connection with `NBD_CMD_DISC` and waits until nothing of the pool is left; what
    /// is under way and what comes later fails with `Closed`, in all clones.
    pub async fn close(&self) {
        self.inner.closed.send_replace(true);
        let (connections, growing) = self.inner.slots().close();
        if let Some(growing) = growing {
            growing.abort();
        }
        for connection in &connections {
            connection.hang_up();
        }
        for connection in connections {
            connection.gone().await;
        }
    }

    /// Counters of the pool's [`Config::meter`], since that was made.
    pub fn stats(&self) -> Stats {
        let counters = &self.inner.counters;
        Stats {
            requests: counters.requests.load(Ordering::Relaxed),
            bytes: counters.bytes.load(Ordering::Relaxed),
            reconnects: counters.reconnects.load(Ordering::Relaxed),
            faults: counters.faults.load(Ordering::Relaxed),
            connections: wide(self.inner.slots().alive()),
        }
    }
}

impl Inner {
    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_range(&self, start: u64, end: Option<u64>) -> Result<(), Error> {
        match end {
            Some(end) if start <= end && end <= self.info.size => Ok(()),
            _ => {
                let end = end.map_or_else(|| "2^64 or more".to_owned(), |end| end.to_string());
                let context = format!("{start} to {end}, of {} bytes", self.info.size);
                Err(Error::new(ErrorKind::OutOfRange, context))
            }
        }
    }

    /// Runs one operation within the time limit, until the pool is closed.
    async fn limited<T>(
        &self,
        what: impl Fn() -> String,
        operation: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let mut closed = self.closed.subscribe();
        let limit = self.dialer.config.request_timeout;
        tokio::select! {
            biased;
            _ = closed.wait_for(|closed| *closed) => Err(Error::new(ErrorKind::Closed, what())),
            result = timeout(limit, operation) => result.unwrap_or_else(|_| {
                let error = Error::new(ErrorKind::Timeout, format!("{} within {limit:?}", what()));
                Err(match self.slots().last_failure() {
                    Some(cause) => error.with_source(cause),
                    None => error,
                })
            }),
        }
    }

    /// Waits for the right to have a request of `bytes` in flight.
    async fn permits(&self, bytes: u64) -> Result<Permits, Error> {
        let closed = |_| Error::new(ErrorKind::Closed, "waiting to send a request");
        let request = Arc::clone(&self.requests).acquire_owned().await.map_err(closed)?;
        let bytes = match u32::try_from(bytes).expect("a request size is at most 32 bits") {
            0 => None,
            bytes => Some(Arc::clone(&self.bytes).acquire_many_owned(bytes).await.map_err(closed)?),
        };
        Ok(Permits { _request: request, _bytes: bytes })
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The connections end by being dropped; a task that dials one more has nobody to serve.
        let (_, growing) = self.slots().close();
        if let Some(growing) = growing {
            growing.abort();
        }
    }
}
