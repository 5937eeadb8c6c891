//! The layout of the mount: which nodes there are, what they are called, which inode numbers they have.
//!
//! A pure function of the machine's [`Inventory`]; nothing here does I/O or knows of points in time.
//!
//! ```text
//! Root ─ Status, Control
//!      ─ Current ─ Disk ─ disk.raw, disk.qcow2, allocated.map
//!                      ─ Inside: partitions
//!      ─ Lvm ─ LvmTable
//!            ─ LvmGroup ─ Inside: of a logical volume
//!      ─ Checkpoints ─ Checkpoint ─ CheckpointDisk ─ dirty.map, dirty.json, delta.raw, delta.qcow2, changed-files.txt
//! ```

pub mod inode;
pub mod name;
pub mod partitions;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::iter;
use std::sync::Arc;

use inside::Id;

use self::partitions::{Inside, Medium, TABLE};
use crate::options::Formats;
use crate::vm::Inventory;

/// What a file below a disk contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Content {
    /// The whole disk.
    DiskRaw,
    /// The same as a qcow2 image.
    DiskQcow2,
    /// Where it holds data.
    AllocatedMap,
    /// What changed, as text.
    DirtyMap,
    /// What changed, as JSON.
    DirtyJson,
    /// What changed, at its place on the disk.
    DeltaRaw,
    /// The same as a qcow2 image over the backup that was taken at the checkpoint.
    DeltaQcow2,
    /// Which of the guest's files lie in what changed.
    ChangedFiles,
}

/// What a file of the tree is made as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// The disk's bytes at their place.
    Raw,
    /// A qcow2 image.
    Qcow2,
    /// Text about the disk.
    Map,
}

impl Content {
    /// Whether it is the disk's bytes from end to end, and nothing but them.
    pub fn is_whole_disk(self) -> bool {
        matches!(self, Self::DiskRaw | Self::DiskQcow2)
    }

    const CURRENT: [Self; 3] = [Self::DiskRaw, Self::DiskQcow2, Self::AllocatedMap];
    const CHECKPOINT: [Self; 5] =
        [Self::DirtyMap, Self::DirtyJson, Self::DeltaRaw, Self::DeltaQcow2, Self::ChangedFiles];

    /// The file's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::DiskRaw => "disk.raw",
            Self::DiskQcow2 => "disk.qcow2",
            Self::AllocatedMap => "allocated.map",
            Self::DirtyMap => "dirty.map",
            Self::DirtyJson => "dirty.json",
            Self::DeltaRaw => "delta.raw",
            Self::DeltaQcow2 => "delta.qcow2",
            Self::ChangedFiles => "changed-files.txt",
        }
    }

    /// What the file is made as.
    pub fn form(self) -> Form {
        match self {
            Self::DiskRaw | Self::DeltaRaw => Form::Raw,
            Self::DiskQcow2 | Self::DeltaQcow2 => Form::Qcow2,
            Self::AllocatedMap | Self::DirtyMap | Self::DirtyJson | Self::ChangedFiles => Form::Map,
        }
    }

    fn appears(self, formats: Formats) -> bool {
        match self.form() {
            _ if self == Self::ChangedFiles => formats.partitions,
            Form::Raw => formats.raw,
            Form::Qcow2 => formats.qcow2,
            Form::Map => formats.map,
        }
    }
}

