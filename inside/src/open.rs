//! Opening the file system that is on a disk or a partition.

use std::ops::ControlFlow;

use crate::{Attributes, Disk, Entry, Error, Extent, FileSystem, Id, Part, Place, Result, Summary, Xattr, probe, raid};

/// Opens the file system on a disk or a partition, or on the array that it is a whole mirror of.
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
    if content.kind != "linux_raid_member" {
        return reader(content.kind, disk);
    }
    let member = raid::member(&disk)?.and_then(|member| member.data.ok());
    let range = member.ok_or_else(|| Error::unsupported("it is no whole mirror of an array"))?;
    let part = Part::new(disk, range.start, range.end.saturating_sub(range.start));
    let inner = probe(&part)?.map_or("nothing", |content| content.kind);
    Ok(Box::new(Mirrored { inner: reader(inner, part)?, start: range.start }))
}

/// The reader of a kind of file system.
fn reader<D: Disk + 'static>(kind: &str, disk: D) -> Result<Box<dyn FileSystem>> {
    drop(disk);
    Err(Error::unsupported(format!("{kind} is not read")))
}

/// A file system on an array that begins somewhere on this disk.
struct Mirrored {
    inner: Box<dyn FileSystem>,
    start: u64,
}

impl FileSystem for Mirrored {
    fn summary(&self) -> Summary {
        self.inner.summary()
    }

    fn root(&self) -> Id {
        self.inner.root()
    }

    fn attributes(&self, file: Id) -> Result<Attributes> {
        self.inner.attributes(file)
    }

    fn lookup(&self, directory: Id, name: &[u8]) -> Result<Option<Id>> {
        self.inner.lookup(directory, name)
    }

    fn list(&self, directory: Id, from: u64, each: &mut dyn FnMut(Entry<'_>) -> ControlFlow<()>) -> Result<()> {
        self.inner.list(directory, from, each)
    }

    fn parent(&self, directory: Id) -> Result<Id> {
        self.inner.parent(directory)
    }

    fn link_target(&self, file: Id) -> Result<Vec<u8>> {
        self.inner.link_target(file)
    }

    fn xattrs(&self, file: Id) -> Result<Vec<Xattr>> {
        self.inner.xattrs(file)
    }

    fn extents(&self, file: Id, from: u64, limit: usize) -> Result<Vec<Extent>> {
        let mut extents = self.inner.extents(file, from, limit)?;
        for extent in &mut extents {
            if let Place::Disk(offset) = &mut extent.place {
                *offset =
                    offset.checked_add(self.start).ok_or_else(|| Error::corrupt("a file's data is past the end"))?;
            }
        }
        Ok(extents)
    }
}
