//! Opening the file system that is on a disk or a partition.

use crate::{Disk, Error, FileSystem, Result, probe};

/// Opens the file system on a disk or a partition.
///
/// # Errors
/// [`crate::Kind::Unsupported`] if there is none that is read here: why, in the words of [`crate::table::Content::refused`]. What the
/// file system's reader fails with.
pub fn open<D: Disk + 'static>(disk: D) -> Result<Box<dyn FileSystem>> {
    let Some(content) = probe(&disk)? else {
        return Err(Error::unsupported("there is no file system that is known here"));
    };
    if let Some(why) = content.refused {
        return Err(Error::unsupported(why));
    }
    drop(disk);
    Err(Error::unsupported(format!("{} is not read", content.kind)))
}
