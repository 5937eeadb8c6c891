//! What the cache holds, as plain code: runs of disks that are here or on their way, and who waits for them.
//!
//! Runs of one disk never overlap, so nothing is fetched twice while it is here, or on its way for somebody else.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::waiting::Waiting;

/// The longest run, in bytes; runs are cut at its multiples. As much as the kernel asks for at once.
pub(super) const RUN: u64 = 1 << 20;

/// What a run costs besides its bytes.
const OVERHEAD: u64 = 256;

/// The part of the budget that runs nobody asked for may take: three of four.
const AHEAD: (u64, u64) = (3, 4);

/// A disk of the cache.
pub(super) type DiskId = u64;

/// Somebody's part of a run.
pub(super) struct Wait {
    pub(super) waiting: Arc<Waiting>,
    /// Which of its parts.
    pub(super) index: usize,
    /// The part, from the begin of the run.
    pub(super) part: Range<usize>,
}

enum State {
    Coming(Vec<Wait>),
    Here(Bytes),
}

struct Run {
    end: u64,
    state: State,
    /// Its place in an order, if it is here.
    tick: u64,
    /// Nobody has asked for it yet.
    unread: bool,
}

/// What of a range is here, on its way, or neither.
pub(super) enum Found {
    Here(Bytes),
    /// The run that begins there; the part of it.
    Coming(u64, Range<usize>),
    Missing(Range<u64>),
}

/// All runs there are.
pub(super) struct Table {
    budget: u64,
    /// Cost of all runs.
    cost: u64,
    /// Cost of those that are on their way.
    coming: u64,
    /// Cost of those that nobody has asked for.
    unread: u64,
    disks: HashMap<DiskId, BTreeMap<u64, Run>>,
    /// Runs that are here and were asked for; the oldest first.
    used: BTreeMap<u64, (DiskId, u64)>,
    /// Runs that are here and were not.
    ahead: BTreeMap<u64, (DiskId, u64)>,
    tick: u64,
}

pub(super) fn cost(range: &Range<u64>) -> u64 {
    range.end - range.start + OVERHEAD
}

/// A length that is at most that of a read or a run.
pub(super) fn length(range: &Range<u64>) -> usize {
    usize::try_from(range.end - range.start).unwrap_or(usize::MAX)
}

impl Table {
    /// A table that is to cost at most `budget` bytes.
    pub(super) fn new(budget: u64) -> Self {
        Self {
            budget,
            cost: 0,
            coming: 0,
            unread: 0,
            disks: HashMap::new(),
            used: BTreeMap::new(),
            ahead: BTreeMap::new(),
            tick: 0,
        }
    }

    /// The bytes of a range that lies in one run that is here.
    pub(super) fn hit(&mut self, disk: DiskId, range: &Range<u64>) -> Option<Bytes> {
        let (&start, run) = self.disks.get(&disk)?.range(..=range.start).next_back()?;
        let State::Here(bytes) = &run.state else { return None };
        if run.end < range.end {
            return None;
        }
        let hit = bytes.slice(length(&(start..range.start))..length(&(start..range.end)));
        self.touch(disk, start);
        Some(hit)
    }

    /// What there is of a range, in order and without gaps. What is here counts as used.
    pub(super) fn find(&mut self, disk: DiskId, range: &Range<u64>) -> Vec<Found> {
        let mut found = Vec::new();
        let mut touched = Vec::new();
        let mut at = range.start;
        if let Some(runs) = self.disks.get(&disk) {
            let first = runs.range(..=range.start).next_back().map_or(range.start, |(&start, _)| start);
            for (&start, run) in runs.range(first..range.end) {
                if run.end <= at {
                    continue;
                }
                if start > at {
                    cut(at..start, |gap| found.push(Found::Missing(gap)));
                    at = start;
                }
                let end = run.end.min(range.end);
                let part = length(&(start..at))..length(&(start..end));
                found.push(match &run.state {
                    State::Here(bytes) => Found::Here(bytes.slice(part)),
                    State::Coming(_) => Found::Coming(start, part),
                });
                touched.push(start);
                at = end;
            }
        }
        cut(at..range.end, |gap| found.push(Found::Missing(gap)));
        for start in touched {
            self.touch(disk, start);
        }
        found
    }

    /// What of a range is neither here nor on its way.
    pub(super) fn find_ahead(&self, disk: DiskId, range: &Range<u64>) -> Vec<Range<u64>> {
        let mut missing = Vec::new();
        let mut at = range.start;
        if let Some(runs) = self.disks.get(&disk) {
            let first = runs.range(..=range.start).next_back().map_or(range.start, |(&start, _)| start);
            for (&start, run) in runs.range(first..range.end) {
                cut(at..start, |gap| missing.push(gap));
                at = at.max(run.end);
            }
        }
        cut(at..range.end, |gap| missing.push(gap));
        missing
    }

