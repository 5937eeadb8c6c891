//! `disk.qcow2`, `delta.qcow2`: a qcow2 image that is nowhere stored.
//!
//! A valid image of version 3, laid out as the module `layout` says, whose data clusters are the disk itself. The layout is a
//! pure function of disk size, cluster size, extents and backing file: two mounts that see the same point in time give
//! the same file, and a copy that broke off can go on where it stopped.
//!
//! ```text
//! extents ─▶ clusters (data, zeroes, L2 tables: runs) ─▶ layout (parts of the file)
//!                 │                                         │
//!                 └───────────────▶ map(range) ◀────────────┘   header, tables: written on demand; data: ranges of the disk
//! ```
//! No table is kept. What is kept is 16 bytes a run of data clusters, of zero clusters and of L2 tables: at most 32 bytes
//! an extent of data; at most 32 an extent of zeroes, or 64 over a backing file where such an extent begins and ends
//! inside of clusters that then hold data. A million extents scattered over 64 TiB are 32 MB, whatever the cluster size.
//!
//! Invariants: every cluster of the file is used once; a data cluster holds the disk's whole cluster, also where only
//! a part of it was asked for; no [`Segment::Disk`] reaches past the disk's end, the rest of its last cluster is zeroes.

mod cluster_size;
mod clusters;
#[cfg(any(test, feature = "testing"))]
pub mod fuzz;
mod layout;
mod metadata;
#[cfg(any(test, feature = "testing"))]
mod reader;
mod runs;
#[cfg(test)]
mod tests;

use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;

pub use self::cluster_size::ClusterSize;
use self::cluster_size::ENTRY;
use self::clusters::Clusters;
use self::layout::Layout;
use self::metadata::{Segments, Table};
use self::runs::in_order;
use super::{Image, Seek, Segment, length, no_such_data};
use crate::block::extents::Extents;
use crate::error::{Error, Kind, Result};

/// Sizes of disks are multiples of this; QEMU presents any other disk rounded up.
const SECTOR: u64 = 512;

/// Set in an L1 or L2 entry whose target has a refcount of one.
const COPIED: u64 = 1 << 63;

/// The L2 entry of a cluster that reads as zeroes.
const ZERO_CLUSTER: u64 = 1;

/// The image below an overlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backing {
    /// Its name as it is written into the image: relative to the image, at most 1023 bytes. QEMU takes what stands
    /// before a colon for a protocol, unless a slash comes first.
    pub file: String,
    /// Its format, `qcow2` or `raw`.
    pub format: &'static str,
}

/// A disk, or what changed on it, as qcow2.
#[derive(Debug, PartialEq, Eq)]
pub struct Qcow2 {
    disk: u64,
    cluster_size: ClusterSize,
    header: Bytes,
    layout: Layout,
    clusters: Clusters,
}

impl Qcow2 {
    /// The image of a disk of `disk` bytes that stores `data` and reads as zeroes in `zero`; the rest is in `backing`,
    /// or is zeroes without one. Where the two overlap, `data` counts. The image says the size of the disk rounded up
    /// to 512 bytes, as QEMU presents it; what is past the disk's end is zeroes.
    ///
    /// # Errors
    /// [`Kind::TooLarge`] if the format cannot hold it with this cluster size, [`Kind::Invalid`] if the name of the
    /// backing file is empty or too long.
    pub fn new(
        disk: u64,
        cluster_size: ClusterSize,
        data: &Extents,
        zero: &Extents,
        backing: Option<&Backing>,
    ) -> Result<Self> {
        let rounded = disk.checked_next_multiple_of(SECTOR);
        let rounded =
            rounded.ok_or_else(|| Error::new(Kind::TooLarge, format!("a disk of {disk} bytes is too large")))?;
        cluster_size.l1_entries(rounded)?;
        let clusters = Clusters::new(disk, cluster_size, data, zero, backing.is_some());
        let layout = Layout::new(rounded, cluster_size, &clusters)?;
        let header = metadata::header(rounded, cluster_size, &layout, backing)?;
        Ok(Self { disk, cluster_size, header, layout, clusters })
    }

    /// Bytes of memory that the image takes.
    pub fn memory(&self) -> usize {
        size_of::<Self>() + self.header.len() + self.clusters.memory()
    }

    fn map_header(&self, window: Range<u64>, out: &mut Segments) {
        let place = |at: u64| length(&(0..at)).min(self.header.len());
        let bytes = &self.header[place(window.start)..place(window.end)];
        out.bytes(bytes);
        out.zero(window.end - window.start - u64::try_from(bytes.len()).unwrap_or(0));
    }

