//! Where the bytes of a logical volume are.

use std::io;

use crate::Disk;
use crate::table::Content;

/// A logical volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its name: letters, digits and `+_.-`, neither `.` nor `..`.
    pub name: String,
    /// Its UUID, as LVM2 writes it.
    pub id: String,
    /// Its size, in bytes.
    pub size: u64,
    /// Its segments, in order and without gaps; or why it cannot be read: a sentence.
    pub segments: Result<Vec<Segment>, String>,
    /// What is on it, if it can be read and that is known here.
    pub content: Option<Content>,
}

/// A piece of a logical volume, on one physical volume or striped over several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Where it begins in the volume, in bytes.
    pub offset: u64,
    /// Its length, in bytes: a multiple of `stripe_size` times the number of stripes.
    pub length: u64,
    /// How much is on one physical volume before the next one's turn, in bytes, at least 512; the whole length if there is but one.
    pub stripe_size: u64,
    /// Where it is, at least one.
    pub stripes: Vec<Stripe>,
}

/// A place on a physical volume, from which a stripe goes on without gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stripe {
    /// Which disk, by its place among those that were looked at.
    pub disk: usize,
    /// Where on it, in bytes.
    pub offset: u64,
}

/// Bytes that are together on a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Which disk, by its place among those that were looked at.
    pub disk: usize,
    /// Where on it, in bytes.
    pub offset: u64,
    /// How many, at least 1.
    pub length: u64,
}

impl Volume {
    /// Where the byte at `offset` is, with as many after it as are together; none past the end, and if it cannot be read.
    pub fn piece(&self, offset: u64) -> Option<Piece> {
        let segments = self.segments.as_ref().ok()?;
        let after = segments.partition_point(|segment| segment.offset <= offset);
        segments.get(after.checked_sub(1)?)?.piece(offset)
    }

    /// Whether it is what LVM2 can mean, on disks of these sizes, in bytes: its segments follow each other, and all of each is there.
    pub fn is_sound(&self, disks: &[u64]) -> bool {
        let Ok(segments) = &self.segments else { return true };
        let mut next = 0;
        segments.iter().all(|segment| {
            let follows = segment.offset == next && segment.is_sound(disks);
            next = next.saturating_add(segment.length);
            follows
        }) && next == self.size
    }
}

/// A logical volume as a disk.
pub(super) struct Assembled<'a, D> {
    pub(super) volume: &'a Volume,
    pub(super) disks: &'a [D],
}

impl<D: Disk> Disk for Assembled<'_, D> {
    fn size(&self) -> u64 {
        self.volume.size
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let (mut at, mut rest) = (offset, buffer);
        while !rest.is_empty() {
            let piece = self.volume.piece(at).ok_or(io::ErrorKind::UnexpectedEof)?;
            let disk = self.disks.get(piece.disk).ok_or(io::ErrorKind::UnexpectedEof)?;
            let length = usize::try_from(piece.length).unwrap_or(usize::MAX).min(rest.len());
            let (filled, left) = rest.split_at_mut(length);
            disk.read_at(piece.offset, filled)?;
            at = at.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
            rest = left;
        }
        Ok(())
    }
}

impl Segment {
    fn is_sound(&self, disks: &[u64]) -> bool {
        let Ok(count) = u64::try_from(self.stripes.len()) else { return false };
        let turn = if count == 1 { Some(self.length) } else { self.stripe_size.checked_mul(count) };
        let whole = turn.is_some_and(|turn| turn > 0 && self.length > 0 && self.length.is_multiple_of(turn));
        let share = self.length.checked_div(count).unwrap_or(0);
        let fits = |stripe: &Stripe| {
            let end = stripe.offset.checked_add(share);
            disks.get(stripe.disk).zip(end).is_some_and(|(size, end)| end <= *size)
        };
        whole && (count > 1 || self.stripe_size == self.length) && self.stripes.iter().all(fits)
    }