    /// Makes room for runs that somebody asked for, at the cost of any that are here; whether there is enough, and what
    /// was given up for it.
    pub(super) fn room(&mut self, bytes: u64) -> (bool, Vec<Bytes>) {
        let mut evicted = Vec::new();
        while self.cost.saturating_add(bytes) > self.budget {
            let oldest = self.used.first_key_value().or_else(|| self.ahead.first_key_value());
            let Some((_, &(disk, start))) = oldest else { break };
            evicted.extend(self.remove(disk, start));
        }
        // One read is always served, however small the budget is.
        (self.cost.saturating_add(bytes) <= self.budget || self.coming == 0, evicted)
    }

    /// Makes room for a run that nobody asked for, at the cost of those that were used; whether there is enough, and what
    /// was given up for it.
    pub(super) fn room_ahead(&mut self, run: &Range<u64>) -> (bool, Vec<Bytes>) {
        let bytes = cost(run);
        let mut evicted = Vec::new();
        if self.unread.saturating_add(bytes) > self.budget / AHEAD.1 * AHEAD.0 {
            return (false, evicted);
        }
        while self.cost.saturating_add(bytes) > self.budget {
            let Some((_, &(disk, start))) = self.used.first_key_value() else { return (false, evicted) };
            evicted.extend(self.remove(disk, start));
        }
        (true, evicted)
    }

    /// A run that is missing is on its way from now on, for somebody or for nobody yet.
    pub(super) fn expect(&mut self, disk: DiskId, run: &Range<u64>, wait: Option<Wait>) {
        let unread = wait.is_none();
        let state = State::Coming(wait.into_iter().collect());
        self.cost += cost(run);
        self.coming += cost(run);
        if unread {
            self.unread += cost(run);
        }
        let runs = self.disks.entry(disk).or_default();
        runs.insert(run.start, Run { end: run.end, state, tick: 0, unread });
    }

    /// Waits for a run that is on its way.
    pub(super) fn wait(&mut self, disk: DiskId, start: u64, wait: Wait) {
        let run = self.disks.get_mut(&disk).and_then(|runs| runs.get_mut(&start));
        if let Some(Run { state: State::Coming(waits), .. }) = run {
            waits.push(wait);
        }
    }

    /// A run has come, or failed; who waits for it is to be told. It stays if there are bytes, and `keep` says so.
    pub(super) fn arrived(&mut self, disk: DiskId, start: u64, bytes: Option<&Bytes>, keep: bool) -> Vec<Wait> {
        let Some(run) = self.disks.get_mut(&disk).and_then(|runs| runs.get_mut(&start)) else { return Vec::new() };
        let State::Coming(waits) = &mut run.state else { return Vec::new() };
        let waits = std::mem::take(waits);
        self.coming -= cost(&(start..run.end));
        match bytes.filter(|_| keep) {
            Some(bytes) => {
                self.tick += 1;
                run.tick = self.tick;
                run.state = State::Here(bytes.clone());
                let order = if run.unread { &mut self.ahead } else { &mut self.used };
                order.insert(self.tick, (disk, start));
            }
            None => drop(self.remove(disk, start)),
        }
        waits
    }

    /// Drops what is here of a disk, and hands it out.
    pub(super) fn forget(&mut self, disk: DiskId) -> Vec<Bytes> {
        let Some(runs) = self.disks.get(&disk) else { return Vec::new() };
        let here = runs.iter().filter(|(_, run)| matches!(run.state, State::Here(_)));
        let here: Vec<u64> = here.map(|(&start, _)| start).collect();
        here.into_iter().filter_map(|start| self.remove(disk, start)).collect()
    }

    /// What all runs take, in bytes.
    pub(super) fn cost(&self) -> u64 {
        self.cost
    }

    fn touch(&mut self, disk: DiskId, start: u64) {
        let Some(run) = self.disks.get_mut(&disk).and_then(|runs| runs.get_mut(&start)) else { return };
        if run.unread {
            run.unread = false;
            self.unread -= cost(&(start..run.end));
        }
        if matches!(run.state, State::Here(_)) {
            self.used.remove(&run.tick);
            self.ahead.remove(&run.tick);
            self.tick += 1;
            run.tick = self.tick;
            self.used.insert(self.tick, (disk, start));
        }
    }

    fn remove(&mut self, disk: DiskId, start: u64) -> Option<Bytes> {
        let runs = self.disks.get_mut(&disk)?;
        let run = runs.remove(&start)?;
        if runs.is_empty() {
            self.disks.remove(&disk);
        }
        let cost = cost(&(start..run.end));
        self.cost -= cost;
        if run.unread {
            self.unread -= cost;
        }
        self.used.remove(&run.tick);
        self.ahead.remove(&run.tick);
        if let State::Here(bytes) = run.state { Some(bytes) } else { None }
    }
}

/// Cuts a range at multiples of [`RUN`].
pub(super) fn cut(range: Range<u64>, mut piece: impl FnMut(Range<u64>)) {
    let mut at = range.start;
    while at < range.end {
        let end = (at - at % RUN).saturating_add(RUN).min(range.end);
        piece(at..end);
        at = end;
    }
}
