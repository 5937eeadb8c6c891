//! Undoing what a mount that died has left in libvirt, from its journal, with the code that the mount itself would have run.

use std::sync::Arc;

use super::link::{Link, Target};
use super::undo::{Context, Leftover};
use crate::error::{Kind, Result};
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

    /// Undoes it, in libvirt, on its host and on this one.
    ///
    /// # Errors
    /// When something may be left, among others because libvirt does not answer; trying again is safe.
    pub async fn undo(&self, target: Target) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        let uri = target.uri.clone();
        let context = Arc::new(Context::new(Link::start(target, Box::new(|_| {})), &uri));
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
