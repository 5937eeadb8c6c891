//! Blocks of all disks of a mount, within one budget: what is read ahead, what is on its way, and what was read lately.
//!
//! ```text
//! FUSE thread: read ─▶ here ──────────────────────────────▶ answer
//!                  ├─▶ on its way: wait ◀───────────┐
//!                  └─▶ missing: begin ─▶ the source ─┴▶ (confirm) ─▶ answer, on the thread that received it
//! ```
//! The kernel's page cache is the main cache, but it does not know that `disk.raw` and `disk.qcow2` show the same blocks, and
//! it forgets what is read with `O_DIRECT`. Two who want the same block at the same time wait for the same request.
//!
//! What a point in time holds never changes, so it needs no more than one confirmation, after it has come: what was
//! confirmed may be given out for as long as the point in time has not ended.

mod buffers;
mod table;
#[cfg(test)]
mod tests;
mod waiting;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use serde::Serialize;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use self::buffers::Buffers;
use self::table::{DiskId, Found, Table, Wait};
pub use self::waiting::Done;
use self::waiting::{Waiting, also, joined};
use super::Source;
use crate::error::{Error, Kind, Result};

/// Says that what was read before may be given out.
#[async_trait]
pub trait Keeper: Send + Sync {
    /// # Errors
    /// When it may not.
    async fn confirm(&self) -> Result<()>;
}

/// The cache of a mount.
pub struct Cache {
    runtime: Handle,
    next: AtomicU64,
    /// Held for look-ups only, not while anybody is told anything or a source is asked.
    state: Mutex<State>,
}

/// What a cache takes, and what it was good for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// What it takes now, in bytes; also for what is on its way.
    pub bytes: u64,
    /// Reads that found all they wanted.
    pub hits: u64,
    /// Bytes that were asked of disks, also ahead of reads.
    pub fetched: u64,
    /// Reads that had to wait for a part at least.
    #[serde(skip)]
    pub misses: u64,
    /// Bytes of reads that were found.
    #[serde(skip)]
    pub hit_bytes: u64,
    /// Bytes of reads that were waited for: asked for, or on their way.
    #[serde(skip)]
    pub missed_bytes: u64,
    /// Of `fetched`, those ahead of reads.
    #[serde(skip)]
    pub ahead: u64,
}

struct State {
    table: Table,
    /// But for the bytes that it takes, which the table knows.
    usage: Usage,
    buffers: Buffers,
    /// Reads for which there is no room yet. Each is a request of the kernel's, which bounds them.
    queue: VecDeque<Queued>,
}

struct Queued {
    disk: Arc<CachedDisk>,
    range: Range<u64>,
    done: Done,
}

/// A disk at one point in time, read through the cache.
pub struct CachedDisk {
    id: DiskId,
    cache: Arc<Cache>,
    source: Arc<dyn Source>,
    keeper: Option<Arc<dyn Keeper>>,
    ended: AtomicBool,
    /// What has come and is not confirmed yet. Held for a moment only.
    unconfirmed: Mutex<Unconfirmed>,
}

#[derive(Default)]
struct Unconfirmed {
    arrived: Vec<(u64, Result<BytesMut>)>,
    /// A task confirms.
    confirming: bool,
}

/// What has to be asked of a source.
struct Fetch {
    run: Range<u64>,
    buffer: BytesMut,
}

impl Cache {
    /// A cache that takes at most `budget` bytes, and more only for a single read. Must be called in a runtime.
    pub fn new(budget: u64) -> Arc<Self> {
        let state = State {
            table: Table::new(budget),
            usage: Usage::default(),
            buffers: Buffers::default(),
            queue: VecDeque::new(),
        };
        Arc::new(Self { runtime: Handle::current(), next: AtomicU64::new(0), state: Mutex::new(state) })
    }

    /// A disk to be read through it. With a `keeper`, nothing is given out before that confirms it.
    pub fn disk(self: &Arc<Self>, source: Arc<dyn Source>, keeper: Option<Arc<dyn Keeper>>) -> Arc<CachedDisk> {
        Arc::new(CachedDisk {
            id: self.next.fetch_add(1, Ordering::Relaxed),
            cache: self.clone(),
            source,
            keeper,
            ended: AtomicBool::new(false),
            unconfirmed: Mutex::default(),
        })
    }

