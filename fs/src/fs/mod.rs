//! The operations of the file system, on our own types: everything that the kernel may ask, without the kernel.
//!
//! A look-up names a node and the point in time that an open would lease (see [`crate::tree::inode`]); an open leases
//! it, taking one if it must, and makes the file's image; a read asks the image for segments, fetches them, and gives
//! them out only after the point in time is confirmed. Nothing but an open takes a point in time.

mod attr;
mod changed;
mod checkpoint;
pub(crate) mod command;
mod generation;
mod guest;
mod handle;
mod inventory;
mod io;
mod live;
mod lookup;
mod lvm;
mod metered;
mod open;
mod partitions;
mod status;
mod xattr;

#[cfg(test)]
mod tests;

use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use inside::FileKind;
use tokio::sync::Semaphore;
use tokio::time::timeout;

pub use self::attr::{Attr, Lasts, OfGuest};
use self::attr::{Ownership, blocks};
use self::generation::Epoch;
use self::handle::{Handle, Handles};
use self::inventory::Inventories;
use self::live::Live;
use self::lookup::no_node;
use self::metered::Meters;
use self::open::Measure;
pub use self::status::Sandbox;
use self::status::{Attempts, Facts, Noted, Reads};
pub use self::xattr::Asked;
use crate::block::cache::Cache;
use crate::block::throttle::{Limits, Throttle};
use crate::error::{Error, Kind, Result, chain};
use crate::guardian::Pid;
use crate::guest::Readers;
use crate::image::pieces::MAX_ALL_PIECES;
use crate::options::in_force::InForce;
use crate::options::settings::Resolved;
use crate::options::{Formats, Options};
use crate::point::PointInTime;
use crate::point::owner::{Invalidate, Points};
use crate::point::policy::Terms;
use crate::tree::inode::{Inodes, Told};
use crate::tree::partitions::{Inside, Medium};
use crate::tree::{Content, Form, Node};
use crate::vm::{Inventory, Vm};

/// How long `status.json` waits for the machine, so that it can be read of one that hangs: that is when it is wanted.
const STATUS_LIMIT: Duration = Duration::from_secs(2);

/// A node as a look-up tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its attributes.
    pub attr: Attr,
    /// Tells the nodes of one number apart that the kernel must not take for each other, in 32 bits.
    pub generation: u64,
    /// How long the name stands for it.
    pub lasts: Lasts,
}

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// Inode number.
    pub ino: u64,
    /// What it is.
    pub kind: FileKind,
    /// The name.
    pub name: Arc<OsStr>,
}

/// What a file is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Only reading.
    Read,
    /// Writing, perhaps reading too.
    Write,
}

/// An open file, and how the kernel may cache it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// To be given back with [`Fs::release`].
    pub handle: u64,
    /// Its pages may stay in the kernel's cache; else every read comes here.
    pub cached: bool,
}

/// What `statfs` tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Virtual sizes of all disks together, in blocks of [`Space::BLOCK`].
    pub blocks: u64,
    /// Files in the tree that show disks.
    pub files: u64,
}

impl Space {
    /// Block size, in bytes.
    pub const BLOCK: u32 = 4096;
}

#[derive(Default)]
struct Counters {
    count: AtomicU64,
    bytes: AtomicU64,
    failed: AtomicU64,
}

/// The modification time of a node at a point in time. Maps tell of the point in time itself, and deltas of where they
/// begin, so an old proof says nothing of theirs.
fn modified(node: &Node, point: &PointInTime) -> SystemTime {
    match node {
        Node::File { disk, content, .. } if content.is_whole_disk() => point.modified(disk),
        Node::Inside { medium: Medium::Disk(disk), what: Inside::Raw(_) } => point.modified(disk),
        _ => point.time(),
    }
}

/// What a node is that is no guest's file.
fn kind(node: &Node) -> FileKind {
    if node.is_directory() || node.guest().is_some() { FileKind::Directory } else { FileKind::File }
}

