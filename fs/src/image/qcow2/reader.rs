//! A reader of qcow2 images written from the format's description, sharing no code with what it reads.
//!
//! It refuses whatever an image of ours has no business to contain.

use std::collections::BTreeMap;

const COPIED: u64 = 1 << 63;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// What an L2 entry says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cluster {
    Unallocated,
    Zero,
    /// Offset in the file.
    Data(u64),
}

/// An open image.
pub(super) struct Reader<F> {
    read: F,
    pub(super) cluster_size: u64,
    pub(super) size: u64,
    pub(super) backing: Option<(String, String)>,
    l1: (u64, u64),
    refcounts: (u64, u64),
}

fn be(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

impl<F: Fn(u64, u64) -> Vec<u8>> Reader<F> {
    /// `read` answers offset and length.
    pub(super) fn open(read: F) -> Self {
        let header = read(0, 512);
        let field = |at: usize, length: usize| be(&header[at..at + length]);
        assert_eq!(&header[..4], b"QFI\xfb");
        assert_eq!(field(4, 4), 3, "version");
        assert_eq!(field(32, 4), 0, "encryption");
        assert_eq!((field(60, 4), field(64, 8)), (0, 0), "snapshots");
        assert_eq!((field(72, 8), field(80, 8), field(88, 8)), (0, 0, 0), "features");
        assert_eq!((field(96, 4), field(100, 4)), (4, 104), "refcount order, header length");
        let cluster_size = 1 << field(20, 4);
        let (mut at, mut format) = (104_u64, None);
        loop {
            let extension = read(at, 8);
            let (kind, length) = (be(&extension[..4]), be(&extension[4..]));
            match kind {
                0 => break,
                0xe279_2aca => format = Some(String::from_utf8(read(at + 8, length)).unwrap()),
                other => panic!("extension {other:#x}"),
            }
            at += 8 + length.next_multiple_of(8);
        }
        let (offset, length) = (field(8, 8), field(16, 4));
        assert_eq!(offset == 0, format.is_none(), "a name has its format");
        let backing = format.map(|format| {
            assert!(offset >= at + 8 && offset + length <= cluster_size && length <= 1023, "place of the name");
            (String::from_utf8(read(offset, length)).unwrap(), format)
        });
        let size = field(24, 8);
        assert_eq!(size % 512, 0);
        let l1 = (field(40, 8), field(36, 4));
        assert!(l1.1 >= size.div_ceil(cluster_size).div_ceil(cluster_size / 8), "L1 is long enough");
        let refcounts = (field(48, 8), field(56, 4));
        assert!(l1.0.is_multiple_of(cluster_size) && refcounts.0.is_multiple_of(cluster_size));
        Self { read, cluster_size, size, backing, l1, refcounts }
    }

    fn entry(&self, table: u64, index: u64) -> u64 {
        be(&(self.read)(table + index * 8, 8))
    }

    fn offset(&self, entry: u64) -> u64 {
        let offset = entry & OFFSET;
        assert_eq!(entry, offset | COPIED, "reserved bits");
        assert!(offset > 0 && offset.is_multiple_of(self.cluster_size), "target");
        offset
    }

    fn decode(&self, entry: u64) -> Cluster {
        match entry {
            0 => Cluster::Unallocated,
            1 => Cluster::Zero,
            entry => Cluster::Data(self.offset(entry)),
        }
    }

    /// The cluster with this index on the disk.
    pub(super) fn cluster(&self, index: u64) -> Cluster {
        let per_table = self.cluster_size / 8;
        match self.entry(self.l1.0, index / per_table) {
            0 => Cluster::Unallocated,
            entry => self.decode(self.entry(self.offset(entry), index % per_table)),
        }
    }

    /// The refcount of a cluster of the file.
    pub(super) fn refcount(&self, index: u64) -> u64 {
        let per_block = self.cluster_size / 2;
        assert!(index / per_block < self.refcounts.1 * self.cluster_size / 8, "the refcount table is long enough");
        match self.entry(self.refcounts.0, index / per_block) {
            0 => 0,
            block => be(&(self.read)(block + index % per_block * 2, 2)),
        }
    }

    /// All clusters of the disk; panics unless every cluster of a file of `file` bytes is used once and says so.
    pub(super) fn check(&self, file: u64) -> Vec<Cluster> {
        let size = self.cluster_size;
        let mut used = BTreeMap::<u64, u64>::new();
        let mut using = |offset: u64, clusters: u64| {
            (0..clusters).for_each(|index| *used.entry(offset / size + index).or_default() += 1);
        };
        using(0, 1);
        using(self.l1.0, (self.l1.1 * 8).div_ceil(size));
        using(self.refcounts.0, self.refcounts.1);
        for index in 0..self.refcounts.1 * size / 8 {
            let block = self.entry(self.refcounts.0, index);
            if block != 0 {
                assert!(block.is_multiple_of(size));
                using(block, 1);
            }
        }
        let mut clusters = Vec::new();
        for index in 0..self.l1.1 {
            let entry = self.entry(self.l1.0, index);
            if entry == 0 {
                clusters.extend((0..size / 8).map(|_| Cluster::Unallocated));
                continue;
            }
            using(self.offset(entry), 1);
            let table = (self.read)(self.offset(entry), size);
            let before = clusters.len();
            clusters.extend(table.chunks(8).map(|entry| self.decode(be(entry))));
            assert!(clusters[before..].iter().any(|c| *c != Cluster::Unallocated), "a table for nothing");
        }
        let disk = usize::try_from(self.size.div_ceil(size)).unwrap();
        assert!(clusters[disk..].iter().all(|cluster| *cluster == Cluster::Unallocated), "past the end");
        clusters.truncate(disk);
        for cluster in &clusters {
            if let Cluster::Data(offset) = cluster {
                using(*offset, 1);
            }
        }
        assert!(used.keys().copied().eq(0..file / size) && file.is_multiple_of(size), "no leak, nothing past the end");
        assert!(used.values().all(|&count| count == 1), "nothing overlaps");
        assert!(used.keys().all(|&cluster| self.refcount(cluster) == 1));
        clusters
    }

    /// The disk: `clusters` as [`Reader::check`] found them, over `below`.
    pub(super) fn disk(&self, clusters: &[Cluster], below: &[u8]) -> Vec<u8> {
        let mut disk = below.to_vec();
        disk.resize(usize::try_from(self.size).unwrap(), 0);
        for (cluster, bytes) in clusters.iter().zip(disk.chunks_mut(usize::try_from(self.cluster_size).unwrap())) {
            match cluster {
                Cluster::Unallocated => {}
                Cluster::Zero => bytes.fill(0),
                Cluster::Data(offset) => {
                    bytes.copy_from_slice(&(self.read)(*offset, u64::try_from(bytes.len()).unwrap()));
                }
            }
        }
        disk
    }
}
