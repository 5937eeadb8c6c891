//! Readers: each opens files of the point in time that is held, reads them in its own way, and compares.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use pullfs_tests::random::Random;
use rustix::fs::{OFlags, SeekFrom, seek};
use rustix::io::Errno;
use tempfile::TempDir;

use super::load::{EndOnPanic, Held, Load, Now};

/// Longest single read.
const LONGEST: usize = 300 << 10;

/// While nothing is held there is nothing to read.
const IDLE: Duration = Duration::from_millis(10);

/// How a reader reads.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// pread(2) through the page cache.
    Cached,
    /// pread(2) with `O_DIRECT`: each read asks the daemon.
    Direct,
    /// From start to end, as `cp` does.
    Whole,
    /// mmap(2), in a process of its own: a point in time that ends kills it.
    Mapped,
    /// lseek(2) along data and holes.
    Holes,
    /// `allocated.map`, `dirty.map` and `dirty.json`.
    Maps,
    /// `delta.raw`.
    Delta,
    /// `disk.qcow2` and `delta.qcow2`, judged by qemu-img.
    Images,
    /// Directories, `stat` and `status.json`.
    Listing,
}

/// The share of each among sixteen readers.
const WAYS: [Way; 16] = [
    Way::Cached,
    Way::Direct,
    Way::Mapped,
    Way::Holes,
    Way::Cached,
    Way::Direct,
    Way::Maps,
    Way::Delta,
    Way::Cached,
    Way::Direct,
    Way::Images,
    Way::Whole,
    Way::Cached,
    Way::Direct,
    Way::Holes,
    Way::Listing,
];

pub(super) struct Reader<'a> {
    pub(super) load: &'a Load<'a>,
    pub(super) random: Random,
    slot: usize,
    way: Way,
    /// For copies.
    pub(super) dir: TempDir,
}

impl<'a> Reader<'a> {
    pub(super) fn new(load: &'a Load<'a>, slot: usize, seed: u64) -> Self {
        let dir = tempfile::Builder::new().prefix("pullfs-soak-").tempdir().expect("a temporary directory");
        Self { load, random: Random::new(seed), slot, way: WAYS[slot % WAYS.len()], dir }
    }

    pub(super) fn run(mut self) {
        let _end = EndOnPanic(self.load);
        while !self.load.over() {
            let disk = self.random.index(self.load.ids.len());
            match self.way {
                Way::Cached => self.preads(disk, false),
                Way::Direct => self.preads(disk, true),
                Way::Whole => self.whole(disk),
                Way::Mapped => self.mapped(disk),
                Way::Holes => self.holes(disk),
                Way::Maps => self.maps(disk),
                Way::Delta => self.delta(disk),
                Way::Images => self.images(disk),
                Way::Listing => self.listing(disk),
            }
        }
    }

    pub(super) fn limited<T>(&self, what: &str, operation: impl FnOnce() -> T) -> T {
        self.load.limited(self.slot, || format!("reader {} ({:?}): {what}", self.slot, self.way), operation)
    }

    pub(super) fn wrong(&self, what: &str) {
        self.load.figures.wrong.add(1);
        self.load.fault(format!("reader {} ({:?}): {what}", self.slot, self.way));
    }

    pub(super) fn unexpected(&self, what: &str) {
        self.load.figures.unexpected.add(1);
        let last = self.load.mount.status()["last_error"].clone();
        self.load.fault(format!("reader {} ({:?}): {what}; last_error is {last}", self.slot, self.way));
    }

    /// The point in time that is held, if that is so at this moment.
    pub(super) fn held(&self) -> Option<(u64, Arc<Held>)> {
        match self.load.now() {
            (change, Now::Held(held)) => Some((change, held)),
            (change, Now::Nothing) => {
                self.refused(change);
                thread::sleep(IDLE);
                None
            }
            (_, Now::Changing) => {
                thread::sleep(IDLE);
                None
            }
        }
    }