    fn map_refcount_table(&self, window: Range<u64>, out: &mut Segments) {
        let block = |index: u64| self.layout.refcount_blocks.start + index * self.cluster_size.bytes();
        let mut table = Table::new(window, out);
        table.fill(&(0..self.layout.blocks), |index| block(index).to_be_bytes());
        table.finish();
    }

    fn map_refcount_blocks(&self, window: Range<u64>, out: &mut Segments) {
        let mut table = Table::new(window, out);
        table.fill(&(0..self.layout.total), |_| 1_u16.to_be_bytes());
        table.finish();
    }

    fn map_l1(&self, window: Range<u64>, out: &mut Segments) {
        let mut table = Table::new(window, out);
        for (entries, position) in self.clusters.tables.within(table.entries(ENTRY)) {
            let first = self.layout.l2.start + position * self.cluster_size.bytes();
            let target = |entry: u64| first + (entry - entries.start) * self.cluster_size.bytes();
            table.fill(&entries, |entry| (target(entry) | COPIED).to_be_bytes());
        }
        table.finish();
    }

    /// Neighbouring L1 entries have neighbouring tables, which together are one long table of neighbouring clusters.
    fn map_l2(&self, window: Range<u64>, out: &mut Segments) {
        let per_table = self.cluster_size.entries();
        let mut table = Table::new(window, out);
        let entries = table.entries(ENTRY);
        let tables = entries.start / per_table..entries.end.div_ceil(per_table);
        for (l1, position) in self.clusters.tables.at(tables) {
            let (entry, cluster) = (position * per_table, l1.start * per_table);
            let from = cluster + entries.start.saturating_sub(entry);
            let to = (l1.end * per_table).min(cluster + (entries.end - entry));
            let data = self.clusters.data.within(from..to).map(|(run, position)| (run, Some(position)));
            let zero = self.clusters.zero.within(from..to).map(|(run, _)| (run, None));
            for (run, position) in in_order(data, zero) {
                let first = entry + (run.start - cluster);
                let entries = first..first + (run.end - run.start);
                let target = |index: u64| match position {
                    Some(position) => self.data_cluster(position + (index - first)) | COPIED,
                    None => ZERO_CLUSTER,
                };
                table.fill(&entries, |index| target(index).to_be_bytes());
            }
        }
        table.finish();
    }

    /// Offset in the file of a data cluster.
    fn data_cluster(&self, position: u64) -> u64 {
        self.layout.data.start + position * self.cluster_size.bytes()
    }

    fn map_data(&self, window: &Range<u64>, out: &mut Segments) {
        let size = self.cluster_size.bytes();
        for (run, position) in self.clusters.data.at(self.cluster_size.touched(window)) {
            let place = position * size;
            let start = run.start * size + window.start.saturating_sub(place);
            let end = (run.end * size).min(run.start * size + (window.end - place));
            out.disk(&(start.min(self.disk)..end.min(self.disk)));
            out.zero(end - start.max(self.disk).min(end));
        }
    }
}

/// What of `part` lies in `range`, counted from the begin of the part.
fn cut(part: &Range<u64>, range: &Range<u64>) -> Option<Range<u64>> {
    let (start, end) = (part.start.max(range.start), part.end.min(range.end));
    (start < end).then(|| start - part.start..end - part.start)
}

#[async_trait]
impl Image for Qcow2 {
    fn size(&self) -> u64 {
        self.layout.data.end
    }

    /// All of it: an image has no holes worth telling, the clusters without data are not in the file.
    fn data_bytes(&self) -> u64 {
        self.size()
    }

    fn map(&self, range: Range<u64>) -> Vec<Segment> {
        let mut out = Segments::default();
        let layout = &self.layout;
        if let Some(window) = cut(&layout.header, &range) {
            self.map_header(window, &mut out);
        }
        if let Some(window) = cut(&layout.refcount_table, &range) {
            self.map_refcount_table(window, &mut out);
        }
        if let Some(window) = cut(&layout.refcount_blocks, &range) {
            self.map_refcount_blocks(window, &mut out);
        }
        if let Some(window) = cut(&layout.l1, &range) {
            self.map_l1(window, &mut out);
        }
        if let Some(window) = cut(&layout.l2, &range) {
            self.map_l2(window, &mut out);
        }
        if let Some(window) = cut(&layout.data, &range) {
            self.map_data(&window, &mut out);
        }
        out.finish()
    }

    async fn seek(&self, offset: u64, what: Seek) -> Result<u64> {
        match what {
            _ if offset >= self.size() => Err(no_such_data(offset)),
            Seek::Data => Ok(offset),
            Seek::Hole => Ok(self.size()),
        }
    }
}
