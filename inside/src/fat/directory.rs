//! Directories, which are read as a whole: none has more than 2 MiB.

use std::collections::HashMap;
use std::sync::Arc;

use super::boot::Root;
use super::chain::{Table, Walk};
use super::name::{self, Long};
use crate::numbers::{le16, le32};
use crate::{Disk, Error, Result, utf16};

/// Most slots of 32 bytes in a directory, by the format and by Linux.
const MAX_SLOTS: u64 = 65536;

/// Bits of an entry's attributes.
pub(super) const READ_ONLY: u8 = 0x01;
const LABEL: u8 = 0x08;
pub(super) const DIRECTORY: u8 = 0x10;
const LONG_NAME: u8 = 0x0F;

/// An entry that is a file's or a directory's, and no part of a long name.
#[derive(Debug, Clone, Copy)]
pub(super) struct Raw(pub(super) [u8; 32]);

impl Raw {
    /// The entry in a slot; none if it is free, a label, or a part of a name.
    pub(super) fn new(slot: &[u8; 32]) -> Option<Self> {
        (slot[0] != 0 && slot[0] != 0xE5 && slot[11] & LABEL == 0).then_some(Self(*slot))
    }

    pub(super) fn is_directory(&self) -> bool {
        self.0[11] & DIRECTORY != 0
    }

    pub(super) fn is_read_only(&self) -> bool {
        self.0[11] & READ_ONLY != 0
    }

    /// Its first cluster; 0 if it has none, and for the root directory.
    pub(super) fn first<D: Disk>(&self, table: &Table<D>) -> Result<u32> {
        let low = u32::from(le16(&self.0, 26)?);
        let wide = matches!(table.geometry().root, Root::Chain(_));
        Ok(if wide { u32::from(le16(&self.0, 20)?) << 16 | low } else { low })
    }

    /// Its size, in bytes; 0 for directories.
    pub(super) fn size(&self) -> Result<u64> {
        le32(&self.0, 28).map(u64::from)
    }
}

/// A name in a directory.
#[derive(Debug)]
pub(super) struct Named {
    pub(super) name: Arc<[u8]>,
    /// Where its entry is on the disk, in bytes.
    pub(super) offset: u64,
    pub(super) raw: Raw,
}

/// A directory.
#[derive(Debug)]
pub(super) struct Directory {
    /// Its names, in its order.
    pub(super) entries: Vec<Named>,
    /// Where each name is among them.
    places: HashMap<Arc<[u8]>, usize>,
    /// Its parent's first cluster, 0 for the root.
    pub(super) parent: Option<u32>,
}

/// What a directory occupies, in bytes.
///
/// # Errors
/// If that is not right.
pub(super) fn size<D: Disk>(table: &Table<D>, place: Root) -> Result<u64> {
    pieces(table, place).map(|(piece, offsets)| piece * offsets.len() as u64)
}

/// Where a directory is: pieces of one size.
fn pieces<D: Disk>(table: &Table<D>, place: Root) -> Result<(u64, Vec<u64>)> {
    let first = match place {
        Root::Fixed(offset, size) => return Ok((size, vec![offset])),
        Root::Chain(first) => first,
    };
    let geometry = table.geometry();
    let size = u64::from(geometry.cluster_size);
    let mut walk = Walk::new(geometry, first)?;
    let mut offsets = vec![geometry.offset(first)?];
    while walk.step(table)? {
        if (offsets.len() as u64 + 1) * size > (MAX_SLOTS * 32).max(size) {
            return Err(Error::corrupt(format!("the directory at cluster {first} is larger than one may be")));
        }
        offsets.push(geometry.offset(walk.cluster)?);
    }
    Ok((size, offsets))
}

impl Directory {
    /// Reads one.
    ///
    /// # Errors
    /// If it is not right; a name twice is not.
    pub(super) fn read<D: Disk>(table: &Table<D>, place: Root) -> Result<Self> {
        let (piece, offsets) = pieces(table, place)?;
        let mut directory = Self { entries: Vec::new(), places: HashMap::new(), parent: None };
        let mut bytes = vec![0; usize::try_from(piece).unwrap_or_default()];
        let mut long = Long::default();
        'pieces: for start in offsets {
            table.disk().read_at(start, &mut bytes)?;
            for index in 0..bytes.len() / 32 {
                let Some(slot) = name::slot(&bytes, index) else { break 'pieces };
                match slot {
                    // Nothing was ever written from here on.
                    [0, ..] => break 'pieces,
                    [0xE5, ..] => long = Long::default(),
                    _ if slot[11] & 0x3F == LONG_NAME => long.push(slot),
                    _ => directory.take(table, start + index as u64 * 32, slot, &mut long)?,
                }
            }
        }
        Ok(directory)
    }

    fn take<D: Disk>(&mut self, table: &Table<D>, offset: u64, slot: &[u8; 32], long: &mut Long) -> Result<()> {
        let long = long.take(slot);
        let Some(raw) = Raw::new(slot) else { return Ok(()) };
        match &slot[..11] {
            b".          " => return Ok(()),
            b"..         " => {
                self.parent = Some(raw.first(table)?);
                return Ok(());
            }
            _ => {}
        }
        let name: Arc<[u8]> = long.unwrap_or_else(|| name::short(slot)).into();
        if !utf16::is_name(&name) {
            return Err(Error::corrupt(format!(
                "a directory has the name \"{}\", which none can have",
                utf16::quoted(&name)
            )));
        }
        if self.places.insert(Arc::clone(&name), self.entries.len()).is_some() {
            return Err(Error::corrupt(format!("a directory has the name \"{}\" twice", utf16::quoted(&name))));
        }
        self.entries.push(Named { name, offset, raw });
        Ok(())
    }

    /// The entry of that name.
    pub(super) fn find(&self, name: &[u8]) -> Option<&Named> {
        self.places.get(name).and_then(|&place| self.entries.get(place))
    }
}
