//! What all threads of a soak share: which point in time is held, what went wrong, and who has been waiting for how long.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use pullfs_tests::machine::Machine;
use pullfs_tests::model::Model;
use pullfs_tests::mount::Mount;

use super::figures::Figures;
use super::link::Link;

/// How long any single operation of a reader, or a command, may take. A request to the machine's NBD server has 30 s.
pub(super) const OPERATION_LIMIT: Duration = Duration::from_secs(60);

/// A point in time, as the one who began it knows it.
#[derive(Debug)]
pub(super) struct Held {
    /// The disks and the checkpoints at that instant.
    pub(super) model: Model,
    /// Set before it is let go: from then on its files may say so.
    pub(super) ended: AtomicBool,
    /// Set before it is taken away behind pullfs's back.
    pub(super) lost: AtomicBool,
    /// Its checkpoints that were deleted since, noted before they are.
    deleted: Mutex<BTreeSet<String>>,
}

impl Held {
    pub(super) fn new(model: Model) -> Arc<Self> {
        let (ended, lost, deleted) = Default::default();
        Arc::new(Self { model, ended, lost, deleted })
    }

    pub(super) fn deleting(&self, checkpoint: &str) {
        self.deleted.lock().unwrap_or_else(PoisonError::into_inner).insert(checkpoint.to_owned());
    }

    /// Whether it has a checkpoint, and has it still.
    pub(super) fn has(&self, checkpoint: &str) -> bool {
        let deleted = self.deleted.lock().unwrap_or_else(PoisonError::into_inner);
        self.model.checkpoints.iter().any(|had| had.name == checkpoint) && !deleted.contains(checkpoint)
    }
}

/// What is held at this moment.
#[derive(Clone, Debug)]
pub(super) enum Now {
    /// Nothing, so whoever opens a file of a disk is refused.
    Nothing,
    /// Somebody is changing it: nobody can tell what an open gets.
    Changing,
    /// This one.
    Held(Arc<Held>),
}

/// The machine and the model of it. Whoever changes the one changes the other before somebody else can.
pub(super) struct World {
    pub(super) machine: Machine,
    pub(super) model: Model,
}

/// A soak under way.
pub(super) struct Load<'a> {
    pub(super) mount: &'a Mount,
    pub(super) link: &'a Link,
    pub(super) ids: Vec<String>,
    /// They stay as they are.
    pub(super) sizes: Vec<usize>,
    pub(super) figures: Figures,
    /// The guest, and whoever begins or ends a point in time, take turns. Locked before `now`.
    world: Mutex<World>,
    /// How often it was changed, and what it is. Held for a moment only.
    now: RwLock<(u64, Now)>,
    waiting: Vec<Mutex<Option<(Instant, String)>>>,
    faults: Mutex<Vec<String>>,
    over: AtomicBool,
}

impl<'a> Load<'a> {
    /// For so many threads, each with a slot of its own.
    pub(super) fn new(mount: &'a Mount, link: &'a Link, machine: Machine, model: Model, threads: usize) -> Self {
        Self {
            mount,
            link,
            ids: model.disks.iter().map(|disk| disk.id.clone()).collect(),
            sizes: model.disks.iter().map(|disk| disk.bytes.len()).collect(),
            figures: Figures::default(),
            world: Mutex::new(World { machine, model }),
            now: RwLock::new((0, Now::Nothing)),
            waiting: (0..threads).map(|_| Mutex::default()).collect(),
            faults: Mutex::default(),
            over: AtomicBool::new(false),
        }
    }

    pub(super) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn into_parts(self) -> (Machine, Model, Figures, Vec<String>) {
        let World { machine, model } = self.world.into_inner().unwrap_or_else(PoisonError::into_inner);
        let faults = self.faults.into_inner().unwrap_or_else(PoisonError::into_inner);
        (machine, model, self.figures, faults)
    }

    /// What is held, with the number of the change that made it so: as long as that stays, so does this.
    pub(super) fn now(&self) -> (u64, Now) {
        self.now.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// To be called with the world locked.
    pub(super) fn change(&self, to: Now) {
        let mut now = self.now.write().unwrap_or_else(PoisonError::into_inner);
        *now = (now.0 + 1, to);
    }

    /// Does something that must not take longer than [`OPERATION_LIMIT`]; a panic of it ends the soak.
    pub(super) fn limited<T>(&self, slot: usize, what: impl FnOnce() -> String, operation: impl FnOnce() -> T) -> T {
        *self.slot(slot) = Some((Instant::now(), what()));
        let done = operation();
        if let Some((began, _)) = self.slot(slot).take() {
            self.figures.longest_operation.note(began.elapsed());
        }
        done
    }

    fn slot(&self, slot: usize) -> MutexGuard<'_, Option<(Instant, String)>> {
        self.waiting[slot].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What takes too long, if anything does.
    pub(super) fn hung(&self) -> Vec<String> {
        let slots = (0..self.waiting.len()).filter_map(|slot| self.slot(slot).clone());
        let late = slots.filter(|(began, _)| began.elapsed() > OPERATION_LIMIT);
        late.map(|(began, what)| format!("{what}: not done after {:?}", began.elapsed())).collect()
    }

    /// Notes what must not be, and ends the soak.
    pub(super) fn fault(&self, what: String) {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).push(what);
        self.end();
    }

    pub(super) fn end(&self) {
        self.over.store(true, Ordering::SeqCst);
    }

    pub(super) fn over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }
}

/// Ends the soak when the thread that has it panics.
pub(super) struct EndOnPanic<'a>(pub(super) &'a Load<'a>);

impl Drop for EndOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fault("a thread panicked; what it said is above".to_owned());
        }
    }
}
