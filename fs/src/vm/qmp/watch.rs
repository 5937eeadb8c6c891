//! Watching over a point in time that QEMU keeps.
//!
//! Events say when a job or an export of ours ends without our asking. With `fleece=backing` that is not enough: the
//! scratch image stays readable when its job is gone and then shows the live disk. So before data is given out,
//! [`Watch::confirm`] makes QEMU say that the jobs run ([`Confirmations`]).

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use serde_json::Value;
use tokio::sync::broadcast;
use tokio::task::JoinHandle;

use super::ids::{MountId, Role, number_of};
use super::session::{Session, is_migration};
use super::transport::{Message, Qmp};
use crate::error::{Result, chain};
use crate::point::reason::Reason;
use crate::vm::Event;
use crate::vm::confirm::{Answer, Confirmations, Keeper};
use crate::vm::warden::Alarm;

/// States of a job that copies before the guest writes (`JobStatus` of qapi/job.json). `paused` and `standby` come and
/// go whenever QEMU drains its requests.
const ALIVE: [&str; 5] = ["created", "running", "paused", "ready", "standby"];

/// What is held, and by what it is known.
pub(super) struct Expected {
    pub(super) number: u64,
    /// The jobs that keep it; none with `fleece=filter`.
    pub(super) jobs: Vec<String>,
    /// The guest's devices.
    pub(super) qdevs: Vec<String>,
}

/// The watch over the point in time of a mount.
pub(super) struct Watch {
    events: broadcast::Sender<Event>,
    confirmations: Confirmations,
    /// The newest point in time. Held for a moment only.
    expected: Shared,
    translator: JoinHandle<()>,
}

type Shared = Arc<Mutex<Option<Expected>>>;

impl Watch {
    /// Starts watching; ends with [`Watch::stop`] or when dropped.
    pub(super) fn start(qmp: &Qmp, mount: MountId, events: broadcast::Sender<Event>, alarm: Alarm) -> Self {
        let expected = Shared::default();
        let jobs = Jobs { session: Session { qmp: qmp.clone() }, expected: Arc::clone(&expected) };
        let translator = Translator { mount, expected: Arc::clone(&expected), events: events.clone(), alarm };
        let translator = tokio::spawn(translator.run(qmp.messages()));
        Self { events, confirmations: Confirmations::start(Arc::new(jobs)), expected, translator }
    }

    /// What is held from now on, or soon.
    pub(super) fn expect(&self, expected: Option<Expected>) {
        *self.expected.lock().unwrap_or_else(PoisonError::into_inner) = expected;
    }

    pub(super) fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// Whether all jobs of a point in time run, at a moment after this call.
    ///
    /// # Errors
    /// [`Kind::Io`] when they do not, or that cannot be known.
    pub(super) async fn confirm(&self, number: u64) -> Result<()> {
        self.confirmations.confirm(number).await
    }

