//! A disk with partitions and files that are known by heart, for tests.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use inside::lvm::Found;
use inside::table::{Content, Partition, Scheme, Table};
use inside::{Attributes, Extent, FileKind, Id, Place, Summary, Time, Xattr};

use super::{Blocks, Described, Listed, Names, Reader, Readers, Tally};
use crate::error::{Error, Kind, Result};

/// Where partition 1 is on the disk, in bytes.
pub(crate) const START: u64 = 64 << 10;
/// How large it is, in bytes.
pub(crate) const SIZE: u64 = 64 << 10;
/// What is at its beginning while it is in use.
pub(crate) const IN_USE: &[u8] = b"in use";
/// What is there if it cannot be read at all.
pub(crate) const BROKEN: &[u8] = b"broken";
/// How many names `many` has.
pub(crate) const MANY: u64 = 5000;

/// Those of `many` that have content, of [`SMALL_SIZE`] each, one after another from [`SMALL_START`] on the partition.
pub(crate) const SMALL: Range<u64> = 0..90;
pub(crate) const SMALL_START: u64 = 16 << 10;
pub(crate) const SMALL_SIZE: u64 = 512;

const ROOT: Id = Id(2);
/// `file`, also called `again`: 8192 bytes in two pieces around a hole, the other way round on the disk.
pub(crate) const FILE: Id = Id(3);
const LINK: Id = Id(4);
const MANY_DIRECTORY: Id = Id(5);
const DEVICE: Id = Id(6);
const ODD: Id = Id(7);
const FIRST_OF_MANY: u64 = 1000;

/// Where the pieces of `file` are: offset in it, length, offset on the partition.
pub(crate) const PIECES: [(u64, u64, u64); 2] = [(0, 3000, 8000), (6000, 2192, 4000)];
/// How large `file` is, in bytes.
pub(crate) const FILE_SIZE: u64 = 8192;

/// Names in the root directory; one is no UTF-8.
pub(crate) const NAMES: [(&[u8], Id); 6] = [
    (b"file", FILE),
    (b"again", FILE),
    (b"link", LINK),
    (b"many", MANY_DIRECTORY),
    (b"device", DEVICE),
    (b"\xff\xfe", ODD),
];

/// Where a file of `many` begins on the partition, if it has content.
fn small(file: Id) -> Option<u64> {
    let number = file.0.checked_sub(FIRST_OF_MANY).filter(|number| SMALL.contains(number))?;
    Some(SMALL_START + (number - SMALL.start) * SMALL_SIZE)
}

/// All of the data of such a file.
fn small_extent(file: Id) -> Option<Extent> {
    small(file).map(|at| Extent { offset: 0, length: SMALL_SIZE, place: Place::Disk(at) })
}

/// Reads the toy; counts what it is asked.
#[derive(Default)]
pub(crate) struct Toy {
    /// What LVM2 says, where partition 1 is a physical volume of it.
    pub(crate) lvm: Mutex<Option<Found>>,
    /// Whether partition 1 is a mirror of an array, whose newest is on the first disk.
    pub(crate) mirrors: AtomicBool,
    pub(crate) tables: AtomicUsize,
    pub(crate) opened: AtomicUsize,
    pub(crate) asked: Arc<Asked>,
}

/// How often it was asked.
#[derive(Default)]
pub(crate) struct Asked {
    pub(crate) listed: AtomicUsize,
    pub(crate) described: AtomicUsize,
    pub(crate) looked_up: AtomicUsize,
    pub(crate) parents: AtomicUsize,
    pub(crate) attributes: AtomicUsize,
    pub(crate) xattrs: AtomicUsize,
    pub(crate) extents: AtomicUsize,
}

struct Open {
    summary: Summary,
    asked: Arc<Asked>,
}

#[async_trait]
impl Readers for Toy {
    async fn table(&self, disk: Arc<dyn Blocks>) -> Result<Table> {
        self.tables.fetch_add(1, Ordering::SeqCst);
        disk.read(0..512).await?;
        let partition = |number, offset, size, kind, refused: Option<&str>| Partition {
            number,
            offset,
            size,
            type_id: None,
            id: None,
            name: None,
            content: Some(Content { kind, label: None, uuid: None, refused: refused.map(str::to_owned) }),
            problem: None,
        };
        let lvm = self.lvm.lock().unwrap().as_ref().map(|_| "it is a physical volume");
        let first = match lvm {
            Some(_) => "LVM2_member",
            None if self.mirrors.load(Ordering::SeqCst) => "linux_raid_member",
            None => "toy",
        };
        let partitions = vec![
            partition(1, START, SIZE, first, lvm),
            partition(2, START + SIZE, 4096, "swap", Some("swap space holds no files")),
            partition(3, START, u64::MAX, "toy", None),
            Partition {
                type_id: Some("0x05".to_owned()),
                content: None,
                problem: Some("it only holds others".to_owned()),
                ..partition(4, START, SIZE, "toy", None)
            },
        ];
        Ok(Table { scheme: Scheme::Gpt, sector_size: 512, id: None, problems: Vec::new(), partitions })
    }

    async fn volumes(&self, disks: Arc<dyn Blocks>, sizes: Vec<u64>) -> Result<Found> {
        assert_eq!(disks.size(), sizes.iter().sum::<u64>());
        assert_eq!(disks.read(SIZE - 1..SIZE + 1).await?.len(), 2, "the end of one, and the beginning of the next");
        Ok(self.lvm.lock().unwrap().clone().unwrap_or_default())
    }

    async fn mirrors(&self, _: Arc<dyn Blocks>, sizes: Vec<u64>) -> Result<Vec<usize>> {
        Ok((1..sizes.len()).collect())
    }

