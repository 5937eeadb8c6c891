//! A disk that is read once (mount option `read_once`): what was read is given back to the scratch space.
//!
//! ```text
//! 0 ── given back ──┬── lately read ──┬── not read yet ── end
//!                   └── [`LAG`] bytes ┘
//! ```
//! QEMU frees the old data of a range that is trimmed at the point in time, and copies none for it any more when the guest
//! overwrites it: a backup that goes through a disk in order needs scratch space only for what it has not read yet. What
//! was given back cannot be read again, which is an error and never other bytes. What was lately read can be, because
//! readers and the kernel's read-ahead do not go strictly in order.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::{ControlFlow, Range};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::BytesMut;

use super::{Map, Sink, Source, Traffic};
use crate::error::{Error, Kind, Result, chain};

/// What QEMU copies and frees at once, in bytes: the cluster of its copy-before-write filter over a scratch image of
/// clusters of this size (block/block-copy.c, `block_copy_calculate_cluster_size`).
const CLUSTER: u64 = 65536;

/// What the kernel reads at once at least, in bytes; a cluster has sixteen of them.
const PAGE: u64 = 4096;

/// What was read last and is not given back yet, in bytes: more than any read-ahead.
const LAG: u64 = 64 << 20;

/// Clusters of which a part was read are remembered for so many; what is beyond is not given back.
const MAX_PARTS: usize = 4096;

/// Runs of clusters that were given back are remembered for so many; beyond, nothing more is given back.
const MAX_RUNS: usize = 1 << 16;

/// A source that gives back what was read.
pub struct ReadOnce {
    source: Arc<dyn Source>,
    size: u64,
    /// Held for a moment only.
    progress: Mutex<Progress>,
}

impl ReadOnce {
    /// `size` is the disk's, in bytes.
    pub fn new(source: Arc<dyn Source>, size: u64) -> Self {
        Self { source, size, progress: Mutex::default() }
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self, range: &Range<u64>) -> Result<()> {
        match self.progress().given.overlap(range) {
            None => Ok(()),
            Some(at) => Err(Error::new(
                Kind::Io,
                format!("the disk was read at {at} before, and its scratch space given back (option read_once)"),
            )),
        }
    }
}

#[async_trait]
impl Source for ReadOnce {
    async fn read(&self, offset: u64, buf: BytesMut) -> Result<BytesMut> {
        let range = offset..offset.saturating_add(u64::try_from(buf.len()).unwrap_or(u64::MAX));
        self.check(&range)?;
        let read = match self.source.read(offset, buf).await {
            Ok(read) => read,
            Err(error) => {
                // Another reader may have been faster.
                self.check(&range)?;
                return Err(error);
            }
        };
        let done = self.progress().read(&range, self.size);
        for run in done {
            if let Err(error) = self.source.give_back(run.clone()).await {
                // The scratch space stays as large as it is, and that is watched over.
                tracing::warn!("cannot give back {run:?}: {}", chain(&error));
            }
        }
        Ok(read)
    }

    async fn map(&self, map: &Map, window: Range<u64>, sink: &mut Sink<'_>) -> Result<()> {
        if *map != Map::Allocation {
            return self.source.map(map, window, sink).await;
        }
        // The machine does not say any more what was where: that it held data is always true enough.
        let mut at = window.start;
        while at < window.end {
            let (given, end) = self.progress().given.at(at, window.end);
            let mut flow = ControlFlow::Continue(());
            let asked = if given {
                flow = sink(at..end, true);
                Ok(())
            } else {
                let mut reached = at;
                let mut follow = |range: Range<u64>, inside: bool| {
                    reached = range.end;
                    flow = sink(range, inside);
                    flow
                };
                let asked = self.source.map(map, at..end, &mut follow).await;
                match asked {
                    // It was given back meanwhile: what is left is looked at again.
                    Err(_) if self.check(&(reached..end)).is_err() => {
                        at = reached;
                        continue;
                    }
                    other => other,
                }
            };
            asked?;
            if flow.is_break() {
                return Ok(());
            }
            at = end;
        }
        Ok(())
    }

    async fn give_back(&self, range: Range<u64>) -> Result<()> {
        self.source.give_back(range).await
    }

