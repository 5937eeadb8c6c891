//! One socket, many requests in flight.
//!
//! ```text
//!        submit ──insert──▶ table ◀──take / put back── reader task ◀── socket
//!          └──────queue──▶ writer task ──▶ socket
//! ```
//!
//! A request is entered into the table before it is queued, so its reply can never come too
//! early. Its entry owns the buffer and the permits until the reply is whole; nobody has to wait
//! for the answer. The reader task also keeps the time limit of the oldest request. When the
//! connection ends, for whatever reason, every request still in the table is answered `Lost`, with
//! its buffer, and may be issued again on another connection.
//!
//! A soft end (`NBD_CMD_DISC`) is the queue running dry with no sender left; a fault ends hard.
//!
//! A plain socket needs neither task: whoever asks writes the request into the socket, and a thread of its own ([`blocking`])
//! reads the replies with the same code. A payload goes from the kernel into the buffer of the one who asked, and that
//! thread tells them, so no other has to wake up. TLS has state that both directions share; it stays with the tasks.

mod blocking;
mod reader;
mod tasks;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::Instant;

pub(crate) use self::blocking::Socket;

use crate::error::{Error, ErrorKind};
use crate::extent::Extent;
use crate::handshake::Negotiated;
use crate::meter::Meter;
use crate::proto::{Command, Headers, Request};
use crate::reply::{PlainReply, ReadReply, StatusReply, StatusTerms};
use crate::wide;

/// What a connection may hold and how long it may take.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    /// Most requests in flight; the pool's permits keep to it as well.
    pub(crate) requests: usize,
    /// Longest life of a request.
    pub(crate) request_timeout: Duration,
}

/// How a request ended. `L` is what comes back when it can be issued again.
#[derive(Debug)]
pub(crate) enum Outcome<T, L> {
    Done(T),
    /// The server reported an error.
    Server(Error),
    /// The connection ended first, for this reason.
    Lost(L, Arc<Error>),
}

pub(crate) type ReadOutcome = Outcome<BytesMut, BytesMut>;
pub(crate) type StatusOutcome = Outcome<Vec<Extent>, ()>;
pub(crate) type PlainOutcome = Outcome<(), ()>;

/// Is told how a read ended, on whatever thread finds out: it must not wait.
pub(crate) struct ReadDone(Box<dyn FnOnce(ReadOutcome) + Send>);

impl ReadDone {
    pub(crate) fn new(done: impl FnOnce(ReadOutcome) + Send + 'static) -> Self {
        Self(Box::new(done))
    }

    pub(crate) fn tell(self, outcome: ReadOutcome) {
        (self.0)(outcome);
    }
}

impl fmt::Debug for ReadDone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReadDone")
    }
}

/// Shares of the pool's bounds; given back on drop.
#[derive(Debug)]
pub(crate) struct Permits {
    pub(crate) _request: OwnedSemaphorePermit,
    pub(crate) _bytes: Option<OwnedSemaphorePermit>,
}

/// A handle on a connection. Dropping it ends the connection softly.
#[derive(Debug)]
pub(crate) struct Connection {
    shared: Arc<Shared>,
    /// Ends with the reader, until somebody waits for that. Taken, never held over an await.
    ended: Mutex<Option<oneshot::Receiver<()>>>,
}

#[derive(Debug)]
struct Shared {
    negotiated: Negotiated,
    limits: Limits,
    counters: Arc<Meter>,
    /// Innermost lock: nothing else is locked while it is held, and no await happens.
    table: Mutex<Table>,
    /// The pool has given the connection up.
    hung_up: Notify,
}

/// Invariant: once `death` is set, `entries` is empty and stays so, and `queue` is gone.
#[derive(Debug, Default)]
struct Table {
    /// Cookies ascend, and every request has the same limit: the first entry is the oldest.
    entries: BTreeMap<u64, Entry>,
    last_cookie: u64,
    queue: Option<Outlet>,
    death: Option<Arc<Error>>,
    /// The server gave a whole reply on this connection.
    proven: bool,
}

/// Where requests go.
#[derive(Debug)]
enum Outlet {
    /// To the writer task.
    Task(mpsc::Sender<Request>),
    /// Into the socket; the buffer is used again for each request.
    Socket(Arc<Socket>, BytesMut),
}

impl Outlet {
    /// Whether the request goes out; it does not wait.
    fn send(&mut self, request: Request, headers: Headers) -> bool {
        match self {
            Self::Task(queue) => queue.try_send(request).is_ok(),
            Self::Socket(socket, bytes) => {
                bytes.clear();
                request.encode(headers, bytes);
                socket.send(bytes)
            }
        }
    }
}

#[derive(Debug)]
struct Entry {
    deadline: Instant,
    /// `None` while the reader task has it.
    body: Option<Box<Body>>,
    _permits: Permits,
}

