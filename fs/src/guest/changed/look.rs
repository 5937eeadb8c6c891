//! Looks at names in a directory: what they are, and whether a file lies where the disk changed.
//!
//! The process that reads may be killed by anybody, and then all that it was asked comes to nothing, whosever fault that was. So it is
//! asked once more, by one question after the other: what has killed its reader then is a fault, and the others are not.

use std::ops::Range;

use futures_util::future::join_all;
use inside::{FileKind, Id, Place};

use super::touched;
use crate::block::changes::Changes;
use crate::error::{Error, Kind, Result};
use crate::guest::{Listed, Names, Reader, is_name};

/// Deaths of its reader that one file system is walked on after: the daemon waits longer before each next one.
const MAX_DEATHS: u64 = 5;

/// Calls that one file's pieces may take: a file is not believed for ever.
const MAX_CALLS: usize = 1 << 16;

/// How names are looked at.
pub(super) struct Look<'a> {
    reader: &'a dyn Reader,
    window: Range<u64>,
    changes: &'a Changes,
    /// How often the reader had died before.
    deaths: u64,
}

/// What has a name.
pub(super) enum Found {
    Directory,
    Changed,
    Nothing,
}

impl<'a> Look<'a> {
    /// A look at what is in a part of the disk, in bytes.
    pub(super) fn new(reader: &'a dyn Reader, window: Range<u64>, changes: &'a Changes) -> Self {
        Self { reader, window, changes, deaths: reader.deaths() }
    }

    /// Whether the reader has died so often that it is asked no more.
    pub(super) fn is_deadly(&self) -> bool {
        self.reader.deaths().saturating_sub(self.deaths) > MAX_DEATHS
    }

    /// Whether something is to be asked again that was asked after so many deaths of the reader.
    fn in_vain<T>(&self, deaths: u64, outcome: &Result<T>) -> bool {
        let died = self.reader.deaths() > deaths && !self.is_deadly();
        died && outcome.as_ref().is_err_and(|error| error.kind() == Kind::Io)
    }

    /// [`Reader::list`].
    pub(super) async fn list(&self, directory: Id, from: u64) -> Result<Names> {
        let deaths = self.reader.deaths();
        let names = self.reader.list(directory, from).await;
        if self.in_vain(deaths, &names) { self.reader.list(directory, from).await } else { names }
    }

    /// What these names are, all asked at once.
    pub(super) async fn at_all(&self, names: &[Listed]) -> Vec<Result<Found>> {
        let deaths = self.reader.deaths();
        let mut all = join_all(names.iter().map(|listed| self.at(listed))).await;
        for (listed, found) in names.iter().zip(&mut all) {
            if self.in_vain(deaths, found) {
                *found = self.at(listed).await;
            }
        }
        all
    }

    async fn at(&self, listed: &Listed) -> Result<Found> {
        if !is_name(&listed.name) {
            return Err(Error::new(Kind::Io, "a name in a directory cannot be right"));
        }
        let kind = match listed.kind {
            Some(kind) => kind,
            None => self.reader.attributes(listed.id).await?.kind,
        };
        Ok(match kind {
            FileKind::Directory => Found::Directory,
            FileKind::File if self.changed(listed.id).await? => Found::Changed,
            _ => Found::Nothing,
        })
    }

    async fn changed(&self, file: Id) -> Result<bool> {
        let wrong = || Error::new(Kind::Io, "where the guest's file lies on the disk cannot be right");
        let mut known = 0;
        for _ in 0..MAX_CALLS {
            let extents = self.reader.extents(file, known).await?;
            if extents.is_empty() {
                return Ok(false);
            }
            for extent in extents {
                let end = extent.offset.checked_add(extent.length).filter(|end| *end > known).ok_or_else(wrong)?;
                known = end;
                let Place::Disk(at) = extent.place else { continue };
                let start = self.window.start.checked_add(at).ok_or_else(wrong)?;
                let end = start.checked_add(extent.length).filter(|end| *end <= self.window.end).ok_or_else(wrong)?;
                if touched(self.changes, &(start..end)) {
                    return Ok(true);
                }
            }
        }
        Err(Error::new(Kind::TooLarge, format!("its pieces take more than {MAX_CALLS} questions")))
    }
}
