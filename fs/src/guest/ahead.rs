//! Files of guests that are told of before anybody asks.
//!
//! Each question to the process that reads a disk costs several wake-ups, and whoever looks at one file of a directory after another
//! (`ls -l`, `find -ls`, every backup) asks for each by its name. So the second look-up in a directory, and the first if the directory
//! before it was worth it, asks for what there is to tell of its first files, later ones for the next of them, more each time, as
//! reading ahead does; most look-ups find their answer here then. What is found is dropped, as the kernel remembers it; a walk that comes
//! again, once the kernel has forgotten, begins anew. Who only wants names looks nothing up, and pays nothing.
//!
//! How much is asked for is in proportion to how much of it was of use, so that who wants a few files of a million does not pay
//! for all. Directories that were looked into least recently are forgotten first.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use inside::{Attributes, Extent, Id, Xattr};

use super::{Described, MAX_ANSWERS, Reader};
use crate::error::Result;

/// How many files of a directory are asked for first; each time it is twice as many, up to [`MAX_ANSWERS`].
const FIRST: usize = 16;

/// No more is asked for than this and [`WORTH`] times as many as were of use: files of one directory may be all over the disk. `find`
/// and the like read 10,000 names before they look at the first, in an order of their own.
const UNPROVEN: usize = 256;
const WORTH: usize = 16;

/// How many directories are known: a walk goes back to those above it.
const MAX_DIRECTORIES: usize = 64;

/// What all that is kept may take, in bytes.
const MAX_KEPT: usize = 8 << 20;

/// What a file takes beside its name and its extended attributes, in bytes.
const FILE: usize = 256;

/// A file that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) id: Id,
    pub(super) attributes: Attributes,
    /// All of its extended attributes; none if they have to be asked for.
    pub(super) xattrs: Option<Vec<Xattr>>,
    /// All of its data; none if it has to be asked for.
    pub(super) extents: Option<Vec<Extent>>,
}

impl Found {
    fn size(&self, name: &[u8]) -> usize {
        let xattrs =
            self.xattrs.iter().flatten().map(|xattr| size_of::<Xattr>() + xattr.name.len() + xattr.value.len());
        let inline = |extent: &Extent| if let inside::Place::Inline(bytes) = &extent.place { bytes.len() } else { 0 };
        let extents = self.extents.iter().flatten().map(|extent| size_of::<Extent>() + inline(extent));
        FILE + name.len() + xattrs.sum::<usize>() + extents.sum::<usize>()
    }
}

/// A directory of a file system.
type Place = (u64, Id);

struct Directory {
    place: Place,
    next: Next,
    /// How many files are asked for next.
    most: usize,
    asked: usize,
    used: usize,
    files: HashMap<Box<[u8]>, Found>,
}

/// Where to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    From(u64),
    /// Somebody asks.
    Asked,
    /// All have been told of.
    End,
    /// It is not worth to.
    Nowhere,
}

impl Directory {
    fn new(place: Place) -> Self {
        Self { place, next: Next::From(0), most: FIRST, asked: 0, used: 0, files: HashMap::new() }
    }

    /// Whether most of it was of use, to the last file.
    fn was_walked(&self) -> bool {
        self.next == Next::End && self.used * 2 > self.asked
    }
}

#[derive(Default)]
struct Known {
    /// Those that were looked into last come first.
    directories: VecDeque<Directory>,
    /// What all files take, in bytes.
    kept: usize,
}

impl Known {
    /// The directory, which is the first then; none if it was not known.
    fn get(&mut self, place: Place) -> Option<&mut Directory> {
        let at = self.directories.iter().position(|directory| directory.place == place)?;
        let directory = self.directories.remove(at)?;
        self.directories.push_front(directory);
        self.directories.front_mut()
    }

    fn forget_last(&mut self) {
        let files = self.directories.pop_back().map(|directory| directory.files).unwrap_or_default();
        self.kept -= files.iter().map(|(name, found)| found.size(name)).sum::<usize>();
    }

    /// The file, if it is known.
    fn take(&mut self, place: Place, name: &[u8]) -> Option<Found> {
        let directory = self.get(place)?;
        let found = directory.files.remove(name)?;
        directory.used += 1;
        self.kept -= found.size(name);
        Some(found)
    }

