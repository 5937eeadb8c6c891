//! What is inside a disk: partition tables and file systems.
//!
//! ```text
//! Disk (blocks) ─▶ table, probe ─▶ FileSystem: ext, xfs, …
//! ```
//! Reads only, and only what it is asked for; knows nothing of machines, points in time or the kernel. Each byte of a disk is
//! taken for hostile: nothing is allocated, looped over or followed by a number that was read before that number was checked, and
//! what cannot be right is an [`Error`], never a guess. A reader tells where a file's data is ([`FileSystem::extents`]);
//! whoever asked reads it there.

mod acl;
mod checksum;
mod disk;
mod error;
pub mod ext;
pub mod fat;
pub mod lvm;
pub mod ntfs;
mod numbers;
mod open;
mod probe;
pub mod raid;
mod raw;
mod reader;
pub mod serve;
pub mod table;
mod utf16;
pub mod wire;
pub mod xfs;

pub use disk::{Disk, Part};
pub use error::{Error, Kind, Result};
pub use open::open;
pub use probe::probe;
pub use reader::{Attributes, Entry, Extent, FileKind, FileSystem, Id, Place, Summary, Time, Xattr};