    /// With nothing held, and `start=manual`, nothing of a disk can be opened.
    fn refused(&self, change: u64) {
        let path = self.load.mount.disk(&self.load.ids[0]);
        let opened = self.limited("open with nothing held", || File::open(&path)).map(drop).map_err(errno);
        if self.load.now().0 == change {
            if opened == Err(Errno::NODATA) {
                self.load.figures.refused.add(1);
            } else {
                self.unexpected(&format!("open with nothing held says {opened:?}"));
            }
        }
    }

    /// Does something that gets hold of the point in time in one step; none if it cannot be known which one that was, or
    /// it was refused as it may be. `checkpoint` is the one that `path` belongs to.
    pub(super) fn settled<T>(
        &self,
        (change, held): (u64, Arc<Held>),
        path: &str,
        checkpoint: Option<&str>,
        open: impl FnOnce() -> Result<T, Errno>,
    ) -> Option<(T, Arc<Held>)> {
        let opened = self.limited(&format!("open of {path}"), open);
        let same = self.load.now().0 == change;
        match opened {
            Ok(opened) if same => Some((opened, held)),
            Ok(_) => {
                self.load.figures.unsettled.add(1);
                None
            }
            Err(Errno::NOENT) if checkpoint.is_some_and(|name| !same || !held.has(name)) => None,
            // EIO is what the kernel itself says of a node of the point in time before.
            Err(Errno::STALE | Errno::NODATA | Errno::IO) if !same => None,
            Err(Errno::IO) if held.lost.load(Ordering::SeqCst) => None,
            Err(error) => {
                self.unexpected(&format!("open of {path} says {error:?}; settled: {same}"));
                None
            }
        }
    }

    /// Opens a file of the mount.
    pub(super) fn open(&self, path: &str, checkpoint: Option<&str>, direct: bool) -> Option<(File, Arc<Held>)> {
        let held = self.held()?;
        let mut options = File::options();
        options.read(true);
        if direct {
            options.custom_flags(i32::try_from(OFlags::DIRECT.bits()).expect("a flag"));
        }
        let whole = self.load.mount.path(path);
        self.settled(held, path, checkpoint, || options.open(&whole).map_err(errno))
    }

    /// What an open file answered; none if its point in time has ended, which it may say from then on.
    pub(super) fn answered<T>(&self, held: &Held, what: &str, answer: Result<T, Errno>) -> Option<T> {
        match answer {
            Ok(answer) => {
                self.load.figures.reads.add(1);
                Some(answer)
            }
            // The kernel itself says EIO for a file whose node has another generation by now.
            Err(Errno::STALE | Errno::IO) if held.ended.load(Ordering::SeqCst) => {
                self.load.figures.stale.add(1);
                None
            }
            Err(error) => {
                self.unexpected(&format!("{what} says {error:?}"));
                None
            }
        }
    }