    /// What is to be asked for after a look-up that found nothing here: where to begin, and how many.
    fn plan(&mut self, place: Place) -> Option<(u64, usize)> {
        let Some(directory) = self.get(place) else {
            if self.directories.len() >= MAX_DIRECTORIES {
                self.forget_last();
            }
            let walks = self.directories.front().is_some_and(|last| last.used > 0);
            self.directories.push_front(Directory::new(place));
            return if walks { self.plan(place) } else { None };
        };
        if directory.was_walked() {
            let files = std::mem::take(&mut directory.files);
            *directory = Directory { files, ..Directory::new(place) };
        }
        if directory.asked > UNPROVEN + WORTH * directory.used {
            return None;
        }
        let Next::From(from) = directory.next else { return None };
        directory.next = Next::Asked;
        let most = directory.most;
        directory.most = (most * 2).min(MAX_ANSWERS);
        Some((from, most))
    }

    fn add(&mut self, place: Place, described: Vec<Described>) {
        // It may have been forgotten meanwhile.
        let Some(directory) = self.get(place) else { return };
        directory.asked += described.len();
        directory.next = described.last().map_or(Next::End, |last| Next::From(last.listed.next));
        let mut added = 0;
        for Described { listed, attributes, xattrs, extents } in described {
            let Some(attributes) = attributes else { continue };
            let found = Found { id: listed.id, attributes, xattrs, extents };
            added += found.size(&listed.name);
            let before = directory.files.insert(listed.name.clone().into(), found);
            added -= before.map_or(0, |before| before.size(&listed.name));
        }
        self.kept += added;
        while self.kept > MAX_KEPT && self.directories.len() > 1 {
            self.forget_last();
        }
        // So much of one directory that nobody wanted yet: it is not worth to go on.
        if self.kept > MAX_KEPT {
            self.kept = 0;
            if let Some(directory) = self.directories.front_mut() {
                directory.files.clear();
                directory.next = Next::Nowhere;
            }
        }
    }
}

/// What is known of files before anybody asks: of all file systems of a point in time.
#[derive(Default)]
pub(super) struct Ahead {
    /// Held for look-ups only.
    known: Mutex<Known>,
    volumes: AtomicU64,
}

impl Ahead {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number for a file system.
    pub(super) fn volume(&self) -> u64 {
        self.volumes.fetch_add(1, Ordering::Relaxed)
    }

    /// [`Reader::lookup`] in the file system of that number.
    pub(super) async fn lookup(
        &self,
        volume: u64,
        reader: &dyn Reader,
        directory: Id,
        name: &[u8],
    ) -> Result<Option<Found>> {
        let place = (volume, directory);
        let plan = {
            let mut known = self.known();
            if let Some(found) = known.take(place, name) {
                return Ok(Some(found));
            }
            known.plan(place)
        };
        // What is wrong is told to whoever asks for the file that it concerns.
        if let Some((from, most)) = plan
            && let Ok(described) = reader.describe(directory, from, most).await
        {
            let mut known = self.known();
            known.add(place, described);
            if let Some(found) = known.take(place, name) {
                return Ok(Some(found));
            }
        }
        let found = reader.lookup(directory, name).await?;
        Ok(found.map(|(id, attributes)| Found { id, attributes, xattrs: None, extents: None }))
    }

    /// Nobody will ask any more.
    pub(super) fn end(&self) {
        *self.known() = Known::default();
    }
}

#[cfg(test)]
mod tests {
    use inside::{FileKind, Time};

    use super::super::Listed;
    use super::*;

    const DIRECTORY: Place = (0, Id(2));

    fn name(number: usize) -> Vec<u8> {
        format!("file {number}").into_bytes()
    }

    /// The files of these numbers, each of which is `length` bytes larger here than it must be.
    fn files(numbers: std::ops::Range<usize>, length: usize) -> Vec<Described> {
        let time = Time::default();
        let described = |number: usize| Described {
            listed: Listed { name: name(number), id: Id(number as u64), kind: None, next: number as u64 + 1 },
            attributes: Some(Attributes {
                kind: FileKind::File,
                mode: 0o644,
                uid: 0,
                gid: 0,
                links: 1,
                size: number as u64,
                allocated: 0,
                accessed: time,
                modified: time,
                changed: time,
                device: (0, 0),
            }),
            xattrs: Some(vec![Xattr { name: b"user.a".to_vec(), value: vec![0; length] }]),
            extents: Some(vec![Extent {
                offset: 0,
                length: number as u64,
                place: inside::Place::Inline(vec![1; number % 7]),
            }]),
        };
        numbers.map(described).collect()
    }

    /// What is asked for after the first look-up.
    fn begun(known: &mut Known, place: Place) -> Option<(u64, usize)> {
        assert_eq!(known.plan(place), None, "one look-up is no walk");
        known.plan(place)
    }

