//! Steps, and what takes them back.
//!
//! What a step may leave is noted in the [`Ledger`] *before* it is applied and struck off *after* it is undone, so the
//! ledger names at any moment, whoever is cancelled or killed where, everything that may exist. A note ([`Undo`]) is
//! plain data, names and nothing else: the [`Journal`] keeps the same notes in a file, and what was written there by a
//! process that died is undone by another one with the very same code. Undoing is idempotent and does not ask how far a
//! step came: what is already gone is fine.

use std::fmt::Display;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::journal::Journal;
use crate::error::{Kind, Result, chain};

/// What may exist, and how it is removed. `Display` names it in logs and errors.
#[async_trait]
pub trait Undo: Display + Clone + Send + Sync + Serialize + DeserializeOwned {
    /// What undoing works on.
    type Context: Sync;

    /// Lets go of the guest, as far as this holds it, before anything is tidied up. Best effort.
    ///
    /// # Errors
    /// When the guest may still be held; [`Undo::undo`] tries again.
    async fn relieve(&self, context: &Self::Context) -> Result<()>;

    /// Makes sure that nothing of it is left.
    ///
    /// # Errors
    /// When something may be left.
    async fn undo(&self, context: &Self::Context) -> Result<()>;
}

/// A step, with what takes it back. `Display` names it in logs and errors.
#[async_trait]
pub trait Step: Display + Send + Sync {
    /// What takes it back.
    type Undo: Undo;

    /// What it may leave; none if what it makes goes with what another step made.
    fn leaves(&self) -> Option<Self::Undo>;

    /// Does it.
    ///
    /// # Errors
    /// Any failure; it may have been done in part.
    async fn apply(&self, context: &<Self::Undo as Undo>::Context) -> Result<()>;
}

/// What may exist, in the order in which it was begun.
pub struct Ledger<U> {
    /// With the number of each note in the journal. Held for a moment only, writing a line to the journal included.
    notes: Mutex<Vec<(u64, U)>>,
    journal: Option<Journal>,
}

impl<U: Undo> Ledger<U> {
    /// An empty one, which keeps its notes in `journal` too.
    pub fn new(journal: Option<Journal>) -> Self {
        Self { notes: Mutex::default(), journal }
    }

    /// What a process that died has left in its journal.
    ///
    /// # Errors
    /// [`Kind::Invalid`] when the journal is of another version.
    pub fn left_in(journal: Journal) -> Result<Self> {
        let notes = journal.notes()?;
        Ok(Self { notes: Mutex::new(notes), journal: Some(journal) })
    }

    /// Applies steps in order, until one fails. What was done until then stays in the ledger, for [`Ledger::undo`].
    ///
    /// # Errors
    /// The error of the step that failed.
    pub async fn run<S>(&self, context: &U::Context, steps: impl IntoIterator<Item = S>) -> Result<()>
    where
        S: Step<Undo = U>,
    {
        for step in steps {
            if let Some(note) = step.leaves() {
                self.add(note)?;
            }
            tracing::debug!(%step, "begins");
            step.apply(context).await.map_err(|error| error.context(format!("{step} failed")))?;
        }
        Ok(())
    }

    /// Lets go of the guest, and leaves the rest for [`Ledger::undo`].
    pub async fn relieve(&self, context: &U::Context) {
        for note in self.notes() {
            if let Err(error) = note.relieve(context).await {
                tracing::warn!("the guest may still wait for {note}: {}", chain(&error));
            }
        }
    }

    /// Lets go of the guest first, then undoes everything in reverse order. What cannot be undone stays for the next
    /// try; the rest is undone.
    ///
    /// # Errors
    /// The first failure.
    pub async fn undo(&self, context: &U::Context) -> Result<()> {
        self.relieve(context).await;
        let mut outcome = Ok(());
        let mut index = self.change(|notes| notes.len());
        while index > 0 {
            index -= 1;
            let Some((number, note)) = self.change(|notes| notes.get(index).cloned()) else { continue };
            tracing::debug!(%note, "is undone");
            match note.undo(context).await {
                Ok(()) => self.strike(number),
                // Nobody answers: what is below cannot be undone now either.
                Err(error) if matches!(error.kind(), Kind::Gone | Kind::Busy | Kind::Timeout) => {
                    return Err(error.context(format!("cannot undo: {note}")));
                }
                Err(error) if outcome.is_ok() => outcome = Err(error.context(format!("cannot undo: {note}"))),
                Err(error) => tracing::warn!("cannot undo: {note}: {}", chain(&error)),
            }
        }
        outcome
    }

    /// Forgets what is to stay from now on.
    pub fn keep(&self, which: impl Fn(&U) -> bool) {
        let kept: Vec<(u64, U)> = self.change(|notes| {
            let (kept, rest) = notes.drain(..).partition(|(_, note)| which(note));
            *notes = rest;
            kept
        });
        for (number, _) in kept {
            self.write_off(number);
        }
    }

    /// What may exist now.
    pub fn notes(&self) -> Vec<U> {
        self.change(|notes| notes.iter().map(|(_, note)| note.clone()).collect())
    }

    /// Whether nothing can be left.
    pub fn is_empty(&self) -> bool {
        self.change(|notes| notes.is_empty())
    }

    /// In the journal first: a note that nobody could find later is no note.
    fn add(&self, note: U) -> Result<()> {
        self.change(|notes| {
            let number = notes.last().map_or(1, |(number, _)| number + 1);
            if let Some(journal) = &self.journal {
                journal.note(number, &note)?;
            }
            notes.push((number, note));
            Ok(())
        })
    }

    fn strike(&self, number: u64) {
        self.change(|notes| notes.retain(|(each, _)| *each != number));
        self.write_off(number);
    }

