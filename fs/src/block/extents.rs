//! A compact, sorted list of ranges of a disk: what is dirty, what holds data.
//!
//! 16 bytes an extent, in chunks: a list that grows by doubling would leave as much memory behind as it takes. Ranges
//! never touch or overlap: neighbours are merged as they come in.

use std::ops::Range;

use crate::error::{Error, Kind, Result};

/// How many extents one list may hold (128 MiB): a disk more fragmented than this is refused, not swallowed.
pub const MAX_EXTENTS: usize = 8 << 20;

/// Extents in a chunk (64 KiB).
const CHUNK: usize = 4096;

/// Sorted, merged, non-empty ranges of disk offsets, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Extents {
    /// All but the last one are full.
    chunks: Vec<Vec<(u64, u64)>>,
    bytes: u64,
}

impl Extents {
    /// Appends a range that begins at or after the end of the last one; empty ranges are dropped.
    ///
    /// # Errors
    /// [`Kind::TooLarge`] beyond [`MAX_EXTENTS`], [`Kind::Io`] if the range begins before the end of the last one.
    pub fn push(&mut self, range: Range<u64>) -> Result<()> {
        if range.start >= range.end {
            return Ok(());
        }
        match self.chunks.last_mut().and_then(|chunk| chunk.last_mut()) {
            Some(last) if range.start < last.1 => {
                return Err(Error::new(Kind::Io, format!("extents out of order at offset {}", range.start)));
            }
            Some(last) if range.start == last.1 => last.1 = range.end,
            _ => self.append((range.start, range.end))?,
        }
        self.bytes += range.end - range.start;
        Ok(())
    }

    fn append(&mut self, extent: (u64, u64)) -> Result<()> {
        if self.len() >= MAX_EXTENTS {
            let message = format!("more than {MAX_EXTENTS} extents; take a full backup of this disk instead");
            return Err(Error::new(Kind::TooLarge, message));
        }
        match self.chunks.last_mut() {
            Some(chunk) if chunk.len() < CHUNK => chunk.push(extent),
            Some(_) => {
                let mut chunk = Vec::with_capacity(CHUNK);
                chunk.push(extent);
                self.chunks.push(chunk);
            }
            // Most lists are short.
            None => self.chunks.push(vec![extent]),
        }
        Ok(())
    }

    /// Number of extents.
    pub fn len(&self) -> usize {
        self.chunks.last().map_or(0, |last| (self.chunks.len() - 1) * CHUNK + last.len())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Sum of all lengths, in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The extent of an index below [`Extents::len`].
    pub fn get(&self, index: usize) -> Option<Range<u64>> {
        self.chunks.get(index / CHUNK)?.get(index % CHUNK).map(|&(start, end)| start..end)
    }

    /// All extents in order.
    pub fn iter(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.chunks.iter().flatten().map(|&(start, end)| start..end)
    }

    /// The extents that end after `offset`, in order.
    fn ending_after(&self, offset: u64) -> impl Iterator<Item = &(u64, u64)> {
        let before = |extent: &(u64, u64)| extent.1 <= offset;
        let first = self.chunks.partition_point(|chunk| chunk.last().is_some_and(before));
        let within = self.chunks.get(first).map_or(0, |chunk| chunk.partition_point(before));
        self.chunks[first..].iter().flatten().skip(within)
    }

    /// The extents that lie in `window`, cut to it, in order.
    pub fn within(&self, window: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        self.ending_after(window.start)
            .take_while(move |&&(start, _)| start < window.end)
            .map(move |&(start, end)| start.max(window.start)..end.min(window.end))
            .filter(|range| range.start < range.end)
    }

    /// The first offset at or after `offset` that lies in an extent.
    pub fn next_inside(&self, offset: u64) -> Option<u64> {
        self.ending_after(offset).next().map(|&(start, _)| start.max(offset))
    }

    /// The first offset at or after `offset` that lies in no extent.
    pub fn next_outside(&self, offset: u64) -> u64 {
        match self.ending_after(offset).next() {
            Some(&(start, end)) if start <= offset => end,
            _ => offset,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn from_bits(bits: &[bool]) -> Extents {
        let mut extents = Extents::default();
        for (index, _) in bits.iter().enumerate().filter(|(_, set)| **set) {
            let at = u64::try_from(index).unwrap();
            extents.push(at..at + 1).unwrap();
        }
        extents
    }

    proptest! {
        #[test]
        fn agrees_with_a_bit_per_byte(bits in proptest::collection::vec(any::<bool>(), 0..200), a in 0_usize..220, b in 0_usize..220) {
            let extents = from_bits(&bits);
            let (low, high) = (a.min(b), a.max(b));
            let inside: Vec<usize> = extents
                .within(low as u64..high as u64)
                .flat_map(|r| usize::try_from(r.start).unwrap()..usize::try_from(r.end).unwrap())
                .collect();
            let expected: Vec<usize> = (low..high.min(bits.len())).filter(|&i| bits[i]).collect();
            prop_assert_eq!(inside, expected);
            prop_assert_eq!(extents.bytes(), bits.iter().filter(|b| **b).count() as u64);
            let next = (a..bits.len()).find(|&i| bits[i]).map(|i| i as u64);
            prop_assert_eq!(extents.next_inside(a as u64), next);
            let hole = (a..=a + bits.len()).find(|&i| !bits.get(i).copied().unwrap_or(false)).unwrap() as u64;
            prop_assert_eq!(extents.next_outside(a as u64), hole);
            for pair in extents.iter().collect::<Vec<_>>().windows(2) {
                prop_assert!(pair[0].end < pair[1].start, "neighbours are merged");
            }
        }
    }

    #[test]
    fn a_long_list_is_found_in_from_any_place() {
        let mut extents = Extents::default();
        let count = 3 * CHUNK + 7;
        for index in 0..count as u64 {
            extents.push(10 * index + 3..10 * index + 8).unwrap();
        }
        assert_eq!((extents.len(), extents.bytes()), (count, 5 * count as u64));
        for index in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, count - 1] {
            let at = 10 * index as u64;
            assert_eq!(extents.get(index), Some(at + 3..at + 8));
            assert_eq!(extents.next_inside(at), Some(at + 3));
            assert_eq!(extents.next_outside(at + 4), at + 8);
            assert_eq!(
                extents.within(at..at + 5).collect::<Vec<_>>(),
                std::iter::once(at + 3..at + 5).collect::<Vec<_>>()
            );
        }
        assert_eq!((extents.get(count), extents.next_inside(10 * count as u64)), (None, None));
        assert!(extents.iter().map(|range| range.start).is_sorted());
    }

    #[test]
    fn refuses_what_goes_backwards() {
        let mut extents = Extents::default();
        extents.push(10..20).unwrap();
        assert_eq!(extents.push(15..30).unwrap_err().kind(), Kind::Io);
    }
}
