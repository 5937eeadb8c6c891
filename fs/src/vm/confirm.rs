//! Questions whether a point in time is kept at this moment, shared by all readers that wait.
//!
//! A scratch image whose backing file is the live disk stays readable when its job is gone, and then shows that disk. So
//! before data is given out, the machine is asked whether it still keeps the point in time. A reader that comes while a
//! question is under way waits for the next, so the answer is always younger than the data.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::error::{Error, Kind, Result};

/// Readers that wait for one confirmation; more wait for room.
const MAX_WAITING: usize = 1024;

/// Whether it is kept; else why not, in words for the user.
pub(super) type Answer = std::result::Result<(), String>;

/// Who can say so.
#[async_trait]
pub(super) trait Keeper: Send + Sync {
    /// The number of the point in time that is held, 0 for none, and whether the machine keeps it, at a moment after this
    /// call.
    async fn keeps(&self) -> (u64, Answer);
}

struct Question {
    number: u64,
    answer: oneshot::Sender<Answer>,
}

/// A handle to the task that asks; it ends when this is dropped.
pub(super) struct Confirmations {
    questions: mpsc::Sender<Question>,
    task: JoinHandle<()>,
}

impl Confirmations {
    /// Starts the task.
    pub(super) fn start(keeper: Arc<dyn Keeper>) -> Self {
        let (questions, inbox) = mpsc::channel(MAX_WAITING);
        Self { questions, task: tokio::spawn(answer(keeper, inbox)) }
    }

    /// That the point in time of this number is kept, at a moment after this call.
    ///
    /// # Errors
    /// [`Kind::Io`] when it is not, or that cannot be known.
    pub(super) async fn confirm(&self, number: u64) -> Result<()> {
        let (answer, confirmed) = oneshot::channel();
        let ended = || Error::new(Kind::Io, "the point in time is no longer watched");
        self.questions.send(Question { number, answer }).await.map_err(|_| ended())?;
        let outcome = confirmed.await.map_err(|_| ended())?;
        outcome.map_err(|why| Error::new(Kind::Io, why))
    }

    /// Ends the task.
    pub(super) fn stop(&self) {
        self.task.abort();
    }
}

impl Drop for Confirmations {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn answer(keeper: Arc<dyn Keeper>, mut inbox: mpsc::Receiver<Question>) {
    let mut round = Vec::new();
    while inbox.recv_many(&mut round, MAX_WAITING).await > 0 {
        let (number, outcome) = keeper.keeps().await;
        for question in round.drain(..) {
            let answer = if question.number == number {
                outcome.clone()
            } else {
                Err("this point in time is not held any more".to_owned())
            };
            // Who asked may have given up.
            question.answer.send(answer).ok();
        }
    }
}
