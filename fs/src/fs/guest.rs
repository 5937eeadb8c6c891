//! The guest's own files, below `partitions/N/files`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use inside::{FileKind, Id, Xattr};

use super::partitions::{about, of_another_instant};
use super::{DirEntry, Entry, Fs};
use crate::block::spread::Store;
use crate::error::{Error, Kind, Result};
use crate::guest::volumes::{self, Volume};
use crate::guest::{Listed, Names, Reader, Tally, is_name};
use crate::image::pieces::{Gathering, Pieces};
use crate::point::{Lease, PointInTime};
use crate::tree::Node;
use crate::tree::inode::{Generation, Told};
use crate::tree::partitions::{Inside, Medium};

/// Offsets of an open directory: 0 is `.`, 1 is `..`, and what a guest's file system counts comes after.
const DOTS: u64 = 2;

/// What begins the names of attributes that only root may see, as on any file system.
const TRUSTED: &[u8] = b"trusted.";

/// Names of a directory, and where they begin in it.
type Answer = (u64, Names);

/// A directory of a guest's that is open: no more of it is kept than one answer.
pub(super) struct GuestDirectory {
    lease: Lease,
    medium: Medium,
    partition: u32,
    file: Id,
    ino: u64,
    /// What was told last, and where it begins. Held for a moment only.
    lately: Mutex<Option<Arc<Answer>>>,
}

impl GuestDirectory {
    fn lately(&self) -> MutexGuard<'_, Option<Arc<Answer>>> {
        self.lately.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The names that come at `from`, if an answer tells; none at the end.
fn rest((begin, names): &Answer, from: u64) -> Option<&[Listed]> {
    if *begin == from {
        return Some(&names.all);
    }
    let before = names.all.iter().position(|listed| listed.next == from)?;
    names.all.get(before + 1..).filter(|rest| names.is_last || !rest.is_empty())
}

fn node(medium: &Medium, partition: u32, file: Id) -> Node {
    Node::Inside { medium: medium.clone(), what: Inside::Guest { partition, file } }
}

impl Fs {
    pub(super) async fn lookup_guest(
        &self,
        told: &Told,
        medium: &Medium,
        partition: u32,
        directory: Id,
        name: &OsStr,
    ) -> Result<Entry> {
        let point = self.instant(told)?;
        let found = self.volume(&point, medium, partition).await?.lookup(directory, name.as_bytes()).await;
        let found = volumes::told(&point, found, || about(medium, partition))?;
        let (file, attributes) =
            found.ok_or_else(|| Error::new(Kind::NotFound, format!("there is no {}", name.display())))?;
        // The number is given with the node.
        let attr = self.owner.of_guest(0, &attributes);
        self.told_inside(&point, medium, Inside::Guest { partition, file }, attr)
    }

    pub(super) async fn open_guest_directory(
        &self,
        ino: u64,
        told: &Told,
        medium: &Medium,
        partition: u32,
        file: Id,
    ) -> Result<GuestDirectory> {
        self.instant(told)?;
        let lease = self.points.open(None).await?;
        if Generation::held(&told.node, lease.number(), &lease.inventory()) != told.generation {
            return Err(of_another_instant());
        }
        Ok(GuestDirectory { lease, medium: medium.clone(), partition, file, ino, lately: Mutex::default() })
    }

    pub(super) async fn list_guest(
        &self,
        directory: &GuestDirectory,
        offset: u64,
        mut each: impl FnMut(u64, &DirEntry) -> bool + Send,
    ) -> Result<()> {
        let GuestDirectory { lease, medium, partition, file, ino, .. } = directory;
        let point = lease.point();
        let reader = self.volume(&point, medium, *partition).await?.reader;
        let answer = async |from| {
            let lately = directory.lately().clone().filter(|answer| rest(answer, from).is_some());
            if let Some(answer) = lately {
                return Ok(answer);
            }
            let names = volumes::told(&point, reader.list(*file, from).await, || about(medium, *partition))?;
            Ok(directory.lately().insert(Arc::new((from, names))).clone())
        };
        let dot = |ino, name: &str| DirEntry { ino, kind: FileKind::Directory, name: Arc::from(OsStr::new(name)) };
        if offset == 0 && each(1, &dot(*ino, ".")) {
            return Ok(());
        }
        if offset < DOTS {
            let parent = answer(0).await?.1.parent;
            if each(DOTS, &dot(self.above(&*reader, medium, *partition, *file, parent).await?, "..")) {
                return Ok(());
            }
        }
        let mut from = offset.saturating_sub(DOTS);
        loop {
            let answer = answer(from).await?;
            point.check()?;
            let names = rest(&answer, from).unwrap_or_default();
            if names.is_empty() {
                return Ok(());
            }
            for listed in names {
                let next =
                    listed.next.checked_add(DOTS).filter(|next| i64::try_from(*next).is_ok() && is_name(&listed.name));
                let next = next.ok_or_else(|| {
                    Error::new(
                        Kind::Io,
                        format!("a name in a directory of {} cannot be right", medium.partition(*partition)),
                    )
                })?;
                let kind = match listed.kind {
                    Some(kind) => kind,
                    None => reader.attributes(listed.id).await.map_or(FileKind::File, |attributes| attributes.kind),
                };
                let ino = self.inodes.number(&node(medium, *partition, listed.id));
                let entry = DirEntry { ino, kind, name: Arc::from(OsStr::from_bytes(&listed.name)) };
                if each(next, &entry) {
                    return Ok(());
                }
                from = listed.next;
            }
        }
    }

