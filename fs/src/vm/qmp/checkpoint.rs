//! Making and deleting checkpoints: which bitmaps that takes.

use std::sync::Arc;
use std::time::SystemTime;

use super::note;
use super::steps::NewBitmap;
use crate::error::{Error, Kind, Result};
use crate::vm::{Bitmap, Disk, Inventory, Made};

/// Granularity of the bitmaps of new checkpoints, in bytes: QEMU's own choice for most images, and libvirt's.
const GRANULARITY: u32 = 65536;

/// Refuses a checkpoint that cannot be made.
pub(in crate::vm) fn check(name: &str, inventory: &Inventory) -> Result<()> {
    let refused = |kind, why: &str| Err(Error::new(kind, format!("cannot make checkpoint {name:?}: {why}")));
    if let Err(why) = note::check_name(name) {
        return refused(Kind::Invalid, why);
    }
    let exists = |disk: &Disk| disk.bitmaps.get(name).is_some_and(|bitmap| !bitmap.parts.is_empty());
    if inventory.disks.iter().any(exists) {
        return refused(Kind::Exists, "there is one of that name; delete it first, or choose another name");
    }
    Ok(())
}

/// The bitmap of a checkpoint and the note on it.
pub(super) fn bitmaps(disk: &Disk, checkpoint: &str, time: SystemTime) -> Vec<NewBitmap> {
    let bitmap = |name: String, note: bool| NewBitmap {
        node: disk.bitmap_node.clone(),
        name,
        granularity: if note { note::GRANULARITY } else { GRANULARITY },
        persistent: disk.keeps_bitmaps,
        disabled: note,
    };
    let note = note::write(checkpoint, Made { time, size: disk.size });
    vec![bitmap(checkpoint.to_owned(), false), bitmap(note, true)]
}

/// A checkpoint of this name, of which nothing has changed yet, on every disk.
pub(super) fn add(inventory: &mut Inventory, name: &Arc<str>, time: SystemTime) {
    for disk in &mut inventory.disks {
        let bitmap = Bitmap {
            dirty_bytes: 0,
            granularity: GRANULARITY,
            recording: true,
            persistent: disk.keeps_bitmaps,
            inconsistent: false,
            unusable: None,
            whole: None,
            made: Some(Made { time, size: disk.size }),
            parts: Vec::new(),
        };
        disk.bitmaps.insert(name.clone(), bitmap);
    }
}

/// The bitmaps that a checkpoint consists of and that can be removed, as (node, name).
pub(super) fn bitmaps_of(name: &str, inventory: &Inventory, foreign: bool) -> Result<Vec<(String, String)>> {
    let on = inventory.disks.iter().filter_map(|disk| Some((disk, disk.bitmaps.get(name)?)));
    let on: Vec<(&Disk, &Bitmap)> = on.filter(|(_, bitmap)| !bitmap.parts.is_empty()).collect();
    if on.is_empty() {
        return Err(Error::new(Kind::NotFound, format!("there is no checkpoint {name}")));
    }
    if !foreign && on.iter().any(|(_, bitmap)| bitmap.made.is_none()) {
        return Err(Error::new(
            Kind::NotOurs,
            format!("checkpoint {name} was not made by pullfs; it deletes such only with -o foreign=rw"),
        ));
    }
    let mut bitmaps = Vec::new();
    for (_, bitmap) in on {
        let removable = bitmap.parts.iter().filter(|part| part.removable);
        bitmaps.extend(removable.map(|part| (part.node.clone(), part.name.clone())));
    }
    Ok(bitmaps)
}
