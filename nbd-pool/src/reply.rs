//! Assembles one reply and holds every chunk of it to its request. No I/O.
//!
//! A reply to a read is whole when each byte of the request was described exactly once, by data
//! or by a hole, in any order. A reply to a block-status request is whole when each context
//! expected answered exactly once. A trim is answered by its success. An error chunk turns any into [`Verdict::Refused`].

mod coverage;

use bytes::BytesMut;

use crate::error::{Error, ErrorKind};
use crate::extent::Extent;
use crate::proto::{ChunkKind, ErrorChunk, Headers};
use crate::wide;
use coverage::Coverage;

/// Most descriptors in one chunk (spec, `NBD_REPLY_TYPE_BLOCK_STATUS`).
const MAX_DESCRIPTORS: u64 = 1 << 20;

/// A whole reply: what was asked for, or the error that the server reported in its place.
#[derive(Debug)]
pub(crate) enum Verdict<T> {
    Whole(T),
    Refused(Error),
}

/// A read being answered. It owns the buffer that the data goes into.
#[derive(Debug)]
pub(crate) struct ReadReply {
    offset: u64,
    buf: BytesMut,
    coverage: Coverage,
    error: Option<ErrorChunk>,
}

impl ReadReply {
    pub(crate) fn new(offset: u64, buf: BytesMut) -> Self {
        Self { offset, buf, coverage: Coverage::default(), error: None }
    }

    /// How much data a chunk with `payload` bytes carries, checked before any of it is read.
    pub(crate) fn data_length(&self, payload: u64) -> Result<usize, Error> {
        match payload.checked_sub(8).and_then(|length| usize::try_from(length).ok()) {
            Some(length) if length >= 1 && length <= self.buf.len() => Ok(length),
            _ => Err(Error::protocol(format!("a data chunk of {payload} bytes {}", self.place()))),
        }
    }

    /// The place of `length` bytes of data at `offset`, which count as described from now on.
    pub(crate) fn claim(&mut self, offset: u64, length: usize) -> Result<&mut [u8], Error> {
        let outside = || {
            let chunk = format!("a chunk of {length} bytes at {offset}, outside");
            Error::protocol(format!("{chunk} {}", self.place()))
        };
        let start =
            offset.checked_sub(self.offset).and_then(|start| usize::try_from(start).ok()).ok_or_else(outside)?;
        let end = start.checked_add(length).filter(|end| *end <= self.buf.len());
        let end = end.ok_or_else(outside)?;
        if let Err(reason) = self.coverage.add(start, end) {
            let chunk = format!("a chunk of {length} bytes at {offset}: {reason}");
            return Err(Error::protocol(format!("{chunk} {}", self.place())));
        }
        Ok(&mut self.buf[start..end])
    }

    /// A hole: `length` bytes at `offset` read as zeroes.
    pub(crate) fn hole(&mut self, offset: u64, length: u64) -> Result<(), Error> {
        // What does not fit the address space does not fit the request either.
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        self.claim(offset, length)?.fill(0);
        Ok(())
    }

    pub(crate) fn fail(&mut self, error: ErrorChunk) -> Result<(), Error> {
        check_error_offset(&error, self.offset, wide(self.buf.len()))?;
        self.error.get_or_insert(error);
        Ok(())
    }

    /// Judges the reply after its last chunk.
    pub(crate) fn finish(&mut self) -> Result<Verdict<BytesMut>, Error> {
        if let Some(error) = self.error.take() {
            return Ok(Verdict::Refused(server_error(&error, &self.place())));
        }
        if !self.coverage.is_whole(self.buf.len()) {
            return Err(Error::protocol(format!("data missing at the end of {}", self.place())));
        }
        Ok(Verdict::Whole(std::mem::take(&mut self.buf)))
    }

    /// Gives the buffer back, for the request to be issued again.
    pub(crate) fn into_buf(self) -> BytesMut {
        self.buf
    }

    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    fn place(&self) -> String {
        format!("read of {} bytes at {}", self.buf.len(), self.offset)
    }
}

/// What a block-status request promises and what its reply must keep to.
#[derive(Clone, Debug)]
pub(crate) struct StatusTerms {
    pub(crate) offset: u64,
    pub(crate) length: u64,
    /// The end of the export, up to which the last extent may reach.
    pub(crate) limit: u64,
    /// The id of the context whose extents are kept.
    pub(crate) wanted: u32,
    /// The ids that must each answer once; `wanted` is one of them.
    pub(crate) expected: Vec<u32>,
    pub(crate) headers: Headers,
}

/// A block-status request being answered.
#[derive(Debug)]
pub(crate) struct StatusReply {
    terms: StatusTerms,
    /// Ids still to answer.
    pending: Vec<u32>,
    extents: Vec<Extent>,
    error: Option<ErrorChunk>,
    /// The chunk being read: whether it is the wanted one, and where its next extent begins.
    keep: bool,
    next: u64,
}

impl StatusReply {
    pub(crate) fn new(terms: StatusTerms) -> Self {
        let pending = terms.expected.clone();
        let next = terms.offset;
        Self { terms, pending, extents: Vec::new(), error: None, keep: false, next }
    }

