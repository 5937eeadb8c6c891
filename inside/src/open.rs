//! Opening the file system that is on a disk or a partition.

use std::ops::ControlFlow;

use crate::{
    Attributes, Disk, Entry, Error, Extent, FileSystem, Id, Part, Place, Result, Summary, Xattr, ext, fat, ntfs, probe,
    raid, xfs,
};

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
    let member = raid::member(&disk)?.and_then(|member| Some((member.data.ok()?, member.others > 0)));
    let (range, others) = member.ok_or_else(|| Error::unsupported("it is no whole mirror of an array"))?;
    let part = Part::new(disk, range.start, range.end.saturating_sub(range.start));
    let inner = probe(&part)?.map_or("nothing", |content| content.kind);
    Ok(Box::new(Mirrored { inner: reader(inner, part)?, start: range.start, others }))
}

/// The reader of a kind of file system.
fn reader<D: Disk + 'static>(kind: &str, disk: D) -> Result<Box<dyn FileSystem>> {
    match kind {
        "ext2" | "ext3" | "ext4" => Ok(Box::new(ext::open(disk)?)),
        "xfs" => Ok(Box::new(xfs::open(disk)?)),
        "vfat" => Ok(Box::new(fat::open(disk)?)),
        "ntfs" => Ok(Box::new(ntfs::open(disk)?)),
        _ => Err(Error::unsupported(format!("{kind} is not read"))),
    }
}

/// A file system on an array that begins somewhere on this disk.
struct Mirrored {
    inner: Box<dyn FileSystem>,
    start: u64,
    /// Whether the array has other mirrors.
    others: bool,
}

/// What cannot be told from one mirror: who was dropped from an array is not told so, as it may be what failed.
const ONE_OF_SEVERAL: &str = "it is read from one mirror of an array, and whether the machine still writes to this one can be told in the machine only";

impl FileSystem for Mirrored {
    fn summary(&self) -> Summary {
        let mut summary = self.inner.summary();
        if self.others {
            summary.unclean = Some(match summary.unclean {
                Some(other) => format!("{other}; {ONE_OF_SEVERAL}"),
                None => ONE_OF_SEVERAL.to_owned(),
            });
        }
        summary
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FileKind, Time};

    /// A file system whose only file has a hole and two blocks.
    struct Toy;

    impl FileSystem for Toy {
        fn summary(&self) -> Summary {
            let unclean = Some("toys are".to_owned());
            Summary { kind: "toy", block_size: 512, blocks: 1, free_blocks: 0, files: None, unclean }
        }

        fn root(&self) -> Id {
            Id(7)
        }

        fn attributes(&self, _: Id) -> Result<Attributes> {
            let (time, kind) = (Time::default(), FileKind::File);
            let (accessed, modified, changed) = (time, time, time);
            let (mode, uid, gid, links, size, allocated, device) = (0, 1, 2, 3, 4, 5, (6, 7));
            Ok(Attributes { kind, mode, uid, gid, links, size, allocated, accessed, modified, changed, device })
        }

        fn lookup(&self, _: Id, name: &[u8]) -> Result<Option<Id>> {
            Ok(name.first().map(|&first| Id(first.into())))
        }

        fn list(&self, _: Id, from: u64, each: &mut dyn FnMut(Entry<'_>) -> ControlFlow<()>) -> Result<()> {
            let _ = each(Entry { name: b"a", id: Id(1), kind: None, next: from + 1 });
            Ok(())
        }

        fn parent(&self, directory: Id) -> Result<Id> {
            Ok(directory)
        }

        fn link_target(&self, _: Id) -> Result<Vec<u8>> {
            Ok(b"target".to_vec())
        }

        fn xattrs(&self, _: Id) -> Result<Vec<Xattr>> {
            Ok(vec![Xattr { name: b"user.a".to_vec(), value: Vec::new() }])
        }

        fn extents(&self, _: Id, from: u64, _: usize) -> Result<Vec<Extent>> {
            let places = [Place::Hole, Place::Disk(100), Place::Disk(from), Place::Inline(vec![1])];
            Ok((0..).zip(places).map(|(offset, place)| Extent { offset, length: 1, place }).collect())
        }
    }

    #[test]
    fn files_of_a_mirror_are_where_the_array_is() {
        let mirrored = |others| Mirrored { inner: Box::new(Toy), start: 1000, others };
        let one = mirrored(false);
        let places: Vec<_> = one.extents(Id(1), 5, 9).unwrap().into_iter().map(|extent| extent.place).collect();
        assert_eq!(places, [Place::Hole, Place::Disk(1100), Place::Disk(1005), Place::Inline(vec![1])]);
        assert_eq!(one.extents(Id(1), u64::MAX, 9).unwrap_err().kind(), crate::Kind::Corrupt);
        assert_eq!(one.summary(), Toy.summary());
        let unclean = mirrored(true).summary().unclean.unwrap();
        assert!(unclean.starts_with("toys are; ") && unclean.contains("one mirror"), "{unclean}");
        assert_eq!((one.root(), one.lookup(Id(7), b"x").unwrap()), (Id(7), Some(Id(120))));
        assert_eq!(one.attributes(Id(1)).unwrap(), Toy.attributes(Id(1)).unwrap());
        assert_eq!((one.parent(Id(9)).unwrap(), one.link_target(Id(1)).unwrap()), (Id(9), b"target".to_vec()));
        assert_eq!(one.xattrs(Id(1)).unwrap().len(), 1);
        let mut names = Vec::new();
        let each = &mut |entry: Entry<'_>| {
            names.push(entry.name.to_vec());
            ControlFlow::Continue(())
        };
        one.list(Id(7), 0, each).unwrap();
        assert_eq!(names, [b"a"]);
    }
}
