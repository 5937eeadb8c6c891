//! What was found inside of the disks of one point in time, and the file systems that are open on it.
//!
//! Whoever comes first reads a table or opens a file system; who comes meanwhile waits for that. When the point in time ends, all
//! are let go, also those that are just being opened.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use inside::table::{Partition, Table};
use inside::{Attributes, Id, Xattr};

use super::ahead::{Ahead, Found as FoundFile};
use super::once::Once;
use super::window::Window;
use super::{Reader, Readers};
use crate::error::{Error, Kind, Result};
use crate::point::{FrozenDisk, PointInTime};

/// Files whose extended attributes are kept (each has 1 MiB of them at most).
const FILES_KEPT: usize = 8;

/// The extended attributes of a file.
type OfFile = (Id, Arc<Vec<Xattr>>);

/// A file system that is open, and where it is.
#[derive(Clone)]
pub struct Volume {
    /// Who reads it.
    pub reader: Arc<dyn Reader>,
    /// Its part of the disk.
    pub partition: Partition,
    /// Who asks for one attribute of a file asks for the next one then. Held for a moment only.
    xattrs: Arc<Mutex<VecDeque<OfFile>>>,
    /// What is known of its files, under its number there.
    ahead: (Arc<Ahead>, u64),
}

impl Volume {
    /// The file of that name in a directory, none if there is none.
    ///
    /// # Errors
    /// As [`Reader::lookup`].
    pub async fn lookup(&self, directory: Id, name: &[u8]) -> Result<Option<(Id, Attributes)>> {
        let (ahead, number) = &self.ahead;
        let found = ahead.lookup(*number, &*self.reader, directory, name).await?;
        let Some(FoundFile { id, attributes, xattrs }) = found else { return Ok(None) };
        // Who copies a file asks for these next.
        if let Some(xattrs) = xattrs {
            self.keep(id, Arc::new(xattrs));
        }
        Ok(Some((id, attributes)))
    }

    /// The extended attributes of a file.
    ///
    /// # Errors
    /// As [`Reader::xattrs`].
    pub async fn xattrs(&self, file: Id) -> Result<Arc<Vec<Xattr>>> {
        if let Some((_, known)) = self.lately().iter().find(|(of, _)| *of == file) {
            return Ok(known.clone());
        }
        let xattrs = Arc::new(self.reader.xattrs(file).await?);
        self.keep(file, xattrs.clone());
        Ok(xattrs)
    }

    fn lately(&self) -> MutexGuard<'_, VecDeque<OfFile>> {
        self.xattrs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, file: Id, xattrs: Arc<Vec<Xattr>>) {
        let mut lately = self.lately();
        lately.truncate(FILES_KEPT - 1);
        lately.push_front((file, xattrs));
    }
}

/// What is known of one disk.
#[derive(Default)]
struct Found {
    table: Once<Arc<Table>>,
    /// Held for look-ups only.
    volumes: Mutex<HashMap<u32, Arc<Once<Volume>>>>,
}

/// All that is known of the disks of a point in time.
#[derive(Default)]
pub struct Volumes {
    /// By disk; none once the point in time has ended. Held for look-ups only.
    disks: Mutex<Disks>,
    ahead: Arc<Ahead>,
}

#[derive(Default)]
struct Disks {
    ended: bool,
    found: HashMap<Arc<str>, Arc<Found>>,
}

impl Volumes {
    fn disks(&self) -> MutexGuard<'_, Disks> {
        self.disks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The point in time has ended: all are let go.
    pub(crate) fn end(&self) {
        let mut disks = self.disks();
        disks.ended = true;
        let found = std::mem::take(&mut disks.found);
        // Whoever reads them may have to be waited for.
        drop(disks);
        drop(found);
        self.ahead.end();
    }

    /// How many file systems were looked into.
    pub fn open(&self) -> usize {
        let disks = self.disks();
        let open = |found: &Arc<Found>| found.volumes.lock().unwrap_or_else(PoisonError::into_inner).len();
        disks.found.values().map(open).sum()
    }

