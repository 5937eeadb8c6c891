//! A file: what its records say of it.

use super::record::{Attribute, Body, Record, kind};
use super::volume::{Volume, listed, record_number};
use crate::numbers::{byte, le32, le64};
use crate::{Disk, Error, Kind, Result, Time};

/// Most streams, indexes and the like of a file that are looked at.
const MAX_STREAMS: usize = 1024;

/// Bits of a file's attributes.
pub(super) mod flag {
    pub(in super::super) const READ_ONLY: u32 = 0x1;
    pub(in super::super) const SYSTEM: u32 = 0x4;
    pub(in super::super) const REPARSE_POINT: u32 = 0x400;
    /// Offline, or to be fetched when it is opened or read.
    pub(in super::super) const AWAY: u32 = 0x1000 | 0x4_0000 | 0x40_0000;
    /// Only in directories.
    pub(in super::super) const DIRECTORY: u32 = 0x1000_0000;
}

/// The name space of a file name that DOS alone sees.
pub(super) const DOS: u8 = 2;

/// The name of directories' indexes, in UTF-16.
const DIRECTORY_INDEX: &[u8] = b"$\0I\x003\x000\0";

/// A piece of a value: an attribute in a record.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    /// The first cluster of the value that it tells of.
    pub(super) lowest: u64,
    /// The record's number.
    pub(super) record: u64,
    /// Where the attribute is in it.
    pub(super) at: usize,
}

/// A value.
#[derive(Debug)]
pub(super) enum Value {
    Resident(Vec<u8>),
    /// In clusters; see [`super::record::Elsewhere`].
    Elsewhere {
        size: u64,
        initialized: u64,
        occupied: u64,
        pieces: Vec<Piece>,
    },
}

/// A value with a name: a stream of data, an index.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) kind: u32,
    /// In UTF-16.
    pub(super) name: Vec<u8>,
    pub(super) flags: u16,
    pub(super) value: Value,
}

impl Stream {
    pub(super) fn size(&self) -> u64 {
        match &self.value {
            Value::Resident(bytes) => bytes.len() as u64,
            Value::Elsewhere { size, .. } => *size,
        }
    }

    pub(super) fn occupied(&self) -> u64 {
        match &self.value {
            Value::Resident(_) => 0,
            Value::Elsewhere { occupied, .. } => *occupied,
        }
    }

    pub(super) fn is_sparse(&self) -> bool {
        self.flags & 0x8000 != 0
    }

    /// Nothing, if the value is on the disk as it reads.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] if it is not.
    pub(super) fn plain(&self) -> Result<()> {
        match (&self.value, self.flags) {
            (Value::Resident(_), _) => Ok(()),
            (_, flags) if flags & 0x4000 != 0 => Err(Error::unsupported("the file is encrypted by NTFS")),
            (_, flags) if flags & 0xFF != 0 => Err(Error::unsupported("the file is compressed by NTFS")),
            _ => Ok(()),
        }
    }
}

/// A file.
#[derive(Debug, Default)]
pub(super) struct File {
    pub(super) directory: bool,
    pub(super) accessed: Time,
    pub(super) modified: Time,
    pub(super) changed: Time,
    /// See [`flag`].
    pub(super) flags: u32,
    /// Its names, but those that DOS alone sees.
    pub(super) names: u32,
    /// The directory that has one of them.
    pub(super) parent: Option<u64>,
    pub(super) streams: Vec<Stream>,
}

/// A time: tenths of microseconds from 1601 on.
pub(super) fn time(ticks: u64) -> Time {
    const PER_SECOND: i64 = 10_000_000;
    let ticks = i64::from_le_bytes(ticks.to_le_bytes());
    let after = u32::try_from(ticks.rem_euclid(PER_SECOND)).unwrap_or_default();
    Time { seconds: ticks.div_euclid(PER_SECOND) - 11_644_473_600, nanoseconds: after * 100 }
}

