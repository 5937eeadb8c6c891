//! The disk on the mount: which one, what of it is to be copied, and its data at one point in time.
//!
//! What changed is read from `delta.raw`: whoever reads ahead there, the kernel or the daemon, does not get to what lies between.
//! What lies past the end that the copy knows of (the disk grew) is not in QEMU's bitmaps, so that no delta need show it: that, as
//! a whole disk, is read from `disk.raw`.

use std::fs::File;
use std::io::{self, BufReader, Seek as _};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::identity::{Checkpoint, Copied, Disk, Machine};
use crate::failure::{Code, Failure, Outcome};
use crate::map::parse::{Error as MapError, Map};
use crate::mounted::{Mounted, Status};

/// Bytes of a map that are asked for at once.
const MAP_BUFFER: usize = 1 << 20;

/// What is told of a machine may be a second old, and so lack a checkpoint that was just made.
const LISTED_LIMIT: Duration = Duration::from_secs(3);

/// A directory of the mount: `current/DISK` or `checkpoints/NAME/DISK`.
pub(super) struct Source {
    pub(super) mounted: Mounted,
    dir: PathBuf,
    disk: String,
    checkpoint: Option<String>,
}

/// A piece of the disk that is to be copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece {
    /// Whatever is on the disk there.
    Data(Range<u64>),
    /// What a dirty map says of it, as the delta shows it.
    Changed(Range<u64>),
    /// Zeroes, without a look.
    Zero(Range<u64>),
}

impl Piece {
    pub(super) fn range(&self) -> &Range<u64> {
        match self {
            Self::Data(range) | Self::Changed(range) | Self::Zero(range) => range,
        }
    }
}

impl Source {
    pub(super) fn find(path: &Path) -> Outcome<Self> {
        let shown = path.display();
        let dir = path.canonicalize().map_err(|error| {
            let code = if error.kind() == io::ErrorKind::NotFound { Code::NotFound } else { Code::System };
            Failure::message(code, format!("cannot use {shown}: {error}"))
        })?;
        let mounted = Mounted::around(&dir)
            .ok_or_else(|| Failure::message(Code::NotFound, format!("no machine is mounted at {shown}")))?;
        let inside = dir.strip_prefix(mounted.path()).unwrap_or(&dir);
        let names: Option<Vec<&str>> = inside.iter().map(|name| name.to_str()).collect();
        let (checkpoint, disk) = match names.as_deref() {
            Some(["current", disk]) => (None, (*disk).to_owned()),
            Some(["checkpoints", checkpoint, disk]) => (Some((*checkpoint).to_owned()), (*disk).to_owned()),
            _ => {
                let message =
                    format!("{shown} is not the directory of a disk: MNT/current/DISK or MNT/checkpoints/NAME/DISK");
                return Err(Failure::message(Code::Usage, message));
            }
        };
        Ok(Self { mounted, dir, disk, checkpoint })
    }

    /// The disk, as its identity has it.
    pub(super) fn disk(&self, status: &Status) -> Disk {
        let machine = Machine { source: status.machine.source.clone(), name: status.machine.name.clone() };
        Disk { machine, name: self.disk.clone() }
    }

    /// The checkpoint since which changes are to be copied; none for the whole disk.
    pub(super) fn since(&self, status: &Status) -> Option<Checkpoint> {
        self.checkpoint.as_deref().map(|name| checkpoint(status, name))
    }

    /// The directory of the whole disk.
    pub(super) fn current(&self) -> PathBuf {
        self.mounted.path().join("current").join(&self.disk)
    }

