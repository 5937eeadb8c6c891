//! What `stat` tells of a node.

use std::time::SystemTime;

use crate::tree::Node;

/// Attributes of a node, as our own type; `fuse` translates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attr {
    /// Inode number.
    pub ino: u64,
    /// Whether it is a directory; a regular file otherwise.
    pub directory: bool,
    /// Permission bits.
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
    /// Whether size and blocks stay as they are for now, so that the kernel may believe them for a while.
    pub settled: bool,
}

impl Attr {
    /// Whether anybody may write it.
    pub fn writable(&self) -> bool {
        self.mode & 0o222 != 0
    }
}

/// Who owns the files, and what they may be used for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ownership {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) umask: u16,
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
}

/// Blocks of 512 bytes that so many bytes take.
pub(super) fn blocks(bytes: u64) -> u64 {
    bytes.div_ceil(512)
}
