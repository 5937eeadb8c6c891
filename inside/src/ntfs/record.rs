//! File records and the attributes in them.

use crate::numbers::{byte, le16, le32, le64, slice};
use crate::{Error, Result};

/// After how many bytes the last two are in the update sequence instead; the same with sectors of any size.
const STRIDE: usize = 512;

/// Puts the last bytes of each 512 back to where they belong.
///
/// # Errors
/// If it is no record with this mark, or one that was written in part only.
pub(super) fn restore(bytes: &mut [u8], mark: [u8; 4], what: &str) -> Result<()> {
    if !bytes.starts_with(&mark) {
        return Err(Error::corrupt(format!("{what} does not begin as one")));
    }
    let sequence = usize::from(le16(bytes, 4)?);
    let count = usize::from(le16(bytes, 6)?);
    if count != bytes.len() / STRIDE + 1 || sequence % 2 != 0 || sequence < 8 || sequence + count * 2 > STRIDE - 2 {
        return Err(Error::corrupt(format!("{what} has an update sequence that cannot be right")));
    }
    let number = le16(bytes, sequence)?;
    for index in 1..count {
        let end = index * STRIDE - 2;
        if le16(bytes, end)? != number {
            return Err(Error::corrupt(format!("{what} is torn: not all of its sectors were written")));
        }
        let saved = le16(bytes, sequence + index * 2)?.to_le_bytes();
        bytes.get_mut(end..end + 2).into_iter().for_each(|place| place.copy_from_slice(&saved));
    }
    Ok(())
}

/// Kinds of attributes.
pub(super) mod kind {
    pub(in super::super) const STANDARD_INFORMATION: u32 = 0x10;
    pub(in super::super) const ATTRIBUTE_LIST: u32 = 0x20;
    pub(in super::super) const FILE_NAME: u32 = 0x30;
    pub(in super::super) const VOLUME_INFORMATION: u32 = 0x70;
    pub(in super::super) const DATA: u32 = 0x80;
    pub(in super::super) const INDEX_ROOT: u32 = 0x90;
    pub(in super::super) const INDEX_ALLOCATION: u32 = 0xA0;
    pub(in super::super) const BITMAP: u32 = 0xB0;
    pub(in super::super) const REPARSE_POINT: u32 = 0xC0;
}

/// A file record, its last bytes restored.
#[derive(Debug)]
pub(super) struct Record {
    bytes: Vec<u8>,
    /// Its place among the records.
    pub(super) number: u64,
}

/// An attribute in a record.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attribute<'a> {
    pub(super) kind: u32,
    /// In UTF-16.
    pub(super) name: &'a [u8],
    pub(super) flags: u16,
    /// Where it is in its record.
    pub(super) at: usize,
    pub(super) body: Body<'a>,
}

/// Its value.
#[derive(Debug, Clone, Copy)]
pub(super) enum Body<'a> {
    Resident(&'a [u8]),
    Elsewhere(Elsewhere<'a>),
}

/// A value, or a piece of one, that is in clusters.
#[derive(Debug, Clone, Copy)]
pub(super) struct Elsewhere<'a> {
    /// The first cluster of the value that is told here, and the one after the last.
    pub(super) lowest: u64,
    pub(super) end: u64,
    /// What it occupies, in bytes; this and its size are in the first piece only, else 0.
    pub(super) occupied: u64,
    pub(super) size: u64,
    /// From here on it was never written.
    pub(super) initialized: u64,
    /// See [`super::runs`].
    pub(super) runs: &'a [u8],
}

impl Record {
    /// Takes the bytes of a record.
    ///
    /// # Errors
    /// If they are none.
    pub(super) fn new(mut bytes: Vec<u8>, number: u64) -> Result<Self> {
        restore(&mut bytes, *b"FILE", &format!("file record {number}"))?;
        Ok(Self { bytes, number })
    }

    /// How often this record was another file's before.
    pub(super) fn sequence(&self) -> Result<u16> {
        le16(&self.bytes, 16)
    }

    pub(super) fn in_use(&self) -> Result<bool> {
        Ok(le16(&self.bytes, 22)? & 1 != 0)
    }

    pub(super) fn is_directory(&self) -> Result<bool> {
        Ok(le16(&self.bytes, 22)? & 2 != 0)
    }

    /// The record of which this one is a continuation, as in a directory; 0 if of none.
    pub(super) fn base(&self) -> Result<u64> {
        le64(&self.bytes, 32)
    }

    /// The attributes, in their order.
    ///
    /// # Errors
    /// If one is not right.
    pub(super) fn attributes(&self) -> Result<Vec<Attribute<'_>>> {
        let used = usize::try_from(le32(&self.bytes, 24)?).unwrap_or(usize::MAX);
        let bytes = self.bytes.get(..used).ok_or_else(|| self.wrong("its length"))?;
        let mut attributes = Vec::new();
        let mut at = usize::from(le16(bytes, 20)?);
        loop {
            let kind = le32(bytes, at)?;
            if kind == u32::MAX {
                return Ok(attributes);
            }
            let length = usize::try_from(le32(bytes, at + 4)?).unwrap_or(usize::MAX);
            if length < 24 || length % 8 != 0 {
                return Err(self.wrong("an attribute's length"));
            }
            attributes.push(self.attribute(kind, at, slice(bytes, at, length)?)?);
            at += length;
        }
    }

    fn attribute<'a>(&self, kind: u32, at: usize, bytes: &'a [u8]) -> Result<Attribute<'a>> {
        let flags = le16(bytes, 12)?;
        let name = slice(bytes, usize::from(le16(bytes, 10)?), usize::from(byte(bytes, 9)?) * 2)?;
        let body = if byte(bytes, 8)? == 0 {
            let length = usize::try_from(le32(bytes, 16)?).unwrap_or(usize::MAX);
            Body::Resident(slice(bytes, usize::from(le16(bytes, 20)?), length)?)
        } else {
            let lowest = le64(bytes, 16)?;
            // The last one is -1 if there is none at all.
            let end = le64(bytes, 24)?.wrapping_add(1);
            if end < lowest {
                return Err(self.wrong("the clusters of an attribute"));
            }
            let runs = bytes.get(usize::from(le16(bytes, 32)?)..).ok_or_else(|| self.wrong("an attribute's runs"))?;
            let mut piece = Elsewhere { lowest, end, occupied: 0, size: 0, initialized: 0, runs };
            if lowest == 0 {
                let allocated = le64(bytes, 40)?;
                piece.size = le64(bytes, 48)?;
                piece.initialized = le64(bytes, 56)?.min(piece.size);
                // Compressed or sparse: there is a field more.
                piece.occupied = if flags & 0x80FF == 0 { allocated } else { le64(bytes, 64)? };
                if piece.size > allocated {
                    return Err(self.wrong("the size of an attribute"));
                }
            }
            Body::Elsewhere(piece)
        };
        Ok(Attribute { kind, name, flags, at, body })
    }

    fn wrong(&self, what: &str) -> Error {
        Error::corrupt(format!("file record {}: {what} cannot be right", self.number))
    }
}
