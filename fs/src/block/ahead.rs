//! Where readers of a file are likely to go on: plain code, which asks for nothing itself.
//!
//! ```text
//!     ┌─ a cursor ────────────── window ──────────────┐
//! ────┴ read so far ┬──────── asked for ahead ────────┴────▶
//!                   └ topped up as it is used up
//! ```
//! A reader that went on twice where it was gets a window, which doubles as it goes on. Several readers of one handle have a
//! cursor each; the kernel's threads deliver reads a little out of order.

use std::ops::Range;

/// Readers of one handle that are followed.
const CURSORS: usize = 4;

/// Reads that far back, or that far ahead, are still of the same reader, in bytes.
const TOLERANCE: u64 = 1 << 20;

/// The first window, in bytes.
const FIRST: u64 = 512 << 10;

/// Windows end at multiples of this, in bytes, so that later requests do not straddle what was fetched.
const ALIGNMENT: u64 = 1 << 20;

/// Reads in a row that make a reader one that goes on.
const IN_A_ROW: u32 = 2;

/// The same of files that lie one after another on a disk: each read is another file, and that two are near each other says
/// nothing yet.
const TOLERANCE_OF_FILES: u64 = 256 << 10;
const FILES_IN_A_ROW: u32 = 4;

#[derive(Debug, Clone, Copy, Default)]
struct Cursor {
    /// The end of what was read.
    end: u64,
    in_a_row: u32,
    window: u64,
    /// The end of what was asked for ahead.
    front: u64,
}

/// The readers of one handle, the latest first.
#[derive(Debug)]
pub struct Ahead {
    cursors: Vec<Cursor>,
    tolerance: u64,
    in_a_row: u32,
}

impl Default for Ahead {
    fn default() -> Self {
        Self { cursors: Vec::new(), tolerance: TOLERANCE, in_a_row: IN_A_ROW }
    }
}

impl Ahead {
    /// Of those who read small files of one disk, one after another.
    pub fn of_files() -> Self {
        Self { cursors: Vec::new(), tolerance: TOLERANCE_OF_FILES, in_a_row: FILES_IN_A_ROW }
    }

    /// A range was asked for; what to fetch ahead now, if anything. The window grows up to `most` bytes.
    pub fn read(&mut self, range: &Range<u64>, most: u64) -> Option<Range<u64>> {
        let Self { tolerance, in_a_row, .. } = *self;
        let near = |cursor: &Cursor| {
            let (from, to) = (cursor.end.saturating_sub(tolerance), cursor.end.max(cursor.front) + tolerance);
            (from..=to).contains(&range.start)
        };
        let mut cursor = match self.cursors.iter().position(near) {
            Some(index) => self.cursors.remove(index),
            None => Cursor::default(),
        };
        let known = cursor.in_a_row > 0;
        self.cursors.truncate(CURSORS - 1);
        if known && range.start.abs_diff(cursor.end) > tolerance {
            // It jumped within its window.
            cursor.in_a_row = 0;
        }
        cursor.in_a_row = cursor.in_a_row.saturating_add(1);
        cursor.end = if known { cursor.end.max(range.end) } else { range.end };
        cursor.front = cursor.front.max(cursor.end);
        let left = cursor.front - cursor.end;
        let mut wanted = None;
        // In small steps: QEMU works on all the time, and gives no memory back that it needs again at once.
        if cursor.in_a_row >= in_a_row && most > 0 && left.saturating_add(ALIGNMENT) <= cursor.window.max(ALIGNMENT) {
            cursor.window = if cursor.window == 0 { FIRST.min(most) } else { (cursor.window * 2).min(most) };
            let until = cursor.end.saturating_add(cursor.window).next_multiple_of(ALIGNMENT);
            if until > cursor.front {
                wanted = Some(cursor.front..until);
                cursor.front = until;
            }
        }
        self.cursors.insert(0, cursor);
        wanted
    }

    /// What was wanted last could be asked for up to `reached` only.
    pub fn fell_short(&mut self, reached: u64) {
        if let Some(cursor) = self.cursors.first_mut() {
            cursor.front = cursor.front.min(reached.max(cursor.end));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;

    /// What is asked for ahead by reads of `step` bytes, one after the other.
    fn run(ahead: &mut Ahead, from: u64, step: u64, count: u64) -> Vec<Range<u64>> {
        (0..count).filter_map(|n| ahead.read(&(from + n * step..from + (n + 1) * step), 8 * MIB)).collect()
    }

    #[test]
    fn a_reader_that_goes_on_is_met_ahead_without_gaps() {
        let mut ahead = Ahead::default();
        let wanted = run(&mut ahead, 0, 128 * KIB, 1024);
        assert_eq!(wanted[0], 256 * KIB..MIB);
        for pair in wanted.windows(2) {
            assert_eq!(pair[0].end, pair[1].start, "{pair:?}");
        }
        let longest = wanted.iter().map(|range| range.end - range.start).max().unwrap();
        assert!((4 * MIB..=9 * MIB).contains(&longest), "{longest}");
        assert!(wanted.last().unwrap().end >= 128 * MIB + 4 * MIB);
    }

    #[test]
    fn scattered_reads_ask_for_nothing() {
        let mut ahead = Ahead::default();
        for n in 0..1000_u64 {
            let at = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
            assert_eq!(ahead.read(&(at..at + 4096), 8 * MIB), None);
        }
    }

    #[test]
    fn files_one_after_another_are_met_ahead_and_others_are_not() {
        let mut ahead = Ahead::of_files();
        let small = |at: u64| at..at + 2 * KIB;
        let mut wanted = Vec::new();
        for n in 0..1024 {
            wanted.extend(ahead.read(&small(n * 4 * KIB), 8 * MIB));
        }
        assert_eq!(wanted[0].start, 14 * KIB, "the fourth");
        // The one at which it goes on was asked for already.
        assert!(wanted.windows(2).all(|pair| (0..4 * KIB).contains(&(pair[1].start - pair[0].end))), "{wanted:?}");
        assert!(wanted.last().unwrap().end >= 4 * MIB && wanted.len() < 16, "{wanted:?}");
        // In an order of its own, on a small disk.
        let mut ahead = Ahead::of_files();
        let fetched = (0..10_000_u64).filter(|n| {
            let at = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (200 * MIB);
            ahead.read(&small(at), 8 * MIB).is_some()
        });
        assert!(fetched.count() < 10);
    }

    #[test]
    fn reads_out_of_order_and_four_readers_are_followed() {
        let mut ahead = Ahead::default();
        let mut wanted = [0; 4];
        for n in 0..64_u64 {
            for reader in 0..4_u64 {
                // Neighbours change places.
                let at = reader * 1024 * MIB + (n ^ 1) * 128 * KIB;
                if let Some(range) = ahead.read(&(at..at + 128 * KIB), 8 * MIB) {
                    assert_eq!(range.start / (1024 * MIB), reader);
                    wanted[usize::try_from(reader).unwrap()] += range.end - range.start;
                }
            }
        }
        assert!(wanted.iter().all(|&bytes| bytes >= 8 * MIB), "{wanted:?}");
    }

    #[test]
    fn what_fell_short_is_asked_for_again() {
        let mut ahead = Ahead::default();
        ahead.read(&(0..MIB), 8 * MIB);
        let wanted = ahead.read(&(MIB..2 * MIB), 8 * MIB).unwrap();
        ahead.fell_short(wanted.start);
        let again = ahead.read(&(2 * MIB..3 * MIB), 8 * MIB).unwrap();
        assert_eq!(again.start, 3 * MIB);
        assert_eq!(Ahead::default().read(&(0..MIB), 0), None);
    }
}
