//! The disks and checkpoints of a machine, from what QEMU tells of its devices and block nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::json;

use super::bitmaps;
use super::graph::{Graph, Node};
use super::ids::PREFIX;
use super::transport::Qmp;
use crate::error::{Error, Kind, Result};
use crate::tree::name;
use crate::vm::{Disk, Inventory, Skipped, SkippedKind};

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

/// Most devices, or images of a storage daemon, that are looked at. A guest has places for some thousands of disks.
const MAX_DEVICES: usize = 4096;

/// Most bitmaps that are looked at, those of a shared backing image once for each disk on it: what fits into QEMU's
/// answer a few times over.
const MAX_BITMAPS: usize = 1 << 20;

/// Most checkpoints, counted once for each disk: four times 64 disks with 1,000 each.
const MAX_CHECKPOINTS: usize = 1 << 18;

/// The largest size that a file can have (`loff_t`), in bytes.
const MAX_SIZE: u64 = i64::MAX.unsigned_abs();

/// `BlockInfo` of qapi/block-core.json, with the fields that are needed here.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Device {
    pub(super) device: String,
    pub(super) qdev: Option<String>,
    pub(super) inserted: Option<Inserted>,
    io_status: Option<String>,
}

impl Device {
    /// What no other has: its QOM path or id, or that of its backend.
    pub(super) fn name(&self) -> &str {
        self.qdev.as_deref().unwrap_or(&self.device)
    }

    /// Whether a request failed so that it waits for the guest to go on.
    pub(super) fn has_failed(&self) -> bool {
        self.io_status.as_deref().is_some_and(|status| status != "ok")
    }
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
#[derive(Debug)]
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
    assemble(&devices, &graph, only)
}

/// What QEMU told, as an inventory. Work and memory are bounded whatever it told.
///
/// # Errors
/// [`Kind::TooLarge`].
pub(super) fn assemble(devices: &[Device], graph: &Graph, only: Option<&BTreeSet<String>>) -> Result<Found> {
    within(devices.len().max(graph.tops().take(MAX_DEVICES + 1).count()), MAX_DEVICES, "disks")?;
    let candidates = if devices.is_empty() { storage_daemon(graph) } else { guest(devices, graph) };
    let mut found = Found { inventory: Inventory::default(), qdevs: BTreeMap::new() };
    let mut taken = BTreeSet::new();
    let mut bitmaps = 0;
    for candidate in candidates {
        let skip = |reason: &str| {
            let (kind, name) = (SkippedKind::Disk, candidate.name.clone());
            Skipped { kind, name, reason: reason.to_owned() }
        };
        let reason = match candidate.root {
            _ if only.is_some_and(|only| !only.contains(&candidate.name)) => Some("left out by the option disks="),
            None => Some("there is no medium in it"),
            Some(root) if root.ro => Some("it is read-only"),
            Some(root) if root.image.virtual_size > MAX_SIZE => Some("no file can be as large as it says it is"),
            Some(_) if !taken.insert(candidate.name.clone()) => Some("another disk has the same name"),
            Some(_) => name::check(&candidate.name).err(),
        };
        match (reason, candidate.root) {
            (Some(reason), _) => found.inventory.skipped.push(skip(reason)),
            (None, None) => {}
            (None, Some(root)) => {
                let layers = graph.layers(root);
                bitmaps += layers.iter().flatten().map(|node| node.dirty_bitmaps.len()).sum::<usize>();
                within(bitmaps, MAX_BITMAPS, "dirty bitmaps")?;
                let disk = disk(&candidate.name, root, &layers, &mut found.inventory.skipped);
                if let Some(qdev) = candidate.qdev {
                    found.qdevs.insert(disk.name.clone(), qdev.to_owned());
                }
                found.inventory.disks.push(disk);
            }
        }
    }
    let disks = &mut found.inventory.disks;
    let checkpoints: BTreeSet<&str> = disks.iter().flat_map(|disk| disk.bitmaps.keys().map(|name| &**name)).collect();
    within(checkpoints.len() * disks.len(), MAX_CHECKPOINTS, "checkpoints on its disks")?;
    bitmaps::complete(disks);
    Ok(found)
}

fn within(count: usize, most: usize, what: &str) -> Result<()> {
    if count > most {
        return Err(Error::new(Kind::TooLarge, format!("this machine tells of more than {most} {what}")));
    }
    Ok(())
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
            Candidate { name: device_name(device, root.map(|root| graph.image(root))), qdev, root }
        })
        .collect()
}

