//! Children that read what is inside of disks: one for each file system that is looked into, one for each question about
//! disks.

use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use inside::lvm::Found;
use inside::table::Table;

use super::process::{Nursery, Program};
use super::slots::Slots;
use super::volume::{self, Volume};
use super::{Blocks, Reader, Readers, Tally};
use crate::error::Result;

/// The subcommand of the program that reads.
pub const SUBCOMMAND: &str = "look-inside";

/// What children may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// How long one may think about one question; waiting for blocks does not count.
    pub thinking: Duration,
    /// How long a call may take in all.
    pub call: Duration,
    /// How long one is kept that nobody asks.
    pub idle: Duration,
    /// How many there are at once.
    pub children: usize,
    /// How long a place among them is waited for.
    pub place: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            thinking: Duration::from_secs(30),
            call: Duration::from_secs(300),
            idle: Duration::from_secs(60),
            children: 16,
            place: Duration::from_secs(10),
        }
    }
}

pub(super) struct Shared {
    pub(super) limits: Limits,
    pub(super) nursery: Nursery,
    pub(super) slots: Slots,
    pub(super) started: AtomicU64,
    pub(super) failed: AtomicU64,
    pub(super) answers: AtomicU64,
}

/// [`Readers`], each a process of its own.
pub struct Children(Arc<Shared>);

impl Children {
    /// Children that are `program` with [`SUBCOMMAND`]. None is started before something is looked into.
    pub fn new(program: &Path) -> Self {
        Self::with(program, vec![SUBCOMMAND.into()], Limits::default())
    }

    /// Children that are any program, within any limits.
    pub fn with(program: &Path, arguments: Vec<OsString>, limits: Limits) -> Self {
        let nursery = Nursery::new(Program { path: program.to_owned(), arguments });
        let [started, failed, answers] = Default::default();
        Self(Arc::new(Shared { limits, nursery, slots: Slots::new(limits.children), started, failed, answers }))
    }

    /// The processes that there are now.
    pub fn pids(&self) -> Vec<u32> {
        self.0.slots.pids()
    }
}

#[async_trait]
impl Readers for Children {
    async fn table(&self, disk: Arc<dyn Blocks>) -> Result<Table> {
        volume::table(&self.0, disk.as_ref()).await
    }

    async fn volumes(&self, disks: Arc<dyn Blocks>, sizes: Vec<u64>) -> Result<Found> {
        volume::volumes(&self.0, disks.as_ref(), sizes).await
    }

    async fn mirrors(&self, disks: Arc<dyn Blocks>, sizes: Vec<u64>) -> Result<Vec<usize>> {
        volume::mirrors(&self.0, disks.as_ref(), sizes).await
    }

    async fn open(&self, partition: Arc<dyn Blocks>) -> Result<Arc<dyn Reader>> {
        Ok(Arc::new(Volume::open(Arc::clone(&self.0), partition).await?))
    }

    fn tally(&self) -> Tally {
        let now = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let Shared { started, failed, answers, .. } = &*self.0;
        Tally { running: self.pids().len(), started: now(started), failed: now(failed), answers: now(answers) }
    }
}
