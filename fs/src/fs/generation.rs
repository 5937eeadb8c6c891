//! Which generation a node has: when a number means something else than it did.
//!
//! The kernel keeps 32 bits of it, and compares them with those of a handle that somebody kept, for weeks perhaps and across
//! mounts. So for files they count points in time from where the mount began in time, and all are mixed with what the
//! name stands for: a disk that was exchanged, or a checkpoint that was made again, is another one.

use std::time::{Duration, SystemTime};

use crate::point::owner::{Phase, View};
use crate::tree::inode::{Generation, fnv};
use crate::tree::partitions::Medium;
use crate::tree::{Form, Node};
use crate::vm::{Disk, Inventory};

/// What the kernel keeps of a generation.
const KEPT: u64 = u32::MAX as u64;

/// A mount that takes no more than one point in time in so much time, on the whole, has no generation in common with a later one.
/// They come back after 17 years.
const PACE: Duration = Duration::from_millis(250);

/// The lease of a file on a point in time of that number.
pub(super) fn leased(number: u64) -> u64 {
    number * 2
}

impl Generation {
    /// The generation of a node as a look-up finds it.
    ///
    /// The lease of a file is twice the number of the point in time that opening it will lease, and one less if
    /// its size is an estimate, as that of a qcow2 file is before its point in time is taken. Answers of the time before may
    /// reach the kernel late; with a generation of their own they cannot make the exact node shorter again, and copies of it
    /// end too early.
    pub(super) fn of(node: &Node, view: &View, inventory: &Inventory) -> Self {
        let lease = match node {
            Node::File { content, .. } => {
                let estimated = content.form() == Form::Qcow2 && view.phase != Phase::Held;
                leased(view.upcoming()) - u64::from(estimated)
            }
            node if node.is_of_an_instant() => leased(view.upcoming()),
            _ => 0,
        };
        Self { lease, identity: identity(node, inventory) }
    }

    /// That of a node of a point in time.
    pub(super) fn held(node: &Node, number: u64, inventory: &Inventory) -> Self {
        Self { lease: leased(number), identity: identity(node, inventory) }
    }
}

/// Which disk or checkpoint of its name a node is of.
///
/// A checkpoint is known by when it was made: the kernel finds nothing in a directory that was removed, as long as somebody
/// holds it, also if one of that name is made again. A disk is known by its image and the node of that, but its
/// directories are names only: whoever is in one stays there when an external snapshot is made.
fn identity(node: &Node, inventory: &Inventory) -> u64 {
    let identity = match node {
        Node::Checkpoint(name) => inventory.disks.iter().filter_map(|disk| made(disk, name)).min(),
        Node::CheckpointDisk { checkpoint, disk } => inventory.disk(disk).and_then(|disk| made(disk, checkpoint)),
        Node::File { disk, checkpoint, .. } => inventory.disk(disk).map(|disk| {
            let made = checkpoint.as_ref().and_then(|checkpoint| made(disk, checkpoint)).unwrap_or(0);
            of_image(disk, made)
        }),
        Node::Inside { medium: Medium::Disk(disk), .. } if node.is_of_an_instant() => {
            inventory.disk(disk).map(|disk| of_image(disk, 0))
        }
        // A volume group may be on any of them.
        Node::Inside { medium: Medium::Logical { .. }, .. } | Node::LvmTable | Node::LvmGroup(_) => {
            Some(inventory.disks.iter().fold(0, |all: u64, disk| all.rotate_left(1) ^ of_image(disk, 0)))
        }
        // Of the last, the directory `partitions`: as that of a disk, it is a name only.
        Node::Root
        | Node::Status
        | Node::Control
        | Node::Current
        | Node::Disk(_)
        | Node::Lvm
        | Node::Checkpoints
        | Node::Inside { .. } => None,
    };
    identity.unwrap_or(0) & KEPT
}

/// What tells a disk of an image, since a checkpoint that was made then, from others of its name.
fn of_image(disk: &Disk, made: u64) -> u64 {
    let image = disk.bitmap_node.bytes().chain([0]).chain(disk.image.bytes());
    let hash = fnv(image.chain([0]).chain(made.to_le_bytes()));
    hash ^ (hash >> u32::BITS)
}

/// When a checkpoint was made, in milliseconds since 1970, if pullfs made it.
fn made(disk: &Disk, checkpoint: &str) -> Option<u64> {
    let made = disk.bitmaps.get(checkpoint)?.made?;
    u64::try_from(since_1970(made.time).as_millis()).ok()
}

fn since_1970(time: SystemTime) -> Duration {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// Where a mount's points in time are counted from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Epoch(u64);

impl Epoch {
    /// That of a mount that began at this time.
    pub(super) fn of(mounted: SystemTime) -> Self {
        let paces = since_1970(mounted).as_millis() / PACE.as_millis();
        Self(leased(u64::try_from(paces).unwrap_or(0)))
    }

    /// What the kernel is told of a generation: none of another instant, disk or checkpoint under the same number is alike.
    pub(super) fn told(self, node: &Node, generation: Generation) -> u64 {
        let counted = if node.is_of_an_instant() { self.0.wrapping_add(generation.lease) } else { 0 };
        (counted ^ generation.identity) & KEPT
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Content;

    fn raw() -> Node {
        Node::File { disk: "vda".into(), checkpoint: None, content: Content::DiskRaw }
    }

    #[test]
    fn mounts_one_after_the_other_have_no_generation_in_common() {
        let first = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let told = |mounted: SystemTime, number: u64| {
            Epoch::of(mounted).told(&raw(), Generation { lease: leased(number), identity: 77 })
        };
        for number in 1..1000 {
            assert_ne!(told(first, number), told(first, number + 1));
            assert_ne!(told(first, number), told(first + PACE * 1000, 1), "{number}");
        }
        assert!(told(first, 1) <= KEPT);
    }
}