/// What is asked for, and who waits.
#[derive(Debug)]
enum Body {
    Read(ReadReply, ReadDone),
    Status(StatusReply, oneshot::Sender<StatusOutcome>),
    Plain(PlainReply, oneshot::Sender<PlainOutcome>),
}

impl Body {
    fn offset(&self) -> u64 {
        match self {
            Body::Read(reply, _) => reply.offset(),
            Body::Status(reply, _) => reply.offset(),
            Body::Plain(reply, _) => reply.offset(),
        }
    }

    /// Answers `Lost`. Whoever waited may have gone; that is no matter.
    fn lose(self, cause: &Arc<Error>) {
        match self {
            Body::Read(reply, done) => done.tell(Outcome::Lost(reply.into_buf(), Arc::clone(cause))),
            Body::Status(_, waiter) => {
                let _ = waiter.send(Outcome::Lost((), Arc::clone(cause)));
            }
            Body::Plain(_, waiter) => {
                let _ = waiter.send(Outcome::Lost((), Arc::clone(cause)));
            }
        }
    }
}

impl Connection {
    /// Starts the tasks of a connection whose handshake is over.
    pub(crate) fn start<R, W>(
        reader: R,
        writer: W,
        negotiated: Negotiated,
        limits: Limits,
        counters: Arc<Meter>,
    ) -> Self
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        // Each queued request holds a permit of the pool, so the queue is never the bound.
        let (queue, requests) = mpsc::channel(limits.requests);
        let writer = tokio::spawn(tasks::write(writer, requests, negotiated.headers));
        let shared = Arc::new(Shared::new(Outlet::Task(queue), negotiated, limits, counters));
        let (end, ended) = oneshot::channel::<()>();
        let run = tasks::run(reader, writer, Arc::clone(&shared));
        tokio::spawn(async move {
            let _end = end;
            run.await;
        });
        Self { shared, ended: Mutex::new(Some(ended)) }
    }

    /// Starts the thread of a connection over a plain socket whose handshake is over.
    ///
    /// # Errors
    /// When the system has no thread for it.
    pub(crate) fn start_on_thread(
        socket: Socket,
        negotiated: Negotiated,
        limits: Limits,
        counters: Arc<Meter>,
    ) -> io::Result<Self> {
        let socket = Arc::new(socket);
        let outlet = Outlet::Socket(Arc::clone(&socket), BytesMut::new());
        let shared = Arc::new(Shared::new(outlet, negotiated, limits, counters));
        let ended = blocking::start(socket, Arc::clone(&shared))?;
        Ok(Self { shared, ended: Mutex::new(Some(ended)) })
    }

    pub(crate) fn negotiated(&self) -> &Negotiated {
        &self.shared.negotiated
    }

    /// Requests in flight.
    pub(crate) fn load(&self) -> usize {
        self.shared.table().entries.len()
    }

    /// Why it ended, if it did, and whether it ever served a request.
    pub(crate) fn death(&self) -> Option<(Arc<Error>, bool)> {
        let table = self.shared.table();
        table.death.as_ref().map(|death| (Arc::clone(death), table.proven))
    }

    /// Asks for `buf.len()` bytes at `offset`.
    ///
    /// # Errors
    /// Everything comes back when the connection has ended.
    pub(crate) fn read(
        &self,
        offset: u64,
        buf: BytesMut,
        permits: Permits,
    ) -> Result<oneshot::Receiver<ReadOutcome>, (BytesMut, Permits)> {
        let (sender, outcome) = oneshot::channel();
        // Whoever waited may have gone; that is no matter.
        let done = ReadDone::new(move |outcome| drop(sender.send(outcome)));
        self.begin_read(offset, buf, permits, done).map(|()| outcome).map_err(|(buf, permits, _)| (buf, permits))
    }

    /// The same; `done` is told how it ends.
    ///
    /// # Errors
    /// Everything comes back when the connection has ended.
    pub(crate) fn begin_read(
        &self,
        offset: u64,
        buf: BytesMut,
        permits: Permits,
        done: ReadDone,
    ) -> Result<(), (BytesMut, Permits, ReadDone)> {
        let length = wide(buf.len());
        let body = Box::new(Body::Read(ReadReply::new(offset, buf), done));
        self.shared.submit(Command::Read, offset, length, body, permits).map_err(|(body, permits)| match *body {
            Body::Read(reply, done) => (reply.into_buf(), permits, done),
            Body::Status(..) | Body::Plain(..) => unreachable!("a read comes back as a read"),
        })
    }

    /// Asks for the status of `length` bytes at `offset`, or of as many as one request can name,
    /// in the context with this index among those negotiated.
    ///
    /// # Errors
    /// The permits come back when the connection has ended.
    pub(crate) fn block_status(
        &self,
        context: usize,
        offset: u64,
        length: u64,
        permits: Permits,
    ) -> Result<oneshot::Receiver<StatusOutcome>, Permits> {
        let Negotiated { info, headers, context_ids, status_filter } = &self.shared.negotiated;
        let wanted = context_ids[context];
        let filter = *status_filter && context_ids.len() > 1;
        let length = length.min(headers.max_status_length());
        let terms = StatusTerms {
            offset,
            length,
            limit: info.size.next_multiple_of(u64::from(info.block_size.minimum)),
            wanted,
            expected: if filter { vec![wanted] } else { context_ids.clone() },
            headers: *headers,
        };
        let command = Command::BlockStatus { only: filter.then_some(wanted) };
        let (sender, outcome) = oneshot::channel();
        let body = Box::new(Body::Status(StatusReply::new(terms), sender));
        match self.shared.submit(command, offset, length, body, permits) {
            Ok(()) => Ok(outcome),
            Err((_, permits)) => Err(permits),
        }
    }

    /// Says that `length` bytes at `offset` are not needed any more.
    ///
    /// # Errors
    /// The permits come back when the connection has ended.
    pub(crate) fn trim(
        &self,
        offset: u64,
        length: u64,
        permits: Permits,
    ) -> Result<oneshot::Receiver<PlainOutcome>, Permits> {
        let (sender, outcome) = oneshot::channel();
        let body = Box::new(Body::Plain(PlainReply::new(offset, length), sender));
        match self.shared.submit(Command::Trim, offset, length, body, permits) {
            Ok(()) => Ok(outcome),
            Err((_, permits)) => Err(permits),
        }
    }

    /// Ends the connection: what is in flight is lost, the server hears `NBD_CMD_DISC`.
    pub(crate) fn hang_up(&self) {
        let cause = Error::new(ErrorKind::Closed, "the connection was given up");
        self.shared.bury(None, &Arc::new(cause), true);
        self.shared.hung_up.notify_one();
    }

    /// Waits until nothing is left of the connection, after [`Connection::hang_up`].
    pub(crate) async fn gone(&self) {
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(ended) = ended {
            // A task bounds itself by `GOODBYE`, a thread by the end of its socket. Nothing is ever sent.
            let _ = ended.await;
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.hang_up();
    }
}