/// The file system of one mounted machine.
pub struct Fs {
    vm: Arc<dyn Vm>,
    /// As it was mounted: of those that can be changed, `live` knows what they are.
    options: Options,
    live: Live,
    mount_id: String,
    guardian: Pid,
    sandbox: Sandbox,
    /// Where it is mounted, for `status.json`.
    mount_point: Option<PathBuf>,
    throttle: Arc<Throttle>,
    owner: Ownership,
    mounted: SystemTime,
    epoch: Epoch,
    inventories: Inventories,
    cache: Arc<Cache>,
    points: Points,
    inodes: Arc<Inodes>,
    handles: Handles,
    counters: Counters,
    /// None where nobody asks for metrics.
    meters: Option<Meters>,
    /// Who reads what is inside of disks; none if nobody does.
    readers: Option<Arc<dyn Readers>>,
    /// Pieces of guests' files that may be kept yet.
    pieces: Arc<Semaphore>,
    /// One list of changed files is made at a time.
    walks: Semaphore,
    /// The size of `status.json` when it was last written.
    status_size: AtomicU64,
    last_error: Mutex<Option<Noted>>,
}

impl Fs {
    /// A file system for a machine. `owner` is the mounting user and group; `inodes` names the nodes whose pages
    /// `invalidate` has to drop; `guardian` is who cleans up after this process.
    pub fn new(
        vm: Arc<dyn Vm>,
        options: Options,
        mount_id: String,
        owner: (u32, u32),
        inodes: Arc<Inodes>,
        invalidate: Invalidate,
        guardian: Pid,
    ) -> Self {
        let cache = Cache::new(options.cache);
        let mounted = SystemTime::now();
        Self {
            owner: Ownership {
                uid: options.uid.unwrap_or(owner.0),
                gid: options.gid.unwrap_or(owner.1),
                umask: options.umask,
                // Who may read all whatever the modes say, and whom nobody gave a say.
                guests: options.uid.is_none() && options.gid.is_none() && (!options.allow_other || owner.0 == 0),
            },
            mount_id,
            guardian,
            sandbox: Sandbox::default(),
            mount_point: None,
            throttle: Throttle::new(Limits::from(&options), nbd_pool::Config::default().request_size),
            live: Live::new(options.clone().into(), None),
            mounted,
            epoch: Epoch::of(mounted),
            inventories: Inventories::start(vm.clone()),
            points: Points::start(vm.clone(), cache.clone(), Terms::from(&options), invalidate),
            cache,
            inodes,
            handles: Handles::default(),
            counters: Counters::default(),
            meters: None,
            readers: None,
            pieces: Arc::new(Semaphore::new(MAX_ALL_PIECES)),
            walks: Semaphore::new(1),
            status_size: AtomicU64::new(0),
            last_error: Mutex::default(),
            vm,
            options,
        }
    }

    /// Whether others than the mounting user may read the guest's files as far as the guest lets them: then its access control
    /// lists count, too.
    pub fn shows_owners_to_others(&self) -> bool {
        self.options.allow_other && self.owner.guests
    }

    /// The same, telling of what the daemon gave up.
    #[must_use]
    pub fn sandboxed(self, sandbox: Sandbox) -> Self {
        Self { sandbox, ..self }
    }

    /// The same, showing what is inside of disks.
    #[must_use]
    pub fn reading_inside(self, readers: Arc<dyn Readers>) -> Self {
        Self { readers: Some(readers), ..self }
    }

    /// The same, telling where it is mounted.
    #[must_use]
    pub fn mounted_on(self, mount_point: PathBuf) -> Self {
        Self { mount_point: Some(mount_point), ..self }
    }

    /// The same, telling of what spares the guest's disks.
    #[must_use]
    pub fn throttled(self, throttle: Arc<Throttle>) -> Self {
        Self { throttle, ..self }
    }

    /// The same, telling who decided of its options, which `resolved` has as well; `config` is the configuration file that
    /// was asked.
    #[must_use]
    pub fn configured(self, resolved: Resolved, config: PathBuf) -> Self {
        Self { live: Live::new(resolved, Some(config)), ..self }
    }

    /// The point in time, for whoever ends the mount.
    pub fn points(&self) -> &Points {
        &self.points
    }

