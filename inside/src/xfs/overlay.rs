//! The blocks as the log has them, over those of the disk.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

use crate::{Disk, Error, Kind, Result};

use super::superblock::BASIC;
use crate::numbers::{index, length};

/// Most that a log may change, in bytes: 131,072 inodes of 512 bytes. With what holds them, some 80 MiB of memory.
const MAX_CHANGED: usize = 64 << 20;

const SECTOR: usize = 512;

/// Sectors by their numbers.
pub(super) type Sectors = BTreeMap<u64, Box<[u8; SECTOR]>>;

/// A disk of which some sectors are held in memory.
#[derive(Debug)]
pub(super) struct Overlay<D> {
    disk: D,
    sectors: Sectors,
}

impl<D: Disk> Overlay<D> {
    pub(super) fn new(disk: D, sectors: Sectors) -> Self {
        Self { disk, sectors }
    }

    pub(super) fn into_sectors(self) -> Sectors {
        self.sectors
    }

    /// The bytes at `offset`, as the log has them; and whether it has any of them.
    pub(super) fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<bool> {
        self.disk.read_at(offset, buffer)?;
        if self.sectors.is_empty() {
            return Ok(false);
        }
        let end = offset.saturating_add(length(buffer.len()));
        let mut changed = false;
        for (sector, bytes) in self.sectors.range(offset / BASIC..end.div_ceil(BASIC)) {
            let start = sector * BASIC;
            let (from, to) = (start.max(offset), (start + BASIC).min(end));
            buffer[index(from - offset)..index(to - offset)]
                .copy_from_slice(&bytes[index(from - start)..index(to - start)]);
            changed = true;
        }
        Ok(changed)
    }

    /// Keeps the sectors of `buffer`, which is what is at `offset`, that `changed` touches.
    pub(super) fn keep(&mut self, offset: u64, buffer: &[u8], changed: Range<usize>) -> Result<()> {
        let (first, end) = (changed.start / SECTOR, changed.end.div_ceil(SECTOR));
        let sectors = buffer.as_chunks::<SECTOR>().0.get(first..end).unwrap_or_default();
        for (number, sector) in (offset / BASIC + length(first)..).zip(sectors) {
            self.sectors.insert(number, Box::new(*sector));
        }
        if self.sectors.len() * SECTOR > MAX_CHANGED {
            return Err(Error::new(
                Kind::Unclean,
                format!("XFS: its log changes more than {} MiB: freeze it first (--quiesce)", MAX_CHANGED >> 20),
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_lies_over_the_disk() {
        let disk: Vec<u8> = vec![1; 4096];
        let mut overlay = Overlay::new(disk, Sectors::new());
        let mut buffer = vec![2; 2048];
        overlay.keep(1024, &buffer, 600..700).unwrap();
        let mut read = [0; 1100];
        assert!(overlay.read(1000, &mut read).unwrap());
        assert_eq!(&read[..536], &[1; 536], "before it, and the sector that was not touched");
        assert_eq!(&read[536..1048], &[2; 512]);
        assert_eq!(&read[1048..], &[1; 52]);
        assert!(!overlay.read(0, &mut read[..512]).unwrap());
        buffer.fill(3);
        overlay.keep(1024, &buffer, 512..512).unwrap();
        assert!(overlay.read(1536, &mut read[..1]).unwrap());
        assert_eq!(read[0], 2, "nothing was touched");
    }
}
