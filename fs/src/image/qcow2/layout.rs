//! Where things are in the file.
//!
//! ```text
//! │ header │ refcount table │ refcount blocks │ L1 table │ L2 tables │ data clusters, in guest order │
//! ```
//! Each part begins on a cluster and they leave no gap, so every cluster of the file has a refcount of one. The
//! metadata comes first: a large read of the file past it is a large read of the disk.

use std::ops::Range;

use super::cluster_size::{ClusterSize, ENTRY};
use super::clusters::Clusters;
use crate::error::Result;

/// The longest refcount table that QEMU opens, in bytes.
const MAX_REFCOUNT_TABLE: u64 = 8 << 20;

/// What an L1 or L2 entry can point to, in bytes: 56 bits. The end of the file is below it, so sums of offsets in the
/// file do not overflow.
const MAX_FILE: u64 = 1 << 56;

/// Bytes of a refcount: refcount order 4.
const REFCOUNT: u64 = 2;

/// The parts of the file, in bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) header: Range<u64>,
    pub(super) refcount_table: Range<u64>,
    pub(super) refcount_blocks: Range<u64>,
    pub(super) l1: Range<u64>,
    pub(super) l2: Range<u64>,
    pub(super) data: Range<u64>,
    /// Entries of the L1 table.
    pub(super) l1_entries: u64,
    /// Number of refcount blocks.
    pub(super) blocks: u64,
    /// Clusters of the whole file.
    pub(super) total: u64,
}

impl Layout {
    /// The layout for a disk of `disk` bytes.
    ///
    /// # Errors
    /// [`crate::error::Kind::TooLarge`] beyond what the format or QEMU allows.
    pub(super) fn new(disk: u64, size: ClusterSize, clusters: &Clusters) -> Result<Self> {
        let too_small = || size.too_small("what is to be stored", size.doubled());
        // An empty disk gets a table of one entry, so that the header points at something that is there.
        let l1_entries = size.l1_entries(disk)?.max(1);
        let l1_clusters = size.count(l1_entries * ENTRY);
        let (tables, data) = (clusters.tables.total(), clusters.data.total());
        let fixed = [1, l1_clusters, tables, data].into_iter().try_fold(0_u64, u64::checked_add);
        let fixed = fixed.filter(|&fixed| fixed <= MAX_FILE / size.bytes()).ok_or_else(too_small)?;
        let (table_clusters, blocks) = refcounts(size, fixed);
        let total = fixed + table_clusters + blocks;
        if table_clusters * size.bytes() > MAX_REFCOUNT_TABLE || total > MAX_FILE / size.bytes() {
            return Err(too_small());
        }
        let mut at = 0;
        let mut next = |count: u64| {
            let start = at;
            at += count * size.bytes();
            start..at
        };
        Ok(Self {
            header: next(1),
            refcount_table: next(table_clusters),
            refcount_blocks: next(blocks),
            l1: next(l1_clusters),
            l2: next(tables),
            data: next(data),
            l1_entries,
            blocks,
            total,
        })
    }
}

/// Clusters of the refcount table, and blocks, that count `fixed` other clusters and themselves.
fn refcounts(size: ClusterSize, fixed: u64) -> (u64, u64) {
    let (mut table, mut blocks) = (0, 0);
    loop {
        let needed_blocks = (fixed + table + blocks).div_ceil(size.bytes() / REFCOUNT);
        let needed_table = size.count(needed_blocks * ENTRY);
        if (needed_table, needed_blocks) == (table, blocks) {
            return (table, blocks);
        }
        (table, blocks) = (needed_table, needed_blocks);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refcounts_count_themselves_and_nothing_more() {
        for bytes in [512, 4096, 65_536, 2 << 20] {
            let size = ClusterSize::new(bytes).unwrap();
            let block = bytes / REFCOUNT;
            for fixed in (1..2000).chain([block * block, block * block * 3 + 7, MAX_FILE / bytes]) {
                let (table, blocks) = refcounts(size, fixed);
                let total = fixed + table + blocks;
                assert!(blocks * block >= total && table * size.entries() >= blocks);
                assert!((blocks - 1) * block < total && (table - 1) * size.entries() < blocks, "one too many");
            }
        }
    }
}