    /// Which files appear. What is inside of a disk is found by reading the same again and again.
    fn formats(&self) -> Formats {
        let partitions = self.options.formats.partitions && self.readers.is_some() && !self.options.read_once;
        Formats { partitions, ..self.options.formats }
    }

    /// The machine that the tree shows: as it was at the point in time, or as it is now.
    async fn inventory(&self) -> Result<Arc<Inventory>> {
        match self.points.view().held {
            Some(point) => Ok(point.inventory()),
            None => self.inventories.get().await,
        }
    }

    /// The inventory where it decides whether the node is there; nodes that are always there must not fail with it.
    async fn inventory_for(&self, node: &Node) -> Result<Arc<Inventory>> {
        match node {
            Node::Root | Node::Status | Node::Control => Ok(Arc::default()),
            _ => self.inventory().await,
        }
    }

    fn node(&self, ino: u64) -> Result<Node> {
        Ok(self.told(ino)?.node)
    }

    fn told(&self, ino: u64) -> Result<Told> {
        let told = self.inodes.get(ino);
        told.ok_or_else(|| no_node(ino))
    }

    /// Takes back references that look-ups gave.
    pub fn forget(&self, ino: u64, lookups: u64) {
        self.inodes.forget(ino, lookups);
    }

    /// The attributes of a node; of an open file if `handle` is one, which stay what they were when it was opened.
    ///
    /// # Errors
    /// [`Kind::NotFound`] when the machine no longer has what it stands for; [`Kind::Stale`] or [`Kind::Io`] for an open
    /// file whose point in time has ended; when the machine does not answer.
    pub async fn getattr(&self, ino: u64, handle: Option<u64>) -> Result<Attr> {
        let told = self.told(ino)?;
        let node = told.node.clone();
        let open = handle.and_then(|handle| self.handles.get(handle).ok());
        if let (Some(Handle::File(file)), true) = (open.as_deref(), node.guest().is_none()) {
            // Reads end at this size, so it is that of the file and of no other instant.
            file.lease.check()?;
            let measure = Measure { size: file.image.size(), data: file.image.data_bytes(), settled: false };
            return Ok(self.shown(&node, &measure, modified(&node, &file.lease)));
        }
        match &node {
            Node::Inside { what: Inside::Partitions | Inside::Table, .. } => {}
            Node::Inside { medium, what } => return self.attr_inside(&self.instant(&told)?, medium, *what).await,
            Node::LvmGroup(_) => drop(self.instant(&told)?),
            _ => {}
        }
        let inventory = self.inventory_for(&node).await?;
        if !node.exists(&inventory) {
            return Err(Error::new(Kind::NotFound, "the machine has no such disk or checkpoint any more"));
        }
        let attr = self.attr(&node, &inventory, self.points.view().held).await?;
        self.inodes.tell_size(ino, attr.size);
        Ok(attr)
    }

    async fn attr(&self, node: &Node, inventory: &Inventory, point: Option<Arc<PointInTime>>) -> Result<Attr> {
        let measure = match node {
            Node::File { disk, checkpoint, content } => {
                self.measure(point.as_ref(), inventory, disk, checkpoint.as_ref(), *content).await?
            }
            Node::Status => {
                let size = self.status_size.load(Ordering::Relaxed);
                Measure { size, data: size, settled: false }
            }
            Node::Inside { medium: Medium::Disk(disk), what: Inside::Table } => {
                self.measure_table(point.as_ref(), disk).await
            }
            Node::LvmTable => self.measure_lvm_table(point.as_ref()).await,
            _ => Measure { size: 0, data: 0, settled: true },
        };
        let mtime = match (point, node) {
            (Some(point), node) => modified(node, &point),
            (None, Node::File { disk, content, .. }) => self.unheld(disk, *content, inventory).await?,
            (None, _) => self.mounted,
        };
        Ok(self.shown(node, &measure, mtime))
    }

