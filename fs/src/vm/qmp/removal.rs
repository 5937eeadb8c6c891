//! Calls that remove what a point in time left in QEMU, many things of a kind at once.
//!
//! They are idempotent: what is not there is fine, and they return only when QEMU says that it is gone. Whether something is
//! there is asked of lists as long as the machine has disks: each is asked for once for all, not once for each.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::graph::Node;
use super::inventory::Device;
use super::session::{Job, Session};
use super::transport::refused;
use crate::error::{Error, Kind, Result};
use crate::point::overlap;

/// How long something that was told to end may take. A job ends when the requests in flight on its disk have.
const END_LIMIT: Duration = Duration::from_secs(30);

/// Between two looks at something that is about to end: QEMU needs a millisecond as a rule.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, Deserialize)]
struct ExportInfo {
    id: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct FdSet {
    fdset_id: u64,
    fds: Vec<FdSetFd>,
}

#[derive(Debug, Deserialize)]
struct FdSetFd {
    fd: i64,
    opaque: Option<String>,
}

/// A guest's device that is to be put on top of node `to`, if it is on top of `from`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Move<'a> {
    pub(super) qdev: &'a str,
    pub(super) from: &'a str,
    pub(super) to: &'a str,
}

impl Session {
    /// Runs a command that QEMU may refuse, because what it is about is gone or on its way.
    pub(super) async fn attempt(&self, command: &str, arguments: Value) -> Result<()> {
        match self.run(command, arguments).await {
            Err(error) if refused(&error).is_none() => Err(error),
            _ => Ok(()),
        }
    }

