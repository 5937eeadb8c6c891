//! A machine, as the rest of the file system sees it.
//!
//! [`Vm`] is the seam to whoever runs the machine: [`qmp`] talks to QEMU itself, `libvirt` to libvirt; [`memory`] is a machine made of byte
//! arrays, for the tests of everything above. A `Vm` can describe its disks and checkpoints at any time without
//! disturbing anything, take one point in time at once, and let go of it. `warden` gives it up before the guest has to wait for
//! it, by the rules of `room`.

mod confirm;
#[cfg(feature = "libvirt")]
pub mod libvirt;
#[cfg(any(test, feature = "testing"))]
pub mod memory;
mod network;
pub mod qmp;
mod room;
pub mod source;
mod warden;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use serde::Serialize;
use tokio::sync::broadcast;

use crate::block::Source;
use crate::block::changes::FrozenMap;
use crate::error::Result;
use crate::point::reason::Reason;

/// What does not change while a machine is mounted.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// The source as the user gave it, such as `qmp:/run/vm1.qmp`.
    pub source: String,
    /// The machine's own name, where it has one.
    pub name: Option<String>,
    /// QEMU's version.
    pub qemu: String,
    /// How the point in time is kept.
    pub fleece: Fleece,
}

/// How QEMU keeps a point in time (mount option `fleece=`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Fleece {
    /// A backup job's filter and a `snapshot-access` node on it.
    Job,
    /// A scratch image whose backing file is the live disk.
    Backing,
    /// A filter under the guest's device, put there while the guest stands still for a moment.
    Filter,
}

/// The scratch space of the point in time that is held, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Scratch {
    /// Taken by old data of what the guest has overwritten.
    pub used: u64,
    /// Free in the file system.
    pub free: u64,
    /// What it may take at most (mount option `scratch_limit=`).
    pub limit: Option<u64>,
}

/// The disks and checkpoints of a machine at the moment of asking.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inventory {
    /// Disks that can be read, in the machine's order; names are unique.
    pub disks: Vec<Disk>,
    /// What is not shown, and why.
    pub skipped: Vec<Skipped>,
}

impl Inventory {
    /// The disk of that name.
    pub fn disk(&self, name: &str) -> Option<&Disk> {
        self.disks.iter().find(|disk| *disk.name == *name)
    }
}

/// A disk of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The name that the user knows it by; fit to be a file name.
    pub name: Arc<str>,
    /// Name of its root node.
    pub node: String,
    /// Image format.
    pub format: String,
    /// Virtual size, in bytes.
    pub size: u64,
    /// Estimate of the bytes that hold data.
    pub allocated: u64,
    /// The node of the active layer that dirty bitmaps are made on.
    pub bitmap_node: String,
    /// Where the image of that node is, as QEMU names it.
    pub image: String,
    /// Whether bitmaps made there survive a restart of the machine.
    pub keeps_bitmaps: bool,
    /// The dirty bitmaps that make up checkpoints of this disk, by checkpoint.
    pub bitmaps: BTreeMap<Arc<str>, Bitmap>,
}

impl Disk {
    /// The oldest checkpoint that proves that no byte of the disk changed since, by name, and when it was made.
    ///
    /// The oldest, so that a checkpoint made later changes nothing.
    pub fn unchanged_since(&self) -> Option<(&Arc<str>, SystemTime)> {
        let proofs = self.bitmaps.iter().filter_map(|(name, bitmap)| Some((name, bitmap.unchanged_since(self.size)?)));
        proofs.min_by_key(|(_, time)| *time)
    }
}

/// The dirty bitmap of one checkpoint on one disk, counted over the whole backing chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bitmap {
    /// Dirty bytes, counted in whole granules: an upper bound of what an incremental has to copy.
    pub dirty_bytes: u64,
    /// Bytes a bit stands for.
    pub granularity: u32,
    /// Whether changes are still recorded.
    pub recording: bool,
    /// Whether the bitmap survives a restart of the machine.
    pub persistent: bool,
    /// Whether QEMU lost it in a crash.
    pub inconsistent: bool,
    /// Why it cannot tell what changed since the checkpoint, if it cannot.
    pub unusable: Option<Unusable>,
    /// Why all of the disk counts as changed, if it does.
    pub whole: Option<String>,
    /// What pullfs noted when it made the checkpoint; none if somebody else made it.
    pub made: Option<Made>,
    /// The bitmaps that it consists of, down the backing chain.
    pub parts: Vec<Part>,
}

/// Why a checkpoint cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unusable {
    /// What changed since is not known any more.
    Lost(String),
    /// Nobody can be asked now.
    Untold(String),
}

impl Unusable {
    /// In words.
    pub fn why(&self) -> &str {
        let (Self::Lost(why) | Self::Untold(why)) = self;
        why
    }
}

/// What is known of a checkpoint's making.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Made {
    /// When.
    pub time: SystemTime,
    /// The disk's virtual size at that instant, in bytes: what grew since counts as changed.
    pub size: u64,
}

/// A dirty bitmap on one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The node.
    pub node: String,
    /// The bitmap's name.
    pub name: String,
    /// Whether it only notes how the checkpoint was made.
    pub note: bool,
    /// Whether changes are recorded.
    pub recording: bool,
    /// Whether it can be removed: the bitmaps of a backing image cannot.
    pub removable: bool,
}

impl Bitmap {
    /// When the checkpoint was made, if a disk of `size` bytes has provably not changed since: pullfs made it, so that the
    /// time is known, and all that was ever written since is recorded, which is nothing.
    pub fn unchanged_since(&self, size: u64) -> Option<SystemTime> {
        let made = self.made.filter(|made| made.size == size)?;
        let told = self.recording && !self.inconsistent && self.unusable.is_none() && self.whole.is_none();
        (told && self.dirty_bytes == 0).then_some(made.time)
    }

