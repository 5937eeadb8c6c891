//! What a file system may have, and what of it is read.

use crate::{Error, Result};

/// The three sets of a superblock.
#[derive(Debug, Clone, Copy)]
pub(super) struct Features {
    pub(super) compatible: u32,
    pub(super) incompatible: u32,
    pub(super) read_only: u32,
}

/// Those that a program may be without, and still write.
pub(super) mod compatible {
    pub(in crate::ext) const HAS_JOURNAL: u32 = 0x4;
    pub(in crate::ext) const DIR_INDEX: u32 = 0x20;
    pub(in crate::ext) const SPARSE_SUPER2: u32 = 0x200;
}

/// Those without which nothing can be read.
pub(super) mod incompatible {
    pub(in crate::ext) const FILETYPE: u32 = 0x2;
    pub(in crate::ext) const RECOVER: u32 = 0x4;
    pub(in crate::ext) const JOURNAL_DEVICE: u32 = 0x8;
    pub(in crate::ext) const META_BG: u32 = 0x10;
    pub(in crate::ext) const EXTENTS: u32 = 0x40;
    pub(in crate::ext) const SIXTY_FOUR_BIT: u32 = 0x80;
    pub(in crate::ext) const MMP: u32 = 0x100;
    pub(in crate::ext) const FLEX_BG: u32 = 0x200;
    pub(in crate::ext) const EA_INODE: u32 = 0x400;
    pub(in crate::ext) const CSUM_SEED: u32 = 0x2000;
    pub(in crate::ext) const LARGEDIR: u32 = 0x4000;
    pub(in crate::ext) const INLINE_DATA: u32 = 0x8000;
    pub(in crate::ext) const ENCRYPT: u32 = 0x1_0000;
    pub(in crate::ext) const CASEFOLD: u32 = 0x2_0000;
}

/// Those without which nothing may be written.
pub(super) mod read_only {
    pub(in crate::ext) const SPARSE_SUPER: u32 = 0x1;
    pub(in crate::ext) const LARGE_FILE: u32 = 0x2;
    pub(in crate::ext) const BTREE_DIR: u32 = 0x4;
    pub(in crate::ext) const HUGE_FILE: u32 = 0x8;
    pub(in crate::ext) const GDT_CSUM: u32 = 0x10;
    pub(in crate::ext) const BIGALLOC: u32 = 0x200;
    pub(in crate::ext) const METADATA_CSUM: u32 = 0x400;
}

/// All without which nothing can be read that are known here.
const READ: u32 = incompatible::FILETYPE
    | incompatible::RECOVER
    | incompatible::META_BG
    | incompatible::EXTENTS
    | incompatible::SIXTY_FOUR_BIT
    | incompatible::MMP
    | incompatible::FLEX_BG
    | incompatible::EA_INODE
    | incompatible::CSUM_SEED
    | incompatible::LARGEDIR
    | incompatible::INLINE_DATA
    | incompatible::ENCRYPT
    | incompatible::CASEFOLD;

impl Features {
    pub(super) fn has_compatible(self, feature: u32) -> bool {
        self.compatible & feature != 0
    }

    pub(super) fn has(self, feature: u32) -> bool {
        self.incompatible & feature != 0
    }

    pub(super) fn has_read_only(self, feature: u32) -> bool {
        self.read_only & feature != 0
    }

    /// Refuses what is not read here, by name.
    pub(super) fn check(self) -> Result<()> {
        if self.has(incompatible::JOURNAL_DEVICE) {
            return Err(Error::unsupported("it is the journal of another ext4 file system, and has no files"));
        }
        let unknown = self.incompatible & !READ;
        let Some(bit) = (0..32).map(|bit| 1 << bit).find(|bit| unknown & bit != 0) else { return Ok(()) };
        let name = match bit {
            0x1 => "compression".to_owned(),
            0x1000 => "dirdata".to_owned(),
            other => format!("{other:#x}"),
        };
        Err(Error::unsupported(format!("ext4 feature {name} is not read here")))
    }

    /// Which of the three it is, as blkid(8) tells them apart.
    pub(super) fn kind(self) -> &'static str {
        let old = read_only::SPARSE_SUPER | read_only::LARGE_FILE | read_only::BTREE_DIR;
        let old_incompatible = incompatible::FILETYPE | incompatible::RECOVER | incompatible::META_BG;
        match (
            self.read_only & !old != 0 || self.incompatible & !old_incompatible != 0,
            self.has_compatible(compatible::HAS_JOURNAL),
        ) {
            (true, _) => "ext4",
            (false, true) => "ext3",
            (false, false) => "ext2",
        }
    }
}
