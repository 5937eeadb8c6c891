//! Images against a reader of our own and a model of the disk; `tests/qcow2.rs` asks readers that others wrote.

use std::sync::OnceLock;

use proptest::prelude::*;

use super::reader::{Cluster, Reader};
use super::*;

/// The largest disk of the model: some 200 L2 tables of the smallest clusters, 6 of the largest clusters.
const LARGEST: usize = 12 << 20;

/// Content that is nowhere zero, and differs between the two disks, between sectors and between bytes.
fn pattern(new: bool) -> &'static [u8] {
    static PATTERNS: [OnceLock<Vec<u8>>; 2] = [const { OnceLock::new() }; 2];
    PATTERNS[usize::from(new)].get_or_init(|| {
        let byte = |at: usize| u8::try_from((at + at / 251 + at / 65_521) % 120 + 1).unwrap();
        (0..LARGEST).map(|at| byte(at) + if new { 121 } else { 0 }).collect()
    })
}

fn place(at: u64) -> usize {
    usize::try_from(at).unwrap()
}

fn fill(bytes: &mut [u8], extents: &Extents, content: impl Fn(Range<usize>) -> Vec<u8>) {
    for range in extents.within(0..u64::try_from(bytes.len()).unwrap()) {
        let range = place(range.start)..place(range.end);
        bytes[range.clone()].copy_from_slice(&content(range));
    }
}

/// The bytes of a range of the file.
fn bytes(image: &Qcow2, disk: &[u8], range: Range<u64>) -> Vec<u8> {
    let expected = place(range.end - range.start);
    let mut bytes = Vec::with_capacity(expected);
    for segment in image.map(range) {
        match segment {
            Segment::Zero(length) => bytes.resize(bytes.len() + length, 0),
            Segment::Bytes(more) => bytes.extend_from_slice(&more),
            Segment::Disk { offset, length } => bytes.extend_from_slice(&disk[place(offset)..place(offset) + length]),
        }
    }
    assert_eq!(bytes.len(), expected, "the segments add up to the range");
    bytes
}

/// A disk, what changed on it, and how it is to be stored.
#[derive(Debug)]
struct Case {
    size: u64,
    cluster_size: ClusterSize,
    data: Extents,
    zero: Extents,
    backing: Option<Backing>,
}

impl Case {
    fn image(&self) -> Qcow2 {
        Qcow2::new(self.size, self.cluster_size, &self.data, &self.zero, self.backing.as_ref()).unwrap()
    }

    /// The disk before and after.
    fn disks(&self) -> (Vec<u8>, Vec<u8>) {
        let below = if self.backing.is_some() { pattern(false)[..place(self.size)].to_vec() } else { Vec::new() };
        let mut disk = below.clone();
        disk.resize(place(self.size), 0);
        fill(&mut disk, &self.zero, |range| vec![0; range.len()]);
        fill(&mut disk, &self.data, |range| pattern(true)[range].to_vec());
        (below, disk)
    }

    /// What a cluster has to be, looked at by itself.
    fn expected(&self, index: u64) -> &'static str {
        let size = self.cluster_size.bytes();
        let window = index * size..((index + 1) * size).min(self.size);
        let covered = |extents: &Extents| extents.within(window.clone()).map(|r| r.end - r.start).sum::<u64>();
        match (covered(&self.data), covered(&self.zero)) {
            (1.., _) => "data",
            (0, zero) if zero == window.end - window.start => "zero",
            (0, 1..) if self.backing.is_some() => "data",
            _ => "unallocated",
        }
    }
}

/// Extents from gaps and lengths in units of `unit` bytes, each end moved by some bytes; some reach past the disk.
fn extents() -> impl Strategy<Value = Extents> {
    let unit = prop_oneof![Just(1_u64), Just(512), Just(4096), Just(65_536), Just(1 << 20)];
    (unit, proptest::collection::vec((0_u64..40, 1_u64..30, 0_u64..3), 0..60)).prop_map(|(unit, list)| {
        let (mut extents, mut at) = (Extents::default(), 0);
        for (gap, length, odd) in list {
            let start = at + gap * unit + odd;
            at = start + length * unit - odd.min(length * unit - 1);
            extents.push(start..at).unwrap();
        }
        extents
    })
}