    /// What it takes, and what it was good for.
    pub fn usage(&self) -> Usage {
        let state = self.state();
        Usage { bytes: state.table.cost(), ..state.usage }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins what waits for room, as far as there is some.
    fn go_on(&self) {
        loop {
            let mut state = self.state();
            let Some(Queued { disk, range, done }) = state.queue.pop_front() else { return };
            match disk.begin(&mut state, range, done) {
                Err((range, done)) => {
                    state.queue.push_front(Queued { disk, range, done });
                    return;
                }
                Ok(next) => {
                    drop(state);
                    disk.go_ahead(next);
                }
            }
        }
    }
}

/// What is to be done once the table is let go.
enum Next {
    Answer(Done, Bytes),
    Fetch(Vec<Fetch>),
}

/// A read for which there is no room before something comes that is on its way.
type Later = (Range<u64>, Done);

impl CachedDisk {
    /// Where its bytes come from.
    pub fn source(&self) -> &Arc<dyn Source> {
        &self.source
    }

    /// Reads a range, which lies within the disk; any thread may. `done` is told how it ends: here and now if it is in the
    /// cache.
    pub fn begin_read(self: &Arc<Self>, range: Range<u64>, done: impl FnOnce(Result<Bytes>) + Send + 'static) {
        let mut state = self.cache.state();
        if let Some(bytes) = state.table.hit(self.id, &range) {
            state.usage.hits += 1;
            state.usage.hit_bytes += range.end - range.start;
            drop(state);
            return done(Ok(bytes));
        }
        let done: Done = Box::new(done);
        // Who came first is served first.
        let next = if state.queue.is_empty() { self.begin(&mut state, range, done) } else { Err((range, done)) };
        match next {
            Ok(next) => {
                drop(state);
                self.go_ahead(next);
            }
            Err((range, done)) => state.queue.push_back(Queued { disk: self.clone(), range, done }),
        }
    }

    /// The same for whoever can wait.
    ///
    /// # Errors
    /// Any failure of the source, or of the keeper.
    pub async fn read(self: &Arc<Self>, range: Range<u64>) -> Result<Bytes> {
        let (tell, told) = oneshot::channel();
        self.begin_read(range, move |outcome| drop(tell.send(outcome)));
        told.await.map_err(|_| cut_off())?
    }

    /// Fetches a range that is likely to be read soon, as far as there is room; how far that was.
    pub fn read_ahead(self: &Arc<Self>, range: Range<u64>) -> u64 {
        let mut fetches = Vec::new();
        let mut reached = range.end;
        let mut state = self.cache.state();
        for found in state.table.find_ahead(self.id, &range) {
            let (room, evicted) = state.table.room_ahead(&found);
            state.keep(evicted);
            if !room {
                reached = found.start;
                break;
            }
            state.table.expect(self.id, &found, None);
            state.usage.ahead += found.end - found.start;
            fetches.push(state.fetch(found));
        }
        drop(state);
        self.fetch(fetches);
        reached
    }

    /// Nothing is kept from now on; reads under way end by themselves.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Release);
        let mut state = self.cache.state();
        let forgotten = state.table.forget(self.id);
        state.keep(forgotten);
    }

    fn begin(self: &Arc<Self>, state: &mut State, range: Range<u64>, done: Done) -> std::result::Result<Next, Later> {
        let found = state.table.find(self.id, &range);
        let missing = found.iter().map(|found| if let Found::Missing(gap) = found { table::cost(gap) } else { 0 });
        let missing: u64 = missing.sum();
        if missing > 0 {
            let (room, evicted) = state.table.room(missing);
            state.keep(evicted);
            if !room {
                return Err((range, done));
            }
        }
        let here = |found: &Found| if let Found::Here(bytes) = found { Some(bytes.clone()) } else { None };
        let parts: Vec<Option<Bytes>> = found.iter().map(here).collect();
        let at_hand: u64 = parts.iter().flatten().map(|bytes| wide(bytes.len())).sum();
        state.usage.hit_bytes += at_hand;
        if parts.iter().all(Option::is_some) {
            state.usage.hits += 1;
            return Ok(Next::Answer(done, joined(parts.into_iter().flatten())));
        }
        state.usage.misses += 1;
        state.usage.missed_bytes += (range.end - range.start).saturating_sub(at_hand);
        let waiting = Arc::new(Waiting::new(parts, done));
        let mut fetches = Vec::new();
        for (index, found) in found.into_iter().enumerate() {
            let wait = |part| Wait { waiting: waiting.clone(), index, part };
            match found {
                Found::Here(_) => {}
                Found::Coming(start, part) => state.table.wait(self.id, start, wait(part)),
                Found::Missing(run) => {
                    let whole = 0..table::length(&run);
                    state.table.expect(self.id, &run, Some(wait(whole)));
                    fetches.push(state.fetch(run));
                }
            }
        }
        Ok(Next::Fetch(fetches))
    }

