//! The boot sector: where things are.

use crate::numbers::{byte, le16, le64};
use crate::{Disk, Error, Result};

/// Where things are.
#[derive(Debug, Clone)]
pub(super) struct Geometry {
    /// Bytes of a cluster.
    pub(super) cluster_size: u64,
    /// How many clusters there are, all of them on the disk.
    pub(super) clusters: u64,
    /// Bytes of a file record.
    pub(super) record_size: usize,
    /// Where the first file record is on the disk, in bytes.
    pub(super) first_record: u64,
}

fn wrong(what: &str) -> Error {
    Error::corrupt(format!("no NTFS: {what} in its boot sector cannot be right"))
}

impl Geometry {
    /// What the boot sector says.
    ///
    /// # Errors
    /// If it is none.
    pub(super) fn read(disk: &impl Disk) -> Result<Self> {
        let mut boot = [0; 512];
        disk.read_at(0, &mut boot)?;
        if &boot[3..11] != b"NTFS    " {
            return Err(wrong("the name"));
        }
        let sector_size = u64::from(le16(&boot, 11)?);
        if !sector_size.is_power_of_two() || !(256..=4096).contains(&sector_size) {
            return Err(wrong("the size of a sector"));
        }
        // From 0xF4 on it is a power of two, negative.
        let sectors = match byte(&boot, 13)? {
            count @ 1..=0x80 => u64::from(count),
            power @ 0xF4.. => 1 << (0x100 - u32::from(power)),
            _ => 0,
        };
        let cluster_size = sectors * sector_size;
        if !cluster_size.is_power_of_two() || !(512..=2 << 20).contains(&cluster_size) {
            return Err(wrong("the size of a cluster"));
        }
        let record_size = match byte(&boot, 64)? {
            count @ 1..=0x7F => u64::from(count) * cluster_size,
            power @ 0xE1.. => 1 << (0x100 - u32::from(power)),
            _ => 0,
        };
        if !record_size.is_power_of_two() || !(512..=1 << 16).contains(&record_size) {
            return Err(wrong("the size of a file record"));
        }
        let of_disk = disk.size() / cluster_size;
        let clusters = le64(&boot, 40)?.saturating_mul(sector_size) / cluster_size;
        let first = le64(&boot, 48)?;
        if first == 0 || first >= clusters.min(of_disk) {
            return Err(wrong("the place of the first file record"));
        }
        Ok(Self {
            cluster_size,
            clusters: clusters.min(of_disk),
            record_size: usize::try_from(record_size).map_err(|_| wrong("the size of a file record"))?,
            first_record: first * cluster_size,
        })
    }
}
