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
use std::collections::btree_map::Entry;

use self::label::Physical;
use self::map::Assembled;
use crate::{Disk, Error, Kind, Result, probe};

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

/// Most logical volumes that are told of.
pub const MAX_VOLUMES: usize = 1024;

/// Most physical volumes of a group; those that are on no disk count too.
pub(crate) const MAX_PHYSICAL: usize = 4096;

/// Most segments of a logical volume.
pub(crate) const MAX_SEGMENTS: usize = 32_768;

/// Most stripes of a segment, as LVM2 has it.
pub(crate) const MAX_STRIPES: usize = 128;

/// Most metadata that is taken from all disks together, in bytes, copies of each other counted once.
const MAX_TEXTS: usize = 64 << 20;

/// Whether a name can be that of a volume group or a logical volume.
pub fn is_name(name: &[u8]) -> bool {
    let fine = name.iter().all(|byte| byte.is_ascii_alphanumeric() || b"+_.-".contains(byte));
    fine && (1..128).contains(&name.len()) && name != b"." && name != b".."
}

/// The volume groups on some disks or partitions; those that are no physical volumes are passed over, and those after the first
/// [`MAX_DISKS`]. Metadata that cannot be right is told of in [`Found::problems`].
///
/// # Errors
/// What a disk fails with.
pub fn read<D: Disk>(disks: &[D]) -> Result<Found> {
    let mut found = Found::default();
    // By the physical volume's UUID. Two with one UUID are copies of each other: no one knows which is the right one.
    let mut places: BTreeMap<String, Option<usize>> = BTreeMap::new();
    // All copies of one text are the same, and most groups have several.
    let mut texts: BTreeMap<Vec<u8>, String> = BTreeMap::new();
    let mut taken = 0;
    for (at, disk) in disks.iter().enumerate().take(MAX_DISKS) {
        let Some(physical) = Physical::read(disk)? else { continue };
        found.problems.extend(physical.problems);
        let place = places.entry(physical.id.clone()).and_modify(|place| *place = None).or_insert(Some(at));
        if place.is_none() {
            found
                .problems
                .push(format!("more than one disk is physical volume {}: none of them is taken", physical.id));
        }
        for text in physical.texts.into_iter().filter(|text| !text.is_empty()) {
            if let Entry::Vacant(entry) = texts.entry(text) {
                taken += entry.key().len();
                if taken > MAX_TEXTS {
                    return Err(Error::new(Kind::TooLarge, "there is more metadata of LVM2 than is read here"));
                }
                entry.insert(physical.id.clone());
            }
        }
    }
    let sizes: Vec<u64> = disks.iter().map(Disk::size).collect();
    let mut newest: BTreeMap<String, Group> = BTreeMap::new();
    for (text, from) in texts {
        match group::parse(&text, &places, &sizes) {
            Ok(group) => keep_newest(&mut newest, group),
            Err(why) => found.problems.push(format!("the metadata of physical volume {from} cannot be used: {why}")),
        }
    }
    found.groups = newest.into_values().collect();
    found.groups.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
    found.groups.truncate(MAX_DISKS);
    refuse_namesakes(&mut found);
    let mut room = MAX_VOLUMES;
    for group in &mut found.groups {
        if group.volumes.len() > room {
            group.volumes.truncate(room);
            found.problems.push(format!("only the first {MAX_VOLUMES} logical volumes are shown"));
        }
        room -= group.volumes.len();
        for volume in &mut group.volumes {
            if volume.segments.is_ok() {
                let content = probe(&Assembled { volume, disks })?;
                volume.content = content;
            }
        }
    }
    Ok(found)
}

/// Two metadata of one number that differ were written by two machines that had a part of the group each: neither is the right one.
fn keep_newest(newest: &mut BTreeMap<String, Group>, mut group: Group) {
    match newest.entry(group.id.clone()) {
        Entry::Vacant(entry) => drop(entry.insert(group)),
        Entry::Occupied(mut entry) => {
            let known = entry.get();
            if known.sequence == group.sequence && *known != group {
                group.refuse("its group has two different metadata of the same number: its disks were in use apart from each other");
            } else if known.sequence >= group.sequence {
                return;
            }
            entry.insert(group);
        }
    }
}

/// One path is for one thing.
fn refuse_namesakes(found: &mut Found) {
    let groups = &mut found.groups;
    for at in 1..groups.len() {
        let [one, other] = &mut groups[at - 1..=at] else { continue };
        if one.name == other.name {
            let problem = format!("two volume groups have the name {}: {} and {}", one.name, one.id, other.id);
            found.problems.push(problem);
            for group in [one, other] {
                group.refuse("two volume groups have its group's name: rename one (vgrename, by its UUID)");
            }
        }
    }
}

impl Group {
    fn refuse(&mut self, why: &str) {
        for volume in &mut self.volumes {
            volume.segments = Err(why.to_owned());
        }
    }
}