    /// Opens what is to be read, which takes the point in time unless one is held, and tells the status after that.
    pub(super) fn hold(&self) -> Outcome<(Held<'_>, Status)> {
        let open = |path: PathBuf| match File::open(&path) {
            Ok(file) => Ok((path, file)),
            Err(error) => Err(self.mounted.failed(&format!("cannot open {}", path.display()), &error)),
        };
        let disk = open(self.current().join("disk.raw"))?;
        let changes = match self.checkpoint {
            Some(_) => {
                Some(Changes { map: open(self.dir.join("dirty.map"))?, delta: open(self.dir.join("delta.raw"))? })
            }
            None => None,
        };
        let (path, file) = &disk;
        let size = file.metadata().map_err(|error| self.mounted.failed(&path.display().to_string(), &error))?.len();
        let status = self.mounted.status()?;
        let (number, time) = (status.point.number, status.point.time.clone());
        let held = Held { source: self, disk, changes, size, number, time };
        held.check_state(&status)?;
        Ok((held, status))
    }
}

/// The checkpoint that was made together with the point in time. One that is not on this disk tells nothing about it.
fn made_with(status: &Status, disk: &str) -> Option<Checkpoint> {
    let name = status.point.checkpoint.as_deref()?;
    let known = status.checkpoints.iter().find(|known| known.name == name)?;
    known.disks.get(disk).filter(|bitmap| bitmap.unusable.is_none())?;
    Some(checkpoint(status, name))
}

fn checkpoint(status: &Status, name: &str) -> Checkpoint {
    let known = status.checkpoints.iter().find(|known| known.name == name);
    Checkpoint { name: name.to_owned(), created: known.and_then(|known| known.created.clone()) }
}

/// A file of the mount that is open, and where it is.
type Open = (PathBuf, File);

/// What changed on a disk: where, and the data there.
struct Changes {
    map: Open,
    delta: Open,
}

/// A disk at a point in time, which cannot be replaced by another one while this exists.
pub(super) struct Held<'a> {
    source: &'a Source,
    disk: Open,
    changes: Option<Changes>,
    pub(super) size: u64,
    number: u64,
    time: Option<String>,
}

