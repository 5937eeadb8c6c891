//! What a machine's disks and their checkpoints must be, kept in memory while the machine lives its life.
//!
//! The model knows two things. **Content**: each disk's bytes, now and at each checkpoint, and which sectors were touched
//! since. **Bitmaps**: in which layers of a backing chain QEMU has a checkpoint's bitmap, and what a restart or a power
//! failure makes of it. From these follows what a checkpoint is worth on a disk: [`State`].
//!
//! To QEMU a checkpoint exists while the active layer of any disk has a bitmap of it. What a deleted one, or one whose newest
//! part was lost, leaves in the images below cannot be removed there, and means nothing: not even to a new one of its name.
//! libvirt has a list ([`Keeper`]). What a point in time shows of all that, is an [`Instant`].

use std::collections::BTreeMap;
use std::sync::Arc;

/// The unit in which the model remembers what was touched: what a guest writes is no finer.
pub const SECTOR: usize = 512;

/// Who knows which checkpoints there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keeper {
    /// QEMU, by their bitmaps, which any image can have. A point in time tells what changed since each of them.
    #[default]
    Qemu,
    /// libvirt, by a list: a checkpoint exists until it is deleted, and is broken where its bitmaps are not what they were. Only
    /// images that keep bitmaps have any. A point in time tells what changed since one checkpoint.
    Libvirt,
}

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
    /// Whether it was made of this disk.
    made: bool,
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
    keeper: Keeper,
}

/// What a point in time has to show.
#[derive(Clone, Debug)]
pub struct Instant {
    /// The machine as it was.
    pub frozen: Model,
    /// The checkpoint since which it tells what changed; none where it tells so of all of them, or where there was none.
    pub base: Option<String>,
    /// The checkpoint that was made at the same instant.
    new: Option<String>,
}

impl Model {
    /// A machine without disks.
    pub fn of(keeper: Keeper) -> Self {
        Self { keeper, ..Self::default() }
    }

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
            if active.keeps || self.keeper == Keeper::Qemu {
                let bitmap = Bitmap { persistent: active.keeps, stored: false, broken: false };
                active.bitmaps.insert(name.to_owned(), bitmap);
            }
        }
        let since = |disk: &Disk| Since {
            then: disk.bytes.clone(),
            touched: vec![false; disk.bytes.len() / SECTOR],
            made: disk.recorded(name),
        };
        let disks = self.disks.iter().map(since).collect();
        self.checkpoints.push(Checkpoint { name: name.to_owned(), disks });
    }

    /// A checkpoint was deleted.
    pub fn delete(&mut self, name: &str) {
        for layer in self.disks.iter_mut().flat_map(|disk| &mut disk.layers) {
            layer.bitmaps.remove(name);
        }
        self.checkpoints.retain(|checkpoint| checkpoint.name != name);
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
        let made = self.checkpoints.iter().any(|checkpoint| checkpoint.name == name && checkpoint.disks[disk].made);
        // Who has it on a list misses what is not there.
        let lost = if made && self.keeper == Keeper::Libvirt { State::Unusable } else { State::Missing };
        let disk = &self.disks[disk];
        let parts = disk.layers.iter().filter_map(|layer| Some((layer.size, layer.bitmaps.get(name)?)));
        if !disk.recorded(name) {
            lost
        } else if parts.clone().any(|(_, bitmap)| bitmap.broken) {
            State::Unusable
        } else if parts.clone().any(|(size, _)| size != disk.bytes.len()) {
            // QEMU merges no bitmaps of different sizes.
            lost
        } else {
            State::Known
        }
    }

    /// Whether a checkpoint tells everything of some disk, and all of any other.
    pub fn usable(&self, name: &str) -> bool {
        (0..self.disks.len()).all(|disk| self.state(name, disk) != State::Unusable)
    }

    /// Whether a checkpoint tells what changed on some disk.
    pub fn tells(&self, name: &str) -> bool {
        (0..self.disks.len()).any(|disk| self.state(name, disk) == State::Known)
    }

    /// The checkpoints since which something can be copied at the instant of a new one.
    pub fn parents(&self) -> Vec<&str> {
        let names = self.checkpoints.iter().map(|checkpoint| &*checkpoint.name);
        let newest = names.clone().rev().find(|name| self.tells(name));
        let told = names.filter(|name| self.keeper == Keeper::Qemu || newest == Some(name));
        told.filter(|name| self.usable(name)).collect()
    }

    /// A point in time, of which nobody said since when it is to tell what changed, and which made the checkpoint `new`.
    pub fn instant(&self, new: Option<&str>) -> Instant {
        let mut names = self.checkpoints.iter().rev().map(|checkpoint| &*checkpoint.name);
        let newest = names.find(|name| Some(*name) != new && self.tells(name));
        let base = newest.filter(|_| self.keeper == Keeper::Libvirt).map(str::to_owned);
        Instant { frozen: self.clone(), base, new: new.map(str::to_owned) }
    }

    /// A point in time that is to tell what changed since this checkpoint.
    pub fn instant_since(&self, base: &str) -> Instant {
        Instant { frozen: self.clone(), base: Some(base.to_owned()), new: None }
    }

    /// How many checkpoints are older.
    fn age(&self, name: &str) -> usize {
        self.checkpoints.iter().position(|checkpoint| checkpoint.name == name).expect("it is there")
    }

    /// Drops the checkpoints that no disk records any more, unless somebody has them on a list.
    fn forget(&mut self) {
        if self.keeper == Keeper::Libvirt {
            return;
        }
        let disks = &self.disks;
        self.checkpoints.retain(|checkpoint| disks.iter().any(|disk| disk.recorded(&checkpoint.name)));
    }
}

