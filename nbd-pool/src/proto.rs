//! The transmission phase as bytes: requests out, reply headers and error chunks in. No I/O.
//!
//! Two framings exist. The compact one (structured replies) has 28-byte requests and 16- or
//! 20-byte reply headers; the extended one has 32 bytes both ways and 64-bit lengths.

pub(crate) mod option;

use bytes::{Buf, BufMut};

use crate::error::{Error, sanitise};

pub(crate) const REQUEST_MAGIC: u32 = 0x2560_9513;
pub(crate) const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
pub(crate) const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
pub(crate) const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
pub(crate) const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

pub(crate) const CMD_READ: u16 = 0;
pub(crate) const CMD_DISC: u16 = 2;
pub(crate) const CMD_TRIM: u16 = 4;
pub(crate) const CMD_BLOCK_STATUS: u16 = 7;
/// The request carries a payload (extended headers only).
pub(crate) const CMD_FLAG_PAYLOAD_LEN: u16 = 1 << 5;

/// This chunk is the reply's last.
pub(crate) const REPLY_FLAG_DONE: u16 = 1;
pub(crate) const REPLY_NONE: u16 = 0;
pub(crate) const REPLY_OFFSET_DATA: u16 = 1;
pub(crate) const REPLY_OFFSET_HOLE: u16 = 2;
pub(crate) const REPLY_BLOCK_STATUS: u16 = 5;
pub(crate) const REPLY_BLOCK_STATUS_EXT: u16 = 6;
/// Every chunk type with this bit reports an error.
const REPLY_ERROR_BIT: u16 = 1 << 15;
pub(crate) const REPLY_ERROR: u16 = REPLY_ERROR_BIT | 1;
pub(crate) const REPLY_ERROR_OFFSET: u16 = REPLY_ERROR_BIT | 2;

/// `NBD_ESHUTDOWN`: the client must leave.
pub(crate) const ESHUTDOWN: u32 = 108;

/// Longest string of the protocol, in bytes (spec "Values", strings).
pub(crate) const MAX_STRING: usize = 4096;

/// Longest error chunk: its fixed fields, a string, and room for fields of a type not known here.
const MAX_ERROR_PAYLOAD: u64 = 4096 + 256;

/// Which framing a connection negotiated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Headers {
    Compact,
    Extended,
}

impl Headers {
    /// The longest range of one block-status request: what fits the length field, cut to a
    /// multiple of the largest possible minimum block.
    pub(crate) fn max_status_length(self) -> u64 {
        match self {
            Headers::Compact => u64::from(u32::MAX) & !0xffff,
            Headers::Extended => !0xffff,
        }
    }
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Read,
    Disconnect,
    /// The range is not needed any more.
    Trim,
    /// Block status of every negotiated context, or only of the one with this id (a payload that
    /// needs extended headers and `NBD_FLAG_BLOCK_STATUS_PAYLOAD`).
    BlockStatus {
        only: Option<u32>,
    },
}

/// One request. With compact headers `length` must fit 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) command: Command,
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

impl Request {
    pub(crate) fn encode(&self, headers: Headers, out: &mut impl BufMut) {
        let (code, only) = match self.command {
            Command::Read => (CMD_READ, None),
            Command::Disconnect => (CMD_DISC, None),
            Command::Trim => (CMD_TRIM, None),
            Command::BlockStatus { only } => (CMD_BLOCK_STATUS, only),
        };
        match headers {
            Headers::Compact => {
                debug_assert!(only.is_none(), "a payload needs extended headers");
                out.put_u32(REQUEST_MAGIC);
                out.put_u16(0);
                out.put_u16(code);
                out.put_u64(self.cookie);
                out.put_u64(self.offset);
                out.put_u32(u32::try_from(self.length).unwrap_or(u32::MAX));
            }
            Headers::Extended => {
                out.put_u32(EXTENDED_REQUEST_MAGIC);
                out.put_u16(if only.is_some() { CMD_FLAG_PAYLOAD_LEN } else { 0 });
                out.put_u16(code);
                out.put_u64(self.cookie);
                out.put_u64(self.offset);
                if let Some(id) = only {
                    out.put_u64(12); // the payload: effect length and one context id
                    out.put_u64(self.length);
                    out.put_u32(id);
                } else {
                    out.put_u64(self.length);
                }
            }
        }
    }
}

/// What a chunk carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChunkKind {
    None,
    OffsetData,
    OffsetHole,
    BlockStatus,
    BlockStatusExt,
    Error,
    ErrorOffset,
    /// An error of a type not known here: it fails the request, no more.
    OtherError,
}

impl ChunkKind {
    fn decode(code: u16) -> Result<Self, Error> {
        Ok(match code {
            REPLY_NONE => ChunkKind::None,
            REPLY_OFFSET_DATA => ChunkKind::OffsetData,
            REPLY_OFFSET_HOLE => ChunkKind::OffsetHole,
            REPLY_BLOCK_STATUS => ChunkKind::BlockStatus,
            REPLY_BLOCK_STATUS_EXT => ChunkKind::BlockStatusExt,
            REPLY_ERROR => ChunkKind::Error,
            REPLY_ERROR_OFFSET => ChunkKind::ErrorOffset,
            code if code & REPLY_ERROR_BIT != 0 => ChunkKind::OtherError,
            code => return Err(Error::protocol(format!("unknown chunk type {code}"))),
        })
    }