    /// The number of what a directory stands in, which is `parent` if that was told.
    async fn above(
        &self,
        reader: &dyn Reader,
        medium: &Medium,
        partition: u32,
        file: Id,
        parent: Option<Id>,
    ) -> Result<u64> {
        let what = match parent {
            _ if file == reader.root() => Inside::Partition(partition),
            Some(file) => Inside::Guest { partition, file },
            None => Inside::Guest { partition, file: reader.parent(file).await? },
        };
        Ok(self.inodes.number(&Node::Inside { medium: medium.clone(), what }))
    }

    /// A file's data, where it is, and what it is read from.
    pub(super) async fn pieces(
        &self,
        point: &Arc<PointInTime>,
        medium: &Medium,
        partition: u32,
        file: Id,
    ) -> Result<(Pieces, Store)> {
        let volume = self.volume(point, medium, partition).await?;
        let told = |error: Error| error.context(about(medium, partition));
        let (size, first) = volume.data(file).await.map_err(told)?;
        let Volume { reader, partition: place, store, .. } = volume;
        let mut gathering = Gathering::new(size, place.offset..place.offset + place.size, self.pieces.clone());
        let mut first = Some(first);
        while let Some(from) = gathering.missing() {
            let extents = match first.take() {
                Some(extents) => extents,
                None => reader.extents(file, from).await.map_err(told)?,
            };
            if extents.is_empty() {
                break;
            }
            gathering.add(extents).map_err(told)?;
        }
        Ok((gathering.finish().map_err(told)?, store))
    }

    /// The target of a guest's symbolic link, which nothing here follows.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for anything else; as [`Fs::read`].
    pub async fn readlink(&self, ino: u64) -> Result<Vec<u8>> {
        let told = self.told(ino)?;
        let Some((medium, partition, file)) = told.node.guest() else {
            return Err(Error::new(Kind::Invalid, "only guests have symbolic links"));
        };
        let target = async {
            let point = self.instant(&told)?;
            let target = self.volume(&point, medium, partition).await?.reader.link_target(file).await;
            volumes::told(&point, target, || about(medium, partition))
        };
        self.noted(target.await)
    }

    /// What readers did so far.
    pub(super) fn tally(&self) -> Tally {
        self.readers.as_ref().map(|readers| readers.tally()).unwrap_or_default()
    }

    /// Whether a node is a file of a guest's.
    pub fn is_guest(&self, ino: u64) -> bool {
        self.inodes.is_guest(ino)
    }

    /// The names of all extended attributes of a guest's file, each followed by a NUL; those that only root may see for `root`.
    ///
    /// # Errors
    /// As [`Fs::read`].
    pub async fn guest_xattr_names(&self, ino: u64, root: bool) -> Result<Vec<u8>> {
        let all = self.guest_xattrs(ino).await?;
        let seen = all.iter().filter(|xattr| root || !xattr.name.starts_with(TRUSTED));
        Ok(seen.flat_map(|xattr| xattr.name.iter().copied().chain([0])).collect())
    }

    /// The value of one of them; none if the file does not have it.
    ///
    /// # Errors
    /// As [`Fs::read`].
    pub async fn guest_xattr(&self, ino: u64, name: &OsStr) -> Result<Option<Vec<u8>>> {
        let all = self.guest_xattrs(ino).await?;
        Ok(all.iter().find(|xattr| xattr.name == name.as_bytes()).map(|xattr| xattr.value.clone()))
    }

    async fn guest_xattrs(&self, ino: u64) -> Result<Arc<Vec<Xattr>>> {
        let told = self.told(ino)?;
        let Some((medium, partition, file)) = told.node.guest() else { return Ok(Arc::default()) };
        let xattrs = async {
            let point = self.instant(&told)?;
            let volume = self.volume(&point, medium, partition).await?;
            volumes::told(&point, volume.xattrs(file).await, || about(medium, partition))
        };
        self.noted(xattrs.await)
    }
}
