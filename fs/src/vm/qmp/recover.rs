//! Undoing what a mount that died has left in the machine, from its journal.
//!
//! The same code undoes it that the mount itself would have run, so nothing is touched but what the journal names, and
//! all of that has the mount's id in its name.

use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, sleep};

use super::detect::has_descriptors;
use super::ids::PREFIX;
use super::monitor::Monitor;
use super::session::Session;
use super::transport::Qmp;
use super::undo::{self, Context, Leftover};
use crate::error::{Error, Kind, Result};
use crate::point::journal::Journal;
use crate::point::plan::Ledger;

/// How long the monitor may stay busy: QEMU needs a moment to notice that a client is dead.
const BUSY_LIMIT: Duration = Duration::from_secs(20);

/// How often something that is no QMP is taken for the rest of what a dead client was told.
const MOST_GARBLED: u32 = 3;

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(50);

/// What is left of a mount, and undoes it.
pub struct Remains(Ledger<Leftover>);

impl Remains {
    /// What a journal names.
    ///
    /// # Errors
    /// [`Kind::Invalid`] when the journal is not understood; then nothing can be undone.
    pub fn of(journal: Journal) -> Result<Self> {
        Ledger::left_in(journal).map(Self)
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Its names, for people.
    pub fn names(&self) -> Vec<String> {
        self.0.notes().iter().map(ToString::to_string).collect()
    }

    /// Undoes it over a connection to the machine.
    ///
    /// # Errors
    /// When something may be left; trying again is safe.
    pub async fn undo(&self, qmp: &Qmp) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        let descriptors = has_descriptors(qmp).await?;
        self.0.undo(&Context::new(Session { qmp: qmp.clone() }, descriptors)).await
    }

    /// Undoes what is on this host alone, where the machine does not run any more: all the rest ended with it.
    ///
    /// # Errors
    /// As [`Remains::undo`].
    pub fn undo_without_machine(&self) -> Result<()> {
        undo::undo_on_host(&self.0)
    }
}

/// Connects to a machine whose monitor a dead client may still occupy for a moment. What QEMU had still to say to that one
/// comes first then, and may begin in the middle of a line: who connects again hears a greeting.
///
/// # Errors
/// As [`Qmp::connect`].
pub async fn connect(monitor: &Monitor) -> Result<Qmp> {
    let deadline = Instant::now() + BUSY_LIMIT;
    let mut garbled = 0;
    loop {
        match Qmp::connect(monitor).await {
            Err(error) if error.kind() == Kind::Busy && Instant::now() < deadline => {}
            Err(error) if error.kind() == Kind::Invalid && garbled < MOST_GARBLED => garbled += 1,
            other => return other,
        }
        sleep(PAUSE).await;
    }
}

/// The ids of mounts whose things are in the machine, whoever made them.
///
/// # Errors
/// When the machine does not answer.
pub async fn mounts_in(qmp: &Qmp) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for (command, field) in
        [("query-jobs", "id"), ("query-block-exports", "id"), ("query-named-block-nodes", "node-name")]
    {
        let arguments = if command == "query-named-block-nodes" { json!({"flat": true}) } else { json!({}) };
        let answer = qmp.execute(command, arguments).await?;
        let all = answer.as_array().ok_or_else(|| Error::new(Kind::Invalid, format!("{command} gave no list")))?;
        for name in all.iter().filter_map(|each| each[field].as_str()) {
            let id = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
            found.extend(id.map(|id| format!("{PREFIX}{id}")));
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}
