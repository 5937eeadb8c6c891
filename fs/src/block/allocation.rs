//! Which ranges of a disk hold data, learnt in the background from the first byte on.
//!
//! Asking QEMU for the allocation of a large disk takes seconds; whoever seeks waits only until the part that decides
//! the answer is known. The task that learns is started at the first question and owned by [`Allocation`]: dropping it
//! stops the task. One that failed is an error for those who wait, and the next question starts another.

use std::ops::{ControlFlow, Range};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::cache::Keeper;
use super::extents::Extents;
use super::{Map, Source};
use crate::error::{Error, Kind, Result, chain};

/// Ranges that a step of learning gathers at most before those who wait are told.
const EXTENTS_PER_STEP: usize = 1024;

/// How long those who wait are left in the dark at most while ranges come in.
const STEP_TIME: Duration = Duration::from_millis(5);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Progress {
    Known(u64),
    Failed(String),
}

/// The allocation of one disk at one point in time.
pub struct Allocation {
    runtime: Handle,
    source: Arc<dyn Source>,
    size: u64,
    /// Confirms what was learnt, where that is needed before anything is concluded from it without asking the disk.
    keeper: Option<Arc<dyn Keeper>>,
    /// Somebody has read the disk.
    asked: AtomicBool,
    /// The newest attempt. Held for look-ups only.
    learning: Mutex<Option<Arc<Learning>>>,
}

type Known = Arc<Mutex<Arc<Extents>>>;

struct Learning {
    /// What is known so far; complete below the offset that `progress` tells. Held for look-ups only; the inner `Arc`
    /// is shared out when nothing more is added.
    known: Known,
    progress: watch::Receiver<Progress>,
    /// All of it is known and confirmed.
    confirmed: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Learning {
    fn extents(&self) -> MutexGuard<'_, Arc<Extents>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self) -> bool {
        matches!(*self.progress.borrow(), Progress::Failed(_))
    }
}

impl Drop for Learning {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Allocation {
    /// Nothing is asked before the first question. Must be called in a runtime.
    pub fn new(source: Arc<dyn Source>, size: u64, keeper: Option<Arc<dyn Keeper>>) -> Self {
        let (runtime, asked) = (Handle::current(), AtomicBool::new(false));
        Self { runtime, source, size, keeper, learning: Mutex::default(), asked }
    }

    /// Begins to learn, so that reads need not ask for what is known to be zeroes; any thread may call it, often.
    pub fn learn(&self) {
        if !self.asked.swap(true, Ordering::Relaxed) {
            self.learning();
        }
    }

    /// The first offset at or after `offset` that holds data, if any does.
    ///
    /// # Errors
    /// When the allocation cannot be learnt.
    pub async fn next_data(&self, offset: u64) -> Result<Option<u64>> {
        self.when(offset, |extents, upto| match extents.next_inside(offset) {
            Some(found) => Some(Some(found)),
            None if upto == self.size => Some(None),
            None => None,
        })
        .await
    }

    /// The first offset at or after `offset` that reads as zeroes; the end of the disk counts as a hole.
    ///
    /// # Errors
    /// When the allocation cannot be learnt.
    pub async fn next_hole(&self, offset: u64) -> Result<u64> {
        self.when(offset, |extents, upto| {
            let found = extents.next_outside(offset);
            (found < upto || upto == self.size).then(|| found.min(self.size))
        })
        .await
    }

    /// All of it, once all of it is known.
    ///
    /// # Errors
    /// When the allocation cannot be learnt.
    pub async fn complete(&self) -> Result<Arc<Extents>> {
        self.when(0, |extents, upto| (upto == self.size).then(|| extents.clone())).await
    }

    /// Bytes that hold data, if that is known without waiting.
    pub fn bytes_if_known(&self) -> Option<u64> {
        self.bytes_within_if_known(&(0..self.size))
    }

