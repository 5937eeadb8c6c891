//! The point in time: all disks of the machine at one instant, held until it is let go or lost.
//!
//! ```text
//!             open, begin                       release, begin, end of the mount
//!    ┌──────┐ ──────────▶ ┌────────┐ ─────▶ ┌──────┐ ───────────────▶ ┌───────────┐
//!    │ none │             │ taking │        │ held │   the machine    │ releasing │
//!    └──────┘ ◀────────── └────────┘        └──────┘ ──lost it───────▶ └───────────┘
//!        ▲      failed: undone                                             │
//!        └─────────────────────────────────────────────────────────────────┘
//! ```
//! One task, the [`owner`], has that state; all others ask it. [`policy`] says what is granted, [`plan`] undoes what
//! fails half-way. A [`PointInTime`] is shared by all who opened a file on it, and outlives its end only to say that it
//! ended.

pub mod journal;
pub mod maps;
pub mod overlap;
pub mod owner;
pub mod plan;
pub mod policy;
pub mod reason;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use tokio::time::Instant;

use self::maps::Maps;
use self::policy::Use;
use crate::block::allocation::Allocation;
use crate::block::cache::{Cache, CachedDisk, Keeper};
use crate::block::{Source, Traffic};
use crate::error::{Error, Kind, Result};
use crate::guest::volumes::Volumes;
use crate::vm::{Base, Bitmap, Disk, Inventory, Scratch, Taken, Vm};

/// How a point in time ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Somebody let it go.
    Released,
    /// The machine does not keep it any more.
    Lost,
}

/// A disk at the point in time.
pub struct FrozenDisk {
    /// What it was at that instant.
    pub disk: Disk,
    /// Where its bytes come from.
    pub source: Arc<dyn Source>,
    /// Reads it, and confirms what it read.
    pub cached: Arc<CachedDisk>,
    /// Where it holds data.
    pub allocation: Arc<Allocation>,
}

/// A point in time that is, or was, held.
pub struct PointInTime {
    number: u64,
    time: SystemTime,
    checkpoint: Option<Arc<str>>,
    quiesced: bool,
    /// Held for a moment only; it changes when a checkpoint is deleted.
    inventory: Mutex<Arc<Inventory>>,
    disks: Vec<FrozenDisk>,
    maps: Maps,
    /// When a disk of that name changed last, where that is known.
    unchanged: BTreeMap<Arc<str>, SystemTime>,
    needs_confirmation: bool,
    base: Base,
    /// Whether somebody began it, rather than opening a file.
    begun: bool,
    vm: Arc<dyn Vm>,
    ended: OnceLock<Ended>,
    taken: Instant,
    /// What was found inside of its disks.
    volumes: Volumes,
    /// Files open on it.
    open: AtomicUsize,
    /// When the last one was closed. Held for a moment only.
    last_close: Mutex<Instant>,
}

impl PointInTime {
    /// `after` is what the machine was at some moment after the instant; `begun` says whether somebody asked for it as such.
    fn new(taken: Taken, after: &Inventory, begun: bool, vm: Arc<dyn Vm>, cache: &Arc<Cache>) -> Self {
        let unchanged = unchanged(&taken.inventory, after);
        let maps = Maps::new(&taken);
        let keeper: Option<Arc<dyn Keeper>> =
            if taken.needs_confirmation { Some(Arc::new(Kept { vm: vm.clone(), number: taken.number })) } else { None };
        let freeze = |(disk, view): (&Disk, &crate::vm::TakenDisk)| FrozenDisk {
            disk: disk.clone(),
            source: view.source.clone(),
            cached: cache.disk(view.source.clone(), keeper.clone()),
            allocation: Arc::new(Allocation::new(view.source.clone(), disk.size, keeper.clone())),
        };
        Self {
            number: taken.number,
            time: taken.time,
            disks: taken.inventory.disks.iter().zip(&taken.disks).map(freeze).collect(),
            checkpoint: taken.checkpoint,
            quiesced: taken.quiesced,
            inventory: Mutex::new(taken.inventory),
            maps,
            unchanged,
            needs_confirmation: taken.needs_confirmation,
            base: taken.base,
            begun,
            vm,
            ended: OnceLock::new(),
            taken: Instant::now(),
            volumes: Volumes::default(),
            open: AtomicUsize::new(0),
            last_close: Mutex::new(Instant::now()),
        }
    }

    /// Tells it from all others of this mount.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// How long ago it was taken, by a clock that nobody sets.
    pub fn age(&self) -> Duration {
        self.taken.elapsed()
    }

    /// When it was taken.
    pub fn time(&self) -> SystemTime {
        self.time
    }

    /// What its files of a whole disk tell as the time of their last change: that of the oldest checkpoint since which
    /// the disk has provably not changed, else when it was taken.
    pub fn modified(&self, disk: &str) -> SystemTime {
        self.unchanged.get(disk).copied().unwrap_or(self.time)
    }

    /// Of which checkpoints it has the changes.
    pub fn base(&self) -> &Base {
        &self.base
    }

    /// Whether a file of this checkpoint, or of none, can be opened on it, or fails for reasons of its own.
    pub(crate) fn serves(&self, checkpoint: Option<&Arc<str>>) -> bool {
        let (Base::One(_), Some(checkpoint)) = (&self.base, checkpoint) else { return true };
        let inventory = self.inventory();
        let mut bitmaps = inventory.disks.iter().filter_map(|disk| disk.bitmaps.get(checkpoint));
        self.maps.has(checkpoint) || bitmaps.all(|bitmap| bitmap.unusable.is_some())
    }

