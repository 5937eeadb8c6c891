//! The handshake as bytes: options out, option replies in. No I/O.

use bytes::{Buf, BufMut};

use crate::error::{Error, ErrorKind, sanitise};
use crate::info::BlockSize;
use crate::proto::MAX_STRING;
use crate::wide;

pub(crate) const NBD_MAGIC: u64 = 0x4e42_444d_4147_4943;
pub(crate) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
pub(crate) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
pub(crate) const OLDSTYLE_MAGIC: u64 = 0x0000_4202_8186_1253;

pub(crate) const FLAG_FIXED_NEWSTYLE: u16 = 1;
pub(crate) const FLAG_NO_ZEROES: u16 = 2;

pub(crate) const FLAG_HAS_FLAGS: u16 = 1;
pub(crate) const FLAG_SEND_TRIM: u16 = 1 << 5;
pub(crate) const FLAG_READ_ONLY: u16 = 1 << 1;
pub(crate) const FLAG_CAN_MULTI_CONN: u16 = 1 << 8;
pub(crate) const FLAG_BLOCK_STATUS_PAYLOAD: u16 = 1 << 12;

pub(crate) const OPT_ABORT: u32 = 2;
pub(crate) const OPT_STARTTLS: u32 = 5;
pub(crate) const OPT_GO: u32 = 7;
pub(crate) const OPT_STRUCTURED_REPLY: u32 = 8;
pub(crate) const OPT_SET_META_CONTEXT: u32 = 10;
pub(crate) const OPT_EXTENDED_HEADERS: u32 = 11;

pub(crate) const REP_ACK: u32 = 1;
pub(crate) const REP_INFO: u32 = 3;
pub(crate) const REP_META_CONTEXT: u32 = 4;
const REP_ERROR_BIT: u32 = 1 << 31;
pub(crate) const REP_ERR_UNSUP: u32 = REP_ERROR_BIT | 1;
pub(crate) const REP_ERR_TLS_REQD: u32 = REP_ERROR_BIT | 5;
pub(crate) const REP_ERR_SHUTDOWN: u32 = REP_ERROR_BIT | 7;

pub(crate) const INFO_EXPORT: u16 = 0;
pub(crate) const INFO_BLOCK_SIZE: u16 = 3;

/// Bytes of the header of an option reply.
pub(crate) const REPLY_HEADER: usize = 20;

/// Longest payload of an option reply that is read: a string and its fixed fields.
const MAX_REPLY: usize = MAX_STRING + 16;

/// Most contexts asked for at once; QEMU takes far fewer bitmaps on one export.
const MAX_CONTEXTS: usize = 1024;

/// Something that is not NBD, or not as the specification has it.
pub(crate) fn garbage(context: impl Into<String>) -> Error {
    Error::new(ErrorKind::Handshake, context)
}

/// Appends one option.
pub(crate) fn encode(option: u32, data: &[u8], out: &mut Vec<u8>) {
    out.put_u64(OPTION_MAGIC);
    out.put_u32(option);
    out.put_u32(u32::try_from(data.len()).expect("option data is bounded by its builders"));
    out.put_slice(data);
}

/// The data of `NBD_OPT_GO`: the export, and that its size constraints will be kept.
pub(crate) fn go(export: &str) -> Result<Vec<u8>, Error> {
    let mut data = Vec::new();
    put_string(&mut data, export)?;
    data.put_u16(1);
    data.put_u16(INFO_BLOCK_SIZE);
    Ok(data)
}

/// The data of `NBD_OPT_SET_META_CONTEXT`.
pub(crate) fn set_meta_context(export: &str, contexts: &[String]) -> Result<Vec<u8>, Error> {
    if contexts.len() > MAX_CONTEXTS {
        let context = format!("{} metadata contexts, at most {MAX_CONTEXTS}", contexts.len());
        return Err(Error::new(ErrorKind::Unsupported, context));
    }
    let mut data = Vec::new();
    put_string(&mut data, export)?;
    data.put_u32(u32::try_from(contexts.len()).expect("bounded just above"));
    for context in contexts {
        put_string(&mut data, context)?;
    }
    Ok(data)
}

fn put_string(data: &mut Vec<u8>, text: &str) -> Result<(), Error> {
    if text.len() > MAX_STRING {
        let context = format!("a name of {} bytes, at most {MAX_STRING}", text.len());
        return Err(Error::new(ErrorKind::Unsupported, context));
    }
    data.put_u32(u32::try_from(text.len()).expect("bounded just above"));
    data.put_slice(text.as_bytes());
    Ok(())
}