    /// The same of a window of the disk.
    pub fn bytes_within_if_known(&self, window: &Range<u64>) -> Option<u64> {
        let learning = self.lock().clone()?;
        let done = *learning.progress.borrow() == Progress::Known(self.size);
        let whole = *window == (0..self.size);
        done.then(|| {
            let extents = learning.extents();
            if whole { extents.bytes() } else { extents.within(window.clone()).map(|data| data.end - data.start).sum() }
        })
    }

    /// The extents inside a window that is already known, and confirmed where there is a keeper, for reads that can skip
    /// holes; `None` if it is not.
    pub fn within_if_known(&self, window: Range<u64>) -> Option<Vec<Range<u64>>> {
        let learning = self.lock().clone()?;
        if self.keeper.is_some() && !learning.confirmed.load(Ordering::Acquire) {
            return None;
        }
        match *learning.progress.borrow() {
            Progress::Known(upto) if window.end <= upto => {}
            _ => return None,
        }
        Some(learning.extents().within(window).collect())
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Learning>>> {
        self.learning.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn when<T>(&self, offset: u64, answer: impl Fn(&Arc<Extents>, u64) -> Option<T>) -> Result<T> {
        let learning = self.learning();
        let mut progress = learning.progress.clone();
        loop {
            let now = progress.borrow_and_update().clone();
            match now {
                Progress::Known(upto) => {
                    if (upto > offset || upto == self.size)
                        && let Some(found) = answer(&learning.extents(), upto)
                    {
                        return Ok(found);
                    }
                }
                Progress::Failed(why) => return Err(Error::new(Kind::Io, why)),
            }
            if progress.changed().await.is_err() {
                return Err(Error::new(Kind::Io, "the allocation of the disk is not known: the point in time ended"));
            }
        }
    }

    /// The attempt that is under way or succeeded; a new one where there is none.
    fn learning(&self) -> Arc<Learning> {
        let mut newest = self.lock();
        match &*newest {
            Some(learning) if !learning.failed() => learning.clone(),
            _ => {
                let (tell, progress) = watch::channel(Progress::Known(0));
                let known = Known::default();
                let confirmed = Arc::new(AtomicBool::new(false));
                let learn = learn(self.source.clone(), self.size, known.clone(), tell);
                let (keeper, sure) = (self.keeper.clone(), confirmed.clone());
                let task = self.runtime.spawn(async move {
                    if learn.await
                        && let Some(keeper) = keeper
                    {
                        sure.store(keeper.confirm().await.is_ok(), Ordering::Release);
                    }
                });
                newest.insert(Arc::new(Learning { known, progress, confirmed, task })).clone()
            }
        }
    }
}

/// Walks the disk once. The sink cannot wait, so it works in steps: enough ranges or enough time, then those who wait
/// are told. Whether it got to the end.
async fn learn(source: Arc<dyn Source>, size: u64, known: Known, tell: watch::Sender<Progress>) -> bool {
    let mut step: Vec<Range<u64>> = Vec::with_capacity(EXTENTS_PER_STEP);
    let mut told = Instant::now();
    let mut fault = None;
    let add = |step: &mut Vec<Range<u64>>, upto: u64| -> Result<()> {
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        let extents = Arc::make_mut(&mut known);
        for range in step.drain(..) {
            extents.push(range)?;
        }
        drop(known);
        tell.send_replace(Progress::Known(upto));
        Ok(())
    };
    let walked = source
        .map(&Map::Allocation, 0..size, &mut |range, data| {
            let upto = range.end;
            if data {
                step.push(range);
            }
            if step.len() >= EXTENTS_PER_STEP || told.elapsed() >= STEP_TIME {
                told = Instant::now();
                if let Err(error) = add(&mut step, upto) {
                    fault = Some(error);
                    return ControlFlow::Break(());
                }
            }
            ControlFlow::Continue(())
        })
        .await;
    let outcome = match (walked, fault) {
        (Err(error), _) | (Ok(()), Some(error)) => Err(error),
        (Ok(()), None) => add(&mut step, size),
    };
    if let Err(error) = &outcome {
        tell.send_replace(Progress::Failed(format!("cannot learn what the disk has allocated: {}", chain(error))));
    }
    outcome.is_ok()
}
