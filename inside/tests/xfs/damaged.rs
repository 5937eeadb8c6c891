//! Images that somebody made to keep us busy, or that were damaged: errors, soon.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use images::Image;
use images::xfs::{SIZE, Store};
use inside::{Disk, FileKind, FileSystem, Id, Kind};

use super::{fill, tree};

/// A disk of which some bytes are others, and which knows what was read.
struct Changed<'a> {
    image: &'a Image,
    bytes: BTreeMap<u64, u8>,
    read: RefCell<Vec<(u64, usize)>>,
}

impl<'a> Changed<'a> {
    fn new(image: &'a Image) -> Self {
        Self { image, bytes: BTreeMap::new(), read: RefCell::default() }
    }

    fn with(mut self, at: u64, bytes: &[u8]) -> Self {
        self.bytes.extend((at..).zip(bytes.iter().copied()));
        self
    }
}

impl Disk for Changed<'_> {
    fn size(&self) -> u64 {
        self.image.size()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.image.read_at(offset, buffer)?;
        self.read.borrow_mut().push((offset, buffer.len()));
        for (at, byte) in self.bytes.range(offset..offset + buffer.len() as u64) {
            buffer[usize::try_from(at - offset).unwrap()] = *byte;
        }
        Ok(())
    }
}

/// Looks at everything, as far as it goes; the errors.
fn look(system: &dyn FileSystem) -> Vec<inside::Error> {
    let mut errors = Vec::new();
    let mut ids = vec![system.root()];
    let mut seen = std::collections::HashSet::new();
    while let Some(id) = ids.pop() {
        if !seen.insert(id) {
            continue;
        }
        let attributes = match system.attributes(id) {
            Ok(attributes) => attributes,
            Err(error) => {
                errors.push(error);
                continue;
            }
        };
        errors.extend(system.xattrs(id).err());
        match attributes.kind {
            FileKind::Directory => {
                errors.extend(system.parent(id).err());
                errors.extend(system.lookup(id, b"some name").err());
                let list = system.list(id, 0, &mut |entry| {
                    ids.push(entry.id);
                    ControlFlow::Continue(())
                });
                errors.extend(list.err());
            }
            FileKind::Symlink => errors.extend(system.link_target(id).err()),
            FileKind::File => errors.extend(system.extents(id, 0, 1000).err()),
            _ => (),
        }
    }
    errors
}

fn filled(store: &Store) -> Image {
    let image = store.made("good", SIZE, &["-b", "size=1024"]);
    let mount = image.mount("rw");
    fill::directories(&mount.0, &[10, 100, 2000]);
    fill::kinds(&mount.0);
    fill::xattrs(&mount.0);
    fill::data(&mount.0, 1024, 600);
    drop(mount);
    image
}

#[test]
fn a_changed_byte_of_metadata_is_found() {
    let store = Store::new();
    let image = filled(&store);
    let disk = Changed::new(&image);
    let before = {
        let system = inside::xfs::open(&disk).unwrap();
        // Those of opening are the log's.
        disk.read.borrow_mut().clear();
        assert!(look(&system).is_empty());
        disk.read.borrow().clone()
    };
    let mut all = before;
    all.sort_unstable();
    all.dedup();
    assert!(all.len() > 500, "{} blocks were read", all.len());
    for (number, (offset, length)) in all.iter().enumerate().step_by(all.len() / 40) {
        let at = offset + (number * 37 % length) as u64;
        let mut byte = [0];
        image.read_at(at, &mut byte).unwrap();
        let disk = Changed::new(&image).with(at, &[byte[0] ^ 0x10]);
        let errors = inside::xfs::open(&disk).map(|system| look(&system));
        let found = errors.as_ref().map_or(true, |errors| {
            !errors.is_empty() && errors.iter().all(|error| matches!(error.kind(), Kind::Corrupt | Kind::NotFound))
        });
        assert!(found, "the byte at {at} was changed: {errors:?}");
    }
}