impl Held<'_> {
    /// What was copied. Fails if the point in time is not there any more.
    pub(super) fn end(&self) -> Outcome<Copied> {
        let deadline = Instant::now() + LISTED_LIMIT;
        loop {
            let status = self.source.mounted.status()?;
            self.check_state(&status)?;
            let made = status.point.checkpoint.as_ref();
            let listed = made.is_none_or(|made| status.checkpoints.iter().any(|known| known.name == *made));
            if listed || Instant::now() >= deadline {
                let checkpoint = made_with(&status, &self.source.disk);
                return Ok(Copied { size: self.size, time: self.time.clone(), checkpoint });
            }
            std::thread::sleep(LISTED_LIMIT / 10);
        }
    }

    fn check_state(&self, status: &Status) -> Outcome {
        if status.point.state == "held" && status.point.number == self.number {
            return Ok(());
        }
        let why = status.last_end.as_ref().map(|end| format!(": {}", end.reason)).unwrap_or_default();
        Err(Failure::message(Code::System, format!("the point in time ended before all was copied{why}; run it again")))
    }

    /// Calls `visit` for each piece, in order. `known` is the size of the disk as the copy knows it.
    pub(super) fn pieces(&self, known: u64, visit: &mut dyn FnMut(Piece) -> Outcome) -> Outcome {
        let Some(Changes { map: (path, file), .. }) = &self.changes else { return self.walk(0..self.size, visit) };
        let failed = |error: MapError| match error {
            MapError::Io(error) => self.source.mounted.failed(&path.display().to_string(), &error),
            error @ MapError::Line { .. } => Failure::message(Code::System, format!("{}: {error}", path.display())),
        };
        let mut file = file;
        file.rewind().map_err(|error| failed(MapError::Io(error)))?;
        let map = Map::new(BufReader::with_capacity(MAP_BUFFER, file)).map_err(failed)?;
        let header = map.header();
        let time = header.get("point in time");
        if header.size != Some(self.size) || time.is_some() && time != self.time.as_deref() {
            let message = format!("{} is of another point in time than the disk; run it again", path.display());
            return Err(Failure::message(Code::System, message));
        }
        let mut at = 0;
        for extent in map {
            let extent = extent.map_err(failed)?;
            if !extent.counts || extent.range.is_empty() {
                continue;
            }
            self.walk(grown(at..extent.range.start, known), visit)?;
            at = extent.range.end;
            visit(if extent.zero { Piece::Zero(extent.range) } else { Piece::Changed(extent.range) })?;
        }
        self.walk(grown(at..self.size, known), visit)
    }

    /// The data and the holes of a range of the disk.
    fn walk(&self, range: Range<u64>, visit: &mut dyn FnMut(Piece) -> Outcome) -> Outcome {
        let (path, file) = &self.disk;
        let failed = |at: u64, error: Errno| self.failed(path, at, &error.into());
        let mut at = range.start;
        while at < range.end {
            let data = match seek(file, SeekFrom::Data(at)) {
                Err(Errno::NXIO) => range.end,
                found => found.map_err(|error| failed(at, error))?.min(range.end),
            };
            if data > at {
                visit(Piece::Zero(at..data))?;
            }
            if data == range.end {
                return Ok(());
            }
            let hole = seek(file, SeekFrom::Hole(data)).map_err(|error| failed(data, error))?;
            at = hole.min(range.end);
            visit(Piece::Data(data..at))?;
        }
        Ok(())
    }

    /// How much data there is, as far as that is known.
    pub(super) fn estimate(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        self.disk.1.metadata().map_or(0, |meta| meta.blocks().saturating_mul(512)).min(self.size)
    }

    /// Fills `buffer` with what is at `offset` of the disk, which lies in `piece`.
    pub(super) fn read(&self, piece: &Piece, offset: u64, buffer: &mut [u8]) -> Outcome {
        let (path, file) = match (piece, &self.changes) {
            (Piece::Changed(_), Some(Changes { delta, .. })) => delta,
            _ => &self.disk,
        };
        file.read_exact_at(buffer, offset).map_err(|error| self.failed(path, offset, &error))
    }

    fn failed(&self, path: &Path, offset: u64, error: &io::Error) -> Failure {
        let what = format!("cannot read {} at {offset}; the copy is unfinished, run it again", path.display());
        self.source.mounted.failed(&what, error)
    }
}

/// What of a range that a bitmap says did not change lies past the size that the disk had: a bitmap does not tell of it.
fn grown(unchanged: Range<u64>, known: u64) -> Range<u64> {
    unchanged.start.max(known).min(unchanged.end)..unchanged.end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn past_the_known_size_everything_is_new() {
        assert_eq!(grown(0..100, 200), 100..100);
        assert_eq!(grown(0..100, 60), 60..100);
        assert_eq!(grown(70..100, 60), 70..100);
        assert_eq!(grown(0..0, 0), 0..0);
    }

    #[test]
    fn a_checkpoint_of_the_point_in_time_is_optional() {
        let status = |point: &str| -> Status {
            let text = format!(
                r#"{{"pid": 1, "machine": {{"source": "qmp:/a", "qemu": "10.0", "fleece": "job"}}, "disks": [], "skipped": [],
                    "checkpoints": [{{"name": "monday", "created": "noon", "dirty_bytes": 0,
                                      "disks": {{"vda": {{"dirty_bytes": 0, "persistent": true}}}}}}],
                    "point": {{"state": "held", "number": 3, "time": "noon", "open_files": 1 {point}}}}}"#
            );
            serde_json::from_str(&text).unwrap()
        };
        let monday = Checkpoint { name: "monday".to_owned(), created: Some("noon".to_owned()) };
        assert_eq!(made_with(&status(r#", "checkpoint": "monday""#), "vda"), Some(monday));
        assert_eq!(made_with(&status(r#", "checkpoint": "monday""#), "vdb"), None);
        assert_eq!(made_with(&status(r#", "checkpoint": null"#), "vda"), None);
        assert_eq!(made_with(&status(""), "vda"), None);
    }
}
