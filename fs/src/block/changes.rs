//! What changed on a disk since a checkpoint, and which of it now reads as zeroes.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use super::extents::Extents;
use super::{Map, Source};
use crate::error::Result;

/// Dirty extents that are gathered before it is asked which of them are zeroes: 1 MiB of memory that is needed for a
/// moment only.
const GATHERED: usize = 64 << 10;

/// Dirty extents that lie closer together than this, in bytes, are asked about in one question: QEMU walks the gap in
/// less time than another question takes.
const GAP: u64 = 64 << 20;

/// What changed on a disk between a checkpoint and the point in time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FrozenMap {
    /// The source's name for [`Map::Dirty`]; none if the bitmap has nothing to say.
    pub name: Option<String>,
    /// What counts as changed besides: the end of the disk, or all of it.
    pub also: Option<Range<u64>>,
    /// The older checkpoint since which all counts as changed, where the machine tells no better.
    pub rough: Option<Arc<str>>,
}

/// Two lists that have nothing in common and together are everything that changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Changed, and has to be read.
    pub data: Extents,
    /// Changed, and reads as zeroes.
    pub zero: Extents,
}

impl Changes {
    /// Bytes that changed.
    pub fn bytes(&self) -> u64 {
        self.data.bytes() + self.zero.bytes()
    }

    /// Number of extents of both kinds.
    pub fn len(&self) -> usize {
        self.data.len() + self.zero.len()
    }

    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Asks the source what changed on a disk of `size` bytes.
    ///
    /// # Errors
    /// Any failure of the source; [`Kind::TooLarge`](crate::error::Kind::TooLarge) for more extents than are taken.
    pub async fn learn(source: &dyn Source, map: &FrozenMap, size: u64) -> Result<Self> {
        let mut changes = Self::default();
        let mut at = 0;
        while at < size {
            let (dirty, end) = gather(source, map, at..size).await?;
            changes.sort_out(source, &dirty).await?;
            at = end;
        }
        Ok(changes)
    }

    async fn sort_out(&mut self, source: &dyn Source, dirty: &Extents) -> Result<()> {
        for window in windows(dirty) {
            let mut fault = None;
            source
                .map(&Map::Allocation, window, &mut |range, data| {
                    let list = if data { &mut self.data } else { &mut self.zero };
                    for extent in dirty.within(range) {
                        if let Err(error) = list.push(extent) {
                            fault = Some(error);
                            return ControlFlow::Break(());
                        }
                    }
                    ControlFlow::Continue(())
                })
                .await?;
            if let Some(error) = fault {
                return Err(error);
            }
        }
        Ok(())
    }
}

/// Dirty extents from the start of a window on, and up to where they are all there are.
async fn gather(source: &dyn Source, map: &FrozenMap, window: Range<u64>) -> Result<(Extents, u64)> {
    let mut dirty = Extents::default();
    let also = map.also.clone().unwrap_or(window.end..window.end);
    let told = window.start..also.start.clamp(window.start, window.end);
    let mut end = told.start;
    if let Some(name) = map.name.as_ref().filter(|_| !told.is_empty()) {
        let mut fault = None;
        source
            .map(&Map::Dirty(name.clone()), told.clone(), &mut |range, inside| {
                end = range.end;
                if let Err(error) = if inside { dirty.push(range) } else { Ok(()) } {
                    fault = Some(error);
                    return ControlFlow::Break(());
                }
                if dirty.len() < GATHERED { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })
            .await?;
        if let Some(error) = fault {
            return Err(error);
        }
    } else {
        end = told.end;
    }
    if end < told.end {
        return Ok((dirty, end));
    }
    // What counts as changed besides reaches to the end of the disk.
    dirty.push(also.start.max(window.start)..window.end)?;
    Ok((dirty, window.end))
}

/// The ranges in which the extents lie, each as long as the gaps allow.
fn windows(extents: &Extents) -> Vec<Range<u64>> {
    let mut windows: Vec<Range<u64>> = Vec::new();
    for extent in extents.iter() {
        match windows.last_mut() {
            Some(last) if extent.start - last.end <= GAP => last.end = extent.end,
            _ => windows.push(extent),
        }
    }
    windows
}
