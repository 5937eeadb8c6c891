//! Parts of several disks that are looked at together: what is on one may be told by another.

use std::sync::Arc;

use inside::lvm::MAX_DISKS;

use super::window::Window;
use super::{Blocks, Readers, volumes};
use crate::block::spread::{Part, Spread, Store};
use crate::error::{Error, Kind, Result, chain};
use crate::point::PointInTime;

/// A disk, and a partition of it, 0 for the whole.
pub(super) type Place = (Arc<str>, u32);

/// Some partitions of all disks of a point in time.
pub(super) struct Together {
    pub(super) parts: Vec<Part>,
    /// Where each is.
    pub(super) places: Vec<Place>,
    /// Why others are not among them: a sentence each.
    pub(super) problems: Vec<String>,
}

impl Together {
    /// All that hold something of that kind, as blkid(8) calls it.
    pub(super) async fn gather(readers: &dyn Readers, point: &PointInTime, kind: &str) -> Result<Self> {
        let mut all = Self { parts: Vec::new(), places: Vec::new(), problems: Vec::new() };
        for disk in &point.inventory().disks {
            let Some(frozen) = point.disk(&disk.name) else { continue };
            match volumes::divided(readers, point, frozen).await {
                Ok(table) => {
                    for partition in &table.partitions {
                        let holds = partition.content.as_ref().is_some_and(|content| content.kind == kind);
                        if holds && partition.problem.is_none() {
                            let range = partition.offset..partition.offset + partition.size;
                            let (disk, allocation) = (frozen.cached.clone(), frozen.allocation.clone());
                            all.parts.push(Part { disk, allocation, range });
                            all.places.push((frozen.disk.name.clone(), partition.number));
                        }
                    }
                }
                // What is wrong with a disk stays so; all else may be another time.
                Err(error) if matches!(error.kind(), Kind::Io | Kind::Unsupported) => all.problems.push(chain(&error)),
                Err(error) => return Err(error),
            }
        }
        Ok(all)
    }

    /// One after the other, for a reader; `name` is what messages call them.
    pub(super) fn blocks(&self, name: &str) -> Result<(Arc<dyn Blocks>, Vec<u64>)> {
        let joined = Spread::joined(&self.parts).filter(|_| self.parts.len() <= MAX_DISKS);
        let joined = Arc::new(
            joined.ok_or_else(|| Error::new(Kind::TooLarge, format!("there are more {name} than are read at once")))?,
        );
        let size = joined.size();
        let window = Window::new(name.to_owned(), Store::Spread(joined), 0..size);
        Ok((Arc::new(window), self.parts.iter().map(|part| part.range.end - part.range.start).collect()))
    }
}