/// A node of the tree.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Node {
    /// The mount point.
    Root,
    /// `status.json`.
    Status,
    /// `control`.
    Control,
    /// `current`.
    Current,
    /// `current/DISK`.
    Disk(Arc<str>),
    /// `checkpoints`.
    Checkpoints,
    /// `checkpoints/NAME`.
    Checkpoint(Arc<str>),
    /// `checkpoints/NAME/DISK`.
    CheckpointDisk {
        /// The checkpoint.
        checkpoint: Arc<str>,
        /// The disk.
        disk: Arc<str>,
    },
    /// A file that shows a disk at a point in time.
    File {
        /// The disk.
        disk: Arc<str>,
        /// The checkpoint since which changes are shown; none for the whole disk.
        checkpoint: Option<Arc<str>>,
        /// What it contains.
        content: Content,
    },
    /// `current/DISK/partitions`, or something below it; of a logical volume what is below `lvm/GROUP`.
    Inside {
        /// The disk or logical volume.
        medium: Medium,
        /// What it is of it.
        what: Inside,
    },
    /// `lvm`.
    Lvm,
    /// `lvm/table.json`.
    LvmTable,
    /// `lvm/GROUP`.
    LvmGroup(Arc<str>),
}

impl Node {
    /// Whether it is a directory; of a guest's files only the guest knows.
    pub fn is_directory(&self) -> bool {
        match self {
            Self::Status | Self::Control | Self::File { .. } | Self::LvmTable => false,
            Self::Inside { what, .. } => what.is_directory(),
            _ => true,
        }
    }

    /// A file of a guest's, on a partition of something.
    pub fn guest(&self) -> Option<(&Medium, u32, Id)> {
        match self {
            Self::Inside { medium, what: Inside::Guest { partition, file } } => Some((medium, *partition, *file)),
            _ => None,
        }
    }

    /// Whether it shows a disk at one point in time: with the next one it is another node of the same number.
    pub fn is_of_an_instant(&self) -> bool {
        match self {
            Self::File { .. } | Self::LvmTable | Self::LvmGroup(_) => true,
            Self::Inside { what, .. } => *what != Inside::Partitions,
            _ => false,
        }
    }

    /// The directory it stands in; the root's is the root.
    #[must_use]
    pub fn parent(&self) -> Self {
        match self {
            Self::Root | Self::Status | Self::Control | Self::Current | Self::Lvm | Self::Checkpoints => Self::Root,
            Self::LvmTable | Self::LvmGroup(_) => Self::Lvm,
            Self::Disk(_) => Self::Current,
            Self::Checkpoint(_) => Self::Checkpoints,
            Self::CheckpointDisk { checkpoint, .. } => Self::Checkpoint(checkpoint.clone()),
            Self::File { disk, checkpoint: None, .. } => Self::Disk(disk.clone()),
            Self::File { disk, checkpoint: Some(checkpoint), .. } => {
                Self::CheckpointDisk { checkpoint: checkpoint.clone(), disk: disk.clone() }
            }
            Self::Inside { medium, what } => match (what.parent(), medium) {
                (None, Medium::Disk(disk)) => Self::Disk(disk.clone()),
                (None | Some(Inside::Partitions), Medium::Logical { group, .. }) => Self::LvmGroup(group.clone()),
                (Some(what), _) => Self::Inside { medium: medium.clone(), what },
            },
        }
    }