    fn kept(known: &Known) -> usize {
        let files = known.directories.iter().flat_map(|directory| &directory.files);
        files.map(|(name, found)| found.size(name)).sum()
    }

    #[test]
    fn more_is_asked_for_each_time_and_by_one_at_once() {
        let mut known = Known::default();
        assert_eq!(begun(&mut known, DIRECTORY), Some((0, FIRST)));
        assert_eq!(known.plan(DIRECTORY), None, "somebody asks");
        known.add(DIRECTORY, files(0..FIRST, 0));
        for number in (0..FIRST).rev() {
            assert_eq!(known.take(DIRECTORY, &name(number)).unwrap().attributes.size, number as u64);
        }
        assert_eq!((known.take(DIRECTORY, &name(0)), known.kept), (None, 0), "it was given away");
        assert_eq!(known.plan(DIRECTORY), Some((FIRST as u64, 2 * FIRST)));
        known.add(DIRECTORY, files(FIRST..2 * FIRST, 0));
        assert_eq!(known.plan(DIRECTORY), Some((2 * FIRST as u64, 4 * FIRST)));
        known.add(DIRECTORY, Vec::new());
        assert_eq!(known.plan(DIRECTORY), None, "the end, and half of it was of no use");
        assert_eq!(known.plan((0, Id(3))), Some((0, FIRST)), "who walked one walks the next");
        assert_eq!(known.plan((0, Id(4))), None, "if it was of use");
    }

    #[test]
    fn who_walks_again_is_told_again() {
        let mut known = Known::default();
        begun(&mut known, DIRECTORY).unwrap();
        for walk in 0..3 {
            known.add(DIRECTORY, files(0..10, 0));
            for number in 0..10 {
                assert!(known.take(DIRECTORY, &name(number)).is_some(), "{walk}, {number}");
            }
            assert_eq!(known.plan(DIRECTORY), Some((10, 2 * FIRST)));
            known.add(DIRECTORY, Vec::new());
            assert_eq!((known.kept, kept(&known)), (0, 0));
            assert_eq!(known.plan(DIRECTORY), Some((0, FIRST)), "the kernel has forgotten");
        }
        known.add(DIRECTORY, files(0..10, 0));
        known.plan(DIRECTORY).unwrap();
        known.add(DIRECTORY, Vec::new());
        assert_eq!(known.plan(DIRECTORY), None, "names that nobody walks");
        assert_eq!(known.kept, kept(&known));
    }

    #[test]
    fn a_file_that_cannot_be_told_of_is_asked_for() {
        let mut known = Known::default();
        begun(&mut known, DIRECTORY).unwrap();
        let mut some = files(0..2, 0);
        some[1].attributes = None;
        known.add(DIRECTORY, some);
        assert_eq!(known.take(DIRECTORY, &name(1)), None);
        assert_eq!(known.plan(DIRECTORY), Some((2, 2 * FIRST)), "and those after it can be told of");
    }

    #[test]
    fn who_wants_a_few_of_a_million_does_not_pay_for_all() {
        let mut known = Known::default();
        let mut plan = begun(&mut known, DIRECTORY);
        let mut asked = 0;
        while let Some((_, most)) = plan {
            known.add(DIRECTORY, files(asked..asked + most, 0));
            asked += most;
            plan = known.plan(DIRECTORY);
        }
        assert!((UNPROVEN..UNPROVEN + 2 * MAX_ANSWERS).contains(&asked), "{asked}");
        for number in 0..100 {
            known.take(DIRECTORY, &name(number)).unwrap();
        }
        assert!(known.plan(DIRECTORY).is_some(), "of use after all");
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut known = Known::default();
        for directory in 0..100 {
            let place = (directory, Id(2));
            begun(&mut known, place).unwrap();
            known.add(place, files(0..MAX_ANSWERS, 100));
            assert!(known.kept <= MAX_KEPT && known.kept == kept(&known), "{directory}");
        }
        assert!(known.take((99, Id(2)), &name(0)).is_some() && known.take((0, Id(2)), &name(0)).is_none());
        // All of one directory.
        let place = (99, Id(2));
        for page in 1..60 {
            known.add(place, files(page * MAX_ANSWERS..(page + 1) * MAX_ANSWERS, 100));
            assert!(known.kept <= MAX_KEPT && known.kept == kept(&known), "{page}");
        }
        assert!(known.directories.len() <= MAX_DIRECTORIES);
        for directory in 0..1000 {
            known.plan((directory, Id(3)));
            assert_eq!(known.kept, kept(&known));
        }
        assert_eq!((known.directories.len(), known.kept), (MAX_DIRECTORIES, 0));
    }
}
