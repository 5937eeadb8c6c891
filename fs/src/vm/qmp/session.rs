//! QEMU's block layer as far as a point in time needs it: typed calls over a [`Qmp`] connection.
//!
//! What removes things again is in `removal`.

use std::os::fd::OwnedFd;
use std::time::Duration;

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::ids::Role;
use super::inventory::Device;
use super::removal::Patience;
use super::transport::{Qmp, refused};
use crate::error::{Error, Kind, Result};
use crate::point::overlap;
use crate::vm::warden::Guest;

#[derive(Debug, Deserialize)]
pub(super) struct Job {
    pub(super) id: String,
    pub(super) status: String,
}

/// Block-layer calls.
#[derive(Clone)]
pub(in crate::vm) struct Session {
    pub(in crate::vm) qmp: Qmp,
}

impl Session {
    pub(super) async fn run(&self, command: &str, arguments: Value) -> Result<()> {
        self.qmp.execute(command, arguments).await.map(drop)
    }

    pub(super) async fn list<T: serde::de::DeserializeOwned>(&self, command: &str) -> Result<Vec<T>> {
        super::understand(command, self.qmp.execute(command, json!({})).await?)
    }

    pub(super) async fn jobs(&self) -> Result<Vec<Job>> {
        self.list("query-jobs").await
    }

    pub(super) async fn transaction(&self, actions: Vec<Value>) -> Result<()> {
        self.run("transaction", json!({"actions": actions})).await
    }

    /// Removes dirty bitmaps, given as (node, name), all or none.
    pub(super) async fn remove_bitmaps(&self, bitmaps: &[(String, String)]) -> Result<()> {
        let remove = |(node, name): &(String, String)| json!({"type": "block-dirty-bitmap-remove", "data": {"node": node, "name": name}});
        self.transaction(bitmaps.iter().map(remove).collect()).await
    }

    pub(super) async fn add_node(&self, options: Value) -> Result<()> {
        self.run("blockdev-add", options).await
    }

    /// Puts a descriptor into a set of its own that carries `label`; the set's number comes back.
    pub(super) async fn add_descriptor(&self, descriptor: OwnedFd, label: &str) -> Result<u64> {
        let reply = self.qmp.execute_with("add-fd", json!({"opaque": label}), descriptor).await?;
        reply.get("fdset-id").and_then(Value::as_u64).ok_or_else(|| not_understood("add-fd"))
    }

    /// Lets go of a guest whose writes wait for these backup jobs: cancels them, and if the scratch image's being full
    /// stopped the guest, or is just about to, lets it go on. Whether that was so.
    pub(super) async fn let_go(&self, jobs: &[String]) -> Result<bool> {
        if jobs.is_empty() {
            return Ok(false);
        }
        // Without a wait in between: QEMU takes them in this order. One that is not there, or ends already, is fine.
        let cancels = jobs.iter().map(|id| self.attempt("job-cancel", json!({ "id": id }))).collect();
        let (state, devices, cancelled) =
            tokio::join!(self.run_state(), self.list::<Device>("query-block"), overlap::all(cancels));
        cancelled?;
        let (stands, devices) = (state?.as_deref() == Some(STOPPED), devices?);
        let ours: Vec<&str> = devices.iter().filter(|device| is_under(jobs, device)).map(Device::name).collect();
        if ours.is_empty() || (stands && !are_to_blame(&ours, &devices)) {
            return Ok(false);
        }
        let mut patience = Patience::new();
        while self.jobs().await?.iter().any(|job| jobs.contains(&job.id) && job.status != "concluded") {
            match patience.pause("the backup job").await {
                Err(_) if !stands => return Ok(false),
                other => other?,
            }
        }
        if !stands && !self.stops_for(&ours).await? {
            return Ok(false);
        }
        // The writes that waited are done again, this time without a copy of the old data.
        self.run("cont", json!({})).await?;
        Ok(true)
    }

