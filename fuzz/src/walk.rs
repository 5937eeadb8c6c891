//! A file system that was made up: all that it tells must be as [`FileSystem`] promises, and come to an end.

use std::collections::{BTreeSet, VecDeque};
use std::ops::ControlFlow;

use inside::{FileKind, FileSystem, Id, Place};

/// Most files that are looked at, names of each directory, and answers of extents of each file.
const FILES: usize = 64;
const NAMES: usize = 128;
const ANSWERS: usize = 4;

/// Looks at everything, as far as these bounds go; `size` is the disk's, in bytes.
pub(crate) fn walk(system: &dyn FileSystem, size: u64) {
    let summary = system.summary();
    assert!(summary.block_size > 0 && !summary.kind.is_empty());
    let (mut seen, mut next) = (BTreeSet::new(), VecDeque::from([system.root(), Id(0), Id(u64::MAX)]));
    while let Some(file) = next.pop_front() {
        if seen.len() >= FILES || !seen.insert(file) {
            continue;
        }
        let Ok(attributes) = system.attributes(file) else { continue };
        let times = [attributes.accessed, attributes.modified, attributes.changed];
        assert!(times.iter().all(|time| time.nanoseconds < 1_000_000_000));
        assert!(attributes.mode <= 0o7777);
        if let Ok(xattrs) = system.xattrs(file) {
            let lengths = xattrs.iter().map(|xattr| xattr.name.len() + xattr.value.len());
            assert!(lengths.sum::<usize>() <= 1 << 20);
            assert!(xattrs.iter().all(|xattr| !xattr.name.is_empty() && xattr.value.len() <= 64 << 10));
        }
        match attributes.kind {
            FileKind::Directory => next.extend(names(system, file)),
            FileKind::Symlink => assert!(system.link_target(file).map_or(0, |target| target.len()) <= 4096),
            FileKind::File => extents(system, file, attributes.size, size),
            _ => assert!(system.extents(file, 0, 1).is_err()),
        }
    }
}

/// The files in a directory.
fn names(system: &dyn FileSystem, directory: Id) -> Vec<Id> {
    let _ = system.parent(directory);
    let (mut found, mut from) = (Vec::new(), 0);
    let mut names = Vec::new();
    let result = system.list(directory, from, &mut |entry| {
        assert!(!entry.name.is_empty() && entry.name.len() <= 1024 && !entry.name.contains(&b'/'));
        assert!(!entry.name.contains(&0) && entry.name != b"." && entry.name != b"..");
        assert!(entry.next > from && entry.next < 1 << 63, "places go on");
        from = entry.next;
        found.push(entry.id);
        names.push(entry.name.to_vec());
        if found.len() < NAMES { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    // One that was told, one that was not, and the listing from where it ended.
    for name in names.iter().take(4).map(Vec::as_slice).chain([b"absent".as_slice()]) {
        let _ = system.lookup(directory, name);
    }
    if result.is_ok() && found.len() < NAMES {
        let rest = system.list(directory, from, &mut |_| panic!("names after the last one"));
        assert!(rest.is_ok());
    }
    found
}

fn extents(system: &dyn FileSystem, file: Id, length: u64, size: u64) {
    let mut at = 0;
    for _ in 0..ANSWERS {
        let Ok(extents) = system.extents(file, at, 16) else { return };
        assert!(extents.len() <= 16 && (extents.is_empty() == (at >= length)));
        for extent in extents {
            assert!(extent.offset == at && extent.length > 0, "in order, and nothing is left out");
            at += extent.length;
            assert!(at <= length, "they end with the file");
            match extent.place {
                Place::Hole => {}
                Place::Disk(place) => assert!(place.checked_add(extent.length).is_some_and(|end| end <= size)),
                Place::Inline(bytes) => assert_eq!(u64::try_from(bytes.len()), Ok(extent.length)),
            }
        }
    }
}
