//! The machine's inventory, asked at most once a second however many look; more often only for those who must know of this
//! very moment, and then for a fifth of the time at most.
//!
//! One task asks; those who want to know while it does share the answer. A fresh answer is had without the task. Who must
//! know of this very moment is told as soon as the machine has had its rest: its main loop, and with it the guest's disks, wait
//! while it answers.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep_until;

use crate::error::{Error, Kind, Result, chain};
use crate::vm::{Inventory, Vm};

/// How old an answer may be.
const FRESH: Duration = Duration::from_secs(1);

/// How many times as long as it took to answer the machine is left alone, before it is asked again that soon.
const REST: u32 = 4;

/// Those who wait for one answer; more wait for room.
const MAX_WAITING: usize = 1024;

/// Who asks, and whether an answer from before the question will do.
struct Question {
    reply: oneshot::Sender<Answer>,
    now: bool,
}

type Answer = std::result::Result<Arc<Inventory>, (Kind, String)>;

/// The newest answer.
#[derive(Default)]
struct Newest {
    answer: Option<(Instant, Arc<Inventory>)>,
    /// How often the machine was changed by us: an answer to a question from before a change is not kept.
    changes: u64,
}

impl Newest {
    fn fresh(&self) -> Option<Arc<Inventory>> {
        let (when, inventory) = self.answer.as_ref()?;
        (when.elapsed() < FRESH).then(|| inventory.clone())
    }
}

/// A handle to the task.
#[derive(Clone)]
pub(super) struct Inventories {
    questions: mpsc::Sender<Question>,
    /// Held for a look.
    newest: Arc<Mutex<Newest>>,
}

fn lock(newest: &Mutex<Newest>) -> MutexGuard<'_, Newest> {
    newest.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inventories {
    pub(super) fn start(vm: Arc<dyn Vm>) -> Self {
        let (questions, inbox) = mpsc::channel(MAX_WAITING);
        let newest = Arc::<Mutex<Newest>>::default();
        tokio::spawn(run(vm, inbox, newest.clone()));
        Self { questions, newest }
    }

    /// The machine was changed by us: whoever asks from now on wants to see it.
    pub(super) fn forget(&self) {
        let mut newest = lock(&self.newest);
        newest.changes += 1;
        newest.answer = None;
    }

    /// The machine as it was within the last second.
    ///
    /// # Errors
    /// When it does not answer.
    pub(super) async fn get(&self) -> Result<Arc<Inventory>> {
        if let Some(fresh) = lock(&self.newest).fresh() {
            return Ok(fresh);
        }
        self.ask(false).await
    }

    /// The machine as it is after this call: nothing that happened before it is missing. Those who wait share an answer.
    ///
    /// # Errors
    /// When it does not answer.
    pub(super) async fn now(&self) -> Result<Arc<Inventory>> {
        self.ask(true).await
    }

    async fn ask(&self, now: bool) -> Result<Arc<Inventory>> {
        let ended = || Error::new(Kind::Gone, "the mount is ending");
        let (reply, answer) = oneshot::channel();
        self.questions.send(Question { reply, now }).await.map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?.map_err(|(kind, why)| Error::new(kind, why))
    }
}

async fn run(vm: Arc<dyn Vm>, mut inbox: mpsc::Receiver<Question>, newest: Arc<Mutex<Newest>>) {
    let mut waiting: Vec<Question> = Vec::new();
    let mut rested = tokio::time::Instant::now();
    while inbox.recv_many(&mut waiting, MAX_WAITING).await > 0 {
        let (fresh, changes) = {
            let newest = lock(&newest);
            (newest.fresh(), newest.changes)
        };
        // Whoever is in `waiting` has asked before the machine is.
        let fresh = fresh.filter(|_| !waiting.iter().any(|question| question.now));
        let answer: Answer = if let Some(inventory) = fresh {
            Ok(inventory)
        } else {
            // All who asked by then share the answer.
            sleep_until(rested).await;
            while waiting.len() < MAX_WAITING
                && let Ok(question) = inbox.try_recv()
            {
                waiting.push(question);
            }
            let asked = tokio::time::Instant::now();
            let answer = vm.inventory().await.map(Arc::new).map_err(|error| (error.kind(), chain(&error)));
            rested = tokio::time::Instant::now() + (asked.elapsed() * REST).min(FRESH);
            let mut newest = lock(&newest);
            if let (Ok(inventory), true) = (&answer, newest.changes == changes) {
                newest.answer = Some((Instant::now(), inventory.clone()));
            }
            answer
        };
        for question in waiting.drain(..) {
            // Who asked may have given up.
            question.reply.send(answer.clone()).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::Fleece;
    use crate::vm::memory::Memory;

    async fn has(inventories: &Inventories, checkpoint: &str) -> bool {
        inventories.get().await.unwrap().disks[0].bitmaps.contains_key(checkpoint)
    }

    #[tokio::test]
    async fn an_answer_is_shared_for_a_second_unless_we_changed_the_machine() {
        let vm = Memory::new(&[("vda", 512)], Fleece::Job);
        let inventories = Inventories::start(vm.clone());
        let first = inventories.get().await.unwrap();
        assert!(Arc::ptr_eq(&first, &inventories.get().await.unwrap()), "it was not asked for again");
        vm.checkpoint("monday");
        inventories.forget();
        assert!(has(&inventories, "monday").await);
        // Somebody else's is seen when the answer is too old.
        vm.checkpoint("tuesday");
        let aged = Instant::now().checked_sub(FRESH);
        lock(&inventories.newest).answer.as_mut().unwrap().0 = aged.unwrap();
        assert!(has(&inventories, "tuesday").await);
        vm.checkpoint("wednesday");
        assert!(inventories.now().await.unwrap().disks[0].bitmaps.contains_key("wednesday"), "now is now");
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_must_know_at_once_leaves_the_machine_its_rest() {
        let vm = Memory::new(&[("vda", 512)], Fleece::Job);
        vm.tells_in(Duration::from_millis(100));
        let inventories = Inventories::start(vm);
        let began = tokio::time::Instant::now();
        for _ in 0..3 {
            inventories.now().await.unwrap();
        }
        // Three answers, and two rests of four times as long.
        let took = began.elapsed();
        assert!((1100..1200).contains(&took.as_millis()), "{took:?}");
        let (one, other) = tokio::join!(inventories.now(), inventories.now());
        assert!(Arc::ptr_eq(&one.unwrap(), &other.unwrap()), "who waits meanwhile shares the answer");
    }
}