fn case() -> impl Strategy<Value = Case> {
    let limit = u64::try_from(LARGEST).unwrap();
    let size = prop_oneof![0_u64..2000, 0_u64..1 << 20, 0..limit, (0..limit / 65_536).prop_map(|n| n * 65_536)];
    let backing = proptest::option::of("[a-z./]{1,380}");
    (size, 9_u32..22, extents(), extents(), backing).prop_map(|(size, bits, data, zero, backing)| Case {
        size,
        cluster_size: ClusterSize::new(1 << bits).unwrap(),
        data,
        zero,
        backing: backing.map(|file| Backing { file, format: "qcow2" }),
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn holds_the_disk(case in case()) {
        let image = case.image();
        let (below, disk) = case.disks();
        let file = bytes(&image, &disk, 0..image.size());
        let reader = Reader::open(|at, length| file[place(at)..place(at + length)].to_vec());
        prop_assert_eq!(reader.size, case.size.next_multiple_of(512));
        prop_assert_eq!(reader.cluster_size, case.cluster_size.bytes());
        let backing = case.backing.as_ref().map(|backing| (backing.file.clone(), backing.format.to_owned()));
        prop_assert_eq!(&reader.backing, &backing);
        let clusters = reader.check(image.size());
        for (cluster, index) in clusters.iter().zip(0..) {
            let kind = match cluster {
                Cluster::Unallocated => "unallocated",
                Cluster::Zero => "zero",
                Cluster::Data(_) => "data",
            };
            prop_assert_eq!(kind, case.expected(index), "cluster {}", index);
        }
        let mut read = reader.disk(&clusters, &below);
        prop_assert!(read.drain(disk.len()..).all(|byte| byte == 0), "the rest of the last sector is zeroes");
        prop_assert!(read == disk, "the disk through the image");
    }

    #[test]
    fn any_window_is_a_cut_of_the_whole(
        case in case(),
        windows in proptest::collection::vec((any::<u64>(), prop_oneof![0_u64..40, 0_u64..300_000], any::<bool>()), 40),
    ) {
        let image = case.image();
        prop_assert_eq!(&image, &case.image(), "the layout is a pure function");
        let (_, disk) = case.disks();
        let whole = bytes(&image, &disk, 0..image.size());
        let layout = &image.layout;
        let parts = [&layout.refcount_table, &layout.refcount_blocks, &layout.l1, &layout.l2, &layout.data];
        for (at, length, near_a_boundary) in windows {
            let start = if near_a_boundary {
                (parts[place(at % 5)].start - 20 + at / 5 % 40).min(image.size())
            } else {
                at % (image.size() + 1)
            };
            let end = (start + length).min(image.size());
            prop_assert!(bytes(&image, &disk, start..end) == whole[place(start)..place(end)], "{}..{}", start, end);
        }
    }
}

#[test]
fn a_full_disk_is_one_range_after_the_metadata() {
    let mut all = Extents::default();
    all.push(0..10_000_000).unwrap();
    let image = Qcow2::new(10_000_000, ClusterSize::default(), &all, &Extents::default(), None).unwrap();
    let data = image.map(image.layout.data.clone());
    let padding = 10_000_000_usize.next_multiple_of(65_536) - 10_000_000;
    assert_eq!(data, [Segment::Disk { offset: 0, length: 10_000_000 }, Segment::Zero(padding)]);
}

#[test]
fn a_trimmed_disk_is_metadata_only() {
    let mut all = Extents::default();
    all.push(0..10 << 30).unwrap();
    let backing = Backing { file: "vda.monday.qcow2".into(), format: "qcow2" };
    let image = Qcow2::new(10 << 30, ClusterSize::default(), &Extents::default(), &all, Some(&backing)).unwrap();
    assert_eq!(image.size(), (1 + 1 + 1 + 1 + 20) << 16, "header, refcount table and block, L1 and 20 L2 tables");
}

#[test]
fn a_million_extents_on_64_tib_take_megabytes() {
    const COUNT: u64 = 1_000_000;
    let (disk, step) = (64_u64 << 40, (64_u64 << 40) / COUNT);
    let (mut data, mut zero) = (Extents::default(), Extents::default());
    for index in 0..COUNT {
        data.push(index * step..index * step + 100_000).unwrap();
        zero.push(index * step + 1_000_000..index * step + 5_000_000).unwrap();
    }
    let backing = Backing { file: "below.qcow2".into(), format: "qcow2" };
    let image = Qcow2::new(disk, ClusterSize::default(), &data, &Extents::default(), None).unwrap();
    assert!(image.memory() < 17 << 20, "{}", image.memory());
    let image = Qcow2::new(disk, ClusterSize::default(), &data, &zero, Some(&backing)).unwrap();
    assert!(image.memory() < 65 << 20, "{}", image.memory());
    // Nearly every stretch of changes has its L2 table to itself, which costs the most memory.
    let worst = Qcow2::new(disk, ClusterSize::new(16_384).unwrap(), &data, &zero, Some(&backing)).unwrap();
    assert!(worst.memory() < 96 * place(COUNT), "{}", worst.memory());

    let ask = |at: u64, length: u64| -> Vec<u8> {
        let segments = image.map(at..at + length).into_iter().map(|segment| match segment {
            Segment::Zero(length) => vec![0; length],
            Segment::Bytes(bytes) => bytes.to_vec(),
            Segment::Disk { .. } => panic!("{at} is metadata"),
        });
        segments.flatten().collect()
    };
    let reader = Reader::open(ask);
    let size = image.cluster_size.bytes();
    for index in (0..COUNT).step_by(9973).chain([COUNT - 1]) {
        let first = index * step / size;
        let Cluster::Data(offset) = reader.cluster(first) else { panic!("extent {index} is missing") };
        assert_eq!(image.map(offset..offset + size), [Segment::Disk { offset: first * size, length: place(size) }]);
        assert_eq!(reader.refcount(offset / size), 1);
        let end = index * step + 5_000_000;
        assert_eq!(reader.cluster(end / size - 1), Cluster::Zero);
        assert_eq!(reader.cluster(end / size + 2), Cluster::Unallocated);
    }
    let last = image.size() / size - 1;
    assert_eq!((reader.refcount(0), reader.refcount(last), reader.refcount(last + 1)), (1, 1, 0));
}

#[test]
fn says_what_does_not_fit() {
    let none = Extents::default();
    let new = |disk, bytes, backing: Option<&Backing>| {
        Qcow2::new(disk, ClusterSize::new(bytes).unwrap(), &none, &none, backing).map(|_| ())
    };
    let error = new(64 << 40, 512, None).unwrap_err();
    assert_eq!(error.kind(), Kind::TooLarge);
    assert!(error.to_string().contains("cluster_size=16K or larger"), "{error}");
    assert_eq!(new(u64::MAX, 2 << 20, None).unwrap_err().kind(), Kind::TooLarge);
    let mut all = Extents::default();
    all.push(0..128 << 30).unwrap();
    let full = Qcow2::new(128 << 30, ClusterSize::new(512).unwrap(), &all, &none, None).unwrap_err();
    assert!(full.to_string().contains("cluster_size=1K or larger"), "the refcount table is too long: {full}");
    let named = |length: usize| Backing { file: "x".repeat(length), format: "qcow2" };
    for (bytes, longest) in [(512, 384), (1024, 896), (2048, 1023), (65_536, 1023)] {
        assert!(new(1 << 20, bytes, Some(&named(longest))).is_ok());
        assert_eq!(new(1 << 20, bytes, Some(&named(longest + 1))).unwrap_err().kind(), Kind::Invalid);
    }
    assert_eq!(new(1 << 20, 512, Some(&named(0))).unwrap_err().kind(), Kind::Invalid);
}

#[tokio::test]
async fn a_seek_finds_one_stretch_of_data() {
    let image = Qcow2::new(1 << 20, ClusterSize::default(), &Extents::default(), &Extents::default(), None).unwrap();
    assert_eq!(image.data_bytes(), image.size());
    assert_eq!(image.seek(5, Seek::Data).await.unwrap(), 5);
    assert_eq!(image.seek(5, Seek::Hole).await.unwrap(), image.size());
    assert_eq!(image.seek(image.size(), Seek::Data).await.unwrap_err().kind(), Kind::NoSuchData);
}
