//! Requests and replies as the server's side sees them.

use std::io;

use bytes::{Buf, BufMut};

use super::invalid;
use crate::proto::{self, Headers};
use crate::wide;

/// How replies are framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// Simple replies only.
    Simple,
    /// Structured replies.
    Structured,
    /// Extended headers.
    Extended,
}

/// A request as it arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Command flags.
    pub flags: u16,
    /// Command type, such as [`Wire::READ`].
    pub command: u16,
    /// To be repeated in the reply.
    pub cookie: u64,
    /// In bytes from the start of the export.
    pub offset: u64,
    /// In bytes.
    pub length: u64,
    /// The one metadata context whose status is wanted, if the request named it.
    pub only: Option<u32>,
}

/// Builds the bytes of replies in one framing.
#[derive(Clone, Copy, Debug)]
pub struct Wire {
    framing: Framing,
}

impl Wire {
    /// `NBD_CMD_READ`.
    pub const READ: u16 = proto::CMD_READ;
    /// `NBD_CMD_DISC`.
    pub const DISC: u16 = proto::CMD_DISC;
    /// `NBD_CMD_BLOCK_STATUS`.
    pub const BLOCK_STATUS: u16 = proto::CMD_BLOCK_STATUS;
    /// `NBD_REPLY_FLAG_DONE`.
    pub const DONE: u16 = proto::REPLY_FLAG_DONE;
    /// Chunk type `NBD_REPLY_TYPE_NONE`.
    pub const NONE: u16 = proto::REPLY_NONE;
    /// Chunk type `NBD_REPLY_TYPE_OFFSET_DATA`.
    pub const OFFSET_DATA: u16 = proto::REPLY_OFFSET_DATA;
    /// Chunk type `NBD_REPLY_TYPE_OFFSET_HOLE`.
    pub const OFFSET_HOLE: u16 = proto::REPLY_OFFSET_HOLE;
    /// Chunk type `NBD_REPLY_TYPE_BLOCK_STATUS`.
    pub const STATUS: u16 = proto::REPLY_BLOCK_STATUS;
    /// Chunk type `NBD_REPLY_TYPE_BLOCK_STATUS_EXT`.
    pub const STATUS_EXT: u16 = proto::REPLY_BLOCK_STATUS_EXT;
    /// Chunk type `NBD_REPLY_TYPE_ERROR`.
    pub const ERROR: u16 = proto::REPLY_ERROR;
    /// Chunk type `NBD_REPLY_TYPE_ERROR_OFFSET`.
    pub const ERROR_OFFSET: u16 = proto::REPLY_ERROR_OFFSET;

    /// Replies in this framing.
    pub fn new(framing: Framing) -> Self {
        Self { framing }
    }

    pub(super) fn request_length(self) -> usize {
        match Headers::from(self.framing) {
            Headers::Compact => 28,
            Headers::Extended => 32,
        }
    }

    pub(super) fn decode_request(self, mut bytes: &[u8]) -> io::Result<Seen> {
        let headers = Headers::from(self.framing);
        let magic = match headers {
            Headers::Compact => proto::REQUEST_MAGIC,
            Headers::Extended => proto::EXTENDED_REQUEST_MAGIC,
        };
        if bytes.get_u32() != magic {
            return Err(invalid("request magic"));
        }
        Ok(Seen {
            flags: bytes.get_u16(),
            command: bytes.get_u16(),
            cookie: bytes.get_u64(),
            offset: bytes.get_u64(),
            length: match headers {
                Headers::Compact => u64::from(bytes.get_u32()),
                Headers::Extended => bytes.get_u64(),
            },
            only: None,
        })
    }

    /// A simple reply without data.
    pub fn simple(self, to: &Seen, errno: u32) -> Vec<u8> {
        let mut out = Vec::new();
        out.put_u32(proto::SIMPLE_REPLY_MAGIC);
        out.put_u32(errno);
        out.put_u64(to.cookie);
        out
    }

    /// The header of a chunk that claims `length` bytes of payload.
    pub fn header(self, to: &Seen, flags: u16, kind: u16, length: u64) -> Vec<u8> {
        let mut out = Vec::new();
        match Headers::from(self.framing) {
            Headers::Compact => {
                out.put_u32(proto::STRUCTURED_REPLY_MAGIC);
                out.put_u16(flags);
                out.put_u16(kind);
                out.put_u64(to.cookie);
                out.put_u32(u32::try_from(length).expect("a test's compact length fits"));
            }
            Headers::Extended => {
                out.put_u32(proto::EXTENDED_REPLY_MAGIC);
                out.put_u16(flags);
                out.put_u16(kind);
                out.put_u64(to.cookie);
                out.put_u64(to.offset);
                out.put_u64(length);
            }
        }
        out
    }

