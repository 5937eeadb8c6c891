//! What is done by several transactions, and was not done by all of them.

use std::collections::BTreeMap;

use crate::Result;

use super::super::extents::Mapping;
use super::super::unfinished::{Change, MAX_CHANGES};
use super::transactions::Item;
use super::unclean;
use crate::numbers::{index, le32, le64, slice};

const EXTENTS: u16 = 0x1244;
const ATTRIBUTES: u16 = 0x1246;

/// What is to be done by more than one transaction is logged as an intent, and as done with the last one. Freeing of extents and
/// the maps of which extents are whose, also those of realtime devices, change nothing that is seen, done or not.
const INTENTS: [(u16, u16, Option<&str>); 9] = [
    (0x1236, 0x1237, None),
    (0x1240, 0x1241, None),
    (0x1242, 0x1243, None),
    (EXTENTS, 0x1245, Some("a change of a file's extents was under way")),
    (ATTRIBUTES, 0x1247, Some("a change of an extended attribute was under way")),
    (0x1248, 0x1249, Some("an exchange of two files' contents was under way")),
    (0x124a, 0x124b, None),
    (0x124c, 0x124d, None),
    (0x124e, 0x124f, None),
];

/// Most intents that are not done at once: each needs some room in the log.
const MAX_INTENTS: usize = 65536;

// me_flags, of an intent to change extents
const MAP: u32 = 1;
const UNMAP: u32 = 2;
const UNWRITTEN: u32 = 1 << 30;

/// What is to be done.
#[derive(Debug)]
struct Intent {
    /// Which one it was.
    order: u64,
    /// In words, if it is seen.
    what: Option<&'static str>,
    /// If it is that, what can be brought to an end here.
    changes: Vec<Change>,
}

/// Those that are not done, by their kinds and numbers.
#[derive(Debug, Default)]
pub(super) struct Intents {
    open: BTreeMap<(u16, u64), Intent>,
    /// How many there were.
    seen: u64,
}

impl Intents {
    /// An intent, or that one is done.
    pub(super) fn item(&mut self, item: &Item) -> Result<()> {
        let format = &item.regions[0];
        for (intent, done, what) in INTENTS {
            if item.kind == intent {
                let hidden = intent == ATTRIBUTES && is_of_parent(le32(format, 24)?);
                let changes = if intent == EXTENTS { extent_changes(format)? } else { Vec::new() };
                self.seen += 1;
                if self.open.len() >= MAX_INTENTS {
                    return Err(unclean("more is under way than is possible"));
                }
                let what = what.filter(|_| !hidden);
                let key = (intent, le64(format, 8)?);
                self.open.insert(key, Intent { order: self.seen, what, changes });
                return Ok(());
            }
            if item.kind == done {
                self.open.remove(&(intent, le64(format, 8)?));
                return Ok(());
            }
        }
        Err(unclean(&format!("an item of an unknown kind {:#x}", item.kind)))
    }

    /// What is left to do of what changes what is seen.
    pub(super) fn finish(self) -> Result<Vec<Change>> {
        let mut intents: Vec<Intent> = self.open.into_values().collect();
        intents.sort_by_key(|intent| intent.order);
        let changes: Vec<Change> = intents.iter().flat_map(|intent| &intent.changes).copied().collect();
        let mut left = intents.iter().filter(|intent| intent.changes.is_empty() || changes.len() > MAX_CHANGES);
        match left.find_map(|intent| intent.what) {
            Some(what) => Err(unclean(&format!("{what}: take another point in time, or freeze it first (--quiesce)"))),
            None => Ok(changes),
        }
    }
}

/// What an intent to change extents is to change; nothing if that cannot be done here.
fn extent_changes(format: &[u8]) -> Result<Vec<Change>> {
    let all = slice(format, 16, index(le32(format, 4)?).saturating_mul(32))?;
    let mut changes = Vec::new();
    for extent in all.chunks_exact(32) {
        let flags = le32(extent, 28)?;
        let mapping = Mapping {
            offset: le64(extent, 16)?,
            count: le32(extent, 24)?.into(),
            block: le64(extent, 8)?,
            unwritten: flags & UNWRITTEN != 0,
        };
        // Not those of attributes or of realtime devices.
        let fits = mapping.offset >> 54 == 0 && mapping.block >> 52 == 0 && mapping.count != 0;
        if !fits || !matches!(flags & !UNWRITTEN, MAP | UNMAP) || changes.len() == MAX_CHANGES {
            return Ok(Vec::new());
        }
        changes.push(Change { inode: le64(extent, 0)?, mapping, maps: flags & !UNWRITTEN == MAP });
    }
    Ok(changes)
}

/// Parent pointers are attributes that are not shown.
fn is_of_parent(flags: u32) -> bool {
    (4..=6).contains(&(flags & 0xff))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_that_were_under_way_are_told_in_their_order() {
        let intent = |kind: u16, id: u64, extent: Option<(u64, u32)>| {
            let mut format = [&kind.to_le_bytes()[..], &[1, 0, 1, 0, 0, 0], &id.to_le_bytes()].concat();
            if let Some((offset, flags)) = extent {
                format.extend([131_u64, 50, offset].iter().flat_map(|number| number.to_le_bytes()));
                format.extend([3, flags].iter().flat_map(|number| number.to_le_bytes()));
            }
            Item { kind, total: 1, regions: vec![format] }
        };
        let finish = |items: Vec<Item>| {
            let mut intents = Intents::default();
            for item in &items {
                intents.item(item).unwrap();
            }
            intents.finish()
        };
        let changes = |items| -> Vec<(u64, bool)> {
            let changes = finish(items).unwrap();
            changes.iter().map(|change| (change.mapping.offset, change.maps)).collect()
        };
        let left = vec![
            intent(0x1236, 1, None),
            intent(EXTENTS, 9, Some((7, UNMAP))),
            intent(EXTENTS, 3, Some((8, MAP))),
            intent(EXTENTS, 4, Some((1, MAP))),
            intent(0x1245, 4, None),
        ];
        assert_eq!(changes(left), [(7, false), (8, true)]);
        for refused in [intent(EXTENTS, 1, Some((7, MAP | 1 << 31))), intent(0x1248, 1, None)] {
            assert!(finish(vec![intent(0x1236, 1, None), refused]).is_err());
        }
        assert!(finish(vec![intent(0x1248, 1, None), intent(0x1249, 1, None)]).unwrap().is_empty());
    }
}