    /// The modification time of a file while no point in time is held: that of the checkpoint since which the disk has not
    /// changed until this very call, else now, which no copy has. `inventory` may be a second old.
    async fn unheld(&self, disk: &str, content: Content, inventory: &Inventory) -> Result<SystemTime> {
        let asked = SystemTime::now();
        let proof = |inventory: &Inventory| Some(inventory.disk(disk)?.unchanged_since()?.1);
        // What has changed stays changed: only for the other answer it must be asked again.
        if !content.is_whole_disk() || proof(inventory).is_none() {
            return Ok(asked);
        }
        Ok(proof(&*self.inventories.now().await?).unwrap_or(asked))
    }

    fn shown(&self, node: &Node, measure: &Measure, mtime: SystemTime) -> Attr {
        Attr {
            ino: self.inodes.number(node),
            kind: kind(node),
            mode: self.owner.mode(node),
            size: measure.size,
            blocks: blocks(measure.data),
            mtime,
            uid: self.owner.uid,
            gid: self.owner.gid,
            lasts: if measure.settled { Lasts::Briefly } else { Lasts::Not },
            guest: None,
        }
    }

    /// Opens a directory: what is in it now, kept for [`Fs::readdir`].
    ///
    /// # Errors
    /// When the machine does not answer.
    pub async fn opendir(&self, ino: u64) -> Result<u64> {
        let told = self.told(ino)?;
        let node = &told.node;
        if let Some((medium, partition, file)) = node.guest() {
            let directory = self.noted(self.open_guest_directory(ino, &told, medium, partition, file).await)?;
            return Ok(self.handles.add(Handle::Guest(directory)));
        }
        let inventory = self.inventory_for(node).await?;
        let entry = |ino, kind, name: &str| DirEntry { ino, kind, name: Arc::from(OsStr::new(name)) };
        let directory = FileKind::Directory;
        let mut entries = vec![entry(ino, directory, "."), entry(self.inodes.number(&node.parent()), directory, "..")];
        let mut children = node.children(&inventory, self.formats());
        children.extend(match node {
            Node::Inside { medium, what } => self.noted(self.children_inside(&told, medium, *what).await)?,
            Node::Lvm => self.noted(self.children_lvm().await)?,
            Node::LvmGroup(group) => self.noted(self.children_group(&told, group).await)?,
            _ => Vec::new(),
        });
        entries.extend(children.iter().map(|(name, child)| entry(self.inodes.number(child), kind(child), name)));
        Ok(self.handles.add(Handle::Directory(entries)))
    }

    /// The entries of an open directory from `offset` on, which is 0 or what `each` was told with the entry before, until that
    /// says that it has no room.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if the handle is not an open directory; for one of a guest's as [`Fs::read`].
    pub async fn readdir(
        &self,
        handle: u64,
        offset: u64,
        mut each: impl FnMut(u64, &DirEntry) -> bool + Send,
    ) -> Result<()> {
        match &*self.handles.get(handle)? {
            Handle::Directory(entries) => {
                let skipped = usize::try_from(offset).unwrap_or(usize::MAX);
                for (next, entry) in (1..).zip(entries).skip(skipped) {
                    if each(next, entry) {
                        break;
                    }
                }
                Ok(())
            }
            Handle::Guest(directory) => self.noted(self.list_guest(directory, offset, each).await),
            _ => Err(Error::new(Kind::Invalid, "not an open directory")),
        }
    }