    fn found(&self, disk: &Arc<str>) -> Result<Arc<Found>> {
        let mut disks = self.disks();
        if disks.ended {
            return Err(Error::new(Kind::Stale, "the point in time has ended"));
        }
        Ok(disks.found.entry(disk.clone()).or_default().clone())
    }
}

/// What a disk is divided into at a point in time.
///
/// # Errors
/// As [`Readers::table`].
pub async fn table(readers: &dyn Readers, point: &PointInTime, disk: &FrozenDisk) -> Result<Arc<Table>> {
    let found = point.volumes().found(&disk.disk.name)?;
    let read = async {
        let whole = Window::new(format!("disk {}", disk.disk.name), disk.cached.clone(), 0..disk.disk.size);
        let mut table = readers.table(Arc::new(whole)).await?;
        table.partitions.truncate(Table::MAX_PARTITIONS);
        table.partitions.iter_mut().for_each(|partition| check(partition, disk.disk.size));
        Ok(Arc::new(table))
    };
    let table = found.table.get(read).await;
    let name = &disk.disk.name;
    told(point, table, || format!("cannot read what disk {name} is divided into"))
}

/// The file system on a partition at a point in time, opened if it is not.
///
/// # Errors
/// [`Kind::NotFound`] if there is none that can be read; as [`Readers::open`].
pub async fn volume(readers: &dyn Readers, point: &PointInTime, disk: &FrozenDisk, number: u32) -> Result<Volume> {
    let table = table(readers, point, disk).await?;
    let name = &disk.disk.name;
    let partition = table.partitions.iter().find(|partition| partition.number == number && has_files(partition));
    let partition = partition.ok_or_else(|| {
        Error::new(
            Kind::NotFound,
            format!("no file system is read on partition {number} of disk {name}; see table.json"),
        )
    })?;
    let slot = {
        let found = point.volumes().found(name)?;
        let mut volumes = found.volumes.lock().unwrap_or_else(PoisonError::into_inner);
        volumes.entry(number).or_default().clone()
    };
    let open = async {
        let range = partition.offset..partition.offset + partition.size;
        let window = Window::new(format!("partition {number} of disk {name}"), disk.cached.clone(), range);
        let reader = readers.open(Arc::new(window)).await?;
        tracing::info!(
            disk = &**name,
            partition = number,
            kind = reader.summary().kind,
            "a guest's file system is open"
        );
        let ahead = &point.volumes().ahead;
        let ahead = (ahead.clone(), ahead.volume());
        Ok(Volume { reader, partition: partition.clone(), xattrs: Arc::default(), ahead })
    };
    let volume = slot.get(open).await;
    told(point, volume, || format!("cannot open the file system on partition {number} of disk {name}"))
}

/// Whether the files of a partition can be shown.
pub fn has_files(partition: &Partition) -> bool {
    partition.problem.is_none() && partition.content.as_ref().is_some_and(|content| content.refused.is_none())
}

/// Whether the bytes of a partition can be shown, and are not those of the whole disk.
pub fn has_bytes(partition: &Partition) -> bool {
    partition.problem.is_none() && partition.number > 0
}

/// Whoever read the table has parsed a disk that anybody may have written.
fn check(partition: &mut Partition, size: u64) {
    if partition.problem.is_none() && partition.offset.checked_add(partition.size).is_none_or(|end| end > size) {
        partition.problem = Some("it reaches past the end of the disk".into());
    }
}

/// The end of the point in time explains a failure better; and nothing is told of one that has ended.
///
/// # Errors
/// As [`PointInTime::check`]; what `outcome` failed with, and `what` that was.
pub fn told<T>(point: &PointInTime, outcome: Result<T>, what: impl FnOnce() -> String) -> Result<T> {
    point.check()?;
    outcome.map_err(|error| error.context(what()))
}
