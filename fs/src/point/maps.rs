//! The frozen dirty maps of a point in time, each fetched when it is first needed.
//!
//! A map of a million extents has 16 MB; those that nobody has open are kept only up to [`KEPT_EXTENTS`]. Their sizes
//! are small and kept for good, so that a `stat` fetches a map once at most.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::OnceCell;

use crate::block::Source;
use crate::block::changes::{Changes, FrozenMap};
use crate::error::{Error, Kind, Result};
use crate::vm::Taken;

/// Extents of all kept maps together (24 MiB); the newest map is kept whatever its size.
const KEPT_EXTENTS: usize = 3 << 19;

/// Checkpoint and disk.
type Key = (Arc<str>, Arc<str>);

struct Frozen {
    source: Arc<dyn Source>,
    size: u64,
    maps: BTreeMap<Arc<str>, FrozenMap>,
}

struct Slot {
    cell: Arc<OnceCell<Arc<Changes>>>,
    used: u64,
}

#[derive(Default)]
struct Kept {
    slots: HashMap<Key, Slot>,
    sizes: HashMap<(Key, &'static str), u64>,
    clock: u64,
}

/// All dirty maps of a point in time.
pub struct Maps {
    disks: HashMap<Arc<str>, Frozen>,
    /// Held for look-ups only; a map that is being fetched is waited for in its cell.
    kept: Mutex<Kept>,
}

impl Maps {
    pub(super) fn new(taken: &Taken) -> Self {
        let disks = taken.inventory.disks.iter().zip(&taken.disks);
        let frozen = disks.map(|(disk, view)| {
            let frozen = Frozen { source: view.source.clone(), size: disk.size, maps: view.frozen.clone() };
            (disk.name.clone(), frozen)
        });
        Self { disks: frozen.collect(), kept: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a map of this checkpoint was frozen, of any disk.
    pub(super) fn has(&self, checkpoint: &Arc<str>) -> bool {
        self.disks.values().any(|frozen| frozen.maps.contains_key(checkpoint))
    }

    /// The older checkpoint since which all of `disk` that changed counts as changed since `checkpoint`, if that is so.
    pub fn rough(&self, checkpoint: &Arc<str>, disk: &Arc<str>) -> Option<&Arc<str>> {
        self.disks.get(disk)?.maps.get(checkpoint)?.rough.as_ref()
    }

    /// What changed on `disk` since `checkpoint`. Those who ask at the same time share one fetch.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if the map was not frozen; any failure of fetching it.
    pub async fn get(&self, checkpoint: &Arc<str>, disk: &Arc<str>) -> Result<Arc<Changes>> {
        let not_found = || Error::new(Kind::NotFound, format!("{disk} has no map of checkpoint {checkpoint}"));
        let frozen = self.disks.get(disk).ok_or_else(not_found)?;
        let map = frozen.maps.get(checkpoint).ok_or_else(not_found)?;
        let key = (checkpoint.clone(), disk.clone());
        let cell = {
            let mut kept = self.lock();
            kept.clock += 1;
            let used = kept.clock;
            let slot = kept.slots.entry(key.clone()).or_insert_with(|| Slot { cell: Arc::default(), used });
            slot.used = used;
            slot.cell.clone()
        };
        let learn = async || Changes::learn(&*frozen.source, map, frozen.size).await.map(Arc::new);
        let changes = cell.get_or_try_init(learn).await?.clone();
        self.lock().trim(&key);
        Ok(changes)
    }

    /// The size of a file made of a map, if it was told by [`Maps::note_size`]; `file` tells the files of one map apart.
    pub fn size(&self, checkpoint: &Arc<str>, disk: &Arc<str>, file: &'static str) -> Option<u64> {
        self.lock().sizes.get(&((checkpoint.clone(), disk.clone()), file)).copied()
    }

    /// Keeps the size of a file made of a map, in bytes.
    pub fn note_size(&self, checkpoint: &Arc<str>, disk: &Arc<str>, file: &'static str, size: u64) {
        self.lock().sizes.insert(((checkpoint.clone(), disk.clone()), file), size);
    }
}

impl Kept {
    /// Drops the maps that were not used for longest, but not `newest`.
    fn trim(&mut self, newest: &Key) {
        let len = |slot: &Slot| slot.cell.get().map_or(0, |changes| changes.len());
        let mut total: usize = self.slots.values().map(len).sum();
        while total > KEPT_EXTENTS {
            let oldest = self.slots.iter().filter(|(key, slot)| *key != newest && len(slot) > 0);
            let Some(key) = oldest.min_by_key(|(_, slot)| slot.used).map(|(key, _)| key.clone()) else { return };
            total -= self.slots.remove(&key).map_or(0, |slot| len(&slot));
        }
    }
}
