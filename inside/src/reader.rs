//! What every file system is read by.

use std::ops::ControlFlow;

use crate::Result;

/// A file of a file system, for as long as that is open and in every other opening of the same blocks. Whoever made it up gets
/// [`crate::Kind::NotFound`] or [`crate::Kind::Corrupt`] for it, nothing worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(pub u64);

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

impl FileKind {
    /// What directories of ext4 and XFS have that number for.
    pub(crate) fn numbered(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::File,
            2 => Self::Directory,
            3 => Self::CharDevice,
            4 => Self::BlockDevice,
            5 => Self::Fifo,
            6 => Self::Socket,
            7 => Self::Symlink,
            _ => return None,
        })
    }
}

/// A time, from 1970 on, in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Time {
    /// Whole seconds; negative before 1970.
    pub seconds: i64,
    /// Nanoseconds after them, below 10⁹.
    pub nanoseconds: u32,
}

/// What stat(2) tells of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// What it is.
    pub kind: FileKind,
    /// The permission bits with set-user-ID, set-group-ID and sticky: the lower 12 of `st_mode`.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Names of it.
    pub links: u32,
    /// Size, in bytes; of a symbolic link its target's length.
    pub size: u64,
    /// What it occupies, in bytes, where the file system tells.
    pub allocated: u64,
    /// Last read.
    pub accessed: Time,
    /// Last written.
    pub modified: Time,
    /// Last changed in any way.
    pub changed: Time,
    /// Major and minor number of a device, else zeroes.
    pub device: (u32, u32),
}

/// A name in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The name: bytes, not empty, without `/` and NUL, at most 1024 of them, neither `.` nor `..`.
    pub name: &'a [u8],
    /// The file.
    pub id: Id,
    /// What it is, if the directory tells.
    pub kind: Option<FileKind>,
    /// Where to go on after this entry; at least 1, below 2⁶³.
    pub next: u64,
}

/// Where a piece of a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Nowhere: it reads as zeroes.
    Hole,
    /// On the disk of the file system, at this offset, in bytes.
    Disk(u64),
    /// Here.
    Inline(Vec<u8>),
}

/// A piece of a file. Pieces of one file are in order, do not overlap, leave nothing out, and end with the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extent {
    /// Where it begins in the file, in bytes.
    pub offset: u64,
    /// Its length, in bytes, at least 1.
    pub length: u64,
    /// Where it is.
    pub place: Place,
}

/// An extended attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Xattr {
    /// Its full name as getxattr(2) takes it: `user.comment`, `system.posix_acl_access`.
    pub name: Vec<u8>,
    /// Its value as getxattr(2) gives it, so an access control list is in the kernel's form, not in the disk's.
    pub value: Vec<u8>,
}

/// What a file system says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// As mount(8) calls it: `ext4`, `xfs`.
    pub kind: &'static str,
    /// Its block size, in bytes.
    pub block_size: u32,
    /// How many blocks it has.
    pub blocks: u64,
    /// How many of them are free.
    pub free_blocks: u64,
    /// How many files it can have and how many more, where there is a bound.
    pub files: Option<(u64, u64)>,
    /// It was in use when it was cut off, and this is what nobody can tell of it: a sentence for who reads it. None if it was
    /// unmounted or frozen, or if its journal was replayed, so that it is what a kernel would mount.
    pub unclean: Option<String>,
}

/// A file system that is open. Its state is what its journal makes of it; nothing is written anywhere.
///
/// Every method returns within bounded work for its answer, whatever the disk holds; one that fails leaves the others as they were.
pub trait FileSystem {
    /// What it says of itself.
    fn summary(&self) -> Summary;

    /// Its root directory.
    fn root(&self) -> Id;

    /// What stat(2) tells of a file.
    ///
    /// # Errors
    /// When the file is not there or not right.
    fn attributes(&self, file: Id) -> Result<Attributes>;

    /// The file of that name in a directory, compared byte for byte; none if there is none.
    ///
    /// # Errors
    /// [`crate::Kind::WrongKind`] if `directory` is none.
    fn lookup(&self, directory: Id, name: &[u8]) -> Result<Option<Id>>;

    /// The names in a directory from `from` on, which is 0 or an [`Entry::next`] that was told before, in a stable order, until
    /// `each` breaks. Memory does not grow with the directory.
    ///
    /// # Errors
    /// [`crate::Kind::WrongKind`] if `directory` is none. Entries may have been told before an error.
    fn list(&self, directory: Id, from: u64, each: &mut dyn FnMut(Entry<'_>) -> ControlFlow<()>) -> Result<()>;

    /// The parent of a directory; the root's is the root.
    ///
    /// # Errors
    /// [`crate::Kind::WrongKind`] if `directory` is none.
    fn parent(&self, directory: Id) -> Result<Id>;

    /// The target of a symbolic link, at most 4096 bytes.
    ///
    /// # Errors
    /// [`crate::Kind::WrongKind`] if it is none.
    fn link_target(&self, file: Id) -> Result<Vec<u8>>;

    /// Extended attributes and access control lists, at most 64 KiB each and 1 MiB together.
    ///
    /// # Errors
    /// When they are not right.
    fn xattrs(&self, file: Id) -> Result<Vec<Xattr>>;

    /// Where the data of a regular file is, from `from` on (in bytes), at most `limit` pieces; none at or after its end. What was
    /// allocated and never written is a hole. Neighbours that are one on the disk may be told as one.
    ///
    /// # Errors
    /// [`crate::Kind::WrongKind`] if it is no regular file; [`crate::Kind::Unsupported`] if its data is not on the disk as it
    /// reads (encrypted, compressed).
    fn extents(&self, file: Id, from: u64, limit: usize) -> Result<Vec<Extent>>;
}
