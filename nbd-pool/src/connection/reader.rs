//! The receiving half: from the socket into the buffers of those who asked.

use std::io;
use std::sync::atomic::Ordering;

use bytes::Buf;
use tokio::io::{AsyncRead, AsyncReadExt, BufReader};
use tokio::time::Instant;

use super::tasks::Ending;
use super::{Body, Entry, Outcome, Shared};
use crate::error::{Error, ErrorKind};
use crate::proto::{self, ChunkHeader, ChunkKind, ErrorChunk, Headers, ReplyStart};
use crate::reply::{ReadReply, StatusReply, Verdict};
use crate::wide;

/// Read ahead for headers, with which a reply of 4 KiB comes in one go. Not larger on purpose: payload beyond it goes straight
/// into the caller's buffer, and no more than this much of it is copied once over.
pub(super) const READ_AHEAD: usize = (4 << 10) + 256;

/// Bytes of descriptors read at once; a multiple of both widths.
const DESCRIPTORS: usize = 16 << 10;

/// Serves replies until the connection ends.
///
/// The body that a chunk belongs to is in `current` while the chunk is read, so that its buffer
/// survives when this future is dropped.
pub(super) async fn receive<R>(reader: R, current: &mut Option<Box<Body>>, shared: &Shared) -> Ending
where
    R: AsyncRead + Unpin,
{
    let mut receiver = Receiver { reader: BufReader::with_capacity(READ_AHEAD, reader), scratch: Vec::new() };
    loop {
        match receiver.reply(current, shared).await {
            Ok(Next::Go) => {}
            Ok(Next::Leave) => {
                let reason = "the server is shutting down";
                return Ending::Soft(Error::new(ErrorKind::Disconnected, reason));
            }
            Err(error) => return Ending::Hard(error),
        }
    }
}

/// What to do after a chunk.
enum Next {
    Go,
    /// The server said `NBD_ESHUTDOWN`, upon which the spec wants the client to leave.
    Leave,
}