    /// A chunk with any payload.
    pub fn chunk(self, to: &Seen, flags: u16, kind: u16, payload: &[u8]) -> Vec<u8> {
        let mut out = self.header(to, flags, kind, wide(payload.len()));
        out.extend_from_slice(payload);
        out
    }

    /// The end of a reply without anything else.
    pub fn none(self, to: &Seen) -> Vec<u8> {
        self.chunk(to, Self::DONE, Self::NONE, &[])
    }

    /// Data at `offset`.
    pub fn data(self, to: &Seen, offset: u64, data: &[u8], done: bool) -> Vec<u8> {
        let payload = [&offset.to_be_bytes()[..], data].concat();
        self.chunk(to, u16::from(done), Self::OFFSET_DATA, &payload)
    }

    /// Zeroes at `offset`.
    pub fn hole(self, to: &Seen, offset: u64, length: u32, done: bool) -> Vec<u8> {
        let payload = [&offset.to_be_bytes()[..], &length.to_be_bytes()].concat();
        self.chunk(to, u16::from(done), Self::OFFSET_HOLE, &payload)
    }

    /// An error, at an offset if one is given.
    ///
    /// # Panics
    /// On a message that no 16-bit length can express.
    pub fn error(self, to: &Seen, errno: u32, message: &str, at: Option<u64>) -> Vec<u8> {
        let mut payload = Vec::new();
        payload.put_u32(errno);
        payload.put_u16(u16::try_from(message.len()).expect("a test's message is short"));
        payload.put_slice(message.as_bytes());
        let kind = if at.is_some() { Self::ERROR_OFFSET } else { Self::ERROR };
        payload.extend(at.into_iter().flat_map(u64::to_be_bytes));
        self.chunk(to, Self::DONE, kind, &payload)
    }

    /// Extents of the context `id`, as (length, flags) from the offset of the request.
    ///
    /// # Panics
    /// On what compact descriptors cannot express, in that framing.
    pub fn status(self, to: &Seen, id: u32, extents: &[(u64, u64)], done: bool) -> Vec<u8> {
        let mut payload = Vec::new();
        payload.put_u32(id);
        let kind = match Headers::from(self.framing) {
            Headers::Compact => {
                for (length, flags) in extents {
                    payload.put_u32(u32::try_from(*length).expect("a compact length"));
                    payload.put_u32(u32::try_from(*flags).expect("compact flags"));
                }
                Self::STATUS
            }
            Headers::Extended => {
                payload.put_u32(u32::try_from(extents.len()).expect("a test's list is short"));
                for (length, flags) in extents {
                    payload.put_u64(*length);
                    payload.put_u64(*flags);
                }
                Self::STATUS_EXT
            }
        };
        self.chunk(to, u16::from(done), kind, &payload)
    }
}

/// What a server answers of `all`, which begin at 0, for a request; status 0 where they end early.
pub(super) fn extents_within(all: &[(u64, u64)], seen: &Seen, size: u64) -> Vec<(u64, u64)> {
    let end = size.min(seen.offset.saturating_add(seen.length));
    let mut found = Vec::new();
    let mut at = 0;
    let known: u64 = all.iter().map(|(length, _)| length).sum();
    let rest = (size.saturating_sub(known), 0);
    for (length, flags) in all.iter().copied().chain([rest]) {
        let (start, stop) = (seen.offset.max(at), end.min(at + length));
        if start < stop {
            found.push((stop - start, flags));
        }
        at += length;
    }
    found
}

/// An option reply, right or wrong.
///
/// # Panics
/// On a payload that no 32-bit length can express.
pub fn option_reply(option: u32, kind: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    out.put_u64(proto::option::OPTION_REPLY_MAGIC);
    out.put_u32(option);
    out.put_u32(kind);
    out.put_u32(u32::try_from(payload.len()).expect("a test's payload is short"));
    out.put_slice(payload);
    out
}

/// The queries in the data of `NBD_OPT_SET_META_CONTEXT`.
pub(super) fn queries(mut data: &[u8]) -> io::Result<Vec<String>> {
    fn string(data: &mut &[u8]) -> io::Result<String> {
        let length = data.try_get_u32().map_err(|_| invalid("string length"))?;
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if data.len() < length {
            return Err(invalid("string"));
        }
        let (text, rest) = data.split_at(length);
        *data = rest;
        String::from_utf8(text.to_vec()).map_err(|_| invalid("UTF-8"))
    }
    string(&mut data)?;
    let count = data.try_get_u32().map_err(|_| invalid("number of queries"))?;
    (0..count).map(|_| string(&mut data)).collect()
}
