//! What was found inside of the disks of one point in time, and the file systems that are open on it.
//!
//! Whoever comes first reads a table or opens a file system; who comes meanwhile waits for that. When the point in time ends, all
//! are let go, also those that are just being opened.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use inside::table::{Partition, Table};
use inside::wire::is_plain;
use inside::{Attributes, Extent, FileKind, Id, Xattr};

use super::ahead::{Ahead, Found as FoundFile};
use super::lvm::Lvm;
use super::once::Once;
use super::together::{Place, Together};
use super::window::Window;
use super::{Reader, Readers};
use crate::block::ahead::Ahead as Reading;
use crate::block::spread::Store;
use crate::error::{Error, Kind, Result};
use crate::point::{FrozenDisk, PointInTime};

/// Files of a point in time whose extended attributes are kept (each has 1 MiB of them at most).
const XATTRS_KEPT: usize = 16;

/// Files of a point in time of which it is kept what they are and where their data is (some 250 bytes each, 650 at most): who looks at
/// all of a directory first opens them later, and once a file was read the kernel asks again what it is.
const FILES_KEPT: usize = 16 << 10;

/// A file of one of the file systems, by the number of that.
type File = (u64, Id);

/// What is known of files that were looked at lately.
struct Lately<T> {
    /// The latest first.
    order: VecDeque<File>,
    of: HashMap<File, T>,
    most: usize,
}

impl<T> Lately<T> {
    fn new(most: usize) -> Mutex<Self> {
        Mutex::new(Self { order: VecDeque::new(), of: HashMap::new(), most })
    }

    fn keep(&mut self, file: File, what: T) {
        if self.of.insert(file, what).is_none() {
            self.order.push_front(file);
        }
        while self.order.len() > self.most
            && let Some(last) = self.order.pop_back()
        {
            self.of.remove(&last);
        }
    }

    fn forget(&mut self) {
        (self.order, self.of) = Default::default();
    }
}

/// What a file is.
#[derive(Clone)]
struct Seen {
    attributes: Attributes,
    /// All of its data, if [few pieces](is_plain) are, and it is known.
    data: Option<Vec<Extent>>,
}

/// What those who copy a file ask for, once it was looked up: of all file systems of a point in time.
struct Known {
    /// Who asks for one attribute of a file asks for the next one then. Held for a moment only.
    xattrs: Mutex<Lately<Arc<Vec<Xattr>>>>,
    /// Held for a moment only.
    files: Mutex<Lately<Seen>>,
}

impl Default for Known {
    fn default() -> Self {
        Self { xattrs: Lately::new(XATTRS_KEPT), files: Lately::new(FILES_KEPT) }
    }
}

/// A file system that is open, and where it is.
#[derive(Clone)]
pub struct Volume {
    /// Who reads it.
    pub reader: Arc<dyn Reader>,
    /// Its part of the disk or the logical volume that is its store.
    pub partition: Partition,
    /// Where its bytes are read.
    pub store: Store,
    /// Who reads its small files, one after another.
    pub neighbours: Arc<Neighbours>,
    known: Arc<Known>,
    /// What is told of its files before anybody asks.
    ahead: Arc<Ahead>,
    /// What it has in both.
    number: u64,
}

/// The small files of a volume, which are mostly read in the order in which they lie on the disk.
pub struct Neighbours {
    /// Held for look-ups only.
    ahead: Mutex<Reading>,
    /// The volume, on its store, in bytes.
    range: Range<u64>,
}

impl Neighbours {
    /// A range of the store was read, all of a file; what to fetch ahead now, if anything: up to `most` bytes.
    pub fn read(&self, range: &Range<u64>, most: u64) -> Option<Range<u64>> {
        let wanted = self.ahead.lock().unwrap_or_else(PoisonError::into_inner).read(range, most)?;
        let wanted = wanted.start..wanted.end.min(self.range.end);
        (!wanted.is_empty()).then_some(wanted)
    }
}

impl Volume {
    /// The file of that name in a directory, none if there is none.
    ///
    /// # Errors
    /// As [`Reader::lookup`].
    pub async fn lookup(&self, directory: Id, name: &[u8]) -> Result<Option<(Id, Attributes)>> {
        let found = self.ahead.lookup(self.number, &*self.reader, directory, name).await?;
        let Some(FoundFile { id, attributes, xattrs, extents }) = found else { return Ok(None) };
        // Who copies a file asks for these next.
        if let Some(xattrs) = xattrs {
            locked(&self.known.xattrs).keep((self.number, id), Arc::new(xattrs));
        }
        self.saw(id, attributes, extents);
        Ok(Some((id, attributes)))
    }

