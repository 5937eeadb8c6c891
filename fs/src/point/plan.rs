//! Steps, and what takes them back.
//!
//! What a step may leave is noted in the [`Ledger`] *before* it is applied and struck off *after* it is undone, so the
//! ledger names at any moment, whoever is cancelled or killed where, everything that may exist. A note ([`Undo`]) is
//! plain data, names and nothing else: the [`Journal`] keeps the same notes in a file, and what was written there by a
//! process that died is undone by another one with the very same code. Undoing is idempotent and does not ask how far a
//! step came: what is already gone is fine.
//!
//! Steps that do not depend on each other are a group: noted together, then applied at once ([`overlap`]). Notes that do
//! not depend on each other ([`Undo::goes_with`]) are undone together, so that what can be asked once is asked once.

use std::fmt::Display;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::journal::Journal;
use super::overlap;
use crate::error::{Result, chain};

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

    /// Whether it and `other`, which was noted right after it, depend on each other in no way.
    fn goes_with(&self, other: &Self) -> bool;

    /// Makes sure that nothing is left of these, each of which goes with the next. One that fails keeps no other from being
    /// undone.
    ///
    /// # Errors
    /// When something may be left.
    async fn undo(these: &[Self], context: &Self::Context) -> Result<()>;
}

/// A step, with what takes it back. `Display` names it in logs and errors.
#[async_trait]
pub trait Step: Display + Send + Sync {
    /// What takes it back.
    type Undo: Undo;

    /// What it may leave; nothing if what it makes goes with what another step made.
    fn leaves(&self) -> Vec<Self::Undo>;

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