    /// Removes nodes that do not stand on each other; those that are still there, and why.
    pub(super) async fn remove_nodes<'a>(&self, names: &[&'a str]) -> Result<Vec<(&'a str, Error)>> {
        let refusals = Mutex::new(Vec::new());
        let removed: Vec<_> = names.iter().map(|name| self.remove_node(name, &refusals)).collect();
        overlap::all(removed).await?;
        let mut refusals = refusals.into_inner().unwrap_or_else(PoisonError::into_inner);
        if !refusals.is_empty() {
            let nodes = self.nodes().await?;
            let there: HashSet<&str> = nodes.iter().filter_map(|node| node.get("node-name")?.as_str()).collect();
            refusals.retain(|(name, _)| there.contains(name));
        }
        Ok(refusals)
    }

    async fn remove_node<'a>(&self, name: &'a str, refusals: &Mutex<Vec<(&'a str, Error)>>) -> Result<()> {
        match self.run("blockdev-del", json!({"node-name": name})).await {
            Err(error) if refused(&error).is_some() => {
                refusals.lock().unwrap_or_else(PoisonError::into_inner).push((name, error));
                Ok(())
            }
            other => other,
        }
    }

    async fn nodes(&self) -> Result<Vec<Value>> {
        super::understand(
            "query-named-block-nodes",
            self.qmp.execute("query-named-block-nodes", json!({"flat": true})).await?,
        )
    }

    /// Removes the descriptors with these labels from their sets.
    pub(super) async fn remove_descriptors(&self, labels: &[&str]) -> Result<()> {
        let labels: HashSet<&str> = labels.iter().copied().collect();
        let sets = self.list::<FdSet>("query-fdsets").await?;
        let labelled = |fd: &&FdSetFd| fd.opaque.as_deref().is_some_and(|label| labels.contains(label));
        let ours = sets.iter().flat_map(|set| set.fds.iter().filter(labelled).map(|fd| (set.fdset_id, fd.fd)));
        let removed = ours.map(|(set, fd)| self.run("remove-fd", json!({"fdset-id": set, "fd": fd}))).collect();
        overlap::all(removed).await
    }

    /// Cancels the jobs that run, and dismisses them.
    pub(super) async fn end_jobs(&self, ids: &[String]) -> Result<()> {
        let ids: HashSet<&str> = ids.iter().map(String::as_str).collect();
        let mut patience = Patience::new();
        loop {
            let mut jobs = self.jobs().await?;
            jobs.retain(|job| ids.contains(job.id.as_str()));
            let Some(Job { id, .. }) = jobs.first() else { return Ok(()) };
            let command = |job: &Job| match job.status.as_str() {
                "concluded" => Some("job-dismiss"),
                "aborting" | "null" => None,
                _ => Some("job-cancel"),
            };
            // A job may have gone on by itself in between; the next look tells.
            let attempt = |job: &Job| Some(self.attempt(command(job)?, json!({ "id": job.id })));
            let attempts = jobs.iter().filter_map(attempt).collect();
            overlap::all(attempts).await?;
            patience.pause(id).await?;
        }
    }

    /// Removes exports, whoever reads from them.
    pub(super) async fn remove_exports(&self, ids: &[&str]) -> Result<()> {
        let remove = |id: &&str| self.attempt("block-export-del", json!({"id": id, "mode": "hard"}));
        let removed = ids.iter().map(remove).collect();
        overlap::all(removed).await?;
        let ids: HashSet<&str> = ids.iter().copied().collect();
        let mut patience = Patience::new();
        loop {
            let exports = self.list::<ExportInfo>("query-block-exports").await?;
            let Some(last) = exports.iter().find(|export| ids.contains(export.id.as_str())) else { return Ok(()) };
            patience.pause(&last.id).await?;
        }
    }

    /// Puts guests' devices on top of other nodes.
    pub(super) async fn move_drives(&self, moves: &[Move<'_>]) -> Result<()> {
        let devices: Vec<Device> = self.list("query-block").await?;
        let on = |device: &Device| Some((device.qdev.clone()?, device.inserted.as_ref()?.node_name.clone()?));
        let on: HashMap<String, String> = devices.iter().filter_map(on).collect();
        let to_move = moves.iter().filter(|each| on.get(each.qdev).is_some_and(|node| node == each.from));
        let to_move = to_move.map(|each| json!({"path": each.qdev, "property": "drive", "value": each.to}));
        let commands = to_move.map(|arguments| self.run("qom-set", arguments)).collect();
        overlap::all(commands).await
    }

    /// Removes bitmaps and the notes on them, given as (name, note), wherever the notes are.
    pub(super) async fn remove_noted(&self, noted: &[(&str, &str)]) -> Result<()> {
        let nodes: Vec<Node> = super::understand("query-named-block-nodes", Value::Array(self.nodes().await?))?;
        let mut bitmaps = BTreeSet::new();
        for node in nodes.iter().filter(|node| !node.ro) {
            let has: HashSet<&str> = node.dirty_bitmaps.iter().filter_map(|bitmap| bitmap.name.as_deref()).collect();
            for (name, note) in noted.iter().filter(|(_, note)| has.contains(note)) {
                let names = [*name, *note].into_iter().filter(|name| has.contains(name));
                bitmaps.extend(names.map(|name| (node.node_name.clone(), name.to_owned())));
            }
        }
        let bitmaps: Vec<_> = bitmaps.into_iter().collect();
        if bitmaps.is_empty() { Ok(()) } else { self.remove_bitmaps(&bitmaps).await }
    }
}

/// Waiting for something that was told to end: longer pauses each time, and not for ever.
pub(super) struct Patience {
    deadline: Instant,
    pause: Duration,
}

impl Patience {
    pub(super) fn new() -> Self {
        Self { deadline: Instant::now() + END_LIMIT, pause: FIRST_PAUSE }
    }

    pub(super) async fn pause(&mut self, what: &str) -> Result<()> {
        if Instant::now() >= self.deadline {
            let limit = END_LIMIT.as_secs();
            return Err(Error::new(Kind::Timeout, format!("{what} did not end within {limit} s")));
        }
        sleep(self.pause).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        Ok(())
    }
}