impl Instant {
    /// Whether a checkpoint's files can be opened. That they say nothing of a checkpoint that tells nothing is true at
    /// any instant.
    pub fn serves(&self, checkpoint: &str) -> bool {
        let frozen = &self.frozen;
        match &self.base {
            _ if frozen.keeper == Keeper::Qemu || !frozen.tells(checkpoint) => true,
            _ if self.new.as_deref() == Some(checkpoint) => true,
            Some(base) => frozen.age(checkpoint) >= frozen.age(base),
            None => false,
        }
    }

    /// The checkpoint since which that is what is told as what changed on a disk since `checkpoint`, which is served: the same,
    /// or an older one.
    pub fn origin<'a>(&'a self, checkpoint: &'a str, disk: usize) -> &'a str {
        let frozen = &self.frozen;
        let Some(base) = self.base.as_ref().filter(|_| self.new.as_deref() != Some(checkpoint)) else {
            return checkpoint;
        };
        let mut names = frozen.checkpoints[frozen.age(base)..].iter().map(|checkpoint| &*checkpoint.name);
        names.find(|name| frozen.state(name, disk) == State::Known).unwrap_or(checkpoint)
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
    use super::{Keeper, Model, State};

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
    fn what_libvirt_lists() {
        let mut model = Model::of(Keeper::Libvirt);
        model.add_disk("kept", vec![0; 4096], true);
        model.add_disk("raw", vec![0; 4096], false);
        for name in ["monday", "tuesday", "wednesday"] {
            model.checkpoint(name);
        }
        assert_eq!((model.state("monday", 0), model.state("monday", 1)), (State::Known, State::Missing));
        assert_eq!(model.parents(), ["wednesday"]);
        let made = model.instant(Some("wednesday"));
        let serves = ["monday", "tuesday", "wednesday"].map(|name| made.serves(name));
        assert_eq!((serves, made.base.as_deref()), ([false, true, true], Some("tuesday")));
        assert_eq!((made.origin("tuesday", 0), made.origin("wednesday", 0)), ("tuesday", "wednesday"));
        let since = model.instant_since("tuesday");
        assert_eq!((since.serves("monday"), since.origin("wednesday", 0)), (false, "tuesday"));
        // None of it was stored.
        model.kill();
        assert_eq!(model.checkpoints.len(), 3);
        assert_eq!((model.state("monday", 0), model.state("monday", 1)), (State::Unusable, State::Missing));
        let nothing = model.instant(None);
        assert!(nothing.base.is_none() && nothing.serves("monday"), "it is an error at any instant");
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