    /// Reads all of a part of a file, which is shorter only where the file ends.
    fn part(&self, file: &File, held: &Held, what: &str, offset: usize, length: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; length];
        let mut done = 0;
        while done < length {
            let at = u64::try_from(offset + done).expect("an offset");
            let read = self.limited(what, || file.read_at(&mut bytes[done..], at)).map_err(errno);
            match self.answered(held, what, read)? {
                0 => break,
                more => done += more,
            }
        }
        bytes.truncate(done);
        self.load.figures.bytes.add(done);
        Some(bytes)
    }

    /// All of a file.
    pub(super) fn all(&self, file: &File, held: &Held, what: &str) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        loop {
            let more = self.part(file, held, what, bytes.len(), 1 << 20)?;
            if more.is_empty() {
                return Some(bytes);
            }
            bytes.extend(more);
        }
    }

    /// Notes it unless `found` is what the disk has there.
    pub(super) fn equal(&self, found: &[u8], expected: &[u8], what: &str, offset: usize) {
        if found != expected {
            let at = found.iter().zip(expected).position(|(found, expected)| found != expected).unwrap_or_default();
            let (long, right) = (found.len(), expected.len());
            let [found, expected] = [found, expected].map(|bytes| bytes.get(at..bytes.len().min(at + 4)));
            self.wrong(&format!("{what}: {long} bytes, not {right}; at {} {found:?}, not {expected:?}", offset + at));
        }
    }

    fn preads(&mut self, disk: usize, direct: bool) {
        let id = &self.load.ids[disk];
        let Some((file, held)) = self.open(&format!("current/{id}/disk.raw"), None, direct) else { return };
        let bytes = &held.model.disks[disk].bytes;
        for _ in 0..=self.random.below(40) {
            let offset = self.random.index(bytes.len());
            let length = 1 + self.random.index(LONGEST);
            let what = format!("pread of {length} bytes at {offset} of {id}");
            let Some(found) = self.part(&file, &held, &what, offset, length) else { return };
            self.equal(&found, &bytes[offset..bytes.len().min(offset + length)], &what, offset);
        }
    }

    fn whole(&mut self, disk: usize) {
        let id = &self.load.ids[disk];
        let Some((file, held)) = self.open(&format!("current/{id}/disk.raw"), None, false) else { return };
        let what = format!("all of {id}");
        if let Some(found) = self.all(&file, &held, &what) {
            self.equal(&found, &held.model.disks[disk].bytes, &what, 0);
        }
    }

    /// What lseek takes for a hole must be zeroes.
    fn holes(&mut self, disk: usize) {
        let id = &self.load.ids[disk];
        let Some((file, held)) = self.open(&format!("current/{id}/disk.raw"), None, false) else { return };
        let bytes = &held.model.disks[disk].bytes;
        let place = |offset: usize| u64::try_from(offset).expect("an offset");
        let mut at = if self.random.chance(50) { 0 } else { self.random.index(bytes.len()) };
        while at < bytes.len() {
            let what = format!("SEEK_DATA from {at} of {id}");
            let data = match self.limited(&what, || seek(&file, SeekFrom::Data(place(at)))) {
                Err(Errno::NXIO) => bytes.len(),
                answer => match self.answered(&held, &what, answer) {
                    Some(data) => usize::try_from(data).expect("an offset"),
                    None => return,
                },
            };
            if data < at || data > bytes.len() || bytes[at..data].iter().any(|&byte| byte != 0) {
                return self.wrong(&format!("{what} finds {data}"));
            }
            if data == bytes.len() {
                break;
            }
            let what = format!("SEEK_HOLE from {data} of {id}");
            let answer = self.limited(&what, || seek(&file, SeekFrom::Hole(place(data))));
            let Some(hole) = self.answered(&held, &what, answer) else { return };
            let hole = usize::try_from(hole).expect("an offset");
            if hole <= data || hole > bytes.len() {
                return self.wrong(&format!("{what} finds {hole}"));
            }
            at = hole;
        }
        self.load.figures.walks.add(1);
    }

    /// Names, sizes and the state: none of it may fail for long, whatever is held.
    fn listing(&mut self, disk: usize) {
        let (mount, id) = (self.load.mount, &self.load.ids[disk]);
        let (change, now) = self.load.now();
        let state = self.limited("status.json", || mount.state());
        let listed = self.limited("ls", || -> io::Result<usize> {
            let mut names = 0;
            for name in ["current", "checkpoints"] {
                names += fs::read_dir(mount.path(name))?.count();
            }
            Ok(names)
        });
        let size = self.limited("stat", || fs::metadata(mount.disk(id)).map(|file| file.len()));
        if self.load.now().0 == change {
            let expected = match now {
                Now::Nothing => "none",
                Now::Held(_) => "held",
                Now::Changing => return,
            };
            let right = u64::try_from(self.load.sizes[disk]).expect("a size");
            if state != expected || listed.is_err() || size.as_ref().ok() != Some(&right) {
                self.unexpected(&format!("with {expected}: state {state}, {listed:?}, size of {id} {size:?}"));
            }
        }
        thread::sleep(IDLE);
    }
}

#[track_caller]
#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
pub(super) fn errno(error: io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or_else(|| panic!("not from the system: {error}"))
}