/// Without checksums, as in version 4, or by who can calculate them: what is read may be anything, but it ends.
#[test]
fn anything_ends() {
    let store = Store::new();
    let image = filled(&store);
    let disk = Changed::new(&image);
    look(&inside::xfs::open(&disk).unwrap());
    let mut all = disk.read.borrow().clone();
    all.retain(|(_, length)| *length <= 4096);
    all.sort_unstable();
    all.dedup();
    let start = Instant::now();
    let mut state = 1_u64;
    let mut random = move |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    for round in 0..60 {
        let mut disk = Changed::new(&image);
        for _ in 0..30 {
            let (offset, length) = all[usize::try_from(random(all.len() as u64)).unwrap()];
            // Headers matter more.
            let at = offset + random((length as u64).min(if round % 2 == 0 { 100 } else { 4096 }));
            let value = [0, 1, 0x7f, 0xff, 0x10][usize::try_from(random(5)).unwrap()];
            disk = disk.with(at, &vec![value; usize::try_from(random(4) + 1).unwrap()]);
        }
        if let Ok(system) = inside::xfs::open_unchecked(&disk) {
            look(&system);
        }
    }
    assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
}

#[test]
fn what_is_not_read_says_so() {
    let store = Store::new();
    let image = store.made("good", SIZE, &[]);
    for (at, bytes, kind, words) in [
        (0, &b"XFSC"[..], Kind::Corrupt, "XFSB"),
        (4, &[0, 0, 0, 0], Kind::Corrupt, "size of a block"),
        (8, &[0xff; 8], Kind::Corrupt, "number of blocks"),
        (48, &[0; 8], Kind::Unsupported, "a log on a disk of its own"),
        (88, &[0xff; 4], Kind::Corrupt, "number of blocks"),
        (96, &[0xff; 4], Kind::Corrupt, "size of the log"),
        (124, &[63], Kind::Corrupt, "allocation group"),
        (192, &[31], Kind::Corrupt, "block of a directory"),
        (216, &[0x80, 0, 0, 0], Kind::Unsupported, "unknown features 0x80000000"),
        (219, &[0x1f], Kind::Unclean, "xfs_repair"),
        (126, &[1], Kind::Unclean, "mkfs.xfs was not finished"),
    ] {
        let disk = Changed::new(&image).with(at, bytes);
        let error = inside::xfs::open_unchecked(&disk).map(drop).unwrap_err();
        assert!(error.kind() == kind && error.to_string().contains(words), "{error}");
        let error = inside::xfs::open(&disk).map(drop).unwrap_err();
        assert!(at == 0 || error.to_string().contains("checksum"), "{error}");
    }
    let short = inside::Part::new(&image, 0, 200 << 20);
    assert_eq!(inside::xfs::open(short).map(drop).unwrap_err().kind(), Kind::Corrupt);
}

#[test]
fn made_up_ids_are_errors() {
    let store = Store::new();
    let image = filled(&store);
    let system = inside::xfs::open(&image).unwrap();
    for id in [0, 1, 63, 1 << 20, u64::MAX, u64::MAX >> 1, 1 << 63, system.root().0 + 1_000_000] {
        let error = system.attributes(Id(id)).unwrap_err();
        assert!(matches!(error.kind(), Kind::NotFound | Kind::Corrupt), "{id}: {error}");
    }
    let file = system.lookup(system.root(), b"data").unwrap().unwrap();
    let file = system.lookup(file, b"sparse").unwrap().unwrap();
    assert_eq!(system.lookup(file, b"a").unwrap_err().kind(), Kind::WrongKind);
    assert_eq!(system.link_target(file).unwrap_err().kind(), Kind::WrongKind);
    assert_eq!(system.extents(system.root(), 0, 1).unwrap_err().kind(), Kind::WrongKind);
    assert_eq!(tree::extents(&system, file, system.attributes(file).unwrap().size).unwrap().len(), 5);
}
