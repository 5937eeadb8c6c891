//! External snapshots, as libvirt takes them: an overlay on each disk, in one transaction, with the same bitmaps.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::libvirt;
use crate::machine::Machine;
use crate::process::ok;
use crate::tools::tool;

/// Takes an external snapshot of disks. `tag` makes the names of the overlays; their clusters are of `cluster` bytes.
///
/// Every bitmap that records goes on under its name in the overlay. It is kept there as it was kept below: a persistent
/// bitmap over one that dies with QEMU would tell half of the truth after a restart, and nothing could tell which half.
/// libvirt takes those of its own domains, and lets persistent bitmaps alone go on.
#[track_caller]
pub fn external(machine: &mut Machine, ids: &[&str], tag: &str, cluster: u64) {
    if machine.flavor().libvirt().is_some() {
        return by_libvirt(machine, ids, tag, cluster);
    }
    let mut actions = Vec::new();
    let mut overlays = Vec::new();
    for &id in ids {
        let (base, node) = (machine.node(id), format!("{id}-{tag}"));
        let overlay = overlay(machine, id, tag, cluster);
        let file = json!({"driver": "file", "filename": overlay, "discard": "unmap"});
        machine.qmp().must(
            "blockdev-add",
            json!({"driver": "qcow2", "node-name": node, "backing": null, "discard": "unmap", "file": file}),
        );
        actions.push(json!({"type": "blockdev-snapshot", "data": {"node": base, "overlay": node}}));
        for bitmap in recording(machine, &base) {
            let data = json!({
                "node": node, "name": bitmap["name"], "granularity": bitmap["granularity"],
                "persistent": bitmap["persistent"],
            });
            actions.push(json!({"type": "block-dirty-bitmap-add", "data": data}));
        }
        overlays.push((id, node, overlay));
    }
    machine.qmp().must("transaction", json!({ "actions": actions }));
    for (id, node, overlay) in overlays {
        machine.overlaid(id, node, overlay);
    }
}

#[track_caller]
fn by_libvirt(machine: &mut Machine, ids: &[&str], tag: &str, cluster: u64) {
    let overlays: Vec<_> = ids.iter().map(|id| (*id, overlay(machine, id, tag, cluster))).collect();
    let others = machine.disks().filter(|disk| !ids.contains(disk)).map(|disk| (disk, None));
    let all: Vec<_> = overlays.iter().map(|(id, overlay)| (*id, Some(&**overlay))).chain(others).collect();
    machine.domain().snapshot(machine.dir(), &all);
    for (id, overlay) in overlays {
        let node = libvirt::node(&mut machine.qmp(), id);
        machine.overlaid(id, node, overlay);
    }
}

/// An empty overlay of a disk's active layer.
#[track_caller]
fn overlay(machine: &Machine, id: &str, tag: &str, cluster: u64) -> PathBuf {
    let overlay = machine.dir().join(format!("{id}-{tag}.qcow2"));
    let mut create = tool("qemu-img");
    create.args(["create", "-q", "-f", "qcow2", "-o", &format!("cluster_size={cluster}")]);
    ok(create.args(["-F", machine.format(id), "-b"]).arg(machine.image(id)).arg(&overlay));
    overlay
}

/// The named bitmaps of a node that can go on in an overlay.
#[track_caller]
fn recording(machine: &Machine, node: &str) -> Vec<Value> {
    let nodes = machine.qmp().must("query-named-block-nodes", json!({ "flat": true }));
    let all = nodes.as_array().expect("a list of nodes");
    let found = all.iter().find(|found| found["node-name"] == node).expect("the active layer");
    let bitmaps = found["dirty-bitmaps"].as_array().into_iter().flatten();
    let goes_on = |bitmap: &&Value| bitmap["name"].is_string() && bitmap["recording"] == true;
    bitmaps.filter(goes_on).filter(|bitmap| bitmap["inconsistent"] != true).cloned().collect()
}
