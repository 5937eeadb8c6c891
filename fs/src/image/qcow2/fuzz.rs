//! What a fuzzer feeds with the shape of a disk: any input is one, and panics where its image is no valid one.

use std::ops::Range;

use super::reader::{Cluster, Reader};
use super::{Backing, ClusterSize, Qcow2};
use crate::block::extents::Extents;
use crate::image::{Image, Segment};

/// Extents of each kind; more make only slower what a few show.
const MAX_EXTENTS: usize = 32;

/// The largest file and disk that are checked as a whole, in bytes.
const WHOLE: u64 = 1 << 20;

/// Takes numbers off an input; zeroes when it is used up.
struct Numbers<'a>(&'a [u8]);

impl Numbers<'_> {
    fn byte(&mut self) -> u8 {
        self.0.split_off_first().copied().unwrap_or(0)
    }

    /// Of any magnitude, and often near a power of two.
    fn number(&mut self) -> u64 {
        let (bits, mantissa) = (self.byte() % 64, u64::from(self.byte()));
        match bits {
            0..8 => mantissa >> (8 - bits),
            _ => (1_u64 << bits).wrapping_add(mantissa).wrapping_sub(128),
        }
    }

    fn extents(&mut self) -> Extents {
        let (count, mut at, mut extents) = (usize::from(self.byte()) % MAX_EXTENTS, 0_u64, Extents::default());
        for _ in 0..count {
            let start = at.saturating_add(self.number());
            at = start.saturating_add(self.number());
            extents.push(start..at).expect("in order");
        }
        extents
    }
}

/// A disk of any size with any extents in clusters of any size: the layout is a valid image or there is a reason why
/// not, and every part of the file is the same however it is cut.
pub fn layout(input: &[u8]) {
    let mut numbers = Numbers(input);
    let (disk, cluster_size) =
        (numbers.number(), ClusterSize::new(512 << (numbers.byte() % 13)).expect("a valid size"));
    let (data, zero) = (numbers.extents(), numbers.extents());
    let name = "b".repeat(usize::from(numbers.byte()) * 5);
    let backing = (!name.is_empty()).then_some(Backing { file: name, format: "qcow2" });
    let Ok(image) = Qcow2::new(disk, cluster_size, &data, &zero, backing.as_ref()) else { return };
    let size = image.size();
    let parts = &image.layout;
    let starts =
        [&parts.refcount_table, &parts.refcount_blocks, &parts.l1, &parts.l2, &parts.data].map(|part| part.start);
    assert!(starts.is_sorted() && size >= starts[4] && size.is_multiple_of(cluster_size.bytes()));
    for _ in 0..8 {
        let near = starts[usize::from(numbers.byte()) % starts.len()];
        let start = near.saturating_add(numbers.number()).saturating_sub(128).min(size);
        let end = start.saturating_add(u64::from(numbers.byte()) << 4).min(size);
        let cut = start + (end - start) / 3;
        let joined = [bytes(&image, start..cut), bytes(&image, cut..end)].concat();
        assert_eq!(bytes(&image, start..end), joined, "{start}..{cut}..{end}");
    }
    let reader = Reader::open(|at, length| bytes(&image, at..at + length));
    assert_eq!((reader.size, reader.cluster_size), (disk.next_multiple_of(512), cluster_size.bytes()));
    assert_eq!(reader.backing.as_ref().map(|(file, _)| file), backing.as_ref().map(|backing| &backing.file));
    for range in data.within(0..disk) {
        let Cluster::Data(at) = reader.cluster(range.start / cluster_size.bytes()) else {
            panic!("{range:?} is missing")
        };
        let at = at + range.start % cluster_size.bytes();
        assert_eq!(
            (bytes(&image, at..at + 1), reader.refcount(at / cluster_size.bytes())),
            (vec![byte(range.start)], 1)
        );
    }
    if size <= WHOLE && disk <= WHOLE {
        let clusters = reader.check(size);
        let read = reader.disk(&clusters, &[]);
        let wrong =
            data.within(0..disk).flatten().find(|&at| usize::try_from(at).map(|index| read[index]) != Ok(byte(at)));
        assert_eq!(wrong, None, "what was asked for is in the image");
    }
}

/// What a disk has at an offset: something that tells each place from its neighbours.
fn byte(at: u64) -> u8 {
    (at ^ at >> 8 ^ at >> 16).to_le_bytes()[0]
}

/// The bytes of a range of the file.
fn bytes(image: &Qcow2, range: Range<u64>) -> Vec<u8> {
    let expected = range.end - range.start;
    let mut bytes = Vec::new();
    for segment in image.map(range) {
        match segment {
            Segment::Zero(length) => bytes.resize(bytes.len() + length, 0),
            Segment::Bytes(more) => bytes.extend_from_slice(&more),
            Segment::Disk { offset, length } => {
                let end = offset + u64::try_from(length).expect("a length");
                assert!(end <= image.disk, "past the end of the disk");
                bytes.extend((offset..end).map(byte));
            }
        }
    }
    assert_eq!(u64::try_from(bytes.len()), Ok(expected), "the segments add up to the range");
    bytes
}
