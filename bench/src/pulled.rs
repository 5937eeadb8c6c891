//! What scripts do with nothing but QEMU's tools: a pull backup by hand, `qemu-img map` of its dirty bitmap, and a copy of
//! each run of it.
//!
//! The point in time is taken as libvirt takes it: a scratch image in front of the disk, a backup job of `sync=none`, and
//! an NBD export with a frozen copy of the bitmap.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use pullfs_tests::process::run_within;
use pullfs_tests::tools::tool;
use serde_json::{Value, json};

use crate::process::{LIMIT, limited, sync, timed};
use crate::vm::{Vm, inserted};

/// The names of what is made in QEMU: the scratch image's node, the job, the export and the bitmap's copy.
const NAME: &str = "bench-pull";

/// For jobs and exports to end.
const END_LIMIT: Duration = Duration::from_secs(60);

/// Copies to a qcow2 image what changed since `bitmap`; its backing file is an export that is gone.
#[track_caller]
pub(crate) fn increment(vm: &dyn Vm, bitmap: &str, copy: &Path) {
    let dir = tempfile::Builder::new().prefix("pullfs-bench-").tempdir_in("/var/tmp").expect("a directory");
    let disk = inserted(vm);
    let (node, size) = (&disk["node-name"], disk["image"]["virtual-size"].as_u64().expect("a size"));
    let (scratch, socket) = (dir.path().join("scratch"), dir.path().join("nbd"));
    timed(tool("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&scratch).arg(size.to_string()));
    begin(vm, node, bitmap, &scratch);
    let address = json!({"type": "unix", "data": {"path": socket}});
    vm.qmp().must("nbd-server-start", json!({ "addr": address }));
    let bitmaps = json!([{"node": node, "name": NAME}]);
    let export = json!({"type": "nbd", "id": NAME, "node-name": NAME, "name": NAME, "bitmaps": bitmaps});
    vm.qmp().must("block-export-add", export);

    let options = format!(
        "driver=nbd,export={NAME},server.type=unix,server.path={},x-dirty-bitmap=qemu:dirty-bitmap:{NAME}",
        socket.display()
    );
    let mut map = tool("qemu-img");
    let map = run_within(map.args(["map", "--output=json", "--image-opts", &options]), LIMIT).success();
    let mut create = tool("qemu-img");
    create.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]);
    timed(create.arg(format!("nbd+unix:///{NAME}?socket={}", socket.display())).arg(copy));
    let commands = dir.path().join("commands");
    fs::write(&commands, reads(&map)).expect("the commands");
    let mut reader = limited(tool("qemu-io").args(["-C", "-f", "qcow2"]).arg(copy));
    let status = reader.stdin(File::open(&commands).expect("the commands")).status().expect("qemu-io");
    assert!(status.success(), "qemu-io: {status}");
    sync(copy);
    end(vm, node);
}

/// Reads of what a map calls dirty: under `x-dirty-bitmap` that is what holds no data.
#[track_caller]
fn reads(map: &str) -> String {
    let extents: Vec<Value> = serde_json::from_str(map).unwrap_or_else(|e| panic!("qemu-img map: {e}\n{map}"));
    let mut commands = String::new();
    for extent in extents.iter().filter(|extent| extent["data"] == false) {
        let _ = writeln!(commands, "read -q {} {}", extent["start"], extent["length"]);
    }
    commands
}

#[track_caller]
fn begin(vm: &dyn Vm, node: &Value, bitmap: &str, scratch: &Path) {
    let file = json!({"driver": "file", "filename": scratch});
    let mut qmp = vm.qmp();
    qmp.must("blockdev-add", json!({"driver": "qcow2", "node-name": NAME, "backing": node, "file": file}));
    let actions = json!([
        {"type": "block-dirty-bitmap-add", "data": {"node": node, "name": NAME, "disabled": true}},
        {"type": "block-dirty-bitmap-merge", "data": {"node": node, "target": NAME, "bitmaps": [bitmap]}},
        {"type": "blockdev-backup", "data": {"job-id": NAME, "device": node, "target": NAME, "sync": "none"}},
    ]);
    qmp.must("transaction", json!({ "actions": actions }));
}

#[track_caller]
fn end(vm: &dyn Vm, node: &Value) {
    let mut qmp = vm.qmp();
    qmp.must("nbd-server-stop", json!({}));
    qmp.wait_event("BLOCK_EXPORT_DELETED", END_LIMIT, |data| data["id"] == NAME);
    qmp.must("job-cancel", json!({ "id": NAME }));
    qmp.wait_event("JOB_STATUS_CHANGE", END_LIMIT, |data| data["id"] == NAME && data["status"] == "null");
    qmp.must("blockdev-del", json!({ "node-name": NAME }));
    qmp.must("block-dirty-bitmap-remove", json!({"node": node, "name": NAME}));
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_holds_no_data_is_dirty() {
        let map = r#"[{"start": 0, "length": 65536, "data": false}, {"start": 65536, "length": 7, "data": true}]"#;
        assert_eq!(super::reads(map), "read -q 0 65536\n");
    }
}
