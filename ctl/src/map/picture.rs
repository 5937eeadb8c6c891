//! Where a disk changed, in a bounded number of cells.
//!
//! The size of the disk may be known at the end only, so extents are counted in fine cells whose width doubles whenever
//! they no longer reach; the cells that are shown are cut from these. Whatever the width, no byte is lost or counted
//! twice: cells are differences of one running sum.

use std::ops::Range;

/// Fine cells: some hundred for each that is shown, half a megabyte in all.
const FINE: usize = 1 << 16;

/// How much of the disk changed in each place.
#[derive(Debug, Default)]
pub(crate) struct Picture {
    /// A fine cell is 2 to this power bytes wide.
    shift: u32,
    fine: Vec<u64>,
    total: u64,
}

/// A piece of the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cell {
    pub(crate) range: Range<u64>,
    /// Bytes of it that changed.
    pub(crate) bytes: u64,
}

impl Picture {
    /// Counts an extent, which overlaps none that was counted before.
    pub(crate) fn add(&mut self, range: &Range<u64>) {
        if range.is_empty() {
            return;
        }
        while index((range.end - 1) >> self.shift) >= FINE {
            self.widen();
        }
        let (first, last) = (range.start >> self.shift, (range.end - 1) >> self.shift);
        if self.fine.len() <= index(last) {
            self.fine.resize(index(last) + 1, 0);
        }
        for number in first..=last {
            let start = number << self.shift;
            // The end of a cell at the very end of the numbers is past them.
            let end = start.saturating_add(1 << self.shift);
            self.fine[index(number)] += range.end.min(end) - range.start.max(start);
        }
        self.total += range.end - range.start;
    }

    fn widen(&mut self) {
        self.fine = self.fine.chunks(2).map(|pair| pair.iter().sum()).collect();
        self.shift += 1;
    }

    /// Cuts a disk of `size` bytes, which covers all extents, into `count` cells, or one a byte if it has fewer.
    pub(crate) fn cells(&self, size: u64, count: u32) -> Vec<Cell> {
        let count = u64::from(count).min(size);
        let mut cells = Vec::new();
        let (mut start, mut sum) = (0, 0);
        let mut fine = Running { picture: self, size, number: 0, sum: 0 };
        for number in 1..=count {
            let end = u64::try_from(u128::from(size) * u128::from(number) / u128::from(count)).unwrap_or(size);
            let until = fine.before(end);
            cells.push(Cell { range: start..end, bytes: until - sum });
            (start, sum) = (end, until);
        }
        cells
    }
}

/// The sum of what changed before an offset, for rising offsets.
struct Running<'a> {
    picture: &'a Picture,
    size: u64,
    /// Fine cells that are in the sum.
    number: usize,
    sum: u64,
}

impl Running<'_> {
    fn before(&mut self, offset: u64) -> u64 {
        if offset >= self.size {
            return self.picture.total;
        }
        let shift = self.picture.shift;
        let last = offset >> shift;
        // The disk may go on long after the last change.
        let fine = &self.picture.fine;
        let until = index(last).min(fine.len());
        self.sum += fine[self.number..until].iter().sum::<u64>();
        self.number = until;
        let Some(within) = fine.get(index(last)) else { return self.sum };
        // Within a fine cell the changes are taken to be spread evenly over what there is of it.
        let start = last << shift;
        let width = (1 << shift).min(self.size - start);
        let part = u128::from(*within) * u128::from(offset - start) / u128::from(width);
        self.sum + u64::try_from(part).unwrap_or(u64::MAX)
    }
}

fn index(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// A character for each cell: the fuller, the higher. What changed at all is seen, and only what is full looks so.
pub(crate) fn bar(cells: &[Cell]) -> String {
    const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let level = |cell: &Cell| {
        let full = cell.range.end - cell.range.start;
        match cell.bytes {
            0 => ' ',
            bytes => {
                let level = u128::from(bytes) * 7 / u128::from(full.max(1));
                LEVELS[usize::try_from(level).unwrap_or(7).min(7)]
            }
        }
    };
    cells.iter().map(level).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Of extents from one offset to another.
    fn picture(extents: &[(u64, u64)]) -> Picture {
        let mut picture = Picture::default();
        for (start, end) in extents {
            picture.add(&(*start..*end));
        }
        picture
    }

    #[test]
    fn cells_and_characters() {
        let cells = picture(&[(0, 100), (250, 300), (399, 400)]).cells(400, 4);
        let bytes: Vec<u64> = cells.iter().map(|cell| cell.bytes).collect();
        assert_eq!(bytes, [100, 0, 50, 1]);
        assert_eq!(bar(&cells), "█ ▄▁");
        assert_eq!(bar(&picture(&[(0, 99)]).cells(100, 1)), "▇");
        assert_eq!(picture(&[(0, 2)]).cells(2, 80).len(), 2);
        assert_eq!(picture(&[]).cells(0, 80), []);
    }

    #[test]
    fn the_largest_numbers() {
        let picture = picture(&[(0, 1), (1, u64::MAX)]);
        assert!(picture.fine.len() <= FINE);
        assert_eq!(picture.cells(u64::MAX, 7).iter().map(|cell| cell.bytes).sum::<u64>(), u64::MAX);
    }

    #[test]
    fn a_huge_disk_that_changed_at_its_start_only() {
        let cells = picture(&[(0, 512)]).cells(1 << 62, 80);
        assert!(cells[0].bytes == 512 && cells[1..].iter().all(|cell| cell.bytes == 0));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn no_byte_is_lost(
            lengths in proptest::collection::vec((0..1_u64 << 34, 0..1_u64 << 34), 0..50),
            rest in 0..1_u64 << 40, count in 1..300_u32,
        ) {
            let (mut extents, mut at) = (Vec::new(), 0);
            for (gap, length) in lengths {
                extents.push((at + gap, at + gap + length));
                at += gap + length;
            }
            let size = at + rest;
            let cells = picture(&extents).cells(size, count);
            let total: u64 = extents.iter().map(|(start, end)| end - start).sum();
            prop_assert_eq!(cells.iter().map(|cell| cell.bytes).sum::<u64>(), total);
            let mut end = 0;
            for cell in &cells {
                prop_assert_eq!(cell.range.start, end);
                end = cell.range.end;
                prop_assert!(cell.bytes <= end - cell.range.start, "{cell:?} is more than full");
                // Off by no more than the two fine cells at its ends.
                let inside = |extent: &(u64, u64)| {
                    extent.1.min(end).saturating_sub(extent.0.max(cell.range.start))
                };
                let exact: u64 = extents.iter().map(inside).sum();
                prop_assert!(cell.bytes.abs_diff(exact) <= ((2 * at.next_power_of_two()) >> 16) + 2);
            }
            prop_assert_eq!(end, size);
        }
    }
}