/// The header of an option reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReplyHeader {
    pub(crate) kind: u32,
    /// Bytes of payload, within [`MAX_REPLY`].
    pub(crate) length: usize,
}

impl ReplyHeader {
    /// Decodes the header of a reply to `option`.
    pub(crate) fn decode(option: u32, mut bytes: &[u8]) -> Result<Self, Error> {
        need(bytes, REPLY_HEADER)?;
        let magic = bytes.get_u64();
        if magic != OPTION_REPLY_MAGIC {
            return Err(garbage(format!("option reply magic {magic:#018x}")));
        }
        let answered = bytes.get_u32();
        if answered != option {
            return Err(garbage(format!("a reply to option {answered} where {option} was sent")));
        }
        let kind = bytes.get_u32();
        let length = bytes.get_u32();
        match usize::try_from(length) {
            Ok(length) if length <= MAX_REPLY => Ok(Self { kind, length }),
            _ => Err(garbage(format!("an option reply of {length} bytes"))),
        }
    }

    pub(crate) fn is_error(self) -> bool {
        self.kind & REP_ERROR_BIT != 0
    }
}

/// The error for a reply that says no.
pub(crate) fn refusal(kind: u32, text: &[u8]) -> Error {
    let reason = match kind & !REP_ERROR_BIT {
        1 => "option not supported",
        2 => "forbidden by policy",
        3 => "invalid option",
        4 => "not supported on its platform",
        5 => "it takes connections with TLS alone",
        6 => "no such export",
        7 => "shutting down",
        8 => "block sizes must be kept",
        9 => "too big",
        10 => "extended headers required",
        _ => "reason not known",
    };
    let text = sanitise(text);
    let context = if text.is_empty() { reason.into() } else { format!("{reason}: {text}") };
    Error::new(ErrorKind::Refused, context)
}

/// One answer to `NBD_OPT_GO`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Info {
    Export { size: u64, flags: u16 },
    BlockSize(BlockSize),
    Other,
}

impl Info {
    pub(crate) fn decode(mut payload: &[u8]) -> Result<Self, Error> {
        let whole = payload.len();
        need(payload, 2)?;
        match (payload.get_u16(), whole) {
            (INFO_EXPORT, 12) => {
                let (size, flags) = (payload.get_u64(), payload.get_u16());
                if flags & FLAG_HAS_FLAGS == 0 {
                    return Err(garbage("transmission flags without NBD_FLAG_HAS_FLAGS"));
                }
                // Offsets are signed in every file system, and sums of them must not overflow.
                if size > i64::MAX.unsigned_abs() {
                    return Err(garbage(format!("an export of {size} bytes")));
                }
                Ok(Info::Export { size, flags })
            }
            (INFO_BLOCK_SIZE, 14) => {
                let sizes =
                    BlockSize { minimum: payload.get_u32(), preferred: payload.get_u32(), maximum: payload.get_u32() };
                let BlockSize { minimum, preferred, maximum } = sizes;
                let sound = minimum.is_power_of_two()
                    && minimum <= 65536
                    && preferred.is_power_of_two()
                    && preferred >= minimum
                    && maximum >= preferred;
                if !sound {
                    let sizes = format!("block sizes {minimum}, {preferred}, {maximum}");
                    return Err(garbage(sizes));
                }
                Ok(Info::BlockSize(sizes))
            }
            (kind @ (INFO_EXPORT | INFO_BLOCK_SIZE), length) => {
                Err(garbage(format!("information {kind} of {length} bytes")))
            }
            _ => Ok(Info::Other),
        }
    }
}

/// One granted context: its id and its name.
pub(crate) fn decode_meta_context(mut payload: &[u8]) -> Result<(u32, String), Error> {
    need(payload, 4)?;
    let id = payload.get_u32();
    match std::str::from_utf8(payload) {
        Ok(name) if name.len() <= MAX_STRING => Ok((id, name.to_owned())),
        _ => Err(garbage(format!("a context named {:?}", sanitise(payload)))),
    }
}

pub(crate) fn need(bytes: &[u8], length: usize) -> Result<(), Error> {
    if bytes.len() < length {
        let context = format!("{} bytes where {} are needed", wide(bytes.len()), length);
        return Err(garbage(context));
    }
    Ok(())
}
