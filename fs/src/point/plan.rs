//! Steps that are undone when a later one fails.
//!
//! Each step goes into the [`Ledger`] *before* it is applied and leaves it *after* it is undone, so the ledger names
//! at any moment, whoever is cancelled where, everything that may exist. Undoing is idempotent and does not ask how far
//! a step came: what is already gone is fine.

use std::fmt::Display;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;

use crate::error::{Kind, Result, chain};

/// A step with its undo beside it. `Display` names it in logs and errors.
#[async_trait]
pub trait Step: Display + Clone + Send + Sync {
    /// What steps work on.
    type Context: Sync;

    /// Does it.
    ///
    /// # Errors
    /// Any failure; it may have been done in part.
    async fn apply(&self, context: &Self::Context) -> Result<()>;

    /// Makes sure that nothing of it is left.
    ///
    /// # Errors
    /// When something may be left.
    async fn undo(&self, context: &Self::Context) -> Result<()>;
}

/// The steps that may have left something, in the order they were begun.
pub struct Ledger<S>(Mutex<Vec<S>>);

impl<S> Default for Ledger<S> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<S: Step> Ledger<S> {
    /// Applies steps in order. If one fails, all that the ledger has are undone, and its error comes back.
    ///
    /// # Errors
    /// The error of the step that failed.
    pub async fn run(&self, context: &S::Context, steps: impl IntoIterator<Item = S>) -> Result<()> {
        for step in steps {
            self.change(|steps| steps.push(step.clone()));
            tracing::debug!(%step, "begins");
            if let Err(error) = step.apply(context).await {
                if let Err(left) = self.undo(context).await {
                    tracing::warn!("something may be left in the machine until the next try: {}", chain(&left));
                }
                return Err(error.context(format!("{step} failed")));
            }
        }
        Ok(())
    }

    /// Undoes everything in reverse order. A step whose undo fails stays for the next try; the others are undone.
    ///
    /// # Errors
    /// The first failure.
    pub async fn undo(&self, context: &S::Context) -> Result<()> {
        let mut outcome = Ok(());
        let mut index = self.change(|steps| steps.len());
        while index > 0 {
            index -= 1;
            let Some(step) = self.change(|steps| steps.get(index).cloned()) else { continue };
            tracing::debug!(%step, "is undone");
            match step.undo(context).await {
                Ok(()) => {
                    self.change(|steps| steps.remove(index));
                }
                // Nobody answers: the steps below cannot be undone now either.
                Err(error) if matches!(error.kind(), Kind::Gone | Kind::Busy) => return Err(error),
                Err(error) if outcome.is_ok() => outcome = Err(error.context(format!("cannot undo: {step}"))),
                Err(error) => tracing::warn!("cannot undo: {step}: {}", chain(&error)),
            }
        }
        outcome
    }

    /// Whether nothing can be left.
    pub fn is_empty(&self) -> bool {
        self.change(|steps| steps.is_empty())
    }

    fn change<T>(&self, with: impl FnOnce(&mut Vec<S>) -> T) -> T {
        with(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fmt;

    use proptest::prelude::*;

    use super::*;
    use crate::error::Error;

    /// A world in which each step makes one thing, and things stand on each other.
    #[derive(Default)]
    struct World {
        things: Mutex<BTreeSet<usize>>,
        fail_apply: Option<usize>,
        fail_after_effect: bool,
        fail_undo: Mutex<Option<usize>>,
    }

    #[derive(Clone)]
    struct Make(usize);

    impl fmt::Display for Make {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "making {}", self.0)
        }
    }

    #[async_trait]
    impl Step for Make {
        type Context = World;

        async fn apply(&self, world: &World) -> Result<()> {
            let fails = world.fail_apply == Some(self.0);
            if !fails || world.fail_after_effect {
                world.things.lock().unwrap().insert(self.0);
            }
            if fails { Err(Error::new(Kind::Io, "told to fail")) } else { Ok(()) }
        }

        async fn undo(&self, world: &World) -> Result<()> {
            if world.fail_undo.lock().unwrap().take_if(|step| *step == self.0).is_some() {
                return Err(Error::new(Kind::Io, "told to fail"));
            }
            let mut things = world.things.lock().unwrap();
            assert!(!things.contains(&(self.0 + 1)), "what stands on it is undone first");
            things.remove(&self.0);
            Ok(())
        }
    }

    proptest! {
        #[test]
        fn failing_at_any_step_leaves_nothing(count in 1_usize..12, at in 0_usize..12, after: bool) {
            let world = World { fail_apply: Some(at), fail_after_effect: after, ..World::default() };
            let ledger = Ledger::default();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let ran = runtime.block_on(ledger.run(&world, (0..count).map(Make)));
            prop_assert_eq!(ran.is_err(), at < count);
            if ran.is_ok() {
                prop_assert_eq!(world.things.lock().unwrap().len(), count);
                runtime.block_on(ledger.undo(&world)).unwrap();
            }
            prop_assert!(world.things.lock().unwrap().is_empty());
            prop_assert!(ledger.is_empty());
        }
    }

    #[tokio::test]
    async fn what_cannot_be_undone_stays_for_the_next_try() {
        let world = World { fail_undo: Mutex::new(Some(0)), ..World::default() };
        let ledger = Ledger::default();
        ledger.run(&world, (0..3).map(Make)).await.unwrap();
        assert!(ledger.undo(&world).await.is_err());
        assert_eq!(world.things.lock().unwrap().iter().copied().collect::<Vec<_>>(), [0]);
        ledger.undo(&world).await.unwrap();
        assert!(ledger.is_empty() && world.things.lock().unwrap().is_empty());
    }
}
