//! The disks and checkpoints of a machine, from what QEMU tells of its devices and block nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::json;

use super::graph::{DirtyBitmap, Graph, Node};
use super::ids::PREFIX;
use super::transport::Qmp;
use crate::error::Result;
use crate::tree::name;
use crate::vm::{Bitmap, Disk, Inventory, Skipped};

/// Drivers of nodes that hold a file or a connection, not an image (QEMU block/*.c, `protocol_name`).
const PROTOCOLS: [&str; 18] = [
    "file",
    "host_device",
    "host_cdrom",
    "nbd",
    "nfs",
    "ssh",
    "iscsi",
    "rbd",
    "gluster",
    "http",
    "https",
    "ftp",
    "ftps",
    "curl",
    "null-co",
    "null-aio",
    "nvme",
    "io_uring",
];

/// `BlockInfo` of qapi/block-core.json, with the fields that are needed here.
#[derive(Debug, Deserialize)]
pub(super) struct Device {
    pub(super) device: String,
    pub(super) qdev: Option<String>,
    pub(super) inserted: Option<Inserted>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Inserted {
    pub(super) node_name: Option<String>,
}

/// A disk under the name that the user may give in `disks=`.
struct Candidate<'a> {
    name: String,
    /// QOM path or id of the guest's device; none in a storage daemon.
    qdev: Option<&'a str>,
    root: Option<&'a Node>,
}

/// What is found, and where the guest's devices are.
pub(super) struct Found {
    pub(super) inventory: Inventory,
    /// Disk name → QOM path or id of the guest's device.
    pub(super) qdevs: BTreeMap<Arc<str>, String>,
}

/// Asks QEMU; `only` are the names of the mount option `disks=`, none for all.
///
/// # Errors
/// When QEMU does not answer, or in a way that is not understood.
pub(super) async fn query(qmp: &Qmp, only: Option<&BTreeSet<String>>) -> Result<Found> {
    let devices: Vec<Device> = super::understand("query-block", qmp.execute("query-block", json!({})).await?)?;
    let graph = Graph::query(qmp).await?;
    Ok(assemble(&devices, &graph, only))
}

fn assemble(devices: &[Device], graph: &Graph, only: Option<&BTreeSet<String>>) -> Found {
    let candidates = if devices.is_empty() { storage_daemon(graph) } else { guest(devices, graph) };
    let mut found = Found { inventory: Inventory::default(), qdevs: BTreeMap::new() };
    let mut taken = BTreeSet::new();
    for candidate in candidates {
        let skip = |reason: &str| Skipped { name: candidate.name.clone(), reason: reason.to_owned() };
        let reason = match candidate.root {
            _ if only.is_some_and(|only| !only.contains(&candidate.name)) => Some("left out by the option disks="),
            None => Some("there is no medium in it"),
            Some(root) if root.ro => Some("it is read-only"),
            Some(_) if !taken.insert(candidate.name.clone()) => Some("another disk has the same name"),
            Some(_) => name::check(&candidate.name).err(),
        };
        match (reason, candidate.root) {
            (Some(reason), _) => found.inventory.skipped.push(skip(reason)),
            (None, None) => {}
            (None, Some(root)) => {
                let disk = disk(&candidate.name, root, graph, &mut found.inventory.skipped);
                if let Some(qdev) = candidate.qdev {
                    found.qdevs.insert(disk.name.clone(), qdev.to_owned());
                }
                found.inventory.disks.push(disk);
            }
        }
    }
    found
}

/// The guest's devices; firmware flash has no place on the guest's buses and is no disk.
fn guest<'a>(devices: &'a [Device], graph: &'a Graph) -> Vec<Candidate<'a>> {
    devices
        .iter()
        .filter(|device| device.qdev.as_deref().is_some_and(|qdev| !qdev.starts_with("/machine/system.flash")))
        .map(|device| {
            let qdev = device.qdev.as_deref();
            let inserted = device.inserted.as_ref();
            let by_edge = qdev.and_then(|qdev| graph.root(qdev)).or_else(|| graph.root(&device.device));
            let by_name = || graph.node(inserted?.node_name.as_deref()?);
            let root = inserted.and_then(|_| by_edge.or_else(by_name));
            Candidate { name: device_name(device, root), qdev, root }
        })
        .collect()
}

