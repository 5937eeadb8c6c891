//! Undoing what a mount that died has left in libvirt, from its journal, with the code that the mount itself would have run.

use std::path::Path;
use std::sync::Arc;

use super::link::{Link, Target};
use super::ssh::Relay;
use super::undo::{Context, Leftover};
use crate::error::{Error, Kind, Result};
use crate::point::journal::Journal;
use crate::point::plan::Ledger;

/// What is left of a mount, and undoes it.
pub struct Remains(Ledger<Leftover>);

impl Remains {
    /// What a journal names.
    ///
    /// # Errors
    /// [`Kind::Invalid`] when the journal is not understood; then nothing can be undone.
    pub fn of(journal: Journal) -> Result<Self> {
        Ledger::left_in(journal).map(Self)
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Its names, for people.
    pub fn names(&self) -> Vec<String> {
        self.0.notes().iter().map(ToString::to_string).collect()
    }

    /// Undoes it, in libvirt, on its host and on this one. `dir` is the mount's directory.
    ///
    /// # Errors
    /// When something may be left, among others because libvirt does not answer; trying again is safe.
    pub async fn undo(&self, target: Target, dir: &Path) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        let (uri, dir) = (target.uri.clone(), dir.to_owned());
        let relay = aside(move || {
            let mut relay = Relay::start(&uri, &dir)?;
            relay.iter_mut().for_each(Relay::listen);
            Ok(relay)
        });
        let relay = relay.await??;
        let target = match &relay {
            Some(relay) => target.by(relay.lead()),
            None => target,
        };
        let outcome = self.undo_by(target).await;
        aside(move || drop(relay)).await?;
        outcome
    }

    async fn undo_by(&self, target: Target) -> Result<()> {
        let context = Arc::new(Context::new(Link::start(target.clone(), Box::new(|_| {})), target));
        match self.0.undo(&context).await {
            // libvirt does not know the domain: what it had of ours ended with it.
            Err(error) if error.kind() == Kind::NotFound => {
                for left in self.0.notes() {
                    left.undo_without_domain(&context).await?;
                }
                self.0.keep(|_| true);
                Ok(())
            }
            other => other,
        }
    }
}

/// What blocks, on a thread for such.
async fn aside<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let outcome = tokio::task::spawn_blocking(job).await;
    outcome.map_err(|error| Error::with_source(Kind::Io, "a relay of ssh panicked", error))
}
