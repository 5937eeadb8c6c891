//! What takes a while to make, is made once, and may fail.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::OnceCell;

use crate::error::{Error, Kind, Result, chain};

/// After a failure, how long all who come get the same at once: a tool that walks a tree asks for each file.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What is made by whoever comes first; who comes meanwhile waits, and takes over from one who gave up.
pub(super) struct Once<T> {
    made: OnceCell<T>,
    /// Held for a moment only.
    failure: Mutex<Option<Failure>>,
}

struct Failure {
    when: Instant,
    kind: Kind,
    why: String,
}

impl<T> Default for Once<T> {
    fn default() -> Self {
        Self { made: OnceCell::new(), failure: Mutex::default() }
    }
}

impl<T: Clone> Once<T> {
    fn failure(&self) -> MutexGuard<'_, Option<Failure>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was made, or is by `make`; if that failed a moment ago, so does this.
    pub(super) async fn get(&self, make: impl Future<Output = Result<T>>) -> Result<T> {
        let make = async {
            if let Some(failure) = self.failure().as_ref().filter(|failure| failure.when.elapsed() < RETRY_AFTER) {
                return Err(Error::new(failure.kind, &failure.why));
            }
            let outcome = make.await;
            if let Err(error) = &outcome {
                *self.failure() = Some(Failure { when: Instant::now(), kind: error.kind(), why: chain(error) });
            }
            outcome
        };
        self.made.get_or_try_init(|| make).await.cloned()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// Makes after a second, if it is to come out well.
    async fn make(well: bool, began: &AtomicU32) -> Result<u32> {
        let number = began.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_secs(1)).await;
        if well { Ok(number) } else { Err(Error::new(Kind::Io, "it is damaged").context("cannot make it")) }
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_made_once_for_all_who_come() {
        let (once, began) = (Once::default(), AtomicU32::new(0));
        let get = || once.get(make(true, &began));
        let (first, second) = tokio::join!(get(), get());
        assert_eq!((first.unwrap(), second.unwrap(), get().await.unwrap()), (0, 0, 0));
        assert_eq!(began.into_inner(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn who_gives_up_is_taken_over_from() {
        let (once, began) = (Once::default(), AtomicU32::new(0));
        let impatient = tokio::time::timeout(Duration::from_millis(500), once.get(make(true, &began)));
        let (impatient, patient) = tokio::join!(impatient, once.get(make(true, &began)));
        impatient.unwrap_err();
        assert_eq!(patient.unwrap(), 1);
    }

    #[tokio::test]
    async fn a_failure_is_the_same_for_all_who_wait_and_not_for_ever() {
        let (once, began) = (Once::default(), AtomicU32::new(0));
        let get = || once.get(make(false, &began));
        let (first, second) = tokio::join!(get(), get());
        for error in [first, second].map(Result::unwrap_err) {
            assert_eq!((error.kind(), chain(&error)), (Kind::Io, "cannot make it: it is damaged".to_owned()));
        }
        assert_eq!(began.load(Ordering::Relaxed), 1);
        tokio::time::sleep(RETRY_AFTER).await;
        once.get(make(true, &began)).await.unwrap();
    }
}
