//! What is inside the guest's disks: partitions and the guest's own files.
//!
//! The guest's blocks are never parsed in this process: whoever implements [`Readers`] does that where it can do no harm. This
//! process gives blocks of the frozen disk, gets told where a file's data is, and reads that by itself, through the cache.

mod ahead;
pub mod changed;
mod children;
pub mod lvm;
mod once;
mod process;
mod slots;
#[cfg(test)]
pub(crate) mod testing;
pub mod text;
mod together;
mod volume;
pub mod volumes;
mod window;

#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use inside::lvm::Found;
use inside::table::Table;
use inside::{Attributes, Extent, Id, Summary, Xattr};
use serde::Serialize;

pub use self::children::{Children, Limits, SUBCOMMAND};
use crate::error::Result;
pub use inside::wire::{Described, Listed, MAX_ANSWERS, MAX_BLOCKS, Names};

/// Whether a name can be that of a file: who read it has parsed a disk that anybody may have written.
pub fn is_name(name: &[u8]) -> bool {
    !name.is_empty() && name != b"." && name != b".." && !name.iter().any(|byte| matches!(byte, b'/' | 0))
}

/// Blocks of a frozen disk, or of a part of one.
#[async_trait]
pub trait Blocks: Send + Sync {
    /// Size, in bytes.
    fn size(&self) -> u64;

    /// What messages call it: `vda`, `partition 2 of vda`.
    fn name(&self) -> &str;

    /// The bytes of a range that lies within the size, at most [`MAX_BLOCKS`].
    ///
    /// # Errors
    /// When the point in time has ended, or the disk cannot be read.
    async fn read(&self, range: Range<u64>) -> Result<Bytes>;
}

/// A guest's file system that is open: [`inside::FileSystem`], from afar. All of it can be called at once. Every call ends within a
/// limit of time.
///
/// Errors of all methods: [`crate::error::Kind::Io`] when the disk is not right, or the reader died of it (another is had by
/// opening it again); [`crate::error::Kind::Unsupported`] for what is not read here; what [`Blocks`] failed with.
#[async_trait]
pub trait Reader: Send + Sync {
    /// What it says of itself.
    fn summary(&self) -> &Summary;

    /// Its root directory.
    fn root(&self) -> Id;

    /// How often whoever reads it has died: a call that failed meanwhile may not when it is made again.
    fn deaths(&self) -> u64;

    /// What stat(2) tells of a file.
    async fn attributes(&self, file: Id) -> Result<Attributes>;

    /// The file of that name in a directory, none if there is none.
    async fn lookup(&self, directory: Id, name: &[u8]) -> Result<Option<(Id, Attributes)>>;

    /// At most [`MAX_ANSWERS`] names from `from` on; none at the end.
    async fn list(&self, directory: Id, from: u64) -> Result<Names>;

    /// At most `most` names from `from` on, with what there is to tell of each file; fewer if one of them cannot be read, none at
    /// the end.
    async fn describe(&self, directory: Id, from: u64, most: usize) -> Result<Vec<Described>>;

    /// The parent of a directory.
    async fn parent(&self, directory: Id) -> Result<Id>;

    /// The target of a symbolic link.
    async fn link_target(&self, file: Id) -> Result<Vec<u8>>;

    /// Extended attributes.
    async fn xattrs(&self, file: Id) -> Result<Vec<Xattr>>;

    /// At most [`MAX_ANSWERS`] pieces of a regular file from `from` on, in bytes; none at or after its end.
    async fn extents(&self, file: Id, from: u64) -> Result<Vec<Extent>>;
}

/// Who reads what is inside of disks.
#[async_trait]
pub trait Readers: Send + Sync {
    /// What a disk is divided into.
    ///
    /// # Errors
    /// As those of [`Reader`].
    async fn table(&self, disk: Arc<dyn Blocks>) -> Result<Table>;

    /// The logical volumes of LVM2 on disks or partitions of these sizes, which come one after the other.
    ///
    /// # Errors
    /// As those of [`Reader`].
    async fn volumes(&self, disks: Arc<dyn Blocks>, sizes: Vec<u64>) -> Result<Found>;

    /// Which of some members of arrays have missed writes that another has, by their places; as with [`Readers::volumes`].
    ///
    /// # Errors
    /// As those of [`Reader`].
    async fn mirrors(&self, disks: Arc<dyn Blocks>, sizes: Vec<u64>) -> Result<Vec<usize>>;

    /// Opens the file system on a partition.
    ///
    /// # Errors
    /// As those of [`Reader`].
    async fn open(&self, partition: Arc<dyn Blocks>) -> Result<Arc<dyn Reader>>;

    /// What they did so far.
    fn tally(&self) -> Tally;
}

/// What those who read what is inside of disks did so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// How many there are now.
    pub running: usize,
    /// How many there were.
    pub started: u64,
    /// How many of them died, or were ended since they took too long or spoke nonsense.
    pub failed: u64,
    /// Questions that they answered.
    pub answers: u64,
}
