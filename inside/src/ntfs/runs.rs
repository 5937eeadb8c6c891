//! Where the clusters of a value are: runs, each told by its length and its distance from the run before.

use super::boot::Geometry;
use crate::{Disk, Error, Result};

/// Clusters that follow each other in a value and on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// The first one's place in the value.
    pub(super) start: u64,
    pub(super) length: u64,
    /// The first one's place on the disk; none if it is a hole.
    pub(super) place: Option<u64>,
}

impl Run {
    fn end(&self) -> u64 {
        self.start + self.length
    }
}

fn wrong() -> Error {
    Error::corrupt("a file's clusters are not told as they can be")
}

/// A number of at most eight bytes with a sign.
fn number(bytes: &[u8]) -> Result<i64> {
    let negative = bytes.last().is_some_and(|last| last & 0x80 != 0);
    let mut wide = [if negative { 0xFF } else { 0 }; 8];
    wide.get_mut(..bytes.len()).ok_or_else(wrong)?.copy_from_slice(bytes);
    Ok(i64::from_le_bytes(wide))
}

/// The runs of a value's clusters from `start` to before `end`; a file's offsets in them fit 63 bits, its clusters exist.
///
/// # Errors
/// If these are others.
pub(super) fn decode(mut bytes: &[u8], start: u64, end: u64, geometry: &Geometry) -> Result<Vec<Run>> {
    if end.checked_mul(geometry.cluster_size).is_none_or(|end| end > i64::MAX.unsigned_abs()) {
        return Err(wrong());
    }
    let mut runs: Vec<Run> = Vec::new();
    let (mut at, mut place) = (start, 0_i64);
    while at < end {
        let (&header, rest) = bytes.split_first().ok_or_else(wrong)?;
        let (length, distance) = (usize::from(header & 0xF), usize::from(header >> 4));
        if header == 0 || length + distance > rest.len() {
            return Err(wrong());
        }
        let (told, rest) = rest.split_at(length);
        let (told_distance, rest) = rest.split_at(distance);
        let length = u64::try_from(number(told)?).map_err(|_| wrong())?;
        if length == 0 || length > end - at {
            return Err(wrong());
        }
        let found = if distance == 0 {
            None
        } else {
            place = place.checked_add(number(told_distance)?).ok_or_else(wrong)?;
            let first = u64::try_from(place).map_err(|_| wrong())?;
            if first.checked_add(length).is_none_or(|end| end > geometry.clusters) {
                return Err(Error::corrupt("a file has clusters past the end of the file system"));
            }
            Some(first)
        };
        runs.push(Run { start: at, length, place: found });
        at += length;
        bytes = rest;
    }
    // What follows the last run is a zero.
    if bytes.first().is_some_and(|&header| header != 0) { Err(wrong()) } else { Ok(runs) }
}

/// The run with a value's cluster.
pub(super) fn find(runs: &[Run], cluster: u64) -> Option<Run> {
    let index = runs.partition_point(|run| run.end() <= cluster);
    runs.get(index).copied().filter(|run| run.start <= cluster)
}

/// Fills `buffer` from a value's `offset` on, given the run of each of its clusters.
///
/// # Errors
/// If a cluster has none, or cannot be read.
pub(super) fn read<D: Disk>(
    disk: &D,
    geometry: &Geometry,
    mut run_at: impl FnMut(u64) -> Result<Run>,
    mut offset: u64,
    mut buffer: &mut [u8],
) -> Result<()> {
    while !buffer.is_empty() {
        let run = run_at(offset / geometry.cluster_size)?;
        let left = (run.end() * geometry.cluster_size).saturating_sub(offset);
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        if length == 0 {
            return Err(wrong());
        }
        let (now, later) = buffer.split_at_mut(length);
        match run.place {
            Some(place) => {
                disk.read_at(place * geometry.cluster_size + (offset - run.start * geometry.cluster_size), now)?;
            }
            None => now.fill(0),
        }
        offset += length as u64;
        buffer = later;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GEOMETRY: Geometry = Geometry { cluster_size: 4096, clusters: 1000, record_size: 1024, first_record: 4096 };

    fn decoded(bytes: &[u8], end: u64) -> Result<Vec<Run>> {
        decode(bytes, 0, end, &GEOMETRY)
    }

    #[test]
    fn runs_go_forth_and_back_and_have_holes() {
        let run = |start, length, place| Run { start, length, place };
        let runs = decoded(&[0x21, 3, 0x20, 0x01, 0x01, 5, 0x11, 2, 0xF0, 0], 10).unwrap();
        assert_eq!(runs, [run(0, 3, Some(0x120)), run(3, 5, None), run(8, 2, Some(0x110))]);
        assert_eq!(find(&runs, 7), Some(runs[1]));
        assert_eq!(find(&runs, 10), None);
    }

    #[test]
    fn what_cannot_be_is_an_error() {
        for (bytes, end) in [
            (&[][..], 1),
            (&[0x00], 1),
            (&[0x11, 1], 1),
            (&[0x11, 1, 0x80, 0], 1),
            (&[0x11, 0, 1, 0], 1),
            (&[0x11, 0xFF, 1, 0], 1),
            (&[0x11, 2, 1, 0], 1),
            (&[0x11, 1, 1, 0x11], 1),
            (&[0x21, 1, 0xE8, 0x03, 0], 1),
            (&[0x1F, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], 1),
            (&[0x01, 1, 0], u64::MAX),
        ] {
            assert!(decoded(bytes, end).is_err(), "{bytes:?}");
        }
    }
}