impl Shared {
    fn new(outlet: Outlet, negotiated: Negotiated, limits: Limits, counters: Arc<Meter>) -> Self {
        let table = Table { queue: Some(outlet), ..Table::default() };
        Self { negotiated, limits, counters, table: Mutex::new(table), hung_up: Notify::new() }
    }

    /// The error of a connection whose oldest request is older than it may be.
    fn overdue(&self) -> Option<Error> {
        let oldest = self.table().entries.first_key_value().map(|(_, entry)| entry.deadline)?;
        let limit = self.limits.request_timeout;
        (oldest <= Instant::now()).then(|| Error::new(ErrorKind::Timeout, format!("no answer within {limit:?}")))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a request into the table and queues it, in one step.
    fn submit(
        &self,
        command: Command,
        offset: u64,
        length: u64,
        body: Box<Body>,
        permits: Permits,
    ) -> Result<(), (Box<Body>, Permits)> {
        let mut table = self.table();
        let cookie = table.last_cookie + 1;
        let request = Request { command, cookie, offset, length };
        let headers = self.negotiated.headers;
        if !table.queue.as_mut().is_some_and(|outlet| outlet.send(request, headers)) {
            drop(table);
            // Closed: the writer has ended, or the socket, and the reader did not get to say so yet. Full: the
            // server answers requests that were not sent, or takes none. Whoever asks again at once must not be
            // given this connection, or it would ask for ever.
            let cause = Error::new(ErrorKind::Disconnected, "no request can be sent any more");
            self.bury(None, &Arc::new(cause), false);
            self.hung_up.notify_one();
            return Err((body, permits));
        }
        table.last_cookie = cookie;
        let deadline = Instant::now() + self.limits.request_timeout;
        table.entries.insert(cookie, Entry { deadline, body: Some(body), _permits: permits });
        self.counters.requests.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Marks the connection dead and answers every request in flight `Lost`. The first cause
    /// stays; `current` is the body that the reader had in hand, `soft` whether the server is to hear of it.
    fn bury(&self, current: Option<Box<Body>>, cause: &Arc<Error>, soft: bool) {
        let (outlet, entries) = {
            let mut table = self.table();
            table.death.get_or_insert_with(|| Arc::clone(cause));
            (table.queue.take(), std::mem::take(&mut table.entries))
        };
        if let Some(Outlet::Socket(socket, _)) = outlet {
            socket.end(soft.then_some(self.negotiated.headers));
        }
        self.counters.lost.fetch_add(wide(entries.len()), Ordering::Relaxed);
        let bodies = entries.into_values().filter_map(|entry| entry.body);
        bodies.chain(current).for_each(|body| body.lose(cause));
    }
}

#[cfg(test)]
mod tests;
