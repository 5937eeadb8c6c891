//! What a machine's disks and their checkpoints must be, kept in memory while the machine lives its life.
//!
//! The model knows two things. **Content**: each disk's bytes, now and at each checkpoint, and which sectors were touched
//! since. **Bitmaps**: in which layers of a backing chain QEMU has a checkpoint's bitmap, and what a restart or a power
//! failure makes of it. From these follows what a checkpoint is worth on a disk: [`State`].
//!
//! A checkpoint exists while the active layer of any disk has a bitmap of it. What a deleted one, or one whose newest part
//! was lost, leaves in the images below cannot be removed there, and means nothing: not even to a new one of its name.

use std::collections::BTreeMap;
use std::sync::Arc;

/// The unit in which the model remembers what was touched: what a guest writes is no finer.
pub const SECTOR: usize = 512;

/// What a checkpoint can tell of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Exactly what was touched since.
    Known,
    /// Nothing is known of this disk: all of it counts as changed.
    Missing,
    /// Nobody can tell what changed, and reading must fail.
    Unusable,
}

/// A bitmap in one layer of a disk.
#[derive(Clone, Copy, Debug)]
struct Bitmap {
    /// Whether the layer's format keeps it.
    persistent: bool,
    /// Whether it is in the image, and not in QEMU's memory alone.
    stored: bool,
    /// QEMU died while it had it.
    broken: bool,
}

/// A layer of a disk: its bitmaps by name, whether its format keeps them, and how large it is.
#[derive(Clone, Debug)]
struct Layer {
    keeps: bool,
    size: usize,
    bitmaps: BTreeMap<String, Bitmap>,
}

/// A disk.
#[derive(Clone, Debug)]
pub struct Disk {
    /// Its name.
    pub id: String,
    /// Its content, shared with every copy of the model until one of them changes it.
    pub bytes: Arc<Vec<u8>>,
    /// The active layer is the last.
    layers: Vec<Layer>,
}

/// A checkpoint, as far as one disk goes.
#[derive(Clone, Debug)]
pub struct Since {
    /// The disk's content at the checkpoint.
    pub then: Arc<Vec<u8>>,
    /// For each sector, whether it was touched since.
    pub touched: Vec<bool>,
}

/// A checkpoint.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// Its name.
    pub name: String,
    /// In the order of the disks.
    pub disks: Vec<Since>,
}

/// A machine.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// Its disks.
    pub disks: Vec<Disk>,
    /// The checkpoints that exist on any disk, oldest first.
    pub checkpoints: Vec<Checkpoint>,
}

impl Model {
    /// Adds a disk; whether its format keeps bitmaps.
    pub fn add_disk(&mut self, id: &str, bytes: Vec<u8>, keeps: bool) {
        let layers = vec![Layer { keeps, size: bytes.len(), bitmaps: BTreeMap::new() }];
        self.disks.push(Disk { id: id.to_owned(), bytes: Arc::new(bytes), layers });
    }

    /// The guest asked for a change of a part of a disk, after which it holds `bytes`.
    #[track_caller]
    pub fn change(&mut self, disk: usize, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        assert!(offset.is_multiple_of(SECTOR) && end.is_multiple_of(SECTOR), "guests write sectors");
        Arc::make_mut(&mut self.disks[disk].bytes)[offset..end].copy_from_slice(bytes);
        for checkpoint in &mut self.checkpoints {
            checkpoint.disks[disk].touched[offset / SECTOR..end / SECTOR].fill(true);
        }
    }

    /// A disk grew: the new tail reads as zeroes, and counts as touched.
    pub fn grow(&mut self, disk: usize, size: usize) {
        Arc::make_mut(&mut self.disks[disk].bytes).resize(size, 0);
        self.disks[disk].active().size = size;
        for checkpoint in &mut self.checkpoints {
            checkpoint.disks[disk].touched.resize(size / SECTOR, true);
        }
    }

    /// A checkpoint was made of all disks.
    pub fn checkpoint(&mut self, name: &str) {
        for disk in &mut self.disks {
            for layer in &mut disk.layers {
                layer.bitmaps.remove(name);
            }
            let active = disk.active();
            let bitmap = Bitmap { persistent: active.keeps, stored: false, broken: false };
            active.bitmaps.insert(name.to_owned(), bitmap);
        }
        let since = |disk: &Disk| Since { then: disk.bytes.clone(), touched: vec![false; disk.bytes.len() / SECTOR] };
        let disks = self.disks.iter().map(since).collect();
        self.checkpoints.push(Checkpoint { name: name.to_owned(), disks });
    }

    /// A checkpoint was deleted.
    pub fn delete(&mut self, name: &str) {
        for layer in self.disks.iter_mut().flat_map(|disk| &mut disk.layers) {
            layer.bitmaps.remove(name);
        }
        self.forget();
    }

