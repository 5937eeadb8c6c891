//! The boot sector: where things are.

use crate::numbers::{byte, le16, le32};
use crate::{Disk, Error, Result};

/// How wide the entries of the file allocation table are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Width {
    Twelve,
    Sixteen,
    /// 28 of 32 bits.
    ThirtyTwo,
}

/// Where the root directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Root {
    /// Before the clusters: offset and size, in bytes.
    Fixed(u64, u64),
    /// In a chain of clusters that begins here.
    Chain(u32),
}

/// Where things are, in bytes from the beginning of the disk. What lies past the disk's end shows when it is read.
#[derive(Debug, Clone)]
pub(super) struct Geometry {
    pub(super) width: Width,
    /// Bytes of a cluster.
    pub(super) cluster_size: u32,
    /// How many clusters there are; the first one is number 2.
    pub(super) clusters: u32,
    /// The file allocation table that is in use.
    pub(super) table: u64,
    pub(super) root: Root,
    /// The first cluster.
    pub(super) data: u64,
    /// The sector that tells of free clusters.
    pub(super) hint: Option<u64>,
    /// The mark that Linux sets here while it is mounted.
    pub(super) dirty: bool,
}

/// Most clusters with entries of 12, 16 and 28 bits, as Linux counts them.
const MAX_TWELVE: u32 = 0xFF4;
const MAX_SIXTEEN: u32 = 0xFFF4;
const MAX_THIRTY_TWO: u32 = 0x0FFF_FFF6;

fn wrong(what: &str) -> Error {
    Error::corrupt(format!("no FAT file system: {what} in its boot sector cannot be right"))
}

impl Geometry {
    /// What the boot sector says.
    ///
    /// # Errors
    /// If it is none.
    pub(super) fn read(disk: &impl Disk) -> Result<Self> {
        let mut boot = [0; 512];
        disk.read_at(0, &mut boot)?;
        let sector_size = u64::from(le16(&boot, 11)?);
        let per_cluster = byte(&boot, 13)?;
        let reserved = u64::from(le16(&boot, 14)?);
        let tables = u64::from(byte(&boot, 16)?);
        let root_entries = u64::from(le16(&boot, 17)?);
        let media = byte(&boot, 21)?;
        if !sector_size.is_power_of_two() || !(512..=4096).contains(&sector_size) {
            return Err(wrong("the size of a sector"));
        }
        if !per_cluster.is_power_of_two() {
            return Err(wrong("the size of a cluster"));
        }
        if reserved == 0 || tables == 0 {
            return Err(wrong("the number of tables or of reserved sectors"));
        }
        if media < 0xF8 && media != 0xF0 {
            return Err(wrong("the medium"));
        }
        let short_table = u64::from(le16(&boot, 22)?);
        let wide = short_table == 0;
        let table_sectors = if wide { u64::from(le32(&boot, 36)?) } else { short_table };
        let sectors = match le16(&boot, 19)? {
            0 => u64::from(le32(&boot, 32)?),
            few => u64::from(few),
        };
        let flags = if wide { u64::from(le16(&boot, 40)?) } else { 0 };
        // Bit 7: one table alone is kept up to date, and this is its number.
        let active = if flags & 0x80 == 0 { 0 } else { flags & 0xF };
        if active >= tables {
            return Err(wrong("the number of the table in use"));
        }
        let root = reserved + tables * table_sectors;
        let root_size = root_entries * 32;
        let data = root + root_size.div_ceil(sector_size);
        let in_data = sectors.checked_sub(data).ok_or_else(|| wrong("the number of sectors"))? / u64::from(per_cluster);
        let bytes = table_sectors * sector_size;
        let (width, entries, most) = if wide {
            (Width::ThirtyTwo, bytes / 4, MAX_THIRTY_TWO)
        } else if in_data.min((bytes * 2 / 3).saturating_sub(2)) > u64::from(MAX_TWELVE) {
            (Width::Sixteen, bytes / 2, MAX_SIXTEEN)
        } else {
            (Width::Twelve, bytes * 2 / 3, MAX_TWELVE)
        };
        let clusters =
            u32::try_from(in_data.min(entries.saturating_sub(2))).map_err(|_| wrong("the number of clusters"))?;
        if clusters == 0 || clusters > most {
            return Err(wrong("the number of clusters"));
        }
        let hint = if wide { u64::from(le16(&boot, 48)?) } else { 0 };
        Ok(Self {
            width,
            cluster_size: u32::from(per_cluster) * u32::from(le16(&boot, 11)?),
            clusters,
            table: (reserved + active * table_sectors) * sector_size,
            root: if wide { Root::Chain(le32(&boot, 44)?) } else { Root::Fixed(root * sector_size, root_size) },
            data: data * sector_size,
            hint: (0 < hint && hint < reserved).then_some(hint * sector_size),
            dirty: byte(&boot, if wide { 65 } else { 37 })? & 1 != 0,
        })
    }

    /// Where a cluster is on the disk.
    ///
    /// # Errors
    /// If there is no such cluster.
    pub(super) fn offset(&self, cluster: u32) -> Result<u64> {
        match cluster.checked_sub(2) {
            Some(index) if index < self.clusters => Ok(self.data + u64::from(index) * u64::from(self.cluster_size)),
            _ => Err(Error::corrupt(format!("cluster {cluster} of {} does not exist", self.clusters))),
        }
    }
}
