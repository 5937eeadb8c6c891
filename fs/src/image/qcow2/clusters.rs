//! What becomes of each cluster of the disk: data, zeroes, or nothing.
//!
//! | the cluster is | over a backing file | without one |
//! |---|---|---|
//! | touched by `data` | data | data |
//! | else wholly in `zero` (what lies past the disk's end counts) | zeroes | zeroes |
//! | else touched by `zero` | data: the rest of it must not come from below | nothing |
//! | else | nothing | nothing |

use std::ops::Range;

use super::cluster_size::ClusterSize;
use super::runs::{Runs, in_order};
use crate::block::extents::Extents;

/// The clusters that are there, and the L2 tables that they need.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Clusters {
    /// Clusters with data; their order is their order in the file.
    pub(super) data: Runs,
    /// Clusters that read as zeroes without data.
    pub(super) zero: Runs,
    /// L1 entries that have an L2 table; their order is its place in the file.
    pub(super) tables: Runs,
}

impl Clusters {
    /// The clusters of a disk of `disk` bytes.
    pub(super) fn new(disk: u64, size: ClusterSize, data: &Extents, zero: &Extents, over_backing: bool) -> Self {
        let mut clusters = Self { data: Runs::default(), zero: Runs::default(), tables: Runs::default() };
        let touched = data.within(0..disk).map(|range| (size.touched(&range), ()));
        let ragged = zero.within(0..disk).filter(|_| over_backing).flat_map(|range| edges(&range, size, disk));
        for (range, ()) in in_order(touched, ragged.map(|range| (range, ()))) {
            clusters.data.push(range);
        }
        for range in zero.within(0..disk) {
            for gap in clusters.data.gaps(inner(&range, size, disk)) {
                clusters.zero.push(gap);
            }
        }
        for (range, _) in in_order(clusters.data.iter(), clusters.zero.iter()) {
            clusters.tables.push(range.start / size.entries()..range.end.div_ceil(size.entries()));
        }
        clusters.data.shrink_to_fit();
        clusters.zero.shrink_to_fit();
        clusters.tables.shrink_to_fit();
        clusters
    }

    /// Bytes of memory of all lists.
    pub(super) fn memory(&self) -> usize {
        self.data.memory() + self.zero.memory() + self.tables.memory()
    }
}

/// The clusters that lie wholly in `range`; the disk's last one reaches only to the disk's end.
fn inner(range: &Range<u64>, size: ClusterSize, disk: u64) -> Range<u64> {
    let start = size.count(range.start);
    let end = if range.end == disk { size.count(disk) } else { range.end / size.bytes() };
    start..end.max(start)
}

/// The clusters that `range` covers in part: at most the first and the last that it touches.
fn edges(range: &Range<u64>, size: ClusterSize, disk: u64) -> impl Iterator<Item = Range<u64>> + use<> {
    let ragged = |at: u64| (!at.is_multiple_of(size.bytes()) && at != disk).then(|| at / size.bytes());
    [ragged(range.start), ragged(range.end)].into_iter().flatten().map(|cluster| cluster..cluster + 1)
}
