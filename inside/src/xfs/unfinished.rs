//! Changes of files' extents that the log has as intents, and the kernel brings to an end when it mounts: blocks that were shared
//! until a write, mostly. They are laid over the extents of the file.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use crate::{Disk, Error, FileKind, Kind, Result};

use super::extents::Mapping;
use super::inode::Inode;
use super::volume::Volume;

/// Most that are laid over.
pub(super) const MAX_CHANGES: usize = 64;

/// A piece of a file's data that is to be mapped, or to be nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) inode: u64,
    pub(super) mapping: Mapping,
    pub(super) maps: bool,
}

/// Those of one file.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// In the file's order; they do not overlap.
    pieces: Vec<Change>,
    /// Blocks that the file has more, and less.
    pub(super) more: u64,
    pub(super) less: u64,
}

/// Those of all files, by their inodes.
pub(super) type Unfinished = BTreeMap<u64, Changes>;

impl Changes {
    /// A later change goes over those before.
    fn add(&mut self, change: Change) {
        let (start, end) = (change.mapping.offset, change.mapping.end());
        let mut pieces = vec![change];
        for piece in self.pieces.drain(..) {
            pieces.extend(part(piece.mapping, 0, start).map(|mapping| Change { mapping, ..piece }));
            pieces.extend(part(piece.mapping, end, u64::MAX).map(|mapping| Change { mapping, ..piece }));
        }
        pieces.sort_by_key(|piece| piece.mapping.offset);
        self.pieces = pieces;
    }
}

/// The part of a mapping from a block of the file to before another.
fn part(mapping: Mapping, from: u64, to: u64) -> Option<Mapping> {
    let (start, end) = (mapping.offset.max(from), mapping.end().min(to));
    (start < end).then(|| Mapping {
        offset: start,
        count: end - start,
        block: mapping.block + (start - mapping.offset),
        unwritten: mapping.unwritten,
    })
}

type Each<'a> = &'a mut dyn FnMut(Mapping) -> Result<ControlFlow<()>>;

/// Mappings in their order, those of the inode and those laid over them.
struct Merge<'a> {
    changes: &'a [Change],
    from: u64,
    /// Up to where the changes that were told reach.
    covered: u64,
    each: Each<'a>,
    ended: bool,
}

impl Merge<'_> {
    fn tell(&mut self, mapping: Option<Mapping>) -> Result<()> {
        if let Some(mapping) = mapping.filter(|mapping| !self.ended && mapping.end() > self.from) {
            self.ended = (self.each)(mapping)?.is_break();
        }
        Ok(())
    }

    /// The changes that begin before a block, and what is left of a mapping between them.
    fn changes_before(&mut self, end: u64, under: Option<Mapping>) -> Result<()> {
        while let Some((change, rest)) = self.changes.split_first().filter(|(change, _)| change.mapping.offset < end) {
            self.tell(under.and_then(|under| part(under, self.covered, change.mapping.offset)))?;
            self.tell(Some(change.mapping).filter(|_| change.maps))?;
            self.covered = change.mapping.end();
            self.changes = rest;
        }
        self.tell(under.and_then(|under| part(under, self.covered, u64::MAX)))
    }
}

impl<D: Disk> Volume<D> {
    /// The mappings of a regular file's data that end after block `from`, in their order, until `each` breaks.
    pub(super) fn data_mappings(&self, inode: &Inode, from: u64, each: Each<'_>) -> Result<()> {
        let Some(changes) = self.unfinished.get(&inode.number) else {
            return self.mappings(&inode.data(), from, each);
        };
        let mut merge = Merge { changes: &changes.pieces, from, covered: 0, each, ended: false };
        self.mappings(&inode.data(), from, &mut |mapping| {
            merge.changes_before(mapping.end(), Some(mapping))?;
            Ok(if merge.ended { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        merge.changes_before(u64::MAX, None)
    }

    /// Lays changes over the extents of files, in their order.
    pub(super) fn lay_over(&mut self, changes: &[Change]) -> Result<()> {
        for change in changes {
            let inode = match self.inode(change.inode) {
                // Nobody sees it any more.
                Err(error) if error.kind() == Kind::NotFound => continue,
                inode => inode?,
            };
            if inode.attributes.kind != FileKind::File || inode.realtime {
                return Err(Error::new(Kind::Unclean, "XFS: its log: a change of what is no file of this disk"));
            }
            let mapping = change.mapping;
            let mut less = 0;
            self.data_mappings(&inode, mapping.offset, &mut |under| {
                less += part(under, mapping.offset, mapping.end()).map_or(0, |part| part.count);
                Ok(if under.end() < mapping.end() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
            })?;
            let changes = self.unfinished.entry(change.inode).or_default();
            changes.add(*change);
            changes.less += less;
            changes.more += if change.maps { mapping.count } else { 0 };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(offset: u64, count: u64, block: u64) -> Mapping {
        Mapping { offset, count, block, unwritten: false }
    }

    fn change(offset: u64, count: u64, block: Option<u64>) -> Change {
        Change { inode: 1, mapping: mapping(offset, count, block.unwrap_or_default()), maps: block.is_some() }
    }

    /// What is told of some mappings with changes over them, from a block on.
    fn merged(under: &[Mapping], changes: &[Change], from: u64) -> Vec<(u64, u64, u64)> {
        let mut all = Changes::default();
        for change in changes {
            all.add(*change);
        }
        let mut told = Vec::new();
        let mut each = |mapping: Mapping| {
            told.push((mapping.offset, mapping.count, mapping.block));
            Ok(ControlFlow::Continue(()))
        };
        let mut merge = Merge { changes: &all.pieces, from, covered: 0, each: &mut each, ended: false };
        for mapping in under {
            merge.changes_before(mapping.end(), Some(*mapping)).unwrap();
        }
        merge.changes_before(u64::MAX, None).unwrap();
        told
    }

    #[test]
    fn what_was_shared_is_replaced() {
        let under = [mapping(0, 10, 100), mapping(20, 10, 200)];
        assert_eq!(merged(&under, &[], 0), [(0, 10, 100), (20, 10, 200)]);
        // Taken out of the middle, and mapped elsewhere.
        let changes = [change(3, 2, None), change(3, 2, Some(50))];
        assert_eq!(merged(&under, &changes, 0), [(0, 3, 100), (3, 2, 50), (5, 5, 105), (20, 10, 200)]);
        assert_eq!(merged(&under, &changes[..1], 4), [(5, 5, 105), (20, 10, 200)]);
        // Over the end of one, a hole, and the beginning of another.
        assert_eq!(merged(&under, &[change(8, 14, Some(50))], 0), [(0, 8, 100), (8, 14, 50), (22, 8, 202)]);
        assert_eq!(merged(&under, &[change(5, 30, None)], 0), [(0, 5, 100)]);
        // In holes.
        let changes = [change(40, 1, Some(7)), change(12, 1, Some(5)), change(13, 2, Some(6))];
        let told = [(0, 10, 100), (12, 1, 5), (13, 2, 6), (20, 10, 200), (40, 1, 7)];
        assert_eq!(merged(&under, &changes, 0), told);
        assert_eq!(merged(&[], &[change(3, 2, Some(9)), change(4, 1, None)], 0), [(3, 1, 9)]);
    }
}