    /// What stat(2) tells of a file.
    ///
    /// # Errors
    /// As [`Reader::attributes`].
    pub async fn attributes(&self, file: Id) -> Result<Attributes> {
        if let Some(seen) = locked(&self.known.files).of.get(&(self.number, file)) {
            return Ok(seen.attributes);
        }
        let attributes = self.reader.attributes(file).await?;
        self.saw(file, attributes, None);
        Ok(attributes)
    }

    /// Keeps what was told; what was known stays so.
    fn saw(&self, file: Id, attributes: Attributes, data: Option<Vec<Extent>>) {
        let mut files = locked(&self.known.files);
        let file = (self.number, file);
        let known = files.of.get(&file).is_some_and(|seen| seen.data.is_some());
        if data.is_some() || !known {
            files.keep(file, Seen { attributes, data });
        }
    }

    /// The extended attributes of a file.
    ///
    /// # Errors
    /// As [`Reader::xattrs`].
    pub async fn xattrs(&self, file: Id) -> Result<Arc<Vec<Xattr>>> {
        if let Some(known) = locked(&self.known.xattrs).of.get(&(self.number, file)) {
            return Ok(known.clone());
        }
        let xattrs = Arc::new(self.reader.xattrs(file).await?);
        locked(&self.known.xattrs).keep((self.number, file), xattrs.clone());
        Ok(xattrs)
    }

    /// The size of a regular file, in bytes, and where its first bytes are.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for anything else; as [`Reader::attributes`] and [`Reader::extents`].
    pub async fn data(&self, file: Id) -> Result<(u64, Vec<Extent>)> {
        if let Some(Seen { attributes, data: Some(data) }) = locked(&self.known.files).of.get(&(self.number, file)) {
            return Ok((attributes.size, data.clone()));
        }
        // Both at once: each answer is waited for.
        let (attributes, extents) = tokio::join!(self.attributes(file), self.reader.extents(file, 0));
        let attributes = attributes?;
        if attributes.kind != FileKind::File {
            return Err(Error::new(Kind::Invalid, "only the data of a regular file is read"));
        }
        let extents = extents?;
        if is_plain(&attributes, &extents) {
            self.saw(file, attributes, Some(extents.clone()));
        }
        Ok((attributes.size, extents))
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
    known: Arc<Known>,
    ahead: Arc<Ahead>,
}

/// A volume group, and a logical volume in it.
type LogicalName = (Arc<str>, Arc<str>);

#[derive(Default)]
struct Disks {
    ended: bool,
    found: HashMap<Arc<str>, Arc<Found>>,
    /// The mirrors that have missed writes.
    outdated: Arc<Once<Arc<Vec<Place>>>>,
    /// What LVM2 says of all of them, and its logical volumes by group and name.
    lvm: Arc<Once<Arc<Lvm>>>,
    logical: HashMap<LogicalName, Arc<Once<Volume>>>,
}

impl Volumes {
    fn disks(&self) -> MutexGuard<'_, Disks> {
        self.disks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The point in time has ended: all are let go.
    pub(crate) fn end(&self) {
        let mut disks = self.disks();
        let all = std::mem::replace(&mut *disks, Disks { ended: true, ..Disks::default() });
        // Whoever reads them may have to be waited for.
        drop(disks);
        drop(all);
        locked(&self.known.files).forget();
        locked(&self.known.xattrs).forget();
        self.ahead.end();
    }

    /// How many file systems were looked into.
    pub fn open(&self) -> usize {
        let disks = self.disks();
        let open = |found: &Arc<Found>| found.volumes.lock().unwrap_or_else(PoisonError::into_inner).len();
        disks.found.values().map(open).sum::<usize>() + disks.logical.len()
    }

    fn held(&self) -> Result<MutexGuard<'_, Disks>> {
        let disks = self.disks();
        if disks.ended { Err(Error::new(Kind::Stale, "the point in time has ended")) } else { Ok(disks) }
    }

    fn found(&self, disk: &Arc<str>) -> Result<Arc<Found>> {
        Ok(self.held()?.found.entry(disk.clone()).or_default().clone())
    }

    pub(super) fn lvm(&self) -> Result<Arc<Once<Arc<Lvm>>>> {
        Ok(self.held()?.lvm.clone())
    }

    pub(super) fn logical(&self, group: &Arc<str>, name: &Arc<str>) -> Result<Arc<Once<Volume>>> {
        Ok(self.held()?.logical.entry((group.clone(), name.clone())).or_default().clone())
    }
}