    fn traffic(&self) -> Traffic {
        self.source.traffic()
    }

    async fn close(&self) {
        self.source.close().await;
    }
}

/// What was read, in clusters.
#[derive(Default)]
struct Progress {
    /// Pages read of clusters that were read in part, a bit each: reads come in any order.
    parts: HashMap<u64, u16>,
    /// Runs of clusters that were read whole, the latest last.
    lately: VecDeque<Range<u64>>,
    lately_bytes: u64,
    given: Runs,
}

impl Progress {
    /// A range was read; what is to be given back now, in bytes.
    fn read(&mut self, range: &Range<u64>, size: u64) -> Vec<Range<u64>> {
        let mut at = range.start;
        while at < range.end {
            let cluster = at / CLUSTER;
            let start = cluster * CLUSTER;
            let end = (start + CLUSTER).min(size);
            let until = end.min(range.end);
            if self.covers(cluster, at - start, until - start, end - start) {
                self.push(start..end);
            }
            at = until;
        }
        let mut done = Vec::new();
        while self.lately_bytes > LAG
            && let Some(oldest) = self.lately.pop_front()
        {
            self.lately_bytes -= oldest.end - oldest.start;
            if self.given.add(oldest.clone()) {
                done.push(oldest);
            }
        }
        done
    }

    /// Whether a cluster was read whole, now that `from..to` of its `length` bytes were.
    fn covers(&mut self, cluster: u64, from: u64, to: u64, length: u64) -> bool {
        if from == 0 && to == length {
            self.parts.remove(&cluster);
            return true;
        }
        // A page of which only a part was read does not count, but for the end of the disk.
        let end = if to == length { length.div_ceil(PAGE) } else { to / PAGE };
        let pages = mask(end) & !mask(from.div_ceil(PAGE));
        let read = self.parts.get(&cluster).copied().unwrap_or(0) | pages;
        if read == mask(length.div_ceil(PAGE)) {
            self.parts.remove(&cluster);
            return true;
        }
        if self.parts.len() < MAX_PARTS || self.parts.contains_key(&cluster) {
            self.parts.insert(cluster, read);
        }
        false
    }

    fn push(&mut self, run: Range<u64>) {
        self.lately_bytes += run.end - run.start;
        match self.lately.back_mut() {
            // A run that grows without end would be given back late, all at once.
            Some(last) if last.end == run.start && run.end - last.start <= LAG / 16 => last.end = run.end,
            _ => self.lately.push_back(run),
        }
    }
}

/// The first pages of a cluster.
fn mask(pages: u64) -> u16 {
    u16::try_from((1_u32 << pages.min(CLUSTER / PAGE)) - 1).unwrap_or(u16::MAX)
}

/// Ranges that do not touch each other: start → end.
#[derive(Default)]
struct Runs(BTreeMap<u64, u64>);

impl Runs {
    /// Adds a range; `false`, and nothing is added, if there are too many.
    fn add(&mut self, range: Range<u64>) -> bool {
        let (mut start, mut end) = (range.start, range.end);
        let touching: Vec<(u64, u64)> =
            self.0.range(..=end).rev().take_while(|(_, to)| **to >= start).map(|(from, to)| (*from, *to)).collect();
        if touching.is_empty() && self.0.len() >= MAX_RUNS {
            return false;
        }
        for (from, to) in touching {
            self.0.remove(&from);
            start = start.min(from);
            end = end.max(to);
        }
        self.0.insert(start, end);
        true
    }

    /// The first byte of `range` that is in a run.
    fn overlap(&self, range: &Range<u64>) -> Option<u64> {
        match self.at(range.start, range.end) {
            (true, _) => Some(range.start),
            (false, next) => (next < range.end).then_some(next),
        }
    }

    /// Whether `at` is in a run, and where that changes, at most `limit`.
    fn at(&self, at: u64, limit: u64) -> (bool, u64) {
        if let Some((_, to)) = self.0.range(..=at).next_back().filter(|(_, to)| **to > at) {
            return (true, (*to).min(limit));
        }
        (false, self.0.range(at..).next().map_or(limit, |(from, _)| (*from).min(limit)))
    }
}

#[cfg(test)]
#[path = "once_tests.rs"]
mod tests;
