//! Watching over a point in time that QEMU keeps.
//!
//! Events say when a job or an export of ours ends without our asking. With `fleece=backing` that is not enough: the
//! scratch image stays readable when its job is gone and then shows the live disk. So before data is given out,
//! [`Watch::confirm`] makes QEMU say that the jobs run. All readers that wait share one question; a reader that comes
//! while it is under way waits for the next, so the answer is always younger than the data.

use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::task::JoinHandle;

use super::ids::{MountId, number_of};
use super::session::Session;
use super::transport::{Message, Qmp};
use crate::error::{Error, Kind, Result, chain};
use crate::vm::Event;

/// Events kept for a slow receiver.
const MAX_EVENTS: usize = 64;

/// Readers that wait for one confirmation; more wait for room.
const MAX_WAITING: usize = 1024;

/// States of a job that copies before the guest writes (`JobStatus` of qapi/job.json). `paused` and `standby` come and
/// go whenever QEMU drains its requests.
const ALIVE: [&str; 5] = ["created", "running", "paused", "ready", "standby"];

struct Expected {
    number: u64,
    jobs: Vec<String>,
}

type Answer = std::result::Result<(), String>;

struct Question {
    number: u64,
    answer: oneshot::Sender<Answer>,
}

/// The watch over the point in time of a mount.
pub(super) struct Watch {
    events: broadcast::Sender<Event>,
    questions: mpsc::Sender<Question>,
    /// The jobs of the newest point in time. Held for a moment only.
    expected: Arc<Mutex<Option<Expected>>>,
    tasks: [JoinHandle<()>; 2],
}

impl Watch {
    /// Starts watching; ends with [`Watch::stop`] or when dropped.
    pub(super) fn start(qmp: &Qmp, mount: MountId) -> Self {
        let (events, _) = broadcast::channel(MAX_EVENTS);
        let (questions, inbox) = mpsc::channel(MAX_WAITING);
        let expected = Arc::default();
        let session = Session { qmp: qmp.clone() };
        let tasks = [
            tokio::spawn(translate(qmp.messages(), mount, events.clone())),
            tokio::spawn(answer(session, Arc::clone(&expected), inbox)),
        ];
        Self { events, questions, expected, tasks }
    }

    /// From now on these jobs keep the point in time of this number.
    pub(super) fn expect(&self, number: u64, jobs: Vec<String>) {
        *self.expected.lock().unwrap_or_else(PoisonError::into_inner) = Some(Expected { number, jobs });
    }

    pub(super) fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// Whether all jobs of a point in time run, at a moment after this call.
    ///
    /// # Errors
    /// [`Kind::Io`] when they do not, or that cannot be known.
    pub(super) async fn confirm(&self, number: u64) -> Result<()> {
        let (answer, confirmed) = oneshot::channel();
        let ended = || Error::new(Kind::Io, "the point in time is no longer watched");
        self.questions.send(Question { number, answer }).await.map_err(|_| ended())?;
        let outcome = confirmed.await.map_err(|_| ended())?;
        outcome.map_err(|why| Error::new(Kind::Io, why))
    }

    pub(super) fn stop(&self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn answer(session: Session, expected: Arc<Mutex<Option<Expected>>>, mut inbox: mpsc::Receiver<Question>) {
    let mut round = Vec::new();
    while inbox.recv_many(&mut round, MAX_WAITING).await > 0 {
        let jobs = session.jobs().await.map_err(|error| chain(&error));
        let (number, outcome) = {
            let expected = expected.lock().unwrap_or_else(PoisonError::into_inner);
            match (&*expected, jobs) {
                (None, _) => (0, Err("no point in time is held".to_owned())),
                (Some(expected), Err(why)) => (expected.number, Err(why)),
                (Some(expected), Ok(jobs)) => {
                    let alive = |id: &String| jobs.iter().any(|job| job.id == *id && is_alive(&job.status));
                    let missing = expected.jobs.iter().find(|id| !alive(id));
                    let outcome = missing.map_or(Ok(()), |id| Err(format!("backup job {id} does not run any more")));
                    (expected.number, outcome)
                }
            }
        };
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

fn is_alive(status: &str) -> bool {
    ALIVE.contains(&status)
}

/// Turns QEMU's events into what they mean for the point in time.
async fn translate(mut messages: broadcast::Receiver<Message>, mount: MountId, events: broadcast::Sender<Event>) {
    loop {
        let event = match messages.recv().await {
            Ok(Message::Event { name, data }) => lost(&mount, &name, &data),
            Ok(Message::Disconnected(why)) => Some(Event::Gone(why)),
            Err(broadcast::error::RecvError::Lagged(_)) => {
                Some(Event::Gone("QEMU sent more events than could be followed".to_owned()))
            }
            Err(broadcast::error::RecvError::Closed) => return,
        };
        if let Some(event) = event {
            // Nobody listens before the first point in time.
            events.send(event).ok();
        }
    }
}

fn lost(mount: &MountId, name: &str, data: &Value) -> Option<Event> {
    let text = |field: &str| data.get(field).and_then(Value::as_str);
    let id = text("id")?;
    // The job that formats scratch ends by itself; its id ends in a letter.
    let number = number_of(mount, id).filter(|_| id.ends_with(|last: char| last.is_ascii_digit()))?;
    let reason = match name {
        "JOB_STATUS_CHANGE" if text("status").is_some_and(|status| !is_alive(status)) => {
            "the backup job that kept it ended: it failed, or somebody cancelled it"
        }
        "BLOCK_EXPORT_DELETED" => "its NBD export was deleted: somebody stopped the NBD server",
        _ => return None,
    };
    Some(Event::Lost { number, reason: reason.to_owned() })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::vm::qmp::ids::{DiskIds, Role};

    #[test]
    fn only_the_end_of_what_is_ours_is_a_loss() {
        let mount = MountId::random();
        let ids = DiskIds::new(&mount, 7, 0);
        let change = |id: &str, status: &str| lost(&mount, "JOB_STATUS_CHANGE", &json!({"id": id, "status": status}));
        assert!(matches!(change(&ids.of(Role::Point), "aborting"), Some(Event::Lost { number: 7, .. })));
        assert_eq!(change(&ids.of(Role::Point), "paused"), None);
        assert_eq!(change(&ids.of(Role::Format), "concluded"), None);
        assert_eq!(change("somebody-1-0", "concluded"), None);
        let deleted = lost(&mount, "BLOCK_EXPORT_DELETED", &json!({"id": ids.of(Role::Point)}));
        assert!(matches!(deleted, Some(Event::Lost { number: 7, .. })));
        assert_eq!(lost(&mount, "A_NEW_EVENT", &json!({"x": 1})), None);
    }
}