    pub(super) fn stop(&self) {
        self.confirmations.stop();
        self.translator.abort();
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Whether all jobs of the point in time run.
struct Jobs {
    session: Session,
    expected: Shared,
}

#[async_trait]
impl Keeper for Jobs {
    async fn keeps(&self) -> (u64, Answer) {
        let jobs = self.session.jobs().await.map_err(|error| chain(&error));
        let expected = self.expected.lock().unwrap_or_else(PoisonError::into_inner);
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
    }
}

fn is_alive(status: &str) -> bool {
    ALIVE.contains(&status)
}

/// Turns QEMU's events into what they mean for the point in time.
struct Translator {
    mount: MountId,
    expected: Shared,
    events: broadcast::Sender<Event>,
    alarm: Alarm,
}

impl Translator {
    async fn run(self, mut messages: broadcast::Receiver<Message>) {
        loop {
            let event = match messages.recv().await {
                Ok(Message::Event { name, data }) => {
                    match alarm(&self.mount, &name, &data) {
                        Some(Alarming::Grew) => self.alarm.grew(),
                        Some(Alarming::Failed) => self.alarm.failed().await,
                        None => {}
                    }
                    let expected = self.expected.lock().unwrap_or_else(PoisonError::into_inner);
                    lost(&self.mount, expected.as_ref(), &name, &data)
                }
                Ok(Message::Disconnected(why)) => Some(Event::Gone(why)),
                Err(broadcast::error::RecvError::Lagged(_)) => {
                    Some(Event::Gone("QEMU sent more events than could be followed".to_owned()))
                }
                Err(broadcast::error::RecvError::Closed) => return,
            };
            if let Some(event) = event {
                // Nobody listens before the first point in time.
                self.events.send(event).ok();
            }
        }
    }
}

/// What the guest may soon wait for, or waits for already.
#[derive(Debug, PartialEq, Eq)]
enum Alarming {
    Grew,
    Failed,
}

/// An event about a node of ours that cannot wait.
fn alarm(mount: &MountId, name: &str, data: &Value) -> Option<Alarming> {
    let node = data.get("node-name").and_then(Value::as_str)?;
    number_of(mount, node)?;
    match name {
        "BLOCK_WRITE_THRESHOLD" => Some(Alarming::Grew),
        // Reads fail for reasons of the guest's own disk.
        "BLOCK_IO_ERROR" if node.ends_with(Role::Filter.letter()) && data["operation"] == "write" => {
            Some(Alarming::Failed)
        }
        _ => None,
    }
}

/// Whether an event says that the point in time is not kept any more, or must not be.
fn lost(mount: &MountId, expected: Option<&Expected>, name: &str, data: &Value) -> Option<Event> {
    let text = |field: &str| data.get(field).and_then(Value::as_str);
    // The job that formats scratch ends by itself; its id ends in a letter.
    let ours = || number_of(mount, text("id")?).filter(|_| text("id").is_some_and(ends_in_digit));
    let held = || expected.map(|expected| expected.number);
    let (number, reason, words) = match name {
        "JOB_STATUS_CHANGE" if text("status").is_some_and(|status| !is_alive(status)) => {
            (ours()?, Reason::Ended, "the backup job that kept it ended: it failed, or somebody cancelled it")
        }
        "BLOCK_EXPORT_DELETED" => {
            (ours()?, Reason::Ended, "its NBD export was deleted: somebody stopped the NBD server")
        }
        "MIGRATION" if text("status").is_some_and(is_migration) => {
            (held()?, Reason::Migration, "the machine is being migrated")
        }
        "SHUTDOWN" => (held()?, Reason::Shutdown, "the machine shuts down"),
        "DEVICE_DELETED" if has_device(expected, text("device"), text("path")) => {
            (held()?, Reason::Unplugged, "one of its disks was unplugged")
        }
        _ => return None,
    };
    Some(Event::Lost { number, reason, words: words.to_owned() })
}

fn ends_in_digit(id: &str) -> bool {
    id.ends_with(|last: char| last.is_ascii_digit())
}

/// Whether a device of ours is the one with an id, or at a path of QEMU's object tree, or a part of it. QEMU knows a disk by
/// its id where it has one, else by its path.
fn has_device(expected: Option<&Expected>, id: Option<&str>, path: Option<&str>) -> bool {
    let below = |qdev: &str| {
        let rest = path.and_then(|path| qdev.strip_prefix(path));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let is = |qdev: &String| Some(qdev.as_str()) == id || below(qdev);
    expected.is_some_and(|expected| expected.qdevs.iter().any(is))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::vm::qmp::ids::DiskIds;

    #[test]
    fn only_the_end_of_what_is_ours_is_a_loss() {
        let mount = MountId::random();
        let ids = DiskIds::new(&mount, 7, 0);
        let said = |name: &str, data: Value| lost(&mount, None, name, &data);
        let change = |id: &str, status: &str| said("JOB_STATUS_CHANGE", json!({"id": id, "status": status}));
        assert!(matches!(change(&ids.of(Role::Point), "aborting"), Some(Event::Lost { number: 7, .. })));
        assert_eq!(change(&ids.of(Role::Point), "paused"), None);
        assert_eq!(change("somebody-1-0", "concluded"), None);
        let deleted = said("BLOCK_EXPORT_DELETED", json!({"id": ids.of(Role::Point)}));
        assert!(matches!(deleted, Some(Event::Lost { number: 7, .. })));
        assert_eq!(said("A_NEW_EVENT", json!({"x": 1})), None);
    }

    #[test]
    fn what_happens_to_the_machine_ends_it() {
        let mount = MountId::random();
        let qdevs = ["/machine/peripheral/vda/virtio-backend", "sda"].map(str::to_owned).to_vec();
        let held = Expected { number: 3, jobs: Vec::new(), qdevs };
        let said = |name: &str, data: Value| lost(&mount, Some(&held), name, &data).is_some();
        assert!(said("MIGRATION", json!({"status": "setup"})) && said("MIGRATION", json!({"status": "completed"})));
        assert!(!said("MIGRATION", json!({"status": "failed"})) && !said("MIGRATION", json!({"status": "none"})));
        assert!(said("SHUTDOWN", json!({"guest": true, "reason": "guest-shutdown"})));
        assert!(said("DEVICE_DELETED", json!({"device": "vda", "path": "/machine/peripheral/vda"})));
        assert!(said("DEVICE_DELETED", json!({"device": "sda", "path": "/machine/peripheral/sda"})));
        assert!(!said("DEVICE_DELETED", json!({"device": "vd", "path": "/machine/peripheral/vd"})));
        assert!(!said("DEVICE_DELETED", json!({"device": "net0", "path": "/machine/peripheral/net0"})));
        assert_eq!(lost(&mount, None, "SHUTDOWN", &json!({})), None, "nothing is held");
    }

    #[test]
    fn what_the_guest_waits_for_is_heard() {
        let mount = MountId::random();
        let ids = DiskIds::new(&mount, 7, 0);
        let said =
            |name: &str, role, more: &str| alarm(&mount, name, &json!({"node-name": ids.of(role), "operation": more}));
        assert_eq!(said("BLOCK_WRITE_THRESHOLD", Role::File, ""), Some(Alarming::Grew));
        assert_eq!(said("BLOCK_IO_ERROR", Role::Filter, "write"), Some(Alarming::Failed));
        assert_eq!(said("BLOCK_IO_ERROR", Role::Filter, "read"), None, "the guest's own disk");
        assert_eq!(alarm(&mount, "BLOCK_IO_ERROR", &json!({"node-name": "disk", "operation": "write"})), None);
    }
}
