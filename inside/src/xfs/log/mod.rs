//! The log: what was committed and may not be in its place yet.
//!
//! ```text
//! Ring: head, tail ─▶ records ─▶ transactions::Assembler ─▶ committed transactions ─▶ replay::Replay ─▶ Overlay
//! ```
//! A disk that is frozen while its machine runs always has a log to replay. What is there after it must be what the kernel
//! makes of it: each rule here is the kernel's, for otherwise our view is another one than that of a mount. Two passes: the first
//! verifies the checksums and finds out which buffers were freed, the second applies what was committed. What is seen and not
//! finished: changes of extents are laid over the files; others are refused as [`crate::Kind::Unclean`], and so is whatever is
//! not known.

mod inodes;
mod intents;
mod replay;
mod ring;
mod transactions;

use crate::{Disk, Error, Kind, Result};

use super::overlay::{Overlay, Sectors};
use super::superblock::Superblock;
use super::unfinished::Change;
use replay::{Cancelled, Replay};
use ring::{Ring, Span};
use transactions::Assembler;

/// `sb_features_log_incompat`: attributes by intents.
const LOGGED_ATTRIBUTES: u32 = 1;

fn unclean(what: &str) -> Error {
    Error::new(Kind::Unclean, format!("XFS: its log: {what}"))
}

/// What the log has over the disk.
#[derive(Debug, Default)]
pub(super) struct Replayed {
    pub(super) sectors: Sectors,
    /// What it has not brought to an end.
    pub(super) changes: Vec<Change>,
}

/// What the log has over the disk; none if there is nothing to replay.
pub(super) fn replay<D: Disk>(disk: &D, superblock: &Superblock, checked: bool) -> Result<Option<Replayed>> {
    let ring = Ring::new(disk, superblock, checked)?;
    let Some(span) = ring.live()? else { return Ok(None) };
    if !superblock.v5 {
        return Err(unclean("it is not replayed for version 4 of the format: freeze it first (--quiesce)"));
    }
    if superblock.log_incompat & !LOGGED_ATTRIBUTES != 0 {
        return Err(unclean(&format!("unknown features {:#x}", superblock.log_incompat & !LOGGED_ATTRIBUTES)));
    }

    let (span, cancelled) = first_pass(&ring, span)?;
    let mut blocks = Overlay::new(disk, Sectors::new());
    let mut replay = Replay::new(superblock, cancelled);
    let mut assembler = Assembler::default();
    let bad = ring.walk(span, &mut |record| {
        assembler.record(record, &mut |transaction| replay.apply(&mut blocks, &transaction))
    })?;
    if bad.is_some() {
        return Err(unclean("it changed while it was read"));
    }
    Ok(Some(Replayed { changes: replay.intents.finish()?, sectors: blocks.into_sectors() }))
}

/// Verifies all records, and finds which buffers were freed. Writes that were under way when the disk was frozen may have gone over
/// the tail: what is damaged there is left out, as it is by the kernel.
fn first_pass<D: Disk>(ring: &Ring<'_, D>, mut span: Span) -> Result<(Span, Cancelled)> {
    loop {
        let mut cancelled = Cancelled::default();
        let mut assembler = Assembler::default();
        let bad =
            ring.walk(span, &mut |record| assembler.record(record, &mut |transaction| cancelled.note(&transaction)))?;
        let Some(bad) = bad else { return Ok((span, cancelled)) };
        if !ring.may_be_overwritten(bad, span.head) {
            return Err(unclean(&format!("the record at its block {bad} is damaged")));
        }
        span.tail = ring.next_header(bad, span.head)?;
    }
}