/// The images of a storage daemon: what nothing but filters stands on, and is no bare file and no scratch of ours.
fn storage_daemon(graph: &Graph) -> Vec<Candidate<'_>> {
    let mut found: BTreeMap<&str, &Node> = BTreeMap::new();
    for top in graph.tops() {
        let image = graph.image(top);
        let name = image.node_name.as_str();
        if !PROTOCOLS.contains(&image.drv.as_str()) && !name.starts_with(PREFIX) && !name.starts_with('#') {
            found.entry(name).or_insert(top);
        }
    }
    found.into_iter().map(|(name, top)| Candidate { name: name.to_owned(), qdev: None, root: Some(top) }).collect()
}

/// The name the user knows: the drive's id, else the device's id, else that of the image's node.
fn device_name(device: &Device, image: Option<&Node>) -> String {
    if !device.device.is_empty() {
        return device.device.clone();
    }
    let qdev = device.qdev.as_deref().unwrap_or_default();
    if let Some(rest) = qdev.strip_prefix("/machine/peripheral/") {
        return rest.split('/').next().unwrap_or(rest).to_owned();
    }
    match image {
        _ if !qdev.is_empty() && !qdev.starts_with('/') => qdev.to_owned(),
        Some(image) if !image.node_name.starts_with('#') => image.node_name.clone(),
        _ => qdev.trim_start_matches("/machine/").replace('/', "-"),
    }
}

fn disk(name: &str, root: &Node, layers: &[Vec<&Node>], skipped: &mut Vec<Skipped>) -> Disk {
    let image = layers.first().and_then(|layer| layer.last()).copied().unwrap_or(root);
    let stored = layers.iter().flatten().filter_map(|node| node.image.actual_size);
    let allocated = stored.fold(0, u64::saturating_add);
    Disk {
        name: name.into(),
        node: root.node_name.clone(),
        format: image.drv.clone(),
        size: root.image.virtual_size,
        allocated,
        bitmap_node: image.node_name.clone(),
        image: image.image.filename.clone(),
        keeps_bitmaps: image.keeps_bitmaps(),
        bitmaps: bitmaps::checkpoints(name, layers, skipped),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A machine with so many disks on one image, which has so many bitmaps.
    fn machine(disks: usize, bitmaps: usize) -> (Vec<Device>, Graph) {
        let bitmap =
            |n: usize| json!({"name": n.to_string(), "count": 0, "granularity": 512, "recording": true, "busy": false});
        let node = |name: &str, bitmaps: Vec<Value>| json!({"node-name": name, "drv": "qcow2", "image": {"virtual-size": 512}, "dirty-bitmaps": bitmaps});
        let device = |n: usize| json!({"device": format!("d{n}"), "qdev": format!("q{n}"), "inserted": {"node-name": format!("n{n}")}});
        let mut nodes = vec![node("base", (0..bitmaps).map(bitmap).collect())];
        let mut edges = Vec::new();
        let mut named = vec![json!({"id": 0, "name": "base", "type": "block-driver"})];
        for n in 0..disks {
            let name = format!("n{n}");
            nodes.push(node(&name, vec![bitmap(n)]));
            named.push(json!({"id": n + 1, "name": name, "type": "block-driver"}));
            edges.push(json!({"parent": n + 1, "child": 0, "name": "backing"}));
        }
        let devices = serde_json::from_value((0..disks).map(device).collect()).unwrap();
        (devices, Graph::parse(Value::Array(nodes), json!({"nodes": named, "edges": edges})).unwrap())
    }

    fn found(disks: usize, bitmaps: usize) -> Result<Found> {
        let (devices, graph) = machine(disks, bitmaps);
        assemble(&devices, &graph, None)
    }

    #[test]
    fn a_large_machine_is_listed_and_an_impossible_one_is_not() {
        let large = found(64, 1000).unwrap().inventory;
        assert_eq!((large.disks.len(), large.disks[7].bitmaps.len()), (64, 64));
        for (disks, bitmaps, what) in [(5000, 0, "disks"), (1000, 2000, "bitmaps"), (1000, 0, "checkpoints")] {
            let error = found(disks, bitmaps).unwrap_err();
            assert_eq!(error.kind(), Kind::TooLarge);
            assert!(error.to_string().contains(what), "{error}");
        }
    }
}