/// The images of a storage daemon: what nothing stands on and is no bare file. What a backup put there is not one.
fn storage_daemon(graph: &Graph) -> Vec<Candidate<'_>> {
    let mut tops: Vec<&Node> = graph
        .tops()
        .filter(|node| !PROTOCOLS.contains(&node.drv.as_str()) && node.drv != "snapshot-access")
        .filter(|node| !node.node_name.starts_with(PREFIX) && !node.node_name.starts_with('#'))
        .collect();
    tops.sort_by(|a, b| a.node_name.cmp(&b.node_name));
    tops.into_iter().map(|node| Candidate { name: node.node_name.clone(), qdev: None, root: Some(node) }).collect()
}

/// The name the user knows: the drive's id, else the device's id, else the node's.
fn device_name(device: &Device, root: Option<&Node>) -> String {
    if !device.device.is_empty() {
        return device.device.clone();
    }
    let qdev = device.qdev.as_deref().unwrap_or_default();
    if let Some(rest) = qdev.strip_prefix("/machine/peripheral/") {
        return rest.split('/').next().unwrap_or(rest).to_owned();
    }
    match root {
        _ if !qdev.is_empty() && !qdev.starts_with('/') => qdev.to_owned(),
        Some(root) if !root.node_name.starts_with('#') => root.node_name.clone(),
        _ => qdev.trim_start_matches("/machine/").replace('/', "-"),
    }
}

fn disk(name: &str, root: &Node, graph: &Graph, skipped: &mut Vec<Skipped>) -> Disk {
    let layers = graph.layers(root);
    let image = layers.first().and_then(|layer| layer.last()).unwrap_or(&root);
    let allocated = layers.iter().flatten().filter_map(|node| node.image.actual_size).sum();
    let mut bitmaps = BTreeMap::new();
    for (checkpoint, parts) in by_name(&layers) {
        match name::check(checkpoint) {
            Ok(()) => {
                bitmaps.insert(Arc::from(checkpoint), bitmap(&parts));
            }
            Err(reason) => {
                skipped.push(Skipped { name: format!("bitmap {checkpoint:?} of {name}"), reason: reason.to_owned() });
            }
        }
    }
    Disk {
        name: name.into(),
        node: root.node_name.clone(),
        format: image.drv.clone(),
        size: root.image.virtual_size,
        allocated,
        bitmaps,
    }
}

/// A bitmap on one node of a disk.
struct Part<'a> {
    layer: usize,
    node: &'a str,
    bitmap: &'a DirtyBitmap,
}

fn by_name<'a>(layers: &[Vec<&'a Node>]) -> BTreeMap<&'a str, Vec<Part<'a>>> {
    let mut names: BTreeMap<&str, Vec<Part<'_>>> = BTreeMap::new();
    for (layer, nodes) in layers.iter().enumerate() {
        for node in nodes {
            for bitmap in &node.dirty_bitmaps {
                // The filters of backups have bitmaps without a name.
                if let Some(name) = bitmap.name.as_deref() {
                    names.entry(name).or_default().push(Part { layer, node: &node.node_name, bitmap });
                }
            }
        }
    }
    names
}

/// "Since X" is the OR of the bitmaps named X from the active layer down. It can be told only if the active layer
/// still records: what changed after recording stopped is nowhere.
fn bitmap(parts: &[Part<'_>]) -> Bitmap {
    let recording = parts.iter().any(|part| part.layer == 0 && part.bitmap.recording);
    let inconsistent = parts.iter().any(|part| part.bitmap.inconsistent);
    let unusable = if inconsistent {
        Some("QEMU lost this bitmap in a crash; take a full backup and a new checkpoint")
    } else if !recording {
        Some("it no longer records changes on this disk; take a full backup and a new checkpoint")
    } else if parts.iter().any(|part| part.bitmap.busy) {
        Some("another operation of QEMU is using this bitmap; try again when it is done")
    } else {
        None
    };
    Bitmap {
        dirty_bytes: parts.iter().map(|part| part.bitmap.count).fold(0, u64::saturating_add),
        granularity: parts.iter().map(|part| part.bitmap.granularity).max().unwrap_or(0),
        recording,
        persistent: parts.iter().all(|part| part.bitmap.persistent),
        inconsistent,
        unusable: unusable.map(str::to_owned),
        parts: parts.iter().map(|part| (part.node.to_owned(), part.bitmap.recording)).collect(),
    }
}
