//! The machine's inventory, asked at most once a second however many look.
//!
//! One task asks; those who want to know while it does share the answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use crate::error::{Error, Kind, Result, chain};
use crate::vm::{Inventory, Vm};

/// How old an answer may be.
const FRESH: Duration = Duration::from_secs(1);

/// Those who wait for one answer; more wait for room.
const MAX_WAITING: usize = 1024;

type Answer = std::result::Result<Arc<Inventory>, (Kind, String)>;

/// A handle to the task.
#[derive(Clone)]
pub(super) struct Inventories {
    questions: mpsc::Sender<oneshot::Sender<Answer>>,
    /// Set when an answer from before now must not be given any more.
    outdated: Arc<AtomicBool>,
}

impl Inventories {
    pub(super) fn start(vm: Arc<dyn Vm>) -> Self {
        let (questions, inbox) = mpsc::channel(MAX_WAITING);
        let outdated = Arc::<AtomicBool>::default();
        tokio::spawn(run(vm, inbox, outdated.clone()));
        Self { questions, outdated }
    }

    /// The machine was changed by us: whoever asks from now on wants to see it.
    pub(super) fn forget(&self) {
        self.outdated.store(true, Ordering::SeqCst);
    }

    /// The machine as it was within the last second.
    ///
    /// # Errors
    /// When it does not answer.
    pub(super) async fn get(&self) -> Result<Arc<Inventory>> {
        let ended = || Error::new(Kind::Gone, "the mount is ending");
        let (reply, answer) = oneshot::channel();
        self.questions.send(reply).await.map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?.map_err(|(kind, why)| Error::new(kind, why))
    }
}

async fn run(vm: Arc<dyn Vm>, mut inbox: mpsc::Receiver<oneshot::Sender<Answer>>, outdated: Arc<AtomicBool>) {
    let mut waiting = Vec::new();
    let mut newest: Option<(Instant, Arc<Inventory>)> = None;
    while inbox.recv_many(&mut waiting, MAX_WAITING).await > 0 {
        if outdated.swap(false, Ordering::SeqCst) {
            newest = None;
        }
        let fresh = newest.as_ref().filter(|(when, _)| when.elapsed() < FRESH);
        let answer: Answer = match fresh {
            Some((_, inventory)) => Ok(inventory.clone()),
            None => vm.inventory().await.map(Arc::new).map_err(|error| (error.kind(), chain(&error))),
        };
        if let (Ok(inventory), true) = (&answer, fresh.is_none()) {
            newest = Some((Instant::now(), inventory.clone()));
        }
        for reply in waiting.drain(..) {
            // Who asked may have given up.
            reply.send(answer.clone()).ok();
        }
    }
}