    async fn open(&self, partition: Arc<dyn Blocks>) -> Result<Arc<dyn Reader>> {
        self.opened.fetch_add(1, Ordering::SeqCst);
        assert_eq!(partition.size(), SIZE);
        let start = partition.read(0..512).await?;
        if start.starts_with(BROKEN) {
            return Err(Error::new(Kind::Io, "told to be broken"));
        }
        let unclean = start.starts_with(IN_USE).then(|| "It was in use.".to_owned());
        let summary = Summary { kind: "toy", block_size: 512, blocks: 128, free_blocks: 0, files: None, unclean };
        Ok(Arc::new(Open { summary, asked: self.asked.clone() }))
    }

    fn tally(&self) -> Tally {
        Tally::default()
    }
}

#[async_trait]
impl Reader for Open {
    fn summary(&self) -> &Summary {
        &self.summary
    }

    fn root(&self) -> Id {
        ROOT
    }

    fn deaths(&self) -> u64 {
        0
    }

    async fn attributes(&self, file: Id) -> Result<Attributes> {
        self.asked.attributes.fetch_add(1, Ordering::SeqCst);
        let (kind, size) = match file {
            ROOT | MANY_DIRECTORY => (FileKind::Directory, 0),
            FILE => (FileKind::File, FILE_SIZE),
            LINK => (FileKind::Symlink, 11),
            DEVICE => (FileKind::CharDevice, 0),
            _ => (FileKind::File, small(file).map_or(0, |_| SMALL_SIZE)),
        };
        let time = Time { seconds: 1_000_000_000, nanoseconds: 7 };
        Ok(Attributes {
            kind,
            mode: 0o600,
            uid: 0,
            gid: 5,
            links: if file == FILE { 2 } else { 1 },
            size,
            allocated: size,
            accessed: time,
            modified: time,
            changed: time,
            device: if file == DEVICE { (1, 3) } else { (0, 0) },
        })
    }

    async fn lookup(&self, directory: Id, name: &[u8]) -> Result<Option<(Id, Attributes)>> {
        self.asked.looked_up.fetch_add(1, Ordering::SeqCst);
        let found = match directory {
            ROOT => NAMES.iter().find(|(known, _)| *known == name).map(|(_, id)| *id),
            MANY_DIRECTORY => {
                let number = std::str::from_utf8(name).ok().and_then(|name| name.parse::<u64>().ok());
                number.filter(|number| *number < MANY).map(|number| Id(FIRST_OF_MANY + number))
            }
            _ => return Err(Error::new(Kind::Invalid, "no directory")),
        };
        Ok(match found {
            Some(id) => Some((id, self.attributes(id).await?)),
            None => None,
        })
    }

    async fn list(&self, directory: Id, from: u64) -> Result<Names> {
        self.asked.listed.fetch_add(1, Ordering::SeqCst);
        // Where to go on after an entry says nothing of its place.
        let scattered = |place: u64| (place + 1) * 1_000_003;
        let place = from / 1_000_003;
        let entry = |place: u64, name: Vec<u8>, id, kind| Listed { name, id, kind, next: scattered(place) };
        let all: Vec<Listed> = match directory {
            ROOT => (0..)
                .zip(NAMES)
                .skip(usize::try_from(place).unwrap())
                .map(|(place, (name, id))| entry(place, name.to_vec(), id, None))
                .collect(),
            _ => (place..MANY.min(place + 1000))
                .map(|place| entry(place, place.to_string().into(), Id(FIRST_OF_MANY + place), Some(FileKind::File)))
                .collect(),
        };
        let is_last = directory == ROOT || all.len() < 1000;
        Ok(Names { all, is_last, parent: (from == 0).then_some(ROOT) })
    }

    async fn describe(&self, directory: Id, from: u64, most: usize) -> Result<Vec<Described>> {
        self.asked.described.fetch_add(1, Ordering::SeqCst);
        let mut files = Vec::new();
        for listed in self.list(directory, from).await?.all.into_iter().take(most) {
            let attributes = Some(self.attributes(listed.id).await?);
            let xattrs = Some(self.xattrs(listed.id).await?);
            let extents = small_extent(listed.id).map(|extent| vec![extent]);
            files.push(Described { listed, attributes, xattrs, extents });
        }
        Ok(files)
    }

    async fn parent(&self, _: Id) -> Result<Id> {
        self.asked.parents.fetch_add(1, Ordering::SeqCst);
        Ok(ROOT)
    }

    async fn link_target(&self, _: Id) -> Result<Vec<u8>> {
        Ok(b"/etc/passwd".to_vec())
    }

    async fn xattrs(&self, file: Id) -> Result<Vec<Xattr>> {
        self.asked.xattrs.fetch_add(1, Ordering::SeqCst);
        let xattr = |name: &str| Xattr { name: name.into(), value: b"value\0".to_vec() };
        Ok(if file == FILE { vec![xattr("user.note"), xattr("trusted.secret")] } else { Vec::new() })
    }

    async fn extents(&self, file: Id, from: u64) -> Result<Vec<Extent>> {
        self.asked.extents.fetch_add(1, Ordering::SeqCst);
        let [first, second] = PIECES;
        let hole = (first.0 + first.1, second.0 - first.1);
        let pieces = || {
            vec![
                Extent { offset: first.0, length: first.1, place: Place::Disk(first.2) },
                Extent { offset: hole.0, length: hole.1, place: Place::Hole },
                Extent { offset: second.0, length: second.1, place: Place::Disk(second.2) },
            ]
        };
        let all = if file == FILE { pieces() } else { small_extent(file).into_iter().collect() };
        Ok(all.into_iter().filter(|extent| extent.offset >= from).take(1).collect())
    }
}
