//! The order of names: NTFS keeps a table of each unit's upper case.

use std::cmp::Ordering;

use super::file::File;
use super::record::kind;
use super::volume::Volume;
use crate::utf16;
use crate::{Disk, Error, Result};

/// The file with the table, and its size, in bytes: every unit has one.
const RECORD: u64 = 10;
const SIZE: usize = 2 << 16;

/// The table.
#[derive(Debug)]
pub(super) struct UpCase(Vec<u16>);

impl UpCase {
    /// Reads it.
    ///
    /// # Errors
    /// If it is not there.
    pub(super) fn read<D: Disk>(volume: &Volume<D>) -> Result<Self> {
        let file = File::read(volume, volume.reference(RECORD)?)?;
        let data = file.stream(kind::DATA).ok_or_else(|| Error::corrupt("the table of upper case is missing"))?;
        let mut bytes = vec![0; SIZE];
        volume.read(data, 0, &mut bytes)?;
        Ok(Self(utf16::units(&bytes)))
    }

    fn upper(&self, unit: u16) -> u16 {
        self.0.get(usize::from(unit)).copied().unwrap_or(unit)
    }

    /// Units, and a name of the disk, whatever their case.
    pub(super) fn compare(&self, name: &[u16], other: &[u8]) -> Ordering {
        let other = other.chunks_exact(2).map(|pair| self.upper(u16::from_le_bytes([pair[0], pair[1]])));
        name.iter().map(|&unit| self.upper(unit)).cmp(other)
    }
}
