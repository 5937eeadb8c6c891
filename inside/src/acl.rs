//! Access control lists, which disks have in other forms than the kernel tells them in.

/// What lists are called by getxattr(2): a file's own, and what is made in a directory gets.
pub(crate) const ACCESS: &str = "system.posix_acl_access";
pub(crate) const DEFAULT: &str = "system.posix_acl_default";

const VERSION: u32 = 2;

/// Owner, mask and others, which need no number.
const NOBODY: u32 = u32::MAX;

/// A list as getxattr(2) gives it.
pub(crate) struct List(Vec<u8>);

impl List {
    pub(crate) fn new() -> Self {
        Self(VERSION.to_le_bytes().to_vec())
    }

    /// An entry; `who` counts where [`is_named`].
    pub(crate) fn push(&mut self, tag: u16, permissions: u16, who: u32) {
        self.0.extend(tag.to_le_bytes());
        self.0.extend(permissions.to_le_bytes());
        self.0.extend(if is_named(tag) { who } else { NOBODY }.to_le_bytes());
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.len() == VERSION.to_le_bytes().len()
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

/// Whether entries of that kind are for a user or a group that a number names.
pub(crate) fn is_named(tag: u16) -> bool {
    matches!(tag, 0x2 | 0x8)
}
