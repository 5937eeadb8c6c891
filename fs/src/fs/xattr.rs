//! Extended attributes `user.pullfs.*`: what a file is of, in a form that copying tools carry along.
//!
//! Files and directories that show a disk have them, and they are of the same instant as an open would be now. They are
//! told from what a look-up has just told, so they cost the machine no question of their own. Other names are refused
//! without a look at anything: whoever lists a directory asks for access lists and labels of each file.

use std::ffi::OsStr;

use super::{Fs, Node};
use crate::error::{Error, Kind, Result, printable};
use crate::point::PointInTime;
use crate::tree::inode::Told;
use crate::tree::partitions::Medium;
use crate::vm::{Bitmap, Inventory};

/// What the names begin with.
const PREFIX: &str = "user.pullfs.";

/// The only namespace in which a file has attributes.
const USER: &[u8] = b"user.";

/// What is asked for by a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// An attribute that files may have.
    Ours(Attribute),
    /// One that none has.
    Other,
    /// Access lists, labels and capabilities, which are not supported at all.
    Unsupported,
}

impl Asked {
    /// What a name asks for.
    pub fn by(name: &OsStr) -> Self {
        let ours = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        match ours.and_then(|word| Attribute::ALL.into_iter().find(|attribute| attribute.word() == word)) {
            Some(attribute) => Self::Ours(attribute),
            None if name.as_encoded_bytes().starts_with(USER) => Self::Other,
            None => Self::Unsupported,
        }
    }
}

/// An attribute that a file may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attribute {
    /// The machine's name, or its source where it has none.
    Machine,
    /// The disk.
    Disk,
    /// The checkpoint since which changes are shown.
    Checkpoint,
    /// The instant, RFC 3339; only while a point in time is held.
    PointInTime,
    /// The checkpoint that was made at that instant.
    AtCheckpoint,
    /// The disk's virtual size, in bytes.
    VirtualSize,
    /// What changed since the checkpoint, in bytes, counted in whole granules.
    DirtyBytes,
}

impl Attribute {
    const ALL: [Self; 7] = [
        Self::Machine,
        Self::Disk,
        Self::Checkpoint,
        Self::PointInTime,
        Self::AtCheckpoint,
        Self::VirtualSize,
        Self::DirtyBytes,
    ];

    /// What stands behind [`PREFIX`].
    fn word(self) -> &'static str {
        match self {
            Self::Machine => "machine",
            Self::Disk => "disk",
            Self::Checkpoint => "checkpoint",
            Self::PointInTime => "point-in-time",
            Self::AtCheckpoint => "at-checkpoint",
            Self::VirtualSize => "virtual-size",
            Self::DirtyBytes => "dirty-bytes",
        }
    }
}

impl Fs {
    /// The value of an attribute; none if the node does not have it.
    ///
    /// # Errors
    /// [`Kind::NotFound`] when the machine no longer has what the node stands for; [`Kind::Stale`] for a file of a point in
    /// time that has ended; when the machine does not answer.
    pub async fn xattr(&self, ino: u64, attribute: Attribute) -> Result<Option<String>> {
        let all = self.xattrs(ino).await?;
        Ok(all.into_iter().find(|(known, _)| *known == attribute).map(|(_, value)| value))
    }

    /// The names of all attributes of a node, each followed by a NUL.
    ///
    /// # Errors
    /// As [`Fs::xattr`].
    pub async fn xattr_names(&self, ino: u64) -> Result<String> {
        let all = self.xattrs(ino).await?;
        Ok(all.into_iter().flat_map(|(attribute, _)| [PREFIX, attribute.word(), "\0"]).collect())
    }

    async fn xattrs(&self, ino: u64) -> Result<Vec<(Attribute, String)>> {
        let Told { node, generation, .. } = self.told(ino)?;
        if matches!(node, Node::Status | Node::Control) {
            return Ok(Vec::new());
        }
        let view = self.points.view();
        // A look-up of the path comes first; who holds a descriptor of another instant is not told of this one.
        if node.is_of_an_instant() && generation.lease.div_ceil(2) != view.upcoming() {
            return Err(Error::new(Kind::Stale, "the file was looked up for another point in time"));
        }
        let inventory = match &view.held {
            Some(point) => point.inventory(),
            None => self.inventory_for(&node).await?,
        };
        if !node.exists(&inventory) {
            return Err(Error::new(Kind::NotFound, "the machine has no such disk or checkpoint any more"));
        }
        let machine = self.vm.machine();
        let mut all = vec![(Attribute::Machine, printable(machine.name.as_ref().unwrap_or(&machine.source)))];
        all.extend(of_node(&node, &inventory));
        all.extend(view.held.as_deref().into_iter().flat_map(of_point));
        Ok(all)
    }
}

fn of_point(point: &PointInTime) -> impl Iterator<Item = (Attribute, String)> {
    let time = humantime::format_rfc3339_millis(point.time()).to_string();
    let checkpoint = point.checkpoint().map(|name| (Attribute::AtCheckpoint, name.to_string()));
    [(Attribute::PointInTime, time)].into_iter().chain(checkpoint)
}

fn of_node(node: &Node, inventory: &Inventory) -> Vec<(Attribute, String)> {
    let (disk, checkpoint) = match node {
        Node::Root | Node::Status | Node::Control | Node::Current | Node::Checkpoints => (None, None),
        Node::Lvm | Node::LvmTable | Node::LvmGroup(_) | Node::Inside { medium: Medium::Logical { .. }, .. } => {
            (None, None)
        }
        Node::Disk(disk) | Node::Inside { medium: Medium::Disk(disk), .. } => (Some(disk), None),
        Node::Checkpoint(checkpoint) => (None, Some(checkpoint)),
        Node::CheckpointDisk { checkpoint, disk } => (Some(disk), Some(checkpoint)),
        Node::File { disk, checkpoint, .. } => (Some(disk), checkpoint.as_ref()),
    };
    let mut all = Vec::new();
    if let Some(disk) = disk.and_then(|disk| inventory.disk(disk)) {
        all.push((Attribute::Disk, disk.name.to_string()));
        all.push((Attribute::VirtualSize, disk.size.to_string()));
    }
    if let Some(checkpoint) = checkpoint {
        all.push((Attribute::Checkpoint, checkpoint.to_string()));
        let shown = inventory.disks.iter().filter(|known| disk.is_none_or(|disk| known.name == *disk));
        let bitmaps = shown.filter_map(|disk| disk.bitmaps.get(checkpoint));
        all.extend(dirty_bytes(bitmaps).map(|bytes| (Attribute::DirtyBytes, bytes.to_string())));
    }
    all
}

/// None where one of them cannot tell what changed.
fn dirty_bytes<'a>(mut bitmaps: impl Iterator<Item = &'a Bitmap>) -> Option<u64> {
    bitmaps.try_fold(0, |sum: u64, bitmap| bitmap.unusable.is_none().then(|| sum.saturating_add(bitmap.dirty_bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_ours_are_looked_at() {
        for (name, asked) in [
            ("user.pullfs.dirty-bytes", Asked::Ours(Attribute::DirtyBytes)),
            ("user.pullfs.dirty", Asked::Other),
            ("user.pullfs.", Asked::Other),
            ("user.other", Asked::Other),
            ("security.capability", Asked::Unsupported),
            ("system.posix_acl_access", Asked::Unsupported),
            ("pullfs.disk", Asked::Unsupported),
        ] {
            assert_eq!(Asked::by(OsStr::new(name)), asked, "{name}");
        }
    }
}
