//! What a machine holds, as QEMU tells it: taken before and after, the two must be equal.
//!
//! Whole answers are compared, of jobs, exports, nodes, dirty bitmaps, descriptors and of the graph with its permissions,
//! but for the numbers that a guest's own requests change.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use std::{fmt, thread};

use serde_json::{Value, json};

use crate::machine::Machine;

/// Everything in a machine that pullfs makes some of.
#[derive(PartialEq, Eq)]
pub struct Leftovers {
    /// What there is, by kind and name.
    items: BTreeMap<(&'static str, String), Value>,
}

/// What a job tells that goes on by itself.
const PROGRESS: [&str; 3] = ["status", "current-progress", "total-progress"];

/// From the end of its caller to that of a call of libvirt's, on a slow machine.
const CALL_LIMIT: Duration = Duration::from_secs(10);

impl Leftovers {
    /// Asks the machine.
    ///
    /// A call of libvirt's goes on when its caller is killed, and takes away by itself what it made for its own use.
    #[track_caller]
    pub fn of(machine: &Machine) -> Self {
        let end = Instant::now() + CALL_LIMIT;
        loop {
            let seen = Self::look(machine);
            if machine.flavor().libvirt().is_none() || !seen.in_a_call() || Instant::now() > end {
                return seen;
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Whether libvirt is just asking for the sizes of checkpoints.
    fn in_a_call(&self) -> bool {
        self.items.keys().any(|(kind, name)| *kind == "bitmap" && name.ends_with(":libvirt-tmp-size-xml"))
    }

    #[track_caller]
    fn look(machine: &Machine) -> Self {
        let mut qmp = machine.qmp();
        let mut items = BTreeMap::new();
        for mut job in list(qmp.must("query-jobs", json!({}))) {
            for field in PROGRESS {
                job[field] = Value::Null;
            }
            items.insert(("job", text(&job["id"])), job);
        }
        for export in list(qmp.must("query-block-exports", json!({}))) {
            items.insert(("export", text(&export["id"])), export);
        }
        for mut node in list(qmp.must("query-named-block-nodes", json!({ "flat": true }))) {
            let name = text(&node["node-name"]);
            for (index, mut bitmap) in list(node["dirty-bitmaps"].take()).into_iter().enumerate() {
                bitmap["count"] = Value::Null;
                let own = bitmap["name"].as_str().map_or_else(|| index.to_string(), str::to_owned);
                items.insert(("bitmap", format!("{name}:{own}")), bitmap);
            }
            node["image"]["actual-size"] = Value::Null;
            if node["drv"] == "file" {
                // An image's file grows with its data.
                node["image"]["virtual-size"] = Value::Null;
            }
            items.insert(("node", name), node);
        }
        for (between, edges) in graph(&qmp.must("x-debug-query-block-graph", json!({}))) {
            items.insert(("edges", between), edges);
        }
        // qemu-storage-daemon knows neither of the two.
        let fdsets = qmp.execute("query-fdsets", json!({})).unwrap_or_default();
        for fdset in list(fdsets) {
            items.insert(("fdset", fdset["fdset-id"].to_string()), fdset);
        }
        if let Ok(status) = qmp.execute("query-status", json!({})) {
            items.insert(("status", text(&status["status"])), status);
        }
        if machine.flavor().libvirt().is_some() {
            // What libvirt knows of it, which may be more than QEMU does.
            for checkpoint in machine.domain().virsh("checkpoint-list", &["--name"]).success().split_whitespace() {
                items.insert(("checkpoint", checkpoint.to_owned()), Value::Null);
            }
            let backup = machine.domain().virsh("backup-dumpxml", &[]);
            if backup.code == Some(0) {
                items.insert(("backup", "libvirt's".to_owned()), json!(backup.stdout));
            }
        }
        // No command tells whether the NBD server runs; a second one cannot be started.
        let probe = machine.dir().join("probe.nbd");
        let address = json!({"addr": {"type": "unix", "data": {"path": probe}}});
        match qmp.execute("nbd-server-start", address) {
            Ok(_) => {
                // libvirt stops the server at the end of a backup, a moment after it said so, and whoever has started it.
                let stopped = qmp.execute("nbd-server-stop", json!({}));
                assert!(stopped.is_ok() || machine.flavor().libvirt().is_some(), "{stopped:?}");
                let _ = std::fs::remove_file(&probe);
            }
            Err(e) => {
                assert!(e.to_string().contains("already running"), "{e:#}");
                items.insert(("server", "NBD".to_owned()), Value::Null);
            }
        }
        Self { items }
    }

    /// Asks the machine until it holds this and nothing else; panics after `limit` with what is too much or missing.
    #[track_caller]
    pub fn come_back(&self, machine: &Machine, limit: Duration) {
        let end = Instant::now() + limit;
        loop {
            let changes = self.changes(&Self::of(machine));
            if changes.is_empty() {
                return;
            }
            assert!(Instant::now() < end, "not within {limit:?} as it was before:\n{}", changes.join("\n"));
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// What another look found more, less or different.
    pub fn changes(&self, later: &Self) -> Vec<String> {
        let only = |mark: char, one: &Self, other: &Self| -> Vec<String> {
            let different = one.items.iter().filter(|(key, value)| other.items.get(*key) != Some(*value));
            different.map(|((kind, name), value)| format!("{mark} {kind} {name} {value}")).collect()
        };
        [only('-', self, later), only('+', later, self)].concat()
    }

    /// Whether any block job runs.
    pub fn any_job(&self) -> bool {
        self.items.keys().any(|(kind, _)| *kind == "job")
    }

    /// The names of all jobs, exports, nodes and bitmaps that begin with `prefix`.
    pub fn of_prefix(&self, prefix: &str) -> Vec<&String> {
        let named = self.items.keys().filter(|(kind, _)| ["job", "export", "node", "bitmap"].contains(kind));
        named.map(|(_, name)| name).filter(|name| name.starts_with(prefix)).collect()
    }
}

impl fmt::Debug for Leftovers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.items.iter().try_for_each(|((kind, name), value)| writeln!(f, "{kind} {name} {value}"))
    }
}

/// The edges of the block graph with their permissions, by parent and child.
fn graph(answer: &Value) -> BTreeMap<String, Value> {
    let names: BTreeMap<u64, &str> = answer["nodes"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|node| Some((node["id"].as_u64()?, node["name"].as_str()?)))
        .collect();
    let name = |id: &Value| id.as_u64().and_then(|id| names.get(&id)).copied().unwrap_or("?");
    let mut edges: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for mut edge in list(answer["edges"].clone()) {
        let between = format!("{} -> {}", name(&edge["parent"]), name(&edge["child"]));
        // Numbers of this answer alone.
        (edge["parent"], edge["child"]) = (Value::Null, Value::Null);
        edges.entry(between).or_default().push(edge.to_string());
    }
    for several in edges.values_mut() {
        several.sort();
    }
    edges.into_iter().map(|(between, edges)| (between, json!(edges))).collect()
}

fn list(answer: Value) -> Vec<Value> {
    match answer {
        Value::Array(items) => items,
        _ => Vec::new(),
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
