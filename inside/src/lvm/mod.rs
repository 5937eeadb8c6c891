//! LVM2: volume groups, and where on their physical volumes a logical volume's bytes are.
//!
//! ```text
//! physical volume: label (sectors 0 to 3) ─▶ metadata area ─▶ text ─▶ Group ─▶ Volume ─▶ Segment ─▶ Piece of a disk
//! ```
//! Each physical volume has the metadata of its whole group, or none; the one with the highest sequence number counts. Linear and
//! striped volumes are read; whatever is more than that is named and refused.

mod config;
mod group;
mod label;
mod map;

use std::collections::BTreeMap;

use self::label::Physical;
use crate::{Disk, Result};

pub(crate) use self::label::id as label_of;
pub use self::map::{Piece, Segment, Stripe, Volume};

/// What was found on some disks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    /// The volume groups, by name.
    pub groups: Vec<Group>,
    /// What is wrong with physical volumes and their metadata: a sentence each.
    pub problems: Vec<String>,
}

/// A volume group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Its name: letters, digits and `+_.-`, neither `.` nor `..`.
    pub name: String,
    /// Its UUID, as LVM2 writes it.
    pub id: String,
    /// How often it was changed.
    pub sequence: u64,
    /// Its physical volumes: their UUIDs, and which of the disks they are; none if they are on none of them.
    pub physical: Vec<(String, Option<usize>)>,
    /// Its logical volumes that are to be seen, by name; see [`Volume::segments`].
    pub volumes: Vec<Volume>,
}

/// Most disks and partitions that are looked at together.
pub const MAX_DISKS: usize = 1024;

/// The volume groups on some disks or partitions; those that are no physical volumes are passed over, and those after the first
/// [`MAX_DISKS`]. A disk that cannot be read, and metadata that cannot be right, are told of in [`Found::problems`].
///
/// # Errors
/// What a disk fails with.
pub fn read<D: Disk>(disks: &[D]) -> Result<Found> {
    let mut found = Found::default();
    // By the physical volume's UUID. Two with one UUID are copies of each other: no one knows which is the right one.
    let mut places: BTreeMap<String, Option<usize>> = BTreeMap::new();
    let mut newest: BTreeMap<String, Group> = BTreeMap::new();
    let mut texts = Vec::new();
    for (at, disk) in disks.iter().enumerate().take(MAX_DISKS) {
        let Some(physical) = Physical::read(disk)? else { continue };
        found.problems.extend(physical.problems);
        let place = places.entry(physical.id.clone()).and_modify(|place| *place = None).or_insert(Some(at));
        if place.is_none() {
            found
                .problems
                .push(format!("more than one disk is physical volume {}: none of them is taken", physical.id));
        }
        texts.extend(physical.texts.into_iter().map(|text| (physical.id.clone(), text)));
    }
    let sizes: Vec<u64> = disks.iter().map(Disk::size).collect();
    // All copies of one text are the same, and most groups have several.
    texts.sort_by(|(_, a), (_, b)| a.cmp(b));
    texts.dedup_by(|(_, a), (_, b)| a == b);
    for (from, text) in texts {
        match group::parse(&text, &places, &sizes) {
            Ok(group) => match newest.entry(group.id.clone()) {
                std::collections::btree_map::Entry::Vacant(entry) => drop(entry.insert(group)),
                std::collections::btree_map::Entry::Occupied(mut entry) => {
                    if entry.get().sequence < group.sequence {
                        entry.insert(group);
                    }
                }
            },
            Err(why) => found.problems.push(format!("the metadata of physical volume {from} cannot be used: {why}")),
        }
    }
    found.groups = newest.into_values().collect();
    found.groups.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
    for pair in found.groups.windows(2).filter(|pair| pair[0].name == pair[1].name) {
        found
            .problems
            .push(format!("two volume groups have the name {}: {} and {}", pair[0].name, pair[0].id, pair[1].id));
    }
    Ok(found)
}