    pub(crate) fn is_error(self) -> bool {
        matches!(self, ChunkKind::Error | ChunkKind::ErrorOffset | ChunkKind::OtherError)
    }
}

/// The header of one chunk of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ChunkHeader {
    /// No other chunk follows in this reply. Flags not known are ignored, as the spec demands.
    pub(crate) done: bool,
    pub(crate) kind: ChunkKind,
    pub(crate) cookie: u64,
    /// The request's offset, repeated by extended headers.
    pub(crate) offset: Option<u64>,
    /// Bytes of payload that follow; checked against the request by whoever reads them.
    pub(crate) length: u64,
}

/// What the first bytes of a reply announce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReplyStart {
    /// A reply without a payload, `error` 0 for success. Only with compact headers.
    Simple { error: u32, cookie: u64 },
    /// A chunk; its [`ChunkHeader::rest`] follows.
    Chunk(ChunkHeader),
}

/// Bytes that a reply of either framing begins with, and that tell whether it is one.
pub(crate) const REPLY_START: usize = 16;

/// Decodes the first [`REPLY_START`] bytes of a reply; a chunk's `offset` and `length` are yet
/// to come.
pub(crate) fn decode_start(headers: Headers, mut bytes: &[u8]) -> Result<ReplyStart, Error> {
    need(bytes, REPLY_START)?;
    match (headers, bytes.get_u32()) {
        (Headers::Compact, SIMPLE_REPLY_MAGIC) => {
            Ok(ReplyStart::Simple { error: bytes.get_u32(), cookie: bytes.get_u64() })
        }
        (Headers::Compact, STRUCTURED_REPLY_MAGIC) | (Headers::Extended, EXTENDED_REPLY_MAGIC) => {
            let done = bytes.get_u16() & REPLY_FLAG_DONE != 0;
            let kind = ChunkKind::decode(bytes.get_u16())?;
            let cookie = bytes.get_u64();
            Ok(ReplyStart::Chunk(ChunkHeader { done, kind, cookie, offset: None, length: 0 }))
        }
        (_, magic) => Err(Error::protocol(format!("reply magic {magic:#010x}"))),
    }
}

impl ChunkHeader {
    /// Bytes of a chunk's header after the start.
    pub(crate) fn rest(headers: Headers) -> usize {
        match headers {
            Headers::Compact => 4,
            Headers::Extended => 16,
        }
    }

    /// Adds what the rest of the header says.
    pub(crate) fn with_rest(self, headers: Headers, mut bytes: &[u8]) -> Result<Self, Error> {
        need(bytes, Self::rest(headers))?;
        Ok(match headers {
            Headers::Compact => Self { length: u64::from(bytes.get_u32()), ..self },
            Headers::Extended => Self { offset: Some(bytes.get_u64()), length: bytes.get_u64(), ..self },
        })
    }
}

/// What an error chunk says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ErrorChunk {
    /// An NBD error value, never 0.
    pub(crate) errno: u32,
    /// Fit to be shown.
    pub(crate) message: String,
    /// Where it happened, if the server said so.
    pub(crate) offset: Option<u64>,
}

/// Checks the payload length of an error chunk, before anything is read.
pub(crate) fn check_error_length(kind: ChunkKind, length: u64) -> Result<usize, Error> {
    let least = if kind == ChunkKind::ErrorOffset { 14 } else { 6 };
    if !(least..=MAX_ERROR_PAYLOAD).contains(&length) {
        return Err(Error::protocol(format!("error chunk of {length} bytes")));
    }
    usize::try_from(length).map_err(|_| Error::protocol("error chunk too long"))
}

/// Decodes the payload of an error chunk.
pub(crate) fn decode_error(kind: ChunkKind, mut payload: &[u8]) -> Result<ErrorChunk, Error> {
    need(payload, if kind == ChunkKind::ErrorOffset { 14 } else { 6 })?;
    let errno = payload.get_u32();
    if errno == 0 {
        return Err(Error::protocol("error chunk without an error"));
    }
    let length = usize::from(payload.get_u16());
    let after = if kind == ChunkKind::ErrorOffset { 8 } else { 0 };
    if length > MAX_STRING || payload.len() < length + after {
        return Err(Error::protocol(format!("error message of {length} bytes")));
    }
    let message = sanitise(&payload[..length]);
    payload.advance(length);
    let offset = (kind == ChunkKind::ErrorOffset).then(|| payload.get_u64());
    Ok(ErrorChunk { errno, message, offset })
}

/// The payload of a hole: where it begins and its length, never 0.
pub(crate) fn decode_hole(mut payload: &[u8]) -> Result<(u64, u64), Error> {
    need(payload, 12)?;
    match (payload.get_u64(), payload.get_u32()) {
        (_, 0) => Err(Error::protocol("hole of no bytes")),
        (offset, length) => Ok((offset, u64::from(length))),
    }
}

fn need(bytes: &[u8], length: usize) -> Result<(), Error> {
    if bytes.len() < length {
        return Err(Error::protocol(format!("{} bytes where {length} are needed", bytes.len())));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