impl File {
    /// The file with that reference.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if there is none; if it is not right.
    pub(super) fn read<D: Disk>(volume: &Volume<D>, reference: u64) -> Result<Self> {
        let base = volume.record(record_number(reference))?;
        let sequence = reference >> 48;
        if !base.in_use()? || base.base()? != 0 || u64::from(base.sequence()?) != sequence {
            return Err(Error::new(Kind::NotFound, format!("file record {} is no longer this file's", base.number)));
        }
        let mut file = Self { directory: base.is_directory()?, ..Self::default() };
        let mut list = None;
        for attribute in base.attributes()? {
            if attribute.kind == kind::ATTRIBUTE_LIST {
                list = Some(volume.list(&attribute)?);
            } else {
                file.take(&base, &attribute)?;
            }
        }
        if let Some(list) = list {
            let mut others: Vec<u64> = listed(&list)?.iter().map(|entry| entry.record).collect();
            others.sort_unstable();
            others.dedup();
            for number in others.into_iter().filter(|&number| number != base.number) {
                let other = volume.record(number)?;
                if !other.in_use()? || other.base()? != reference {
                    return Err(Error::corrupt(format!("file record {number} does not belong to {}", base.number)));
                }
                for attribute in other.attributes()? {
                    file.take(&other, &attribute)?;
                }
            }
        }
        for stream in &mut file.streams {
            if let Value::Elsewhere { pieces, .. } = &mut stream.value {
                pieces.sort_unstable_by_key(|piece| piece.lowest);
                let twice = pieces.windows(2).any(|pair| matches!(pair, [one, next] if one.lowest == next.lowest));
                if twice || pieces.first().is_none_or(|piece| piece.lowest != 0) {
                    return Err(Error::corrupt(format!(
                        "file record {} has a value in pieces that do not fit",
                        base.number
                    )));
                }
            }
        }
        Ok(file)
    }

    fn take(&mut self, record: &Record, attribute: &Attribute<'_>) -> Result<()> {
        match (attribute.kind, attribute.body) {
            (kind::STANDARD_INFORMATION, Body::Resident(bytes)) => {
                self.modified = time(le64(bytes, 8)?);
                self.changed = time(le64(bytes, 16)?);
                self.accessed = time(le64(bytes, 24)?);
                self.flags = le32(bytes, 32)?;
            }
            (kind::FILE_NAME, Body::Resident(bytes)) if byte(bytes, 65)? != DOS => {
                self.names = self.names.saturating_add(1);
                self.parent = Some(le64(bytes, 0)?);
            }
            (kind::DATA | kind::REPARSE_POINT, _) => self.take_stream(record, attribute)?,
            (kind::INDEX_ROOT | kind::INDEX_ALLOCATION | kind::BITMAP, _) if attribute.name == DIRECTORY_INDEX => {
                self.take_stream(record, attribute)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn take_stream(&mut self, record: &Record, attribute: &Attribute<'_>) -> Result<()> {
        let index =
            self.streams.iter().position(|stream| stream.kind == attribute.kind && stream.name == attribute.name);
        let twice = || Error::corrupt(format!("file record {} has an attribute twice", record.number));
        let value = match attribute.body {
            Body::Resident(_) if index.is_some() => return Err(twice()),
            Body::Resident(bytes) => Value::Resident(bytes.to_vec()),
            Body::Elsewhere(found) => {
                let piece = Piece { lowest: found.lowest, record: record.number, at: attribute.at };
                let first = found.lowest == 0;
                match index.and_then(|index| self.streams.get_mut(index)) {
                    None => Value::Elsewhere {
                        size: found.size,
                        initialized: found.initialized,
                        occupied: found.occupied,
                        pieces: vec![piece],
                    },
                    Some(Stream { flags, value: Value::Elsewhere { size, initialized, occupied, pieces }, .. }) => {
                        if first {
                            (*size, *initialized, *occupied) = (found.size, found.initialized, found.occupied);
                            *flags = attribute.flags;
                        }
                        pieces.push(piece);
                        return Ok(());
                    }
                    Some(_) => return Err(twice()),
                }
            }
        };
        if self.streams.len() >= MAX_STREAMS {
            return Err(Error::new(Kind::TooLarge, format!("file record {} has too many streams", record.number)));
        }
        self.streams.push(Stream {
            kind: attribute.kind,
            name: attribute.name.to_vec(),
            flags: attribute.flags,
            value,
        });
        Ok(())
    }

    /// The value of a kind: the data itself, the directory's index.
    pub(super) fn stream(&self, kind: u32) -> Option<&Stream> {
        self.streams.iter().find(|stream| stream.kind == kind && (kind != kind::DATA || stream.name.is_empty()))
    }

    /// What it takes to keep it, in bytes.
    pub(super) fn weight(&self) -> usize {
        let weight = |stream: &Stream| match &stream.value {
            Value::Resident(bytes) => bytes.len(),
            Value::Elsewhere { pieces, .. } => std::mem::size_of_val(pieces.as_slice()),
        };
        self.streams.iter().map(|stream| std::mem::size_of::<Stream>() + weight(stream)).sum()
    }
}
