//! Tables of any shape, written here as the specification has them: what is read is what was written.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::checksum::crc32;

/// A GUID partition table's shape.
#[derive(Debug, Clone)]
struct Shape {
    sector: u64,
    entry: u32,
    count: u32,
    /// Where the entries begin, in sectors after the header.
    gap: u64,
    /// The number of each partition, the free sectors before it and its length.
    partitions: Vec<(u32, u64, u64)>,
}

fn shape() -> impl Strategy<Value = Shape> {
    let sizes = (prop_oneof![Just(512_u64), Just(4096)], 0_u32..4, 1_u32..200, 1_u64..4);
    let partitions = vec((any::<prop::sample::Index>(), 0_u64..9, 1_u64..9), 1..8);
    (sizes, partitions).prop_map(|((sector, power, count, gap), partitions)| {
        let number = |at: prop::sample::Index| u32::try_from(at.index(usize::try_from(count).unwrap())).unwrap() + 1;
        let mut partitions: Vec<_> =
            partitions.into_iter().map(|(at, free, length)| (number(at), free, length)).collect();
        partitions.sort_by_key(|(number, ..)| *number);
        partitions.dedup_by_key(|(number, ..)| *number);
        Shape { sector, entry: 128 << power, count, gap, partitions }
    })
}

impl Shape {
    fn array_sectors(&self) -> u64 {
        (u64::from(self.count) * u64::from(self.entry)).div_ceil(self.sector)
    }

    /// What is to be read: number, offset and size.
    fn expected(&self) -> Vec<(u32, u64, u64)> {
        let mut next = 2 + self.gap + self.array_sectors();
        let place = |(number, free, length): &(u32, u64, u64)| {
            let first = next + free;
            next = first + length;
            (*number, first * self.sector, length * self.sector)
        };
        self.partitions.iter().map(place).collect()
    }

    fn disk(&self) -> Vec<u8> {
        let end = self.expected().last().map_or(0, |(_, offset, size)| offset + size);
        let sectors = end / self.sector + self.array_sectors() + 2;
        let mut disk = vec![0; usize::try_from(sectors * self.sector).unwrap()];
        disk[446 + 4] = 0xee;
        disk[446 + 8] = 1;
        disk[446 + 12..446 + 16].fill(0xff);
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        let last = sectors - 1;
        self.copy(&mut disk, 1, last, 2 + self.gap, last - 1 - self.array_sectors());
        self.copy(&mut disk, last, 1, last - self.array_sectors(), last - 1 - self.array_sectors());
        disk
    }

    fn copy(&self, disk: &mut [u8], own: u64, other: u64, entries: u64, last_usable: u64) {
        let mut array = vec![0; usize::try_from(u64::from(self.count) * u64::from(self.entry)).unwrap()];
        for (number, offset, size) in self.expected() {
            let at = usize::try_from((number - 1) * self.entry).unwrap();
            array[at..at + 16].fill(0x83);
            array[at + 16..at + 32].fill(u8::try_from(number).unwrap());
            array[at + 32..at + 40].copy_from_slice(&(offset / self.sector).to_le_bytes());
            array[at + 40..at + 48].copy_from_slice(&((offset + size) / self.sector - 1).to_le_bytes());
        }
        let mut header = vec![0; 92];
        header[..8].copy_from_slice(gpt::SIGNATURE);
        header[8..16].copy_from_slice(&[0, 0, 1, 0, 92, 0, 0, 0]);
        for (at, number) in [(24, own), (32, other), (40, 2), (48, last_usable), (72, entries)] {
            header[at..at + 8].copy_from_slice(&number.to_le_bytes());
        }
        let crc = |bytes: &[u8]| !crc32(!0, bytes);
        for (at, number) in [(80, self.count), (84, self.entry), (88, crc(&array))] {
            header[at..at + 4].copy_from_slice(&number.to_le_bytes());
        }
        let checksum = crc(&header);
        header[16..20].copy_from_slice(&checksum.to_le_bytes());
        for (sector, bytes) in [(own, header), (entries, array)] {
            let at = usize::try_from(sector * self.sector).unwrap();
            disk[at..at + bytes.len()].copy_from_slice(&bytes);
        }
    }
}

fn ranges(table: &Table) -> Vec<(u32, u64, u64)> {
    table.partitions.iter().map(|one| (one.number, one.offset, one.size)).collect()
}

proptest! {
    #[test]
    fn a_gpt_of_any_shape_is_read(shape in shape()) {
        let table = read(&shape.disk()).unwrap();
        prop_assert_eq!(ranges(&table), shape.expected());
        prop_assert_eq!(u64::from(table.sector_size), shape.sector);
        prop_assert_eq!(table.problems, Vec::<String>::new());
        prop_assert!(table.partitions.iter().all(|one| one.problem.is_none()));
    }

    /// One byte of a copy that is wrong is got round; one byte of each is told; never is anything else read.
    #[test]
    fn wrong_bytes_are_never_believed(shape in shape(), at in any::<prop::sample::Index>(), flip in 1_u8..) {
        let good = shape.disk();
        let (sector, array) = (shape.sector, shape.array_sectors() * shape.sector);
        let entries = u64::from(shape.count) * u64::from(shape.entry);
        let place = u64::try_from(at.index(usize::try_from(92 + entries).unwrap())).unwrap();
        let end = u64::try_from(good.len()).unwrap() - sector;
        let (primary, backup) = if place < 92 {
            (sector + place, end + place)
        } else {
            ((2 + shape.gap) * sector + place - 92, end - array + place - 92)
        };
        let mut disk = good;
        disk[usize::try_from(primary).unwrap()] ^= flip;
        let table = read(&disk).unwrap();
        prop_assert_eq!(ranges(&table), shape.expected());
        prop_assert_eq!(table.problems.len(), 1);
        disk[usize::try_from(backup).unwrap()] ^= flip;
        prop_assert_eq!(read(&disk).unwrap_err().kind(), crate::Kind::Corrupt);
    }
}