    /// Opens a file. One that shows a disk takes a point in time if none is held.
    ///
    /// # Errors
    /// [`Kind::Denied`] for anything but writing to `control` and reading the others, whoever asks.
    /// [`Kind::Stale`] when the file was looked up for another point in time: look it up again and come back. Any
    /// failure of taking a point in time; it is noted in `status.json`.
    pub async fn open(&self, ino: u64, access: Access) -> Result<Opened> {
        let told = self.told(ino)?;
        let Told { node, generation, size } = &told;
        let (generation, size) = (*generation, *size);
        if (access == Access::Write) != (*node == Node::Control) {
            return Err(Error::new(Kind::Denied, "control is only written, all other files are only read"));
        }
        match node {
            Node::Status => {
                let text = self.status().await;
                Ok(Opened { handle: self.handles.add(Handle::Status(text)), cached: false })
            }
            Node::Control => Ok(Opened { handle: self.handles.add(Handle::Control), cached: false }),
            Node::File { disk, checkpoint, content } => {
                let file = self.open_file(generation, node, disk, checkpoint.as_ref(), *content).await;
                let file = self.noted(file)?;
                let cached = content.form() != Form::Map;
                // Pages end at the size that the kernel was told, which was an estimate if this open took the point in
                // time. It looks the file up again, and comes back.
                if cached && file.image.size() != size {
                    return Err(Error::new(Kind::Stale, "the size that was told was an estimate"));
                }
                Ok(Opened { handle: self.handles.add(Handle::File(file)), cached })
            }
            Node::LvmTable => {
                let file = self.noted(self.open_lvm_table(&told).await)?;
                Ok(Opened { handle: self.handles.add(Handle::File(file)), cached: false })
            }
            Node::Inside { medium, what } if !what.is_directory() => {
                let file = self.noted(self.open_inside(&told, medium, *what).await)?;
                let cached = *what != Inside::Table;
                self.inodes.opened(ino);
                Ok(Opened { handle: self.handles.add(Handle::File(file)), cached })
            }
            _ => Err(Error::new(Kind::Invalid, "a directory is not opened as a file")),
        }
    }

    /// Closes a file or directory. An unknown handle is no error: the kernel has given it up either way.
    pub fn release(&self, handle: u64) {
        self.handles.remove(handle);
    }

    /// Sizes for `statfs`. Never fails: a machine that does not answer has no disks.
    pub async fn statfs(&self) -> Space {
        let inventory = self.inventory().await.unwrap_or_default();
        let bytes = inventory.disks.iter().map(|disk| disk.size).fold(0, u64::saturating_add);
        let files = inventory.disks.iter().map(|disk| 3 + 4 * disk.bitmaps.len()).sum::<usize>();
        Space { blocks: bytes.div_ceil(u64::from(Space::BLOCK)), files: u64::try_from(files).unwrap_or(u64::MAX) }
    }

    async fn status(&self) -> Bytes {
        let (inventory, unreachable) = match timeout(STATUS_LIMIT, self.inventories.get()).await {
            Ok(Ok(inventory)) => (inventory, None),
            Ok(Err(error)) => (Arc::default(), Some(chain(&error))),
            Err(_) => (Arc::default(), Some(format!("it has not answered for {} s", STATUS_LIMIT.as_secs()))),
        };
        let last_error = self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let reads = Reads {
            count: self.counters.count.load(Ordering::Relaxed),
            bytes: self.counters.bytes.load(Ordering::Relaxed),
            failed: self.counters.failed.load(Ordering::Relaxed),
        };
        let (taken, failed) = self.points.tally().attempts();
        let resolved = self.live.now();
        let text = status::render(Facts {
            mount_id: &self.mount_id,
            mounted: (self.mount_point.as_deref(), self.mounted),
            options: InForce::new(&resolved.options, (self.owner.uid, self.owner.gid)),
            resolved: &resolved,
            config: self.live.config.as_deref(),
            guardian: self.guardian.get(),
            sandbox: &self.sandbox,
            throttle: self.throttle.now(),
            machine: self.vm.machine(),
            inventory: &inventory,
            unreachable: unreachable.as_deref(),
            view: &self.points.view(),
            attempts: Attempts { taken, failed },
            last_error: last_error.as_ref(),
            reads,
            cache: self.cache.usage(),
            readers: self.tally(),
        });
        self.status_size.store(u64::try_from(text.len()).unwrap_or(0), Ordering::Relaxed);
        Bytes::from(text)
    }

    /// Keeps an error for `status.json`, since the one who asked only gets an errno.
    fn noted<T>(&self, outcome: Result<T>) -> Result<T> {
        if let Err(error) = &outcome {
            // Neither is a failure: a stale file is what somebody asked for, or is looked up again at once; and that no
            // data follows is an answer.
            if !matches!(error.kind(), Kind::Stale | Kind::NoSuchData) {
                let message = chain(error);
                tracing::warn!("{message}");
                *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) =
                    Some(Noted::now(error.kind(), message));
            }
        }
        outcome
    }
}