struct Receiver<R> {
    reader: BufReader<R>,
    /// For what is decoded rather than handed over; grows to [`DESCRIPTORS`] at most.
    scratch: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Receiver<R> {
    /// Serves one simple reply or one chunk.
    async fn reply(&mut self, current: &mut Option<Box<Body>>, shared: &Shared) -> Result<Next, Error> {
        let headers = shared.negotiated.headers;
        let start = self.start(headers).await?;
        let (cookie, done) = match start {
            ReplyStart::Simple { cookie, .. } => (cookie, true),
            ReplyStart::Chunk(header) => (header.cookie, header.done),
        };
        let body = current.insert(shared.take(cookie)?);
        match start {
            ReplyStart::Simple { error, .. } => simple(error, body)?,
            ReplyStart::Chunk(header) => {
                let mut rest = [0; 16];
                let rest = &mut rest[..ChunkHeader::rest(headers)];
                self.fill(rest).await?;
                self.chunk(&header.with_rest(headers, rest)?, body).await?;
            }
        }
        if !done {
            shared.put_back(cookie, current.take());
            return Ok(Next::Go);
        }
        // Judged in place: if the verdict is a fault, the buffer must stay in `current`.
        let verdict = match &mut **body {
            Body::Read(reply, _) => Finished::Read(reply.finish()?),
            Body::Status(reply, _) => Finished::Status(reply.finish()?),
            Body::Plain(reply, _) => Finished::Plain(reply.finish()),
        };
        shared.retire(cookie);
        Ok(answer(current.take(), verdict, shared))
    }

    /// Reads as much as both framings have, so that a reply in the wrong one is told at once.
    async fn start(&mut self, headers: Headers) -> Result<ReplyStart, Error> {
        let mut bytes = [0; proto::REPLY_START];
        self.fill(&mut bytes).await?;
        proto::decode_start(headers, &bytes)
    }

    async fn chunk(&mut self, header: &ChunkHeader, body: &mut Body) -> Result<(), Error> {
        if header.offset.is_some_and(|offset| offset != body.offset()) {
            return Err(Error::protocol("a chunk with the offset of another request"));
        }
        match (header.kind, body) {
            (ChunkKind::None, _) if header.length == 0 && header.done => Ok(()),
            (ChunkKind::OffsetData, Body::Read(reply, _)) => self.data(header, reply).await,
            (ChunkKind::OffsetHole, Body::Read(reply, _)) if header.length == 12 => {
                let (offset, length) = proto::decode_hole(self.scratch(12).await?)?;
                reply.hole(offset, length)
            }
            (ChunkKind::BlockStatus | ChunkKind::BlockStatusExt, Body::Status(reply, _)) => {
                self.extents(header, reply).await
            }
            (kind, body) if kind.is_error() => {
                let length = proto::check_error_length(kind, header.length)?;
                let error = proto::decode_error(kind, self.scratch(length).await?)?;
                fail(body, error)
            }
            (kind, Body::Read(..)) => Err(misplaced(kind, header, "a read")),
            (kind, Body::Status(..)) => Err(misplaced(kind, header, "block status")),
            (kind, Body::Plain(..)) => Err(misplaced(kind, header, "a trim")),
        }
    }

    async fn data(&mut self, header: &ChunkHeader, reply: &mut ReadReply) -> Result<(), Error> {
        let length = reply.data_length(header.length)?;
        let mut offset = [0; 8];
        self.fill(&mut offset).await?;
        let place = reply.claim(u64::from_be_bytes(offset), length)?;
        self.fill(place).await
    }

    async fn extents(&mut self, header: &ChunkHeader, reply: &mut StatusReply) -> Result<(), Error> {
        let count = reply.descriptors(header.kind, header.length)?;
        let (fixed, width) = reply.layout();
        let mut start = self.scratch(fixed).await?;
        reply.begin(start.get_u32())?;
        if start.remaining() >= 4 && u64::from(start.get_u32()) != count {
            return Err(Error::protocol("a descriptor count that is not the chunk's"));
        }
        let mut left = usize::try_from(count).expect("bounded by the reply") * width;
        while left > 0 {
            let batch = left.min(DESCRIPTORS);
            left -= batch;
            for mut descriptor in self.scratch(batch).await?.chunks_exact(width) {
                let (length, flags) = if width == 16 {
                    (descriptor.get_u64(), descriptor.get_u64())
                } else {
                    (u64::from(descriptor.get_u32()), u64::from(descriptor.get_u32()))
                };
                reply.push(length, flags)?;
            }
        }
        Ok(())
    }

    /// Reads `length` bytes that are to be decoded.
    async fn scratch(&mut self, length: usize) -> Result<&[u8], Error> {
        debug_assert!(length <= DESCRIPTORS);
        if self.scratch.len() < length {
            self.scratch.resize(length, 0);
        }
        self.reader.read_exact(&mut self.scratch[..length]).await.map_err(lost)?;
        Ok(&self.scratch[..length])
    }

    async fn fill(&mut self, bytes: &mut [u8]) -> Result<(), Error> {
        self.reader.read_exact(bytes).await.map(drop).map_err(lost)
    }
}

/// A verdict on a reply of either kind.
enum Finished {
    Read(Verdict<bytes::BytesMut>),
    Status(Verdict<Vec<crate::extent::Extent>>),
    Plain(Verdict<()>),
}

/// Hands the verdict to whoever waits.
fn answer(body: Option<Box<Body>>, verdict: Finished, shared: &Shared) -> Next {
    let leave = |error: &Error| match error.kind() {
        ErrorKind::Server(proto::ESHUTDOWN) => Next::Leave,
        _ => Next::Go,
    };
    // Whoever waited may have gone; that is no matter.
    match (body.map(|body| *body), verdict) {
        (Some(Body::Read(_, done)), Finished::Read(verdict)) => {
            if let Verdict::Whole(buf) = &verdict {
                shared.counters.bytes.fetch_add(wide(buf.len()), Ordering::Relaxed);
            }
            let (outcome, next) = judged(verdict, leave);
            done.tell(outcome);
            next
        }
        (Some(Body::Status(_, waiter)), Finished::Status(verdict)) => {
            let (outcome, next) = judged(verdict, leave);
            let _ = waiter.send(outcome);
            next
        }
        (Some(Body::Plain(_, waiter)), Finished::Plain(verdict)) => {
            let (outcome, next) = judged(verdict, leave);
            let _ = waiter.send(outcome);
            next
        }
        _ => unreachable!("a verdict is of the kind of its body"),
    }
}

/// What a verdict is to whoever waits, and to the connection.
fn judged<T, L>(verdict: Verdict<T>, leave: impl Fn(&Error) -> Next) -> (Outcome<T, L>, Next) {
    match verdict {
        Verdict::Whole(whole) => (Outcome::Done(whole), Next::Go),
        Verdict::Refused(error) => {
            let next = leave(&error);
            (Outcome::Server(error), next)
        }
    }
}

/// With structured replies, a simple one may only report an error where there is something to tell, and never to a read.
fn simple(error: u32, body: &mut Body) -> Result<(), Error> {
    match (error, &body) {
        (_, Body::Read(..)) => Err(Error::protocol("a simple reply to a read")),
        (0, Body::Status(..)) => Err(Error::protocol("a simple reply to block status")),
        (0, Body::Plain(..)) => Ok(()),
        (errno, Body::Status(..) | Body::Plain(..)) => {
            fail(body, ErrorChunk { errno, message: String::new(), offset: None })
        }
    }
}

fn fail(body: &mut Body, error: ErrorChunk) -> Result<(), Error> {
    match body {
        Body::Read(reply, _) => reply.fail(error),
        Body::Status(reply, _) => reply.fail(error),
        Body::Plain(reply, _) => reply.fail(error),
    }
}

fn misplaced(kind: ChunkKind, header: &ChunkHeader, command: &str) -> Error {
    let ChunkHeader { length, done, .. } = header;
    Error::protocol(format!("{kind:?} of {length} bytes (done: {done}) in answer to {command}"))
}

fn lost(error: io::Error) -> Error {
    Error::new(ErrorKind::Disconnected, "waiting for a reply").with_source(error)
}

impl Shared {
    /// Takes the body of a request for as long as one of its chunks is read.
    fn take(&self, cookie: u64) -> Result<Box<Body>, Error> {
        let mut table = self.table();
        let body = table.entries.get_mut(&cookie).and_then(|entry| entry.body.take());
        body.ok_or_else(|| Error::protocol(format!("a reply to unknown cookie {cookie:#x}")))
    }

    /// Puts a body back. If the connection was hung up meanwhile, it is lost like the others.
    fn put_back(&self, cookie: u64, body: Option<Box<Body>>) {
        let orphan = {
            let mut table = self.table();
            match (table.entries.get_mut(&cookie), body) {
                (Some(entry), body) => {
                    entry.body = body;
                    None
                }
                (None, body) => body.map(|body| (body, table.death.clone())),
            }
        };
        if let Some((body, Some(cause))) = orphan {
            body.lose(&cause);
        }
    }

    /// Forgets a request that was answered; its permits go back to the pool.
    fn retire(&self, cookie: u64) {
        let answered = {
            let mut table = self.table();
            table.proven = true;
            table.entries.remove(&cookie)
        };
        // When it was sent is known by when it has to be answered: no other clock is read for that.
        if let Some(Entry { deadline, .. }) = answered {
            let left = deadline.saturating_duration_since(Instant::now());
            self.counters.latency.add(self.limits.request_timeout.saturating_sub(left));
        }
    }
}
