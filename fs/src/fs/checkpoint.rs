//! Making and deleting checkpoints.

use std::ffi::OsStr;

use super::{Entry, Fs};
use crate::error::{Error, Kind, Result};
use crate::options::Foreign;
use crate::point::policy::Wish;
use crate::tree::Node;
use crate::vm::Wanted;

impl Fs {
    pub(super) async fn begin(&self, wanted: Wanted) -> Result<()> {
        let since = wanted.since.clone();
        self.handles.settle(|| self.points.waits_for_closes(Wish::Begin, since.as_ref())).await;
        let begun = self.points.begin(wanted).await;
        self.inventories.forget();
        begun
    }

    pub(super) async fn delete_checkpoint(&self, name: &str) -> Result<()> {
        self.handles.settle(|| self.handles.any_of_checkpoint(name)).await;
        if self.handles.any_of_checkpoint(name) {
            return Err(Error::new(Kind::Busy, format!("files of checkpoint {name} are open; close them first")));
        }
        let deleted = self.points.delete_checkpoint(name.to_owned(), self.options.foreign == Foreign::Rw).await;
        self.inventories.forget();
        deleted
    }

    /// mkdir(2): below `checkpoints` it makes a checkpoint and takes the point in time at the same instant.
    ///
    /// # Errors
    /// [`Kind::Denied`] anywhere else; [`Kind::Invalid`] for a name that no checkpoint can have; [`Kind::Exists`];
    /// [`Kind::Busy`] while files are open on the point in time that is held.
    pub async fn mkdir(&self, parent: u64, name: &OsStr) -> Result<Entry> {
        if self.node(parent)? != Node::Checkpoints {
            return Err(Error::new(Kind::Denied, "directories are made in checkpoints only"));
        }
        let text = name.to_str().ok_or_else(|| Error::new(Kind::Invalid, "a checkpoint's name is UTF-8"));
        let wanted = text.map(|name| Wanted { checkpoint: Some(name.into()), ..Wanted::default() });
        self.noted(match wanted {
            Ok(wanted) => self.begin(wanted).await,
            Err(error) => Err(error),
        })?;
        self.lookup(parent, name).await
    }

    /// rmdir(2): below `checkpoints` it deletes a checkpoint.
    ///
    /// # Errors
    /// [`Kind::Denied`] anywhere else; [`Kind::NotFound`]; [`Kind::NotOurs`] for one that pullfs did not make;
    /// [`Kind::Busy`] while files of it are open.
    pub async fn rmdir(&self, parent: u64, name: &OsStr) -> Result<()> {
        if self.node(parent)? != Node::Checkpoints {
            return Err(Error::new(Kind::Denied, "only checkpoints can be deleted"));
        }
        let name = name.to_str().ok_or_else(|| Error::new(Kind::NotFound, "a checkpoint's name is UTF-8"))?;
        self.noted(self.delete_checkpoint(name).await)
    }
}