    /// An external snapshot of some disks: QEMU stores the bitmaps of what is no longer the active layer, and those that
    /// record go on in the overlay, kept as they were below ([`crate::snapshot`]).
    pub fn snapshot(&mut self, disks: &[usize]) {
        for &disk in disks {
            let layers = &mut self.disks[disk].layers;
            let below = layers.last_mut().expect("an active layer");
            let mut bitmaps = BTreeMap::new();
            for (name, bitmap) in &mut below.bitmaps {
                if !bitmap.broken {
                    bitmap.stored = bitmap.persistent;
                    bitmaps.insert(name.clone(), Bitmap { stored: false, ..*bitmap });
                }
            }
            let size = below.size;
            layers.push(Layer { keeps: true, size, bitmaps });
        }
    }

    /// QEMU ended in an orderly way and was started again: it has what its images keep.
    pub fn restart(&mut self) {
        for layer in self.disks.iter_mut().flat_map(|disk| &mut disk.layers) {
            layer.bitmaps.retain(|_, bitmap| bitmap.persistent);
            layer.bitmaps.values_mut().for_each(|bitmap| bitmap.stored = true);
        }
        self.forget();
    }

    /// QEMU was killed and started again: what was in its memory alone is gone, and what it had open to write is broken.
    pub fn kill(&mut self) {
        for disk in &mut self.disks {
            for layer in &mut disk.layers {
                layer.bitmaps.retain(|_, bitmap| bitmap.stored);
            }
            disk.active().bitmaps.values_mut().for_each(|bitmap| bitmap.broken = true);
        }
        self.forget();
    }

    /// What a checkpoint can tell of a disk.
    pub fn state(&self, name: &str, disk: usize) -> State {
        let disk = &self.disks[disk];
        let parts = disk.layers.iter().filter_map(|layer| Some((layer.size, layer.bitmaps.get(name)?)));
        if !disk.recorded(name) {
            State::Missing
        } else if parts.clone().any(|(_, bitmap)| bitmap.broken) {
            State::Unusable
        } else if parts.clone().any(|(size, _)| size != disk.bytes.len()) {
            // QEMU merges no bitmaps of different sizes.
            State::Missing
        } else {
            State::Known
        }
    }

    /// Whether a checkpoint tells everything of some disk, and all of any other.
    pub fn usable(&self, name: &str) -> bool {
        (0..self.disks.len()).all(|disk| self.state(name, disk) != State::Unusable)
    }

    /// Drops the checkpoints that no disk records any more.
    fn forget(&mut self) {
        let disks = &self.disks;
        self.checkpoints.retain(|checkpoint| disks.iter().any(|disk| disk.recorded(&checkpoint.name)));
    }
}

impl Disk {
    /// Whether the active layer has a bitmap of a checkpoint.
    fn recorded(&self, name: &str) -> bool {
        self.layers.last().is_some_and(|active| active.bitmaps.contains_key(name))
    }

    fn active(&mut self) -> &mut Layer {
        self.layers.last_mut().expect("an active layer")
    }
}

#[cfg(test)]
mod tests {
    use super::{Model, State};

    fn model() -> Model {
        let mut model = Model::default();
        model.add_disk("kept", vec![0; 4096], true);
        model.add_disk("raw", vec![0; 4096], false);
        model.checkpoint("monday");
        model
    }

    #[test]
    fn what_was_touched_since_each_checkpoint() {
        let mut model = model();
        model.change(0, 512, &[1; 512]);
        model.checkpoint("tuesday");
        model.change(0, 1024, &[2; 512]);
        model.grow(0, 4096 + 512);
        let touched = |checkpoint: usize| -> Vec<usize> {
            let touched = &model.checkpoints[checkpoint].disks[0].touched;
            (0..touched.len()).filter(|&sector| touched[sector]).collect()
        };
        assert_eq!((touched(0), touched(1)), (vec![1, 2, 8], vec![2, 8]));
        assert_eq!(model.checkpoints[1].disks[0].then[512..514], [1, 1]);
        assert!(model.checkpoints[0].disks[1].touched.iter().all(|&touched| !touched));
    }

    #[test]
    fn what_a_restart_leaves() {
        let mut model = model();
        model.restart();
        assert_eq!((model.state("monday", 0), model.state("monday", 1)), (State::Known, State::Missing));
        model.checkpoint("tuesday");
        model.kill();
        // In memory alone, so it is gone; monday was in the image.
        assert_eq!(model.checkpoints.len(), 1);
        assert_eq!((model.state("monday", 0), model.state("monday", 1)), (State::Unusable, State::Missing));
        model.delete("monday");
        assert!(model.checkpoints.is_empty());
    }

    #[test]
    fn what_a_snapshot_leaves() {
        let mut model = model();
        model.snapshot(&[0]);
        assert!(model.usable("monday"));
        let mut orderly = model.clone();
        orderly.restart();
        assert_eq!(orderly.state("monday", 0), State::Known);
        // Below it is stored, but the overlay's half is gone.
        model.kill();
        assert!(model.checkpoints.is_empty());
    }
}