    /// What it is to somebody who wants the changes since this checkpoint, or of none.
    fn stands(&self, since: Option<&Arc<str>>) -> policy::Held {
        policy::Held { open: self.open_files(), begun: self.begun, serves: self.serves(since) }
    }

    /// The checkpoint that was made at the same instant.
    pub fn checkpoint(&self) -> Option<&Arc<str>> {
        self.checkpoint.as_ref()
    }

    /// Whether the guest's file systems were frozen for the instant.
    pub fn quiesced(&self) -> bool {
        self.quiesced
    }

    /// What the machine was at that instant, but for checkpoints that were deleted since.
    pub fn inventory(&self) -> Arc<Inventory> {
        self.inventory.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Leaves a checkpoint out from now on. Files of it that are open stay what they are.
    fn forget_checkpoint(&self, name: &str) {
        let mut inventory = self.inventory.lock().unwrap_or_else(PoisonError::into_inner);
        for disk in &mut Arc::make_mut(&mut inventory).disks {
            disk.bitmaps.remove(name);
        }
    }

    /// A disk by name.
    pub fn disk(&self, name: &str) -> Option<&FrozenDisk> {
        self.disks.iter().find(|frozen| *frozen.disk.name == *name)
    }

    /// What was found inside of its disks.
    pub fn volumes(&self) -> &Volumes {
        &self.volumes
    }

    /// The frozen dirty maps.
    pub fn maps(&self) -> &Maps {
        &self.maps
    }

    /// What was asked of its disks so far.
    pub fn traffic(&self) -> Traffic {
        let mut sum = Traffic::default();
        self.disks.iter().for_each(|disk| sum += disk.source.traffic());
        sum
    }

    /// Files open on it now.
    pub fn open_files(&self) -> usize {
        self.open.load(Ordering::Acquire)
    }

    /// Somebody looks at what is inside, and is likely to go on: it is as if a file had been closed.
    pub(crate) fn touch(&self) {
        *self.last_close.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// How it is used.
    fn used(&self) -> Use {
        let open = self.open_files();
        let last_close = *self.last_close.lock().unwrap_or_else(PoisonError::into_inner);
        Use { taken: self.taken, open, last_close }
    }

    /// The machine's scratch space for it, as it is now.
    pub fn scratch(&self) -> Option<Scratch> {
        self.vm.scratch()
    }

    /// That it has not ended.
    ///
    /// # Errors
    /// [`Kind::Stale`] if it was released, [`Kind::Io`] if it was lost.
    pub fn check(&self) -> Result<()> {
        match self.ended.get() {
            None => Ok(()),
            Some(Ended::Released) => Err(Error::new(Kind::Stale, "the point in time of this file was released")),
            Some(Ended::Lost) => Err(Error::new(Kind::Io, "the point in time of this file was lost")),
        }
    }

    /// That data read before this call may be given out: the machine has kept the point in time until now.
    ///
    /// # Errors
    /// As [`PointInTime::check`]; [`Kind::Io`] when the machine does not confirm it.
    pub async fn confirm(&self) -> Result<()> {
        if self.needs_confirmation {
            self.check()?;
            if let Err(error) = confirmed(&*self.vm, self.number).await {
                self.check()?;
                return Err(error);
            }
        }
        self.check()
    }

    fn end(&self, how: Ended) {
        // The first reason stands.
        self.ended.set(how).ok();
        self.volumes.end();
        self.disks.iter().for_each(|disk| disk.cached.end());
    }
}

/// Since when disks did not change until a point in time, by the checkpoints that it has.
///
/// Those had recorded nothing yet *after* the instant, so nothing at the instant: what is recorded is never forgotten.
/// `at` was asked before the instant, when more may have been written since; it says which checkpoints were there by then.
fn unchanged(at: &Inventory, after: &Inventory) -> BTreeMap<Arc<str>, SystemTime> {
    let since = |disk: &Disk| {
        let after = after.disk(&disk.name)?;
        let still = |(name, bitmap): (&Arc<str>, &Bitmap)| {
            let time = bitmap.unchanged_since(disk.size)?;
            let proof = after.bitmaps.get(name)?.unchanged_since(disk.size)?;
            (proof == time).then_some(time)
        };
        let oldest = disk.bitmaps.iter().filter_map(still).min()?;
        (after.size == disk.size && after.bitmap_node == disk.bitmap_node).then(|| (disk.name.clone(), oldest))
    };
    at.disks.iter().filter_map(since).collect()
}

async fn confirmed(vm: &dyn Vm, number: u64) -> Result<()> {
    let why = "data was read, but the machine no longer keeps the point in time";
    vm.confirm(number).await.map_err(|error| error.context(why))
}

/// What confirms data of a point in time.
struct Kept {
    vm: Arc<dyn Vm>,
    number: u64,
}

#[async_trait]
impl Keeper for Kept {
    async fn confirm(&self) -> Result<()> {
        confirmed(&*self.vm, self.number).await
    }
}

/// A share in a point in time: one open file or directory.
pub struct Lease(Arc<PointInTime>);

impl Lease {
    fn new(point: Arc<PointInTime>) -> Self {
        point.open.fetch_add(1, Ordering::Relaxed);
        Self(point)
    }

    /// The point in time, without a share in it.
    pub fn point(&self) -> Arc<PointInTime> {
        self.0.clone()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // Before the count: who sees none open must see when that was.
        self.0.touch();
        self.0.open.fetch_sub(1, Ordering::Release);
    }
}

impl std::ops::Deref for Lease {
    type Target = PointInTime;

    fn deref(&self) -> &PointInTime {
        &self.0
    }
}
