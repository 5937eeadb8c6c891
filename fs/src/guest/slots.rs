//! How many children there are at once.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use crate::error::{Error, Kind, Result};

/// Between two looks for a child that has nothing to do.
const LOOK: Duration = Duration::from_millis(50);

/// The places of all children.
pub(super) struct Slots {
    free: Arc<Semaphore>,
    /// How many there are.
    count: usize,
    /// Those that are taken, and some that were.
    taken: Mutex<Vec<Weak<Slot>>>,
}

/// A child's place, until it is dropped.
pub(super) struct Slot {
    _permit: OwnedSemaphorePermit,
    /// Since when it has nothing to do; none while it has.
    idle: Mutex<Option<Instant>>,
    leave: Notify,
    /// 0 before it is known.
    pid: AtomicU32,
}

impl Slots {
    pub(super) fn new(count: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(count)), count, taken: Mutex::default() }
    }

    /// A place for a child, which waits for nothing longer than `limit`. The child that has had nothing to do for the longest
    /// is asked to leave if there is none.
    pub(super) async fn take(&self, limit: Duration) -> Result<Arc<Slot>> {
        let deadline = Instant::now() + limit;
        loop {
            if self.free.available_permits() == 0 {
                self.make_room();
            }
            let permit = match timeout(LOOK, Arc::clone(&self.free).acquire_owned()).await {
                Ok(Ok(permit)) => permit,
                _ if Instant::now() < deadline => continue,
                _ => {
                    let what = format!("{} file systems of guests are being read already", self.count);
                    return Err(Error::new(Kind::Busy, what));
                }
            };
            let slot = Slot { _permit: permit, idle: Mutex::new(None), leave: Notify::new(), pid: AtomicU32::new(0) };
            let slot = Arc::new(slot);
            let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
            taken.retain(|slot| slot.strong_count() > 0);
            taken.push(Arc::downgrade(&slot));
            return Ok(slot);
        }
    }

    fn all(&self) -> Vec<Arc<Slot>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(Weak::upgrade).collect()
    }

    fn make_room(&self) {
        let idle = self.all().into_iter().filter_map(|slot| slot.idle_since().map(|since| (since, slot)));
        if let Some((_, slot)) = idle.min_by_key(|(since, _)| *since) {
            slot.leave.notify_one();
        }
    }

    /// The processes that have a place.
    pub(super) fn pids(&self) -> Vec<u32> {
        self.all().iter().map(|slot| slot.pid.load(Ordering::Relaxed)).filter(|pid| *pid != 0).collect()
    }
}

impl Slot {
    pub(super) fn set_pid(&self, pid: u32) {
        self.pid.store(pid, Ordering::Relaxed);
    }

    fn idle_since(&self) -> Option<Instant> {
        *self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says whether the child has nothing to do from now on.
    pub(super) fn set_idle(&self, idle: bool) {
        *self.idle.lock().unwrap_or_else(PoisonError::into_inner) = idle.then(Instant::now);
    }

    /// Returns when somebody else needs the place more.
    pub(super) async fn is_needed(&self) {
        self.leave.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_one_that_was_idle_longest_is_asked_to_leave() {
        let slots = Arc::new(Slots::new(3));
        let mut all = Vec::new();
        for _ in 0..3 {
            all.push(slots.take(Duration::ZERO).await.unwrap());
        }
        let error = slots.take(Duration::from_millis(60)).await.err().unwrap();
        assert_eq!(error.kind(), Kind::Busy, "nobody is idle");
        all[1].set_idle(true);
        tokio::time::sleep(Duration::from_millis(2)).await;
        all[0].set_idle(true);
        all[0].set_idle(false);
        all[2].set_idle(true);
        let waits = tokio::spawn({
            let slots = Arc::clone(&slots);
            async move { slots.take(Duration::from_secs(10)).await }
        });
        all[1].is_needed().await;
        drop(all.remove(1));
        let new = waits.await.unwrap().unwrap();
        new.set_pid(7);
        assert_eq!(slots.pids(), [7]);
    }
}
