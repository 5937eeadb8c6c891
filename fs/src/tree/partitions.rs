//! What is below `current/DISK/partitions`.
//!
//! ```text
//! partitions ─ table.json
//!            ─ N.raw
//!            ─ N ─ files ─ the guest's own files
//!                ─ UNCLEAN.txt
//! ```
//! The machine's inventory does not tell what a disk is divided into: that is read from it, at a point in time.

use std::ffi::OsStr;

use inside::Id;

/// A node below `current/DISK/partitions`, or that directory itself.
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
    /// The name of [`Inside::Table`].
    pub const TABLE: &str = "table.json";
    /// The name of [`Inside::Unclean`].
    pub const UNCLEAN: &str = "UNCLEAN.txt";
    /// The name of a guest's root directory.
    pub const FILES: &str = "files";

    /// What it is, in words that tell it from all else of its disk, for all time.
    pub(super) fn word(self) -> String {
        match self {
            Self::Partitions => Self::PARTITIONS.to_owned(),
            Self::Table => format!("{}/{}", Self::PARTITIONS, Self::TABLE),
            Self::Raw(number) => format!("{}/{number}.raw", Self::PARTITIONS),
            Self::Partition(number) => format!("{}/{number}", Self::PARTITIONS),
            Self::Unclean(number) => format!("{}/{number}/{}", Self::PARTITIONS, Self::UNCLEAN),
            Self::Guest { partition, file } => format!("{}/{partition}/{}/{}", Self::PARTITIONS, Self::FILES, file.0),
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
        let (number, named): (_, fn(u32) -> Self) = match name.strip_suffix(".raw") {
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