    /// A line too many in the journal does no harm: undoing is idempotent.
    fn write_off(&self, number: u64) {
        let Some(journal) = &self.journal else { return };
        let written = if self.is_empty() { journal.clear() } else { journal.strike(number) };
        if let Err(error) = written {
            tracing::warn!("{}", chain(&error));
        }
    }

    fn change<T>(&self, with: impl FnOnce(&mut Vec<(u64, U)>) -> T) -> T {
        with(&mut self.notes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fmt;

    use proptest::prelude::*;
    use serde::Deserialize;

    use super::super::journal::{Header, Journal};
    use super::*;
    use crate::error::Error;

    /// A world in which each step makes one thing, and things stand on each other.
    #[derive(Default)]
    struct World {
        things: Mutex<BTreeSet<usize>>,
        /// Whether the guest waits for something.
        held: Mutex<bool>,
        fail_apply: Option<usize>,
        fail_after_effect: bool,
        fail_undo: Mutex<Option<(usize, Kind)>>,
    }

    impl World {
        fn things(&self) -> Vec<usize> {
            self.things.lock().unwrap().iter().copied().collect()
        }
    }

    struct Make(usize);

    impl fmt::Display for Make {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "making {}", self.0)
        }
    }

    #[async_trait]
    impl Step for Make {
        type Undo = Thing;

        fn leaves(&self) -> Option<Thing> {
            Some(Thing(self.0))
        }

        async fn apply(&self, world: &World) -> Result<()> {
            let fails = world.fail_apply == Some(self.0);
            if !fails || world.fail_after_effect {
                world.things.lock().unwrap().insert(self.0);
                *world.held.lock().unwrap() = true;
            }
            if fails { Err(Error::new(Kind::Io, "told to fail")) } else { Ok(()) }
        }
    }

    #[derive(Clone, Serialize, Deserialize)]
    struct Thing(usize);

    impl fmt::Display for Thing {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "thing {}", self.0)
        }
    }

    #[async_trait]
    impl Undo for Thing {
        type Context = World;

        async fn relieve(&self, world: &World) -> Result<()> {
            *world.held.lock().unwrap() = false;
            Ok(())
        }

        async fn undo(&self, world: &World) -> Result<()> {
            assert!(!*world.held.lock().unwrap(), "the guest goes on before anything is tidied up");
            if let Some((_, kind)) = world.fail_undo.lock().unwrap().take_if(|(step, _)| *step == self.0) {
                return Err(Error::new(kind, "told to fail"));
            }
            let mut things = world.things.lock().unwrap();
            assert!(!things.contains(&(self.0 + 1)), "what stands on it is undone first");
            things.remove(&self.0);
            Ok(())
        }
    }

    fn journal(dir: &tempfile::TempDir) -> Journal {
        Journal::create(dir.path(), Header::new("pullfs-1".into(), "qmp:/x".into(), "/mnt".into())).unwrap()
    }

    proptest! {
        #[test]
        fn failing_at_any_step_leaves_nothing(count in 1_usize..12, at in 0_usize..12, after: bool) {
            let world = World { fail_apply: Some(at), fail_after_effect: after, ..World::default() };
            let ledger = Ledger::new(None);
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let ran = runtime.block_on(ledger.run(&world, (0..count).map(Make)));
            prop_assert_eq!(ran.is_err(), at < count);
            if ran.is_ok() {
                prop_assert_eq!(world.things().len(), count);
            }
            runtime.block_on(ledger.undo(&world)).unwrap();
            prop_assert!(world.things().is_empty());
            prop_assert!(ledger.is_empty());
        }

        #[test]
        fn another_process_finds_all_that_was_made(count in 1_usize..12, at in 0_usize..12, undone in 0_usize..12) {
            let dir = tempfile::tempdir().unwrap();
            let world = World { fail_apply: Some(at), fail_after_effect: true, ..World::default() };
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let ledger = Ledger::new(Some(journal(&dir)));
            // It fails, or dies, somewhere on the way up or down.
            runtime.block_on(ledger.run(&world, (0..count).map(Make))).ok();
            *world.fail_undo.lock().unwrap() = Some((undone, Kind::Gone));
            runtime.block_on(ledger.undo(&world)).ok();
            drop(ledger);
            let left = Ledger::left_in(Journal::of_dead(dir.path()).unwrap().unwrap()).unwrap();
            prop_assert_eq!(left.notes().iter().map(|thing: &Thing| thing.0).collect::<Vec<_>>(), world.things());
            runtime.block_on(left.undo(&world)).unwrap();
            prop_assert!(world.things().is_empty() && left.is_empty());
        }
    }

    #[tokio::test]
    async fn what_cannot_be_undone_stays_for_the_next_try() {
        let world = World { fail_undo: Mutex::new(Some((0, Kind::Io))), ..World::default() };
        let ledger = Ledger::new(None);
        ledger.run(&world, (0..3).map(Make)).await.unwrap();
        assert!(ledger.undo(&world).await.is_err());
        assert_eq!(world.things(), [0]);
        ledger.undo(&world).await.unwrap();
        assert!(ledger.is_empty() && world.things().is_empty());
    }

    #[tokio::test]
    async fn what_is_kept_is_not_undone() {
        let dir = tempfile::tempdir().unwrap();
        let world = World::default();
        let ledger = Ledger::new(Some(journal(&dir)));
        ledger.run(&world, (0..3).map(Make)).await.unwrap();
        ledger.keep(|thing| thing.0 == 2);
        world.things.lock().unwrap().remove(&2);
        drop(ledger);
        let left = Ledger::<Thing>::left_in(Journal::of_dead(dir.path()).unwrap().unwrap()).unwrap();
        assert_eq!(left.notes().iter().map(|thing| thing.0).collect::<Vec<_>>(), [0, 1]);
    }
}