    /// Bytes of a chunk before its descriptors, and bytes of one descriptor.
    pub(crate) fn layout(&self) -> (usize, usize) {
        match self.terms.headers {
            Headers::Compact => (4, 8),
            Headers::Extended => (8, 16),
        }
    }

    /// How many descriptors a chunk has, checked before any of it is read.
    pub(crate) fn descriptors(&self, kind: ChunkKind, payload: u64) -> Result<u64, Error> {
        let expected = match self.terms.headers {
            Headers::Compact => ChunkKind::BlockStatus,
            Headers::Extended => ChunkKind::BlockStatusExt,
        };
        if kind != expected {
            return Err(Error::protocol(format!("{kind:?} in answer to {}", self.place())));
        }
        let (fixed, width) = self.layout();
        let list = payload.checked_sub(wide(fixed));
        match list.map(|list| (list / wide(width), list % wide(width))) {
            Some((count @ 1..=MAX_DESCRIPTORS, 0)) => Ok(count),
            _ => Err(Error::protocol(format!("a chunk of {payload} bytes for {}", self.place()))),
        }
    }

    /// Begins the chunk of one context.
    pub(crate) fn begin(&mut self, id: u32) -> Result<(), Error> {
        let Some(index) = self.pending.iter().position(|pending| *pending == id) else {
            let reason = if self.terms.expected.contains(&id) { "repeated" } else { "not negotiated" };
            return Err(Error::protocol(format!("context {id} {reason}, {}", self.place())));
        };
        self.pending.swap_remove(index);
        self.keep = id == self.terms.wanted;
        self.next = self.terms.offset;
        Ok(())
    }

    /// Adds the next descriptor of the chunk that was begun.
    pub(crate) fn push(&mut self, length: u64, flags: u64) -> Result<(), Error> {
        // Only the last descriptor may reach the end of the request, so none may follow there.
        let follows = self.next - self.terms.offset >= self.terms.length;
        let end = self.next.checked_add(length).filter(|end| *end <= self.terms.limit);
        let (false, Some(end), 1..) = (follows, end, length) else {
            let extent = format!("an extent of {length} bytes at {}", self.next);
            return Err(Error::protocol(format!("{extent} for {}", self.place())));
        };
        if self.keep {
            match self.extents.last_mut() {
                Some(last) if last.flags == flags => last.length += length,
                _ => self.extents.push(Extent { offset: self.next, length, flags }),
            }
        }
        self.next = end;
        Ok(())
    }

    pub(crate) fn fail(&mut self, error: ErrorChunk) -> Result<(), Error> {
        check_error_offset(&error, self.terms.offset, self.terms.length)?;
        self.error.get_or_insert(error);
        Ok(())
    }

    /// Judges the reply after its last chunk.
    pub(crate) fn finish(&mut self) -> Result<Verdict<Vec<Extent>>, Error> {
        if let Some(error) = self.error.take() {
            return Ok(Verdict::Refused(server_error(&error, &self.place())));
        }
        if !self.pending.is_empty() {
            let missing = self.pending.len();
            return Err(Error::protocol(format!("{missing} contexts missing, {}", self.place())));
        }
        Ok(Verdict::Whole(std::mem::take(&mut self.extents)))
    }

    pub(crate) fn offset(&self) -> u64 {
        self.terms.offset
    }

    fn place(&self) -> String {
        format!("block status of {} bytes at {}", self.terms.length, self.terms.offset)
    }
}

/// A request that is answered by its success alone.
#[derive(Debug)]
pub(crate) struct PlainReply {
    offset: u64,
    length: u64,
    error: Option<ErrorChunk>,
}

impl PlainReply {
    pub(crate) fn new(offset: u64, length: u64) -> Self {
        Self { offset, length, error: None }
    }

    pub(crate) fn fail(&mut self, error: ErrorChunk) -> Result<(), Error> {
        check_error_offset(&error, self.offset, self.length)?;
        self.error.get_or_insert(error);
        Ok(())
    }

    /// Judges the reply after its last chunk.
    pub(crate) fn finish(&mut self) -> Verdict<()> {
        match self.error.take() {
            Some(error) => {
                Verdict::Refused(server_error(&error, &format!("trim of {} bytes at {}", self.length, self.offset)))
            }
            None => Verdict::Whole(()),
        }
    }

    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }
}

fn check_error_offset(error: &ErrorChunk, offset: u64, length: u64) -> Result<(), Error> {
    match error.offset {
        Some(at) if at < offset || at - offset >= length => {
            Err(Error::protocol(format!("an error at {at}, outside {length} bytes at {offset}")))
        }
        _ => Ok(()),
    }
}

fn server_error(error: &ErrorChunk, place: &str) -> Error {
    let mut context = place.to_owned();
    if !error.message.is_empty() {
        context = format!("{context}: {}", error.message);
    }
    Error::new(ErrorKind::Server(error.errno), context)
}

#[cfg(test)]
mod tests;