    /// What is in this directory, with names, in a stable order, as far as the inventory tells. A file has nothing in it.
    pub fn children(&self, inventory: &Inventory, formats: Formats) -> Vec<(Arc<str>, Self)> {
        let file = |disk: &Arc<str>, checkpoint: Option<&Arc<str>>, content: Content| {
            let node = Self::File { disk: disk.clone(), checkpoint: checkpoint.cloned(), content };
            (Arc::from(content.name()), node)
        };
        let inside = |disk: &Arc<str>, name: &str, what: Inside| {
            (Arc::from(name), Self::Inside { medium: Medium::Disk(disk.clone()), what })
        };
        match self {
            Self::Root => {
                let lvm = formats.partitions.then_some(("lvm", Self::Lvm));
                let all = [("status.json", Self::Status), ("control", Self::Control), ("current", Self::Current)];
                let all = all.into_iter().chain(lvm).chain([("checkpoints", Self::Checkpoints)]);
                all.map(|(name, node)| (name.into(), node)).collect()
            }
            Self::Lvm => vec![(TABLE.into(), Self::LvmTable)],
            Self::Current => {
                inventory.disks.iter().map(|disk| (disk.name.clone(), Self::Disk(disk.name.clone()))).collect()
            }
            Self::Disk(disk) => Content::CURRENT
                .into_iter()
                .filter(|content| content.appears(formats))
                .map(|content| file(disk, None, content))
                .chain(formats.partitions.then(|| inside(disk, Inside::PARTITIONS, Inside::Partitions)))
                .collect(),
            Self::Inside { medium: Medium::Disk(disk), what: Inside::Partitions } => {
                vec![inside(disk, TABLE, Inside::Table)]
            }
            Self::Checkpoints => {
                let names: BTreeSet<&Arc<str>> = inventory.disks.iter().flat_map(|disk| disk.bitmaps.keys()).collect();
                names.into_iter().map(|name| (name.clone(), Self::Checkpoint(name.clone()))).collect()
            }
            Self::Checkpoint(checkpoint) => inventory
                .disks
                .iter()
                .filter(|disk| disk.bitmaps.contains_key(checkpoint))
                .map(|disk| {
                    let (checkpoint, disk) = (checkpoint.clone(), disk.name.clone());
                    (disk.clone(), Self::CheckpointDisk { checkpoint, disk })
                })
                .collect(),
            Self::CheckpointDisk { checkpoint, disk } => Content::CHECKPOINT
                .into_iter()
                .filter(|content| content.appears(formats))
                .map(|content| file(disk, Some(checkpoint), content))
                .collect(),
            Self::Status
            | Self::Control
            | Self::File { .. }
            | Self::Inside { .. }
            | Self::LvmTable
            | Self::LvmGroup(_) => Vec::new(),
        }
    }

    /// This node and all below it.
    pub fn tree(self, inventory: &Inventory, formats: Formats) -> Box<dyn Iterator<Item = Self> + '_> {
        let children = self.children(inventory, formats).into_iter();
        let below = children.flat_map(move |(_, child)| child.tree(inventory, formats));
        Box::new(iter::once(self).chain(below))
    }

    /// The child of that name, if the machine has what it stands for.
    pub fn child(&self, name: &OsStr, inventory: &Inventory, formats: Formats) -> Option<Self> {
        let name = name.to_str()?;
        match self {
            // The wide directories are not listed for each look-up.
            Self::Current => Some(Self::Disk(inventory.disk(name)?.name.clone())),
            Self::Checkpoints => {
                let (name, _) = inventory.disks.iter().find_map(|disk| disk.bitmaps.get_key_value(name))?;
                Some(Self::Checkpoint(name.clone()))
            }
            _ => self.children(inventory, formats).into_iter().find(|child| *child.0 == *name).map(|child| child.1),
        }
    }

    /// Whether the machine has what the node stands for, as far as the inventory tells.
    pub fn exists(&self, inventory: &Inventory) -> bool {
        let has = |disk: &str, checkpoint: Option<&Arc<str>>| {
            let disk = inventory.disk(disk);
            disk.is_some_and(|disk| checkpoint.is_none_or(|checkpoint| disk.bitmaps.contains_key(checkpoint)))
        };
        match self {
            Self::Root | Self::Status | Self::Control | Self::Current | Self::Checkpoints
            // Of all disks, whichever there are.
            | Self::Lvm | Self::LvmTable | Self::LvmGroup(_) | Self::Inside { medium: Medium::Logical { .. }, .. } => true,
            Self::Disk(disk) | Self::Inside { medium: Medium::Disk(disk), .. } => has(disk, None),
            Self::Checkpoint(checkpoint) => inventory.disks.iter().any(|disk| disk.bitmaps.contains_key(checkpoint)),
            Self::CheckpointDisk { checkpoint, disk } => has(disk, Some(checkpoint)),
            Self::File { disk, checkpoint, .. } => has(disk, checkpoint.as_ref()),
        }
    }
}
