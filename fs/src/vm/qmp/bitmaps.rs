//! The checkpoints of a disk, from the dirty bitmaps on the nodes of its backing chain.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::graph::{DirtyBitmap, Node};
use super::note;
use crate::tree::name;
use crate::vm::{Bitmap, Disk, Made, Part, Skipped, SkippedKind, Unusable};

/// A named bitmap and where it is.
struct Found<'a> {
    layer: usize,
    node: &'a Node,
    bitmap: &'a DirtyBitmap,
}

/// The checkpoints of the disk `disk`, whose layers these are; what is no checkpoint goes to `skipped`.
pub(super) fn checkpoints(disk: &str, layers: &[Vec<&Node>], skipped: &mut Vec<Skipped>) -> BTreeMap<Arc<str>, Bitmap> {
    let mut names: BTreeMap<&str, Vec<Found<'_>>> = BTreeMap::new();
    let mut notes: BTreeMap<&str, Vec<(Made, Found<'_>)>> = BTreeMap::new();
    for (layer, nodes) in layers.iter().enumerate() {
        for node in nodes {
            for bitmap in &node.dirty_bitmaps {
                let found = Found { layer, node, bitmap };
                match bitmap.name.as_deref() {
                    Some(name) if note::is_note(name) => {
                        if let Some((checkpoint, made)) = note::read(name) {
                            notes.entry(checkpoint).or_default().push((made, found));
                        }
                    }
                    Some(name) => names.entry(name).or_default().push(found),
                    // The filters of backups have bitmaps without a name.
                    None => {}
                }
            }
        }
    }
    let size = layers.first().and_then(|nodes| nodes.first()).map_or(0, |node| node.image.virtual_size);
    let mut checkpoints = BTreeMap::new();
    for (checkpoint, found) in names {
        let reason = match name::check(checkpoint) {
            Err(reason) => Some(reason),
            Ok(()) if found.iter().all(|found| found.layer > 0) => {
                Some("it is on a backing image only, so what changed since the snapshot is not in it")
            }
            Ok(()) => None,
        };
        if let Some(reason) = reason {
            let name = format!("bitmap {checkpoint:?} of {disk}");
            skipped.push(Skipped { kind: SkippedKind::Bitmap, name, reason: reason.to_owned() });
        } else {
            let notes = notes.get(checkpoint).map_or(&[][..], Vec::as_slice);
            checkpoints.insert(Arc::from(checkpoint), assess(&of_one_making(found, notes), notes, size));
        }
    }
    checkpoints
}

/// What belongs to the newest checkpoint of a name. A deleted one leaves its bitmaps in backing images, where they cannot
/// be removed: the notes tell how far down the newest one reaches.
fn of_one_making<'a>(mut found: Vec<Found<'a>>, notes: &[(Made, Found<'a>)]) -> Vec<Found<'a>> {
    // The newest layer's note is the one on the bitmap that records.
    if let Some((newest, _)) = notes.first() {
        let same = notes.iter().filter(|(made, _)| made == newest);
        let deepest = same.map(|(_, note)| note.layer).max().unwrap_or(0);
        found.retain(|found| found.layer <= deepest);
    }
    found
}

/// "Since X" is the OR of the bitmaps named X from the active layer down. It can be told only if the active layer
/// still records: what changed after recording stopped is nowhere. `size` is the active layer's: QEMU merges no bitmaps
/// of different sizes, which layers have when the disk grew after an external snapshot.
fn assess(found: &[Found<'_>], notes: &[(Made, Found<'_>)], size: u64) -> Bitmap {
    let recording = found.iter().any(|found| found.layer == 0 && found.bitmap.recording);
    let inconsistent = found.iter().any(|found| found.bitmap.inconsistent);
    let unusable = if inconsistent {
        Some("QEMU lost this bitmap in a crash; take a full backup and a new checkpoint, and delete this one")
    } else if !recording {
        Some("it no longer records changes on this disk; take a full backup and a new checkpoint")
    } else if found.iter().any(|found| found.bitmap.busy) {
        Some("another operation of QEMU is using this bitmap; try again when it is done")
    } else {
        None
    };
    let grown = found.iter().any(|found| found.node.image.virtual_size != size);
    let whole = (unusable.is_none() && grown)
        .then(|| "the disk grew after an external snapshot, so all of it counts as changed".to_owned());
    let counted = found.iter().map(|found| found.bitmap.count).fold(0, u64::saturating_add);
    let part = |found: &Found<'_>, note| Part {
        node: found.node.node_name.clone(),
        name: found.bitmap.name.clone().unwrap_or_default(),
        note,
        recording: found.bitmap.recording,
        removable: !found.node.ro,
    };
    let of_notes = notes.iter().map(|(_, found)| part(found, true));
    Bitmap {
        dirty_bytes: if whole.is_some() { size } else { counted },
        granularity: found.iter().map(|found| found.bitmap.granularity).min().unwrap_or(0),
        recording,
        persistent: found.iter().all(|found| found.bitmap.persistent),
        inconsistent,
        unusable: unusable.map(|why| Unusable::Lost(why.to_owned())),
        whole,
        made: notes.first().map(|(made, _)| *made),
        parts: found.iter().map(|found| part(found, false)).chain(of_notes).collect(),
    }
}

/// Gives every disk every checkpoint: one that does not know a checkpoint of another disk, because it was added later
/// or its bitmap did not survive, counts as changed from end to end.
pub(in crate::vm) fn complete(disks: &mut [Disk]) {
    let all: BTreeMap<Arc<str>, u32> = disks
        .iter()
        .flat_map(|disk| disk.bitmaps.iter().map(|(name, bitmap)| (name.clone(), bitmap.granularity)))
        .collect();
    for disk in disks {
        for (name, granularity) in &all {
            let size = disk.size;
            disk.bitmaps.entry(name.clone()).or_insert_with(|| Bitmap {
                dirty_bytes: size,
                granularity: *granularity,
                recording: false,
                persistent: true,
                inconsistent: false,
                unusable: None,
                whole: Some("this disk does not have the checkpoint, so all of it counts as changed".to_owned()),
                made: None,
                parts: Vec::new(),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use serde_json::{Value, json};

    use super::*;

    fn bitmap(name: &str, recording: bool) -> Value {
        json!({"name": name, "count": 65536, "granularity": 65536, "recording": recording, "busy": false})
    }

    fn node(name: &str, ro: bool, bitmaps: &[Value]) -> Node {
        let node = json!({"node-name": name, "drv": "qcow2", "ro": ro, "image": {"virtual-size": 1}, "dirty-bitmaps": bitmaps});
        serde_json::from_value(node).unwrap()
    }

    #[test]
    fn what_cannot_be_told_is_said() {
        let made = Made { time: UNIX_EPOCH, size: 7 };
        let note = note::write("ours", made);
        let mut lost = bitmap("lost", false);
        lost["inconsistent"] = json!(true);
        let top = node("top", false, &[bitmap("ours", true), bitmap("stopped", false), lost]);
        let base = node(
            "base",
            true,
            &[bitmap("ours", false), bitmap(&note, false), bitmap("below", true), bitmap("a/b", true)],
        );
        let mut skipped = Vec::new();
        let found = checkpoints("vda", &[vec![&top], vec![&base]], &mut skipped);
        assert_eq!(found.keys().map(|name| &**name).collect::<Vec<_>>(), ["lost", "ours", "stopped"]);
        let ours = &found["ours"];
        assert_eq!((ours.dirty_bytes, ours.made, &ours.unusable), (131_072, Some(made), &None));
        let parts: Vec<_> = ours.parts.iter().map(|part| (&*part.name, part.note, part.removable)).collect();
        assert_eq!(parts, [("ours", false, true), ("ours", false, false), (&*note, true, false)]);
        assert_eq!((ours.also(7), ours.also(9)), (None, Some(7..9)));
        assert!(found["stopped"].unusable.as_ref().unwrap().why().contains("no longer records"));
        assert!(found["lost"].unusable.as_ref().unwrap().why().contains("full backup"));
        assert_eq!(skipped.len(), 2, "a bitmap below a snapshot, and a name that is none: {skipped:?}");
    }

    #[test]
    fn an_older_checkpoint_of_the_name_is_none_of_this_one() {
        let [old, new] = [7, 8].map(|millis| Made { time: UNIX_EPOCH + Duration::from_millis(millis), size: 1 });
        let [old_note, new_note] = [old, new].map(|made| note::write("ours", made));
        // Deleted, which leaves what is below a snapshot; made again; and another snapshot.
        let top = node("top", false, &[bitmap("ours", true)]);
        let middle = node("middle", true, &[bitmap("ours", false), bitmap(&new_note, false)]);
        let base = node("base", true, &[bitmap("ours", false), bitmap(&old_note, false)]);
        let found = checkpoints("vda", &[vec![&top], vec![&middle], vec![&base]], &mut Vec::new());
        let ours = &found["ours"];
        assert_eq!((ours.dirty_bytes, ours.made), (131_072, Some(new)));
        assert!(ours.parts.iter().all(|part| part.note || part.node != "base"), "{:?}", ours.parts);
    }

    #[test]
    fn a_disk_that_grew_after_a_snapshot_is_changed_as_a_whole() {
        let mut top = node("top", false, &[bitmap("since", true)]);
        top.image.virtual_size = 3;
        let base = node("base", true, &[bitmap("since", false)]);
        let found = checkpoints("vda", &[vec![&top], vec![&base]], &mut Vec::new());
        let since = &found["since"];
        assert!(since.whole.is_some() && since.unusable.is_none() && !since.parts.is_empty(), "{since:?}");
        assert_eq!(since.also(3), Some(0..3));
    }
}
