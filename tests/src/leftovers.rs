//! What a machine holds, as QEMU tells it: taken before and after, the two must be equal.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::machine::Machine;

/// Everything in a machine that pullfs makes some of.
#[derive(Debug, PartialEq, Eq)]
pub struct Leftovers {
    jobs: BTreeSet<String>,
    exports: BTreeSet<String>,
    nodes: BTreeSet<String>,
    bitmaps: BTreeSet<String>,
    fdsets: usize,
    nbd_server: bool,
}

impl Leftovers {
    /// Asks the machine.
    #[track_caller]
    pub fn of(machine: &Machine) -> Self {
        let mut qmp = machine.qmp();
        let jobs = names(&qmp.must("query-jobs", json!({})), "id");
        let exports = names(&qmp.must("query-block-exports", json!({})), "id");
        let all = qmp.must("query-named-block-nodes", json!({ "flat": true }));
        let nodes = names(&all, "node-name");
        let bitmaps = all
            .as_array()
            .into_iter()
            .flatten()
            .flat_map(|node| {
                let bitmaps = names(&node["dirty-bitmaps"], "name");
                bitmaps.into_iter().map(|bitmap| format!("{}:{bitmap}", text(&node["node-name"])))
            })
            .collect();
        // qemu-storage-daemon knows no fdsets.
        let fdsets = qmp.execute("query-fdsets", json!({})).ok().and_then(|sets| Some(sets.as_array()?.len()));
        // No command tells whether the NBD server runs; a second one cannot be started.
        let probe = machine.dir().join("probe.nbd");
        let address = json!({"addr": {"type": "unix", "data": {"path": probe}}});
        let nbd_server = match qmp.execute("nbd-server-start", address) {
            Ok(_) => {
                qmp.must("nbd-server-stop", json!({}));
                let _ = std::fs::remove_file(&probe);
                false
            }
            Err(e) => {
                assert!(e.to_string().contains("already running"), "{e:#}");
                true
            }
        };
        Self { jobs, exports, nodes, bitmaps, fdsets: fdsets.unwrap_or(0), nbd_server }
    }

    /// Whether any block job runs.
    pub fn any_job(&self) -> bool {
        !self.jobs.is_empty()
    }

    /// All names that begin with `prefix`.
    pub fn of_prefix(&self, prefix: &str) -> Vec<&String> {
        let all = self.jobs.iter().chain(&self.exports).chain(&self.nodes).chain(&self.bitmaps);
        all.filter(|name| name.starts_with(prefix)).collect()
    }
}

fn names(list: &Value, key: &str) -> BTreeSet<String> {
    list.as_array().into_iter().flatten().map(|item| text(&item[key])).collect()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