    /// Whether a write failed on these devices before their jobs had ended, and the guest stands still for it. QEMU stops it when its
    /// main loop comes round, some time after it has marked the device.
    async fn stops_for(&self, ours: &[&str]) -> Result<bool> {
        if !are_to_blame(ours, &self.list::<Device>("query-block").await?) {
            return Ok(false);
        }
        let deadline = Instant::now() + STOP_LIMIT;
        while self.run_state().await?.as_deref() != Some(STOPPED) {
            if Instant::now() >= deadline {
                return Ok(false);
            }
            sleep(STOP_PAUSE).await;
        }
        Ok(true)
    }

    /// The guest's state, such as `running`; none where there is no guest.
    async fn run_state(&self) -> Result<Option<String>> {
        match self.qmp.execute("query-status", json!({})).await {
            Ok(state) => Ok(state.get("status").and_then(Value::as_str).map(str::to_owned)),
            Err(error) if refused(&error).is_some() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether the guest runs. One that does not, for whatever reason, stands still until somebody lets it go on.
    pub(super) async fn runs(&self) -> Result<bool> {
        Ok(self.run_state().await?.as_deref() == Some("running"))
    }

    /// Stops the guest.
    pub(super) async fn pause(&self) -> Result<()> {
        self.run("stop", json!({})).await
    }

    /// Lets a guest that was stopped go on; one that stands still for another reason is left alone.
    pub(super) async fn resume(&self) -> Result<()> {
        match self.run_state().await?.as_deref() {
            Some("paused") => self.run("cont", json!({})).await,
            _ => Ok(()),
        }
    }

    /// Whether a migration of the machine is under way, or was done and left it behind. One that was done long ago is told
    /// of for ever.
    pub(super) async fn migrates(&self) -> Result<bool> {
        let status = match self.qmp.execute("query-migrate", json!({})).await {
            Ok(state) => state.get("status").and_then(Value::as_str).map(str::to_owned),
            Err(error) if refused(&error).is_some() => return Ok(false),
            Err(error) => return Err(error),
        };
        match status.as_deref() {
            Some("completed") => Ok(self.run_state().await?.as_deref() == Some("postmigrate")),
            other => Ok(other.is_some_and(is_migration)),
        }
    }

    pub(super) async fn add_export(&self, options: Value) -> Result<()> {
        self.run("block-export-add", options).await
    }

    /// Starts the NBD server on a listening socket of ours.
    pub(super) async fn start_server_on(&self, listener: OwnedFd, name: &str) -> Result<()> {
        self.qmp.execute_with("getfd", json!({"fdname": name}), listener).await?;
        let started = self.start_server(json!({"type": "fd", "data": {"str": name}})).await;
        if started.is_err() {
            // On success QEMU has taken it; else it would keep listening for nobody.
            if let Err(error) = self.close_descriptor(name).await {
                tracing::debug!("closefd: {}", crate::error::chain(&error));
            }
        }
        started
    }

    /// Closes a descriptor that nothing in QEMU has taken.
    pub(super) async fn close_descriptor(&self, name: &str) -> Result<()> {
        self.attempt("closefd", json!({"fdname": name})).await
    }

    pub(super) async fn start_server(&self, address: Value) -> Result<()> {
        self.run("nbd-server-start", json!({"addr": address, "max-connections": 0})).await.map_err(|error| {
            let running = refused(&error).is_some_and(|refusal| refusal.description.contains("already running"));
            if running {
                Error::with_source(
                    Kind::Busy,
                    "this machine's only NBD server is in use, by another backup as a rule; let that finish, or name \
                     the server's socket with -o nbd=unix:PATH",
                    error,
                )
            } else {
                error
            }
        })
    }

    pub(super) async fn stop_server(&self) -> Result<()> {
        self.attempt("nbd-server-stop", json!({})).await
    }
}

/// The state of a guest that stands still because a request of a device failed (`RunState` of qapi/run-state.json).
const STOPPED: &str = "io-error";

/// How long QEMU may take to stop a guest one of whose requests has failed, and how often it is looked.
const STOP_LIMIT: Duration = Duration::from_secs(2);
const STOP_PAUSE: Duration = Duration::from_millis(10);

/// Whether a device is under the filter of one of these jobs.
fn is_under(jobs: &[String], device: &Device) -> bool {
    let node = device.inserted.as_ref().and_then(|inserted| inserted.node_name.as_deref()).unwrap_or("");
    node.strip_suffix(Role::Filter.letter()).is_some_and(|id| jobs.iter().any(|job| job == id))
}

/// Whether all devices that wait because a request failed are among these.
fn are_to_blame(ours: &[&str], devices: &[Device]) -> bool {
    let mut failed = devices.iter().filter(|device| device.has_failed()).peekable();
    failed.peek().is_some() && failed.all(|device| ours.contains(&device.name()))
}

/// Whether a state of `query-migrate` or of the event `MIGRATION` (qapi/migration.json) is one in which the machine moves
/// or has moved away.
pub(super) fn is_migration(status: &str) -> bool {
    !matches!(status, "none" | "failed" | "cancelled" | "cancelling")
}

fn not_understood(command: &str) -> Error {
    Error::new(Kind::Invalid, format!("the answer of QEMU to {command} is not understood"))
}

#[async_trait]
impl Guest for Session {
    async fn warn_beyond(&self, node: &str, offset: u64) -> Result<bool> {
        self.run("block-set-write-threshold", json!({"node-name": node, "write-threshold": offset})).await?;
        Ok(true)
    }

    async fn migrates(&self) -> Result<bool> {
        Self::migrates(self).await
    }

    async fn let_go(&self, jobs: &[String]) -> Result<bool> {
        Self::let_go(self, jobs).await
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    use tokio::net::UnixListener;
    use tokio::sync::mpsc;

    use super::super::monitor::Monitor;
    use super::*;

    /// A QEMU in which the guest's write fails while its job is being cancelled: it says so a moment after it was asked.
    async fn late(listener: UnixListener, heard: mpsc::Sender<String>) {
        let (stream, _) = listener.accept().await.unwrap();
        let (reader, mut writer) = stream.into_split();
        let mut lines = BufReader::new(reader).lines();
        writer.write_all(b"{\"QMP\": {}}\n").await.unwrap();
        let device = |node: &str, status: &str| json!([{"device": "", "qdev": "/d", "inserted": {"node-name": node}, "io-status": status}]);
        let mut asked = HashMap::<String, u32>::new();
        while let Some(line) = lines.next_line().await.unwrap() {
            let command: Value = serde_json::from_str(&line).unwrap();
            let name = command["execute"].as_str().unwrap().to_owned();
            let times = asked.entry(name.clone()).or_default();
            *times += 1;
            let answer = match (name.as_str(), *times) {
                ("query-block", 1) => device(&format!("job{}", Role::Filter.letter()), "ok"),
                ("query-block", _) => device("disk", "nospace"),
                ("query-status", 1..=3) => json!({"status": "running"}),
                ("query-status", _) => json!({"status": "io-error"}),
                ("query-jobs", 1) => json!([{"id": "job", "status": "aborting"}]),
                ("query-jobs", _) => json!([{"id": "job", "status": "concluded"}]),
                _ => json!({}),
            };
            let answer = json!({"return": answer, "id": command["id"]});
            writer.write_all(format!("{answer}\n").as_bytes()).await.unwrap();
            heard.send(name).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_guest_that_stops_as_it_is_let_go_of_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qmp");
        let (tell, mut heard) = mpsc::channel(64);
        tokio::spawn(late(UnixListener::bind(&path).unwrap(), tell));
        let session = Session { qmp: Qmp::connect(&Monitor::unix(&path)).await.unwrap() };
        assert!(session.let_go(&["job".to_owned()]).await.unwrap());
        let mut commands = Vec::new();
        while let Ok(command) = heard.try_recv() {
            commands.push(command);
        }
        assert_eq!(commands.last().map(String::as_str), Some("cont"), "{commands:?}");
        let ended = commands.iter().rposition(|command| command == "query-jobs");
        assert!(ended < commands.iter().position(|command| command == "cont"), "not while the job would stop it again");
    }
}