    /// Applies groups of steps in order, until a step fails; those that were begun beside it are waited for. What was done
    /// until then stays in the ledger, for [`Ledger::undo`].
    ///
    /// # Errors
    /// The error of the step that failed.
    pub async fn run<S>(&self, context: &U::Context, groups: Vec<Vec<S>>) -> Result<()>
    where
        S: Step<Undo = U>,
    {
        for group in groups {
            self.add(group.iter().flat_map(Step::leaves).collect())?;
            let applied = group.iter().map(|step| apply(step, context)).collect();
            overlap::until_one_fails(applied).await?;
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
        let mut end = self.change(|notes| notes.len());
        while end > 0 {
            let (numbers, group): (Vec<u64>, Vec<U>) = self.change(|notes| last_group(notes, end)).into_iter().unzip();
            end = end.saturating_sub(group.len().max(1));
            let Some(first) = group.first() else { continue };
            let others = if group.len() > 1 { format!(" and {} more", group.len() - 1) } else { String::new() };
            tracing::debug!("undoing {first}{others}");
            match U::undo(&group, context).await {
                Ok(()) => self.strike(&numbers),
                // Nobody answers: what is below cannot be undone now either.
                Err(error) if overlap::is_silence(&error) => {
                    return Err(error.context(format!("cannot undo: {first}{others}")));
                }
                Err(error) if outcome.is_ok() => outcome = Err(error.context(format!("cannot undo: {first}{others}"))),
                Err(error) => tracing::warn!("cannot undo: {first}{others}: {}", chain(&error)),
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
        if !kept.is_empty() {
            self.write_off(&kept.iter().map(|(number, _)| *number).collect::<Vec<_>>());
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
    fn add(&self, new: Vec<U>) -> Result<()> {
        self.change(|notes| {
            let next = notes.last().map_or(1, |(number, _)| number + 1);
            let new: Vec<(u64, U)> = (next..).zip(new).collect();
            if let Some(journal) = self.journal.as_ref().filter(|_| !new.is_empty()) {
                journal.note(&new)?;
            }
            notes.extend(new);
            Ok(())
        })
    }

    fn strike(&self, numbers: &[u64]) {
        self.change(|notes| notes.retain(|(each, _)| !numbers.contains(each)));
        self.write_off(numbers);
    }

    /// A line too many in the journal does no harm: undoing is idempotent.
    fn write_off(&self, numbers: &[u64]) {
        let Some(journal) = &self.journal else { return };
        let written = if self.is_empty() { journal.clear() } else { journal.strike(numbers) };
        if let Err(error) = written {
            tracing::warn!("{}", chain(&error));
        }
    }

    fn change<T>(&self, with: impl FnOnce(&mut Vec<(u64, U)>) -> T) -> T {
        with(&mut self.notes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn apply<S: Step>(step: &S, context: &<S::Undo as Undo>::Context) -> Result<()> {
    tracing::debug!(%step, "begins");
    step.apply(context).await.map_err(|error| error.context(format!("{step} failed")))
}

/// The last ones of the first `end` notes, as far back as each goes with the next.
fn last_group<U: Undo>(notes: &[(u64, U)], end: usize) -> Vec<(u64, U)> {
    let notes = &notes[..end.min(notes.len())];
    let pairs = notes.windows(2).rev();
    let together = pairs.take_while(|pair| pair[0].1.goes_with(&pair[1].1)).count();
    notes[notes.len().saturating_sub(together + 1)..].to_vec()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fmt;
    use std::path::PathBuf;

    use proptest::prelude::*;
    use serde::Deserialize;

    use super::super::journal::{Header, Journal};
    use super::*;
    use crate::error::{Error, Kind};

    /// Steps of a group.
    const WIDTH: usize = 3;

    /// A world in which each step makes one thing, and the things of a group stand on those of the group before.
    #[derive(Default)]
    struct World {
        things: Mutex<BTreeSet<usize>>,
        /// Whether the guest waits for something.
        held: Mutex<bool>,
        journal: Option<PathBuf>,
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

    fn groups(count: usize) -> Vec<Vec<Make>> {
        (0..count).map(|group| (0..WIDTH).map(|index| Make(group * WIDTH + index)).collect()).collect()
    }

    impl fmt::Display for Make {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "making {}", self.0)
        }
    }

    #[async_trait]
    impl Step for Make {
        type Undo = Thing;

        fn leaves(&self) -> Vec<Thing> {
            vec![Thing(self.0)]
        }

        async fn apply(&self, world: &World) -> Result<()> {
            if let Some(journal) = &world.journal {
                let noted = std::fs::read_to_string(journal).unwrap().lines().count() - 1;
                assert!(noted >= (self.0 / WIDTH + 1) * WIDTH, "all of the group is noted before any of it begins");
            }
            let below = (self.0 / WIDTH * WIDTH).saturating_sub(WIDTH)..self.0 / WIDTH * WIDTH;
            assert!(below.into_iter().all(|thing| world.things().contains(&thing)), "it stands on all of these");
            tokio::task::yield_now().await;
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

        fn goes_with(&self, other: &Self) -> bool {
            self.0 / WIDTH == other.0 / WIDTH
        }

        async fn undo(these: &[Self], world: &World) -> Result<()> {
            assert!(!*world.held.lock().unwrap(), "the guest goes on before anything is tidied up");
            let mut outcome = Ok(());
            for Thing(this) in these {
                if let Some((_, kind)) = world.fail_undo.lock().unwrap().take_if(|(step, _)| step == this) {
                    outcome = Err(Error::new(kind, "told to fail"));
                    continue;
                }
                let above = (this / WIDTH + 1) * WIDTH..;
                let mut things = world.things.lock().unwrap();
                assert!(things.range(above).next().is_none(), "what stands on it is undone first");
                things.remove(this);
            }
            outcome
        }
    }

    fn journal(dir: &tempfile::TempDir) -> Journal {
        Journal::create(dir.path(), Header::new("pullfs-1".into(), "qmp:/x".into(), "/mnt".into())).unwrap()
    }

    proptest! {
        #[test]
        fn failing_at_any_step_leaves_nothing(count in 1_usize..5, at in 0_usize..5 * WIDTH, after: bool) {
            let world = World { fail_apply: Some(at), fail_after_effect: after, ..World::default() };
            let ledger = Ledger::new(None);
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let ran = runtime.block_on(ledger.run(&world, groups(count)));
            prop_assert_eq!(ran.is_err(), at < count * WIDTH);
            if ran.is_ok() {
                prop_assert_eq!(world.things().len(), count * WIDTH);
            }
            runtime.block_on(ledger.undo(&world)).unwrap();
            prop_assert!(world.things().is_empty());
            prop_assert!(ledger.is_empty());
        }

        #[test]
        fn another_process_finds_all_that_was_made(count in 1_usize..5, at in 0_usize..5 * WIDTH, undone in 0_usize..5 * WIDTH) {
            let dir = tempfile::tempdir().unwrap();
            let journal_path = Some(dir.path().join(super::super::journal::NAME));
            let world = World {
                fail_apply: Some(at), fail_after_effect: true, journal: journal_path, ..World::default()
            };
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let ledger = Ledger::new(Some(journal(&dir)));
            // It fails, or dies, somewhere on the way up or down.
            runtime.block_on(ledger.run(&world, groups(count))).ok();
            *world.fail_undo.lock().unwrap() = Some((undone, Kind::Gone));
            runtime.block_on(ledger.undo(&world)).ok();
            drop(ledger);
            let left = Ledger::left_in(Journal::of_dead_here(dir.path()).unwrap()).unwrap();
            let noted: BTreeSet<usize> = left.notes().iter().map(|thing: &Thing| thing.0).collect();
            prop_assert!(world.things().iter().all(|thing| noted.contains(thing)));
            // What is undone in part stays noted as a whole.
            prop_assert!(noted.len() < world.things().len() + WIDTH || noted.is_empty());
            runtime.block_on(left.undo(&world)).unwrap();
            prop_assert!(world.things().is_empty() && left.is_empty());
        }
    }

    #[tokio::test]
    async fn what_cannot_be_undone_stays_for_the_next_try() {
        let world = World { fail_undo: Mutex::new(Some((1, Kind::Io))), ..World::default() };
        let ledger = Ledger::new(None);
        ledger.run(&world, groups(3)).await.unwrap();
        assert!(ledger.undo(&world).await.is_err());
        assert_eq!(world.things(), [1], "the others of its group are gone");
        ledger.undo(&world).await.unwrap();
        assert!(ledger.is_empty() && world.things().is_empty());
    }

    #[tokio::test]
    async fn what_is_kept_is_not_undone() {
        let dir = tempfile::tempdir().unwrap();
        let world = World::default();
        let ledger = Ledger::new(Some(journal(&dir)));
        ledger.run(&world, groups(1)).await.unwrap();
        ledger.keep(|thing| thing.0 == 2);
        drop(ledger);
        let left = Ledger::<Thing>::left_in(Journal::of_dead_here(dir.path()).unwrap()).unwrap();
        assert_eq!(left.notes().iter().map(|thing| thing.0).collect::<Vec<_>>(), [0, 1]);
    }
}
