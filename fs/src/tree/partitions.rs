//! What is below `current/DISK/partitions`, and below `lvm/GROUP`.
//!
//! ```text
//! partitions ─ table.json
//!            ─ N.raw
//!            ─ N ─ files ─ the guest's own files
//!                ─ UNCLEAN.txt
//! lvm ─ GROUP ─ VOLUME.raw
//!             ─ VOLUME ─ as N
//! ```
//! The machine's inventory does not tell what a disk is divided into: that is read from it, at a point in time. A logical volume is
//! as partition 0 of a disk: one that is not divided.

use std::ffi::OsStr;
use std::sync::Arc;

use inside::Id;

/// What is looked into.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Medium {
    /// A disk of the machine.
    Disk(Arc<str>),
    /// A logical volume of LVM2; it has one partition, 0.
    Logical {
        /// Its volume group.
        group: Arc<str>,
        /// Its name in that.
        name: Arc<str>,
    },
}

impl Medium {
    /// What messages call a partition of it.
    pub fn partition(&self, number: u32) -> String {
        match self {
            Self::Disk(disk) => format!("partition {number} of disk {disk}"),
            Self::Logical { group, name } => format!("logical volume {group}/{name}"),
        }
    }
}

/// The name of the file that tells what there is, in `partitions` and in `lvm`.
pub const TABLE: &str = "table.json";

/// A node below `current/DISK/partitions`, or that directory itself; the same of a logical volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Inside {
    /// `partitions`.
    Partitions,
    /// `partitions/table.json`.
    Table,
    /// `partitions/N.raw`.
    Raw(u32),
    /// `partitions/N`.
    Partition(u32),
    /// `partitions/N/UNCLEAN.txt`.
    Unclean(u32),
    /// `partitions/N/files`, or something below it; what that is the guest's file system tells.
    Guest {
        /// The partition.
        partition: u32,
        /// The file.
        file: Id,
    },
}

/// A name that stands for a part of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Named {
    /// `N.raw`.
    Raw(u32),
    /// `N`.
    Partition(u32),
}

impl Inside {
    /// The directory's name below a disk.
    pub const PARTITIONS: &str = "partitions";
    /// What the name of [`Inside::Raw`] ends in.
    pub const RAW: &str = ".raw";
    /// The name of [`Inside::Unclean`].
    pub const UNCLEAN: &str = "UNCLEAN.txt";
    /// The name of a guest's root directory.
    pub const FILES: &str = "files";

    /// What it is, in words that tell it from all else of its disk, for all time.
    pub(super) fn word(self, medium: &Medium) -> String {
        let of = match medium {
            Medium::Disk(_) => Self::PARTITIONS.to_owned(),
            Medium::Logical { group, name } => format!("lvm/{group}/{name}"),
        };
        match self {
            Self::Partitions => of,
            Self::Table => format!("{of}/{TABLE}"),
            Self::Raw(number) => format!("{of}/{number}{}", Self::RAW),
            Self::Partition(number) => format!("{of}/{number}"),
            Self::Unclean(number) => format!("{of}/{number}/{}", Self::UNCLEAN),
            Self::Guest { partition, file } => format!("{of}/{partition}/{}/{}", Self::FILES, file.0),
        }
    }

    /// Whether it is a directory; of a guest's files only the guest knows.
    pub fn is_directory(self) -> bool {
        matches!(self, Self::Partitions | Self::Partition(_))
    }

    /// What it stands in; for a guest's file the partition's directory, as only the guest knows more.
    #[must_use]
    pub(super) fn parent(self) -> Option<Self> {
        match self {
            Self::Partitions => None,
            Self::Table | Self::Raw(_) | Self::Partition(_) => Some(Self::Partitions),
            Self::Unclean(number) | Self::Guest { partition: number, .. } => Some(Self::Partition(number)),
        }
    }
}

impl Named {
    /// What a name below `partitions` stands for, if such a partition can be at all.
    pub fn by(name: &OsStr) -> Option<Self> {
        let name = name.to_str()?;
        let (number, named): (_, fn(u32) -> Self) = match name.strip_suffix(Inside::RAW) {
            Some(number) => (number, Self::Raw),
            None => (name, Self::Partition),
        };
        let parsed: u32 = number.parse().ok()?;
        // As it is listed, and in no other way: no sign, no zero in front.
        (parsed.to_string() == number).then(|| named(parsed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_could_be_listed_is_taken_for_a_partition() {
        for (name, named) in [
            ("2", Some(Named::Partition(2))),
            ("0", Some(Named::Partition(0))),
            ("12.raw", Some(Named::Raw(12))),
            ("02", None),
            ("+2", None),
            ("2.raw.raw", None),
            (".raw", None),
            ("", None),
            (".git", None),
            ("99999999999", None),
        ] {
            assert_eq!(Named::by(OsStr::new(name)), named, "{name}");
        }
    }
}
