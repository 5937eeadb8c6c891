//! `changed-files.txt`: the guest's files whose data lies where the disk changed.
//!
//! Each file system is walked from its root, with a stack of directories instead of recursion, and each regular file is asked for
//! its pieces until one of them lies in what changed. A fault is a line of the list: it is never silently short.

mod look;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::time::Duration;

use inside::Id;
use inside::table::{Partition, Table};

use self::look::{Found, Look};
use super::{Listed, Names, Reader};
use crate::block::changes::Changes;
use crate::error::{Error, Kind, Result, chain};

/// Questions that one file system is asked at once.
const AT_ONCE: usize = 16;

/// Directories within directories that are walked into.
const MAX_DEPTH: usize = 512;

/// What the directories that are still to be walked may take, in bytes.
const MAX_PENDING: usize = 32 << 20;

/// Failures of one file system after which the rest of it is left alone.
const MAX_FAULTS: usize = 100;

/// What no list tells, whatever is in it.
const CAVEATS: &str = include_str!("changed/caveats.txt");

/// What a list may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The text, in bytes.
    pub text: usize,
    /// Names that are looked at.
    pub entries: u64,
    /// How long it may take to make.
    pub time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { text: 64 << 20, entries: 20_000_000, time: Duration::from_secs(600) }
    }
}

/// A list that grows.
pub struct List {
    text: Vec<u8>,
    limits: Limits,
    entries: u64,
    files: u64,
    faults: u64,
}

impl List {
    /// A list below `header`, whose lines each have their `#`.
    pub fn new(header: &str, limits: Limits) -> Self {
        let text = [header, CAVEATS].concat().into_bytes();
        Self { text, limits, entries: 0, files: 0, faults: 0 }
    }

    fn push(&mut self, parts: &[&[u8]]) -> Result<()> {
        for part in parts {
            self.text.extend_from_slice(part);
        }
        self.text.push(b'\n');
        if self.text.len() > self.limits.text {
            return Err(Error::new(
                Kind::TooLarge,
                format!("the list of changed files is longer than {} bytes: read dirty.map instead", self.limits.text),
            ));
        }
        Ok(())
    }

    fn comment(&mut self, text: &str) -> Result<()> {
        let text = text.replace(|c: char| c.is_control(), "?");
        self.push(&[b"# ", text.as_bytes()])
    }

    /// Something was not read, though it may have changed.
    fn fault(&mut self, what: &str, why: &str) -> Result<()> {
        self.faults = self.faults.saturating_add(1);
        self.comment(&format!("not read: {what}: {why}"))
    }

    /// What is wrong with the disk's table itself.
    ///
    /// # Errors
    /// [`Kind::TooLarge`].
    pub fn table(&mut self, table: &Table) -> Result<()> {
        table.problems.iter().try_for_each(|problem| self.comment(&format!("note: {problem}")))?;
        if table.partitions.is_empty() {
            return self.fault("the disk", "nothing that is known is on it");
        }
        Ok(())
    }

    /// A partition whose files are not shown.
    ///
    /// # Errors
    /// [`Kind::TooLarge`].
    pub fn refused(&mut self, partition: &Partition) -> Result<()> {
        let refused = partition.content.as_ref().and_then(|content| content.refused.as_deref());
        let why = partition.problem.as_deref().or(refused).unwrap_or("nothing that is known is on it");
        self.fault(&of(partition.number), why)
    }

    /// A partition on which nothing changed: its files need no look.
    ///
    /// # Errors
    /// [`Kind::TooLarge`].
    pub fn unchanged(&mut self, partition: u32) -> Result<()> {
        self.comment(&format!("note: {}: nothing changed on it", of(partition)))
    }

    /// A file system that cannot be opened.
    ///
    /// # Errors
    /// [`Kind::TooLarge`].
    pub fn closed(&mut self, partition: u32, error: &Error) -> Result<()> {
        self.fault(&of(partition), &chain(error))
    }

    /// Adds the files of a file system. `check` tells whether there is still something to walk.
    ///
    /// # Errors
    /// [`Kind::TooLarge`]; what `check` failed with.
    pub async fn volume(
        &mut self,
        reader: &dyn Reader,
        partition: &Partition,
        changes: &Changes,
        check: &(dyn Fn() -> Result<()> + Sync),
    ) -> Result<()> {
        let number = partition.number;
        if let Some(unclean) = &reader.summary().unclean {
            self.comment(&format!("note: {}: {unclean}", of(number)))?;
        }
        let look = Look::new(reader, window(partition), changes);
        let root = Pending { depth: 0, directory: reader.root(), from: 0, name: format!("{number}/files").into() };
        let pending_bytes = root.bytes();
        let walk = Walk { pending: vec![root], pending_bytes, path: Vec::new(), above: Vec::new(), failed: 0 };
        walk.run(self, &look, check).await
    }

    /// The whole text.
    ///
    /// # Errors
    /// [`Kind::TooLarge`].
    pub fn finish(mut self) -> Result<Vec<u8>> {
        if self.faults > 0 {
            self.comment(&format!("incomplete: {} of the above could not be read", self.faults))?;
        }
        self.comment(&format!("end: {} files", self.files))?;
        self.text.shrink_to_fit();
        Ok(self.text)
    }
}

fn of(partition: u32) -> String {
    format!("partition {partition}")
}

/// The part of the disk that a partition has, in bytes.
pub fn window(partition: &Partition) -> Range<u64> {
    partition.offset..partition.offset.saturating_add(partition.size)
}

