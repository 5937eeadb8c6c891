//! What is counted for `metrics=`, and all that is told there.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use nbd_pool::Meter;
use tokio::time::timeout;

use super::Fs;
use crate::error::Result;
use crate::metrics::requests::{Operation, Requests};
use crate::metrics::{Figures, PATIENCE};

/// The counters that are there for metrics alone.
pub(super) struct Meters {
    requests: Requests,
    nbd: Arc<Meter>,
}

impl Fs {
    /// The same, counting what the kernel asks; NBD requests are counted by `nbd`.
    #[must_use]
    pub fn metered(self, nbd: Arc<Meter>) -> Self {
        Self { meters: Some(Meters { requests: Requests::default(), nbd }), ..self }
    }

    /// When a request of the kernel came; none where nobody counts.
    pub(crate) fn asked(&self) -> Option<Instant> {
        self.meters.as_ref().map(|_| Instant::now())
    }

    /// A request that came then has its answer.
    pub(crate) fn answered(&self, operation: Operation, asked: Option<Instant>, fine: bool) {
        if let (Some(meters), Some(asked)) = (&self.meters, asked) {
            meters.requests.answered(operation, asked, fine);
        }
    }

    /// Answers a request, and counts it.
    pub(crate) async fn timed<T>(&self, operation: Operation, answer: impl Future<Output = Result<T>>) -> Result<T> {
        let asked = self.asked();
        let outcome = answer.await;
        self.answered(operation, asked, outcome.is_ok());
        outcome
    }

    /// What metrics tell now. Starts nothing in the machine, and takes 2 s at most.
    pub async fn figures(&self) -> Figures {
        let inventory = timeout(PATIENCE, self.inventories.get()).await.ok().and_then(Result::ok);
        let view = self.points.view();
        let held = view.held.as_ref();
        let tally = self.points.tally();
        Figures {
            requests: self.meters.as_ref().map(|meters| meters.requests.now()).unwrap_or_default(),
            read_bytes: self.counters.bytes.load(Ordering::Relaxed),
            nbd: self.meters.as_ref().map_or_else(|| Meter::default().now(), |meters| meters.nbd.now()),
            cache: (self.cache.usage(), self.options.cache),
            throttle: self.throttle.now(),
            machine: self.vm.machine().clone(),
            inventory,
            held: held.map(|point| (point.age(), point.open_files())),
            file_systems: held.map_or(0, |point| point.volumes().open()),
            readers: self.tally(),
            scratch: held.and_then(|point| point.scratch()),
            attempts: tally.attempts(),
            ends: tally.ends().collect(),
        }
    }
}