    fn piece(&self, offset: u64) -> Option<Piece> {
        let within = offset.checked_sub(self.offset).filter(|&within| within < self.length)?;
        let (turn, rest) = (within.checked_div(self.stripe_size)?, within % self.stripe_size);
        let count = u64::try_from(self.stripes.len()).ok()?;
        let stripe = self.stripes.get(usize::try_from(turn.checked_rem(count)?).ok()?)?;
        let offset = stripe.offset + turn / count * self.stripe_size + rest;
        Some(Piece { disk: stripe.disk, offset, length: self.stripe_size - rest })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn stripes_take_turns() {
        let two = vec![Stripe { disk: 0, offset: 1000 }, Stripe { disk: 2, offset: 50 }];
        let linear = Segment { offset: 0, length: 10, stripe_size: 10, stripes: vec![Stripe { disk: 1, offset: 7 }] };
        let striped = Segment { offset: 10, length: 16, stripe_size: 4, stripes: two };
        let (name, id) = ("lv".to_owned(), "id".to_owned());
        let volume = Volume { name, id, size: 26, segments: Ok(vec![linear, striped]), content: None };
        let piece = |disk, offset, length| Some(Piece { disk, offset, length });
        assert_eq!(volume.piece(0), piece(1, 7, 10));
        assert_eq!(volume.piece(9), piece(1, 16, 1));
        assert_eq!(volume.piece(10), piece(0, 1000, 4));
        assert_eq!(volume.piece(15), piece(2, 51, 3));
        assert_eq!(volume.piece(18), piece(0, 1004, 4));
        assert_eq!(volume.piece(25), piece(2, 57, 1));
        assert_eq!(volume.piece(26), None);
    }

    /// Where the last stripe of all ends on its disk.
    fn segments_end(volume: &Volume) -> u64 {
        let end = |segment: &Segment| {
            let share = segment.length / u64::try_from(segment.stripes.len()).unwrap();
            segment.stripes.iter().map(|stripe| stripe.offset + share).max().unwrap()
        };
        volume.segments.iter().flatten().map(end).max().unwrap()
    }

    #[test]
    fn a_volume_is_read_as_a_disk() {
        let disks = [b"0123456789".to_vec(), b"abcdefghij".to_vec()];
        let stripes = vec![Stripe { disk: 0, offset: 2 }, Stripe { disk: 1, offset: 0 }];
        let shared = Segment { offset: 0, length: 12, stripe_size: 2, stripes };
        let (name, id) = ("lv".to_owned(), "id".to_owned());
        let volume = Volume { name, id, size: 12, segments: Ok(vec![shared]), content: None };
        let assembled = Assembled { volume: &volume, disks: &disks };
        let mut bytes = [0; 9];
        assembled.read_at(1, &mut bytes).unwrap();
        assert_eq!(&bytes, b"3ab45cd67");
        assert_eq!(assembled.read_at(4, &mut bytes).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    proptest! {
        /// Every byte of a volume has a place of its own, and pieces go on where the last ended.
        #[test]
        fn no_two_bytes_are_in_one_place(shapes in vec((1_u64..4, 1_u64..5, 1_usize..4), 1..5)) {
            let (mut segments, mut size) = (Vec::new(), 0);
            for (at, (stripe_size, turns, count)) in (0_u64..).zip(shapes) {
                let stripes: Vec<_> = (0..count).map(|disk| Stripe { disk, offset: 1000 * at + 7 }).collect();
                let length = stripe_size * turns * u64::try_from(count).unwrap();
                let stripe_size = if count == 1 { length } else { stripe_size };
                segments.push(Segment { offset: size, length, stripe_size, stripes });
                size += length;
            }
            let (name, id) = ("lv".to_owned(), "id".to_owned());
            let volume = Volume { name, id, size, segments: Ok(segments), content: None };
            let longest = segments_end(&volume);
            prop_assert!(volume.is_sound(&[longest; 4]));
            prop_assert!(!volume.is_sound(&[longest - 1; 4]) && !volume.is_sound(&[]));
            let mut seen = BTreeSet::new();
            let mut next = 0;
            while next < size {
                let piece = volume.piece(next).unwrap();
                for byte in 0..piece.length {
                    prop_assert!(seen.insert((piece.disk, piece.offset + byte)), "byte {} of the volume", next + byte);
                    let one = volume.piece(next + byte).unwrap();
                    prop_assert_eq!((one.disk, one.offset), (piece.disk, piece.offset + byte));
                }
                next += piece.length;
            }
            prop_assert_eq!(next, size);
            prop_assert_eq!(volume.piece(size), None);
        }
    }
}