/// Whether something of a range of the disk changed.
pub fn touched(changes: &Changes, range: &Range<u64>) -> bool {
    let lists = [&changes.data, &changes.zero];
    lists.into_iter().any(|list| list.next_inside(range.start).is_some_and(|at| at < range.end))
}

/// Appends a name as it is written down.
fn escape(out: &mut Vec<u8>, name: &[u8]) {
    for &byte in name {
        if byte == b'\\' || byte.is_ascii_control() {
            out.extend_from_slice(format!("\\{byte:03o}").as_bytes());
        } else {
            out.push(byte);
        }
    }
}

/// A directory, or the rest of one, that is still to be walked.
struct Pending {
    /// Directories above it.
    depth: usize,
    directory: Id,
    /// Where to go on in it.
    from: u64,
    name: Vec<u8>,
}

impl Pending {
    fn bytes(&self) -> usize {
        self.name.len() + size_of::<Self>()
    }
}

/// A walk of one file system. What is below a directory is walked before what comes after it, so that the directories above
/// the last one are always known.
struct Walk {
    pending: Vec<Pending>,
    pending_bytes: usize,
    /// As it is written down.
    path: Vec<u8>,
    /// The directories above, and the last one itself; each with the length of its path.
    above: Vec<(Id, usize)>,
    /// What could not be read, but for what is only not read here.
    failed: usize,
}

impl Walk {
    async fn run(mut self, list: &mut List, look: &Look<'_>, check: &(dyn Fn() -> Result<()> + Sync)) -> Result<()> {
        while let Some(next) = self.pending.pop() {
            self.pending_bytes -= next.bytes();
            self.enter(&next);
            let names = look.list(next.directory, next.from).await;
            check()?;
            match names {
                Ok(names) => self.names(list, look, check, next, names).await?,
                Err(error) => {
                    self.failed += 1;
                    list.fault(&String::from_utf8_lossy(&self.path), &chain(&error))?;
                }
            }
            if let Some(why) = self.given_up(look) {
                let number = self.path.split(|byte| *byte == b'/').next().unwrap_or_default();
                let what = format!("the rest of partition {}", String::from_utf8_lossy(number));
                return list.fault(&what, why);
            }
        }
        Ok(())
    }

    /// Why no more of the file system is walked.
    fn given_up(&self, look: &Look<'_>) -> Option<&'static str> {
        if look.is_deadly() {
            return Some("its reader died too often");
        }
        (self.failed > MAX_FAULTS).then_some("too much of it cannot be read")
    }

    fn enter(&mut self, next: &Pending) {
        self.above.truncate(next.depth);
        self.path.truncate(self.above.last().map_or(0, |(_, length)| *length));
        if next.depth == 0 {
            self.path.extend_from_slice(&next.name);
        } else {
            self.path.push(b'/');
            escape(&mut self.path, &next.name);
        }
        self.above.push((next.directory, self.path.len()));
    }

    /// What is in a part of a directory; its directories are walked after it, and the rest of it after them.
    async fn names(
        &mut self,
        list: &mut List,
        look: &Look<'_>,
        check: &(dyn Fn() -> Result<()> + Sync),
        directory: Pending,
        Names { all: names, is_last, .. }: Names,
    ) -> Result<()> {
        let Some(from) = names.last().map(|listed| listed.next) else { return Ok(()) };
        let depth = directory.depth + 1;
        list.entries = list.entries.saturating_add(names.len() as u64);
        if list.entries > list.limits.entries {
            let most = list.limits.entries;
            return Err(Error::new(
                Kind::TooLarge,
                format!("the guest has more than {most} files: read dirty.map instead of the list of changed ones"),
            ));
        }
        let rest = Pending { from, ..directory };
        let mut below = Vec::new();
        for some in names.chunks(AT_ONCE) {
            let found = look.at_all(some).await;
            check()?;
            for (Listed { name, id, .. }, found) in some.iter().zip(found) {
                let mut path = self.path.clone();
                path.push(b'/');
                escape(&mut path, name);
                let why = match found {
                    Ok(Found::Nothing) => continue,
                    Ok(Found::Changed) => {
                        list.files += 1;
                        list.push(&[&path])?;
                        continue;
                    }
                    Ok(Found::Directory) if self.above.iter().any(|(above, _)| above == id) => {
                        "it is a directory within itself".to_owned()
                    }
                    Ok(Found::Directory) if depth > MAX_DEPTH => format!("it is deeper than {MAX_DEPTH} directories"),
                    Ok(Found::Directory) => {
                        below.push(Pending { depth, directory: *id, from: 0, name: name.clone() });
                        continue;
                    }
                    Err(error) => {
                        self.failed += usize::from(error.kind() != Kind::Unsupported);
                        chain(&error)
                    }
                };
                list.fault(&String::from_utf8_lossy(&path), &why)?;
            }
            if self.given_up(look).is_some() {
                return Ok(());
            }
        }
        let rest = (!is_last).then_some(rest);
        self.pending_bytes += rest.iter().chain(&below).map(Pending::bytes).sum::<usize>();
        if self.pending_bytes > MAX_PENDING {
            return Err(Error::new(
                Kind::TooLarge,
                format!("the guest's directories take more than {MAX_PENDING} bytes to walk: read dirty.map instead"),
            ));
        }
        self.pending.extend(rest);
        self.pending.extend(below.into_iter().rev());
        Ok(())
    }
}