    /// Does what [`CachedDisk::begin`] said.
    fn go_ahead(self: &Arc<Self>, next: Next) {
        match next {
            Next::Answer(done, bytes) => done(Ok(bytes)),
            Next::Fetch(fetches) => self.fetch(fetches),
        }
    }

    fn fetch(self: &Arc<Self>, fetches: Vec<Fetch>) {
        for Fetch { run: Range { start, .. }, buffer } in fetches {
            let disk = self.clone();
            let back = self.source.begin(start, buffer, Box::new(move |outcome| disk.came(start, outcome)));
            if let Some((buffer, begun)) = back {
                let source = self.source.clone();
                self.cache.runtime.spawn(async move { begun(source.read(start, buffer).await) });
            }
        }
    }

    /// A run has come, or failed.
    fn came(self: &Arc<Self>, start: u64, outcome: Result<BytesMut>) {
        let Some(keeper) = &self.keeper else { return self.deliver(start, outcome) };
        let mut unconfirmed = self.unconfirmed.lock().unwrap_or_else(PoisonError::into_inner);
        unconfirmed.arrived.push((start, outcome));
        if !std::mem::replace(&mut unconfirmed.confirming, true) {
            drop(unconfirmed);
            self.cache.runtime.spawn(confirm(self.clone(), keeper.clone()));
        }
    }

    fn deliver(self: &Arc<Self>, start: u64, outcome: Result<BytesMut>) {
        let (bytes, mut error) = match outcome {
            Ok(buffer) => (Some(buffer.freeze()), None),
            Err(error) => (None, Some(error)),
        };
        let keep = !self.ended.load(Ordering::Acquire);
        let waits = self.cache.state().table.arrived(self.id, start, bytes.as_ref(), keep);
        let others = waits.len().saturating_sub(1);
        for (count, Wait { waiting, index, part }) in waits.into_iter().enumerate() {
            let outcome = match (&bytes, &error) {
                (Some(bytes), _) => Ok(bytes.slice(part)),
                (None, Some(failure)) if count < others => Err(also(failure)),
                (None, _) => Err(error.take().unwrap_or_else(cut_off)),
            };
            waiting.put(index, outcome);
        }
        self.cache.go_on();
    }
}

impl Drop for CachedDisk {
    fn drop(&mut self) {
        self.end();
    }
}

impl State {
    /// Buffers of what is in the cache no more.
    fn keep(&mut self, evicted: Vec<Bytes>) {
        for bytes in evicted {
            self.buffers.give_back(bytes);
        }
    }

    fn fetch(&mut self, run: Range<u64>) -> Fetch {
        self.usage.fetched += run.end - run.start;
        Fetch { buffer: self.buffers.take(table::length(&run)), run }
    }
}

fn wide(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

fn cut_off() -> Error {
    Error::new(Kind::Io, "a read was cut off")
}

/// Confirms what has come, all of it at once, until nothing more has.
async fn confirm(disk: Arc<CachedDisk>, keeper: Arc<dyn Keeper>) {
    loop {
        let arrived = {
            let mut unconfirmed = disk.unconfirmed.lock().unwrap_or_else(PoisonError::into_inner);
            if unconfirmed.arrived.is_empty() {
                unconfirmed.confirming = false;
                return;
            }
            std::mem::take(&mut unconfirmed.arrived)
        };
        let confirmed = keeper.confirm().await;
        for (start, outcome) in arrived {
            let outcome = match &confirmed {
                Ok(()) => outcome,
                Err(error) => outcome.and_then(|_| Err(also(error))),
            };
            disk.deliver(start, outcome);
        }
    }
}
