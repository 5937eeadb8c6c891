//! QEMU's block layer as far as a point in time needs it: typed calls over a [`Qmp`] connection.
//!
//! What removes things again is in `removal`.

use std::os::fd::OwnedFd;

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::{Value, json};

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
    /// stopped the guest, lets it go on. Whether that was so.
    pub(super) async fn let_go(&self, jobs: &[String]) -> Result<bool> {
        if jobs.is_empty() {
            return Ok(false);
        }
        // Without a wait in between: QEMU takes them in this order. One that is not there, or ends already, is fine.
        let cancels = jobs.iter().map(|id| self.attempt("job-cancel", json!({ "id": id }))).collect();
        let (state, devices, cancelled) =
            tokio::join!(self.run_state(), self.list::<Device>("query-block"), overlap::all(cancels));
        cancelled?;
        if state?.as_deref() != Some("io-error") || !are_to_blame(jobs, &devices?) {
            return Ok(false);
        }
        let mut patience = Patience::new();
        while self.jobs().await?.iter().any(|job| jobs.contains(&job.id) && job.status != "concluded") {
            patience.pause("the backup job").await?;
        }
        // The writes that waited are done again, this time without a copy of the old data.
        self.run("cont", json!({})).await?;
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

/// Whether all devices that wait because a request failed are under the filters of these jobs.
fn are_to_blame(jobs: &[String], devices: &[Device]) -> bool {
    let mut failed = devices.iter().filter(|device| device.has_failed()).peekable();
    let filter = |device: &Device| {
        let node = device.inserted.as_ref().and_then(|inserted| inserted.node_name.as_deref()).unwrap_or("");
        node.strip_suffix(Role::Filter.letter()).is_some_and(|id| jobs.iter().any(|job| job == id))
    };
    failed.peek().is_some() && failed.all(filter)
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
