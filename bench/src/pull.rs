//! A pull backup with nothing but QEMU, as libvirt sets it up: the peer of a point in time.
//!
//! A backup job keeps old data in a qcow2 scratch image whose backing file is the live disk, and QEMU's NBD server exports
//! that image.

use std::path::PathBuf;
use std::time::Duration;

use pullfs_tests::machine::Machine;
use pullfs_tests::process::ok;
use pullfs_tests::tools::tool;
use serde_json::{Value, json};

/// For what QEMU ends in its own time, on a busy disk.
const LIMIT: Duration = Duration::from_secs(60);

/// Its job and its export.
const ID: &str = "bench-pull";
/// The node of the scratch image.
const SCRATCH: &str = "bench-scratch";

/// A pull backup of one disk, until its value is dropped.
pub(crate) struct Pull<'a> {
    machine: &'a Machine,
    scratch: PathBuf,
    socket: PathBuf,
}

impl<'a> Pull<'a> {
    /// Begins one of the disk `id`, which has so many bytes.
    #[track_caller]
    pub(crate) fn of(machine: &'a Machine, id: &str, size: u64) -> Self {
        let (scratch, socket) = (machine.dir().join("pull.qcow2"), machine.dir().join("pull.nbd"));
        ok(tool("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&scratch).arg(size.to_string()));
        let pull = Self { machine, scratch, socket };
        let node = machine.node(id);
        let file = json!({"driver": "file", "filename": pull.scratch});
        let steps = [
            ("blockdev-add", json!({"driver": "qcow2", "node-name": SCRATCH, "file": file, "backing": node})),
            ("blockdev-backup", json!({"job-id": ID, "device": node, "target": SCRATCH, "sync": "none"})),
            ("nbd-server-start", json!({"addr": {"type": "unix", "data": {"path": pull.socket}}})),
            ("block-export-add", json!({"type": "nbd", "id": ID, "node-name": SCRATCH, "name": ID})),
        ];
        for (command, arguments) in steps {
            machine.qmp().must(command, arguments);
        }
        pull
    }

    /// The URI of its export.
    pub(crate) fn uri(&self) -> String {
        format!("nbd+unix:///{ID}?socket={}", self.socket.display())
    }
}

impl Drop for Pull<'_> {
    fn drop(&mut self) {
        let mut qmp = self.machine.qmp();
        // A panic may have left the machine without an answer; what is left then goes with its process.
        if qmp.execute("block-export-del", json!({"id": ID, "mode": "hard"})).is_err() {
            return;
        }
        let gone = |data: &Value| data["id"] == ID || data["device"] == ID;
        qmp.wait_event("BLOCK_EXPORT_DELETED", LIMIT, gone);
        qmp.must("nbd-server-stop", json!({}));
        qmp.must("job-cancel", json!({ "id": ID }));
        qmp.wait_event("BLOCK_JOB_CANCELLED", LIMIT, gone);
        qmp.must("blockdev-del", json!({ "node-name": SCRATCH }));
        std::fs::remove_file(&self.scratch).expect("a scratch image");
    }
}