    /// What counts as changed beside what the bitmap says, on a disk that has `size` bytes now.
    pub fn also(&self, size: u64) -> Option<Range<u64>> {
        if self.whole.is_some() {
            return Some(0..size);
        }
        self.made.filter(|made| made.size < size).map(|made| made.size..size)
    }
}

/// What may be left out of the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SkippedKind {
    /// A whole disk.
    Disk,
    /// A dirty bitmap of a disk that is shown.
    Bitmap,
}

/// Something of the machine that is not shown in the tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Skipped {
    /// What it is.
    pub kind: SkippedKind,
    /// Its name.
    pub name: String,
    /// Why, in words for the user.
    pub reason: String,
}

/// A point in time that a machine holds.
pub struct Taken {
    /// Tells this point in time from all others of this mount; from 1.
    pub number: u64,
    /// When it was taken.
    pub time: SystemTime,
    /// The checkpoint that was made at the same instant.
    pub checkpoint: Option<Arc<str>>,
    /// Whether the guest's file systems were frozen for the instant.
    pub quiesced: bool,
    /// What the machine was at that instant.
    pub inventory: Arc<Inventory>,
    /// A frozen view of each disk of the inventory, in its order.
    pub disks: Vec<TakenDisk>,
    /// Whether data may be given out only after [`Vm::confirm`].
    pub needs_confirmation: bool,
    /// Of which checkpoints it has the changes.
    pub base: Base,
}

/// One disk of a point in time.
pub struct TakenDisk {
    /// Reads it.
    pub source: Arc<dyn Source>,
    /// By checkpoint that can be read, what changed since.
    pub frozen: BTreeMap<Arc<str>, FrozenMap>,
}

/// What kind of point in time is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// A checkpoint that is to be made at the same instant.
    pub checkpoint: Option<Arc<str>>,
    /// Whether the guest's file systems are to be frozen for the instant.
    pub quiesce: bool,
    /// The checkpoint whose changes are wanted, where a machine tells those of one alone ([`Base::One`]); none for its
    /// newest.
    pub since: Option<Arc<str>>,
}

/// Of which checkpoints a point in time has the changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Base {
    /// Of all that can be read.
    All,
    /// Of this one exactly, if of any, and of some others roughly. For the rest another point in time is needed.
    One(Option<Arc<str>>),
}

/// What a machine tells of its own accord.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The point in time of this number is not kept any more, for a reason.
    Lost {
        /// Which.
        number: u64,
        /// Why.
        reason: Reason,
        /// The same in words for the user.
        words: String,
    },
    /// The machine does not answer any more; whatever it held is lost to us.
    Gone(String),
}

/// A machine.
#[async_trait]
pub trait Vm: Send + Sync {
    /// What does not change.
    fn machine(&self) -> &Machine;

    /// Disks and checkpoints now. Starts nothing, changes nothing.
    ///
    /// # Errors
    /// When the machine does not answer.
    async fn inventory(&self) -> Result<Inventory>;

    /// Whether what is wanted can be made at all, so that nothing is given up for it in vain.
    ///
    /// # Errors
    /// [`Kind::Invalid`](crate::error::Kind::Invalid) for a name that no checkpoint can have;
    /// [`Kind::Exists`](crate::error::Kind::Exists) if the machine has such a checkpoint.
    async fn admit(&self, wanted: &Wanted) -> Result<()>;

    /// Takes a point in time of all disks and dirty bitmaps at one instant. When it fails, nothing is left of it, or
    /// what is left goes with the next [`Vm::release`].
    ///
    /// # Errors
    /// [`Kind::Busy`](crate::error::Kind::Busy) when another backup is in the way; as [`Vm::admit`]; any other failure.
    async fn take(&self, number: u64, wanted: &Wanted) -> Result<Taken>;

    /// Deletes a checkpoint on all disks. One that somebody else made only with `foreign`.
    ///
    /// # Errors
    /// [`Kind::NotFound`](crate::error::Kind::NotFound), [`Kind::NotOurs`](crate::error::Kind::NotOurs).
    async fn delete_checkpoint(&self, name: &str, foreign: bool) -> Result<()>;

    /// Lets go of all that [`Vm::take`] left in the machine, of all numbers. Nothing held is no error.
    ///
    /// # Errors
    /// When something may be left; calling again tries again.
    async fn release(&self) -> Result<()>;

    /// The same when nothing is taken any more: in a machine that has ended nothing is left to let go of.
    ///
    /// # Errors
    /// As [`Vm::release`].
    async fn end(&self) -> Result<()> {
        self.release().await
    }

    /// Makes sure that the point in time is kept at this moment.
    ///
    /// # Errors
    /// When it is not, or that cannot be known.
    async fn confirm(&self, number: u64) -> Result<()>;

    /// The scratch space of the point in time that is held, as it is now.
    fn scratch(&self) -> Option<Scratch>;

    /// Sets what scratch space may take at most, in bytes; none for as much as there is. Also for the point in time that is
    /// held.
    ///
    /// # Errors
    /// [`Kind::Busy`](crate::error::Kind::Busy) if that one takes more already; then the limit stays as it was.
    async fn limit_scratch(&self, limit: Option<u64>) -> Result<()>;

    /// Whether nothing of the mount can be left in the machine.
    fn is_clean(&self) -> bool;

    /// What happens to the machine from now on. A receiver that lags must take the point in time for lost.
    fn events(&self) -> broadcast::Receiver<Event>;

    /// Ends the connection; releases nothing.
    async fn disconnect(&self);
}
