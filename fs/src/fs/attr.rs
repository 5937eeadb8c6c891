//! What `stat` tells of a node.

use std::time::{Duration, SystemTime};

use inside::{Attributes, FileKind, Time};

use crate::tree::Node;

/// For how long something that was told can be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lasts {
    /// Not at all: it may be of another point in time with the next open, or more is known of it.
    Not,
    /// For a while.
    Briefly,
    /// For as long as the point in time: whoever comes by the path asks again for what stands above it.
    Held,
}

/// Attributes of a node, as our own type; `fuse` translates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attr {
    /// Inode number.
    pub ino: u64,
    /// What it is.
    pub kind: FileKind,
    /// Permission bits; also set-user-ID and the like of a guest's file.
    pub mode: u16,
    /// Size, in bytes.
    pub size: u64,
    /// Blocks of 512 bytes that hold data.
    pub blocks: u64,
    /// When it changed last, as far as that is known (docs/adr/028-what-did-not-change.md).
    pub mtime: SystemTime,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// How long all of this can be believed.
    pub lasts: Lasts,
    /// What only a guest's file has.
    pub guest: Option<OfGuest>,
}

/// What only a guest's file has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfGuest {
    /// When it was read last.
    pub atime: SystemTime,
    /// When it was changed last in any way.
    pub ctime: SystemTime,
    /// Names of it.
    pub links: u32,
    /// Major and minor number of a device.
    pub device: (u32, u32),
}

impl Attr {
    /// Whether anybody may write it: nobody may write a guest's file, whatever its mode says.
    pub fn writable(&self) -> bool {
        self.guest.is_none() && self.mode & 0o222 != 0
    }

    /// Whether the one who mounted it may do what `mask` of access(2) says, where the kernel does not decide.
    pub fn grants(&self, mask: u16) -> bool {
        let may = match self.guest {
            // All is his to read.
            Some(_) => {
                let runs = self.kind == FileKind::Directory || self.mode & 0o111 != 0;
                0o4 | u16::from(runs)
            }
            None => self.mode >> 6,
        };
        mask & 0o7 & !may == 0
    }
}

/// Who owns the files, and what they may be used for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ownership {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) umask: u16,
    /// Whether files of guests are shown with the owners and modes that they have there. If not, they are as all else: the kernel
    /// asks the modes who may read, and those of the guest say nothing of anybody here.
    pub(super) guests: bool,
}

impl Ownership {
    /// Permission bits: all that reading, and commands to `control`, need; minus the umask.
    pub(super) fn mode(self, node: &Node) -> u16 {
        let most = match node {
            Node::Control => 0o222,
            // Checkpoints are made and deleted with mkdir and rmdir.
            Node::Checkpoints => 0o777,
            node if node.is_directory() => 0o555,
            _ => 0o444,
        };
        most & !self.umask
    }

    /// A guest's file, under a number.
    pub(super) fn of_guest(self, ino: u64, attributes: &Attributes) -> Attr {
        let runs = attributes.kind == FileKind::Directory || attributes.mode & 0o111 != 0;
        let plain = (if runs { 0o555 } else { 0o444 }) & !self.umask;
        let (mode, uid, gid) = match (self.guests, attributes.kind) {
            (true, _) => (attributes.mode & 0o7777, attributes.uid, attributes.gid),
            (false, FileKind::Symlink) => (0o777, self.uid, self.gid),
            (false, _) => (plain, self.uid, self.gid),
        };
        Attr {
            ino,
            kind: attributes.kind,
            mode,
            size: attributes.size,
            blocks: blocks(attributes.allocated),
            mtime: system_time(attributes.modified),
            uid,
            gid,
            lasts: Lasts::Held,
            guest: Some(OfGuest {
                atime: system_time(attributes.accessed),
                ctime: system_time(attributes.changed),
                links: attributes.links,
                device: attributes.device,
            }),
        }
    }
}

/// Blocks of 512 bytes that so many bytes take.
pub(super) fn blocks(bytes: u64) -> u64 {
    bytes.div_ceil(512)
}

/// A time that the system cannot tell is 1970.
fn system_time(time: Time) -> SystemTime {
    let (whole, part) =
        (Duration::from_secs(time.seconds.unsigned_abs()), Duration::from_nanos(time.nanoseconds.into()));
    let epoch = SystemTime::UNIX_EPOCH;
    let second = if time.seconds < 0 { epoch.checked_sub(whole) } else { epoch.checked_add(whole) };
    second.and_then(|second| second.checked_add(part)).unwrap_or(epoch)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: Attributes = Attributes {
        kind: FileKind::File,
        mode: 0o4750,
        uid: 1000,
        gid: 1001,
        links: 2,
        size: 5,
        allocated: 513,
        accessed: Time { seconds: 1, nanoseconds: 0 },
        modified: Time { seconds: -1, nanoseconds: 999_999_999 },
        changed: Time { seconds: i64::MIN, nanoseconds: 0 },
        device: (0, 0),
    };

    #[test]
    fn a_guests_file_is_as_it_is_there_or_as_all_else_is_here() {
        let here = Ownership { uid: 7, gid: 8, umask: 0o027, guests: true };
        let there = here.of_guest(9, &FILE);
        assert_eq!((there.mode, there.uid, there.gid, there.blocks), (0o4750, 1000, 1001, 2));
        assert_eq!(there.mtime, SystemTime::UNIX_EPOCH - Duration::from_nanos(1));
        let here = Ownership { guests: false, ..here };
        let of = |kind, mode| here.of_guest(9, &Attributes { kind, mode, ..FILE }).mode;
        assert_eq!(of(FileKind::File, 0o4750), 0o550);
        assert_eq!(of(FileKind::File, 0o000), 0o440);
        assert_eq!(of(FileKind::Directory, 0o000), 0o550);
        assert_eq!(of(FileKind::Symlink, 0o777), 0o777);
        assert_eq!(here.of_guest(9, &FILE).uid, 7);
    }

    #[test]
    fn the_one_who_mounted_it_may_read_all_and_write_nothing_of_the_guest() {
        let owner = Ownership { uid: 7, gid: 8, umask: 0o077, guests: true };
        let of = |kind, mode| owner.of_guest(9, &Attributes { kind, mode, ..FILE });
        let secret = of(FileKind::File, 0o000);
        assert!(secret.grants(0) && secret.grants(4) && !secret.grants(2) && !secret.grants(1));
        assert!(of(FileKind::Directory, 0o000).grants(5) && of(FileKind::File, 0o100).grants(1));
        assert!(!of(FileKind::File, 0o666).writable());
    }
}