/// What a disk is divided into at a point in time.
///
/// # Errors
/// As [`Readers::table`].
pub async fn table(readers: &dyn Readers, point: &PointInTime, disk: &FrozenDisk) -> Result<Arc<Table>> {
    let mut table = divided(readers, point, disk).await?;
    if table.partitions.iter().any(is_mirror) {
        let outdated = point.volumes().held()?.outdated.clone();
        let outdated = outdated.get(outdated_mirrors(readers, point)).await;
        let outdated = told(point, outdated, || "cannot compare the mirrors of arrays".to_owned())?;
        for (_, number) in outdated.iter().filter(|(name, _)| *name == disk.disk.name) {
            let partitions = &mut Arc::make_mut(&mut table).partitions;
            let partition = partitions.iter_mut().find(|partition| partition.number == *number && is_mirror(partition));
            if let Some(content) = partition.and_then(|partition| partition.content.as_mut()) {
                content.refused = Some(OUTDATED.to_owned());
            }
        }
    }
    Ok(table)
}

/// The same, as far as the disk itself tells.
pub(super) async fn divided(readers: &dyn Readers, point: &PointInTime, disk: &FrozenDisk) -> Result<Arc<Table>> {
    let found = point.volumes().found(&disk.disk.name)?;
    let read = async {
        let store = Store::Disk(disk.cached.clone());
        let whole = Window::new(format!("disk {}", disk.disk.name), store, 0..disk.disk.size);
        let mut table = readers.table(Arc::new(whole)).await?;
        table.partitions.truncate(Table::MAX_PARTITIONS);
        table.partitions.iter_mut().for_each(|partition| check(partition, disk.disk.size));
        Ok(Arc::new(table))
    };
    let table = found.table.get(read).await;
    let name = &disk.disk.name;
    told(point, table, || format!("cannot read what disk {name} is divided into"))
}

/// What a partition holds that is a member of an array, as blkid(8) calls it.
const MEMBER: &str = "linux_raid_member";

/// Why the files of a mirror are not shown that has missed what was written to another.
const OUTDATED: &str = "another mirror of its array was written to since this one was: look at that one";

/// Whether a partition is a mirror that is read.
fn is_mirror(partition: &Partition) -> bool {
    has_files(partition) && partition.content.as_ref().is_some_and(|content| content.kind == MEMBER)
}

/// The mirrors that have missed writes which another of the machine's disks has.
async fn outdated_mirrors(readers: &dyn Readers, point: &PointInTime) -> Result<Arc<Vec<Place>>> {
    let together = Together::gather(readers, point, MEMBER).await?;
    let [_, _, ..] = together.parts[..] else { return Ok(Arc::default()) };
    let (blocks, sizes) = together.blocks("members of arrays")?;
    let outdated = readers.mirrors(blocks, sizes).await?;
    Ok(Arc::new(outdated.into_iter().filter_map(|at| together.places.get(at).cloned()).collect()))
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
    let what = format!("partition {number} of disk {name}");
    let volume = slot.get(open(readers, point, &what, Store::Disk(disk.cached.clone()), partition)).await;
    told(point, volume, || format!("cannot open the file system on {what}"))
}

/// Opens the file system on a partition of a store; `what` is what messages call that.
pub(super) async fn open(
    readers: &dyn Readers,
    point: &PointInTime,
    what: &str,
    store: Store,
    partition: &Partition,
) -> Result<Volume> {
    let range = partition.offset..partition.offset + partition.size;
    let neighbours = Arc::new(Neighbours { ahead: Mutex::new(Reading::of_files()), range: range.clone() });
    let window = Window::new(what.to_owned(), store.clone(), range);
    let reader = readers.open(Arc::new(window)).await?;
    tracing::info!(place = what, kind = reader.summary().kind, "a guest's file system is open");
    let Volumes { known, ahead, .. } = point.volumes();
    let (number, known, ahead) = (ahead.volume(), known.clone(), ahead.clone());
    Ok(Volume { reader, partition: partition.clone(), store, neighbours, known, ahead, number })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_bounded_over_all_file_systems() {
        let known = Known::default();
        let mut xattrs = locked(&known.xattrs);
        for (volume, file) in (0..3).flat_map(|volume| (0..XATTRS_KEPT as u64).map(move |file| (volume, Id(file)))) {
            xattrs.keep((volume, file), Arc::default());
            xattrs.keep((volume, file), Arc::default());
        }
        assert_eq!((xattrs.of.len(), xattrs.order.len()), (XATTRS_KEPT, XATTRS_KEPT));
        assert!(xattrs.of.keys().all(|(volume, _)| *volume == 2), "the latest");
        xattrs.forget();
        assert_eq!((xattrs.of.len(), xattrs.order.len()), (0, 0));
    }
}
