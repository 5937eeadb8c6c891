//! QEMU's graph of block nodes: which node stands on which.
//!
//! From `x-debug-query-block-graph` (QEMU 4.0 and later; the edges, and the roots of devices) and
//! `query-named-block-nodes flat=true` (driver, image, bitmaps). No structure is guessed from file names.

use std::collections::{HashMap, HashSet};

use serde::Deserialize;
use serde_json::{Value, json};

use super::transport::Qmp;
use crate::error::{Error, Kind, Result};

/// Drivers that stand between a device and its image and have no data of their own (QEMU block/*.c, `is_filter`).
const FILTERS: [&str; 8] = [
    "copy-before-write",
    "snapshot-access",
    "copy-on-read",
    "throttle",
    "compress",
    "preallocate",
    "blkdebug",
    "blklogwrites",
];

/// Longest chain that is followed; QEMU itself refuses deeper ones long before.
const MAX_DEPTH: usize = 512;

/// A node, with the fields that are needed here.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Node {
    pub(super) node_name: String,
    pub(super) drv: String,
    #[serde(default)]
    pub(super) ro: bool,
    pub(super) image: Image,
    #[serde(default)]
    pub(super) dirty_bitmaps: Vec<DirtyBitmap>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Image {
    #[serde(default)]
    pub(super) filename: String,
    pub(super) virtual_size: u64,
    pub(super) actual_size: Option<u64>,
    #[serde(default)]
    format_specific: FormatSpecific,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct FormatSpecific {
    #[serde(default)]
    data: FormatData,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct FormatData {
    compat: Option<String>,
}

impl Node {
    /// Whether dirty bitmaps can be stored in the image: from qcow2 version 3 on (docs/interop/qcow2.txt).
    pub(super) fn keeps_bitmaps(&self) -> bool {
        self.drv == "qcow2" && self.image.format_specific.data.compat.as_deref() != Some("0.10")
    }
}

/// `BlockDirtyInfo` of qapi/block-core.json.
#[derive(Debug, Clone, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "QEMU tells them so")]
pub(super) struct DirtyBitmap {
    pub(super) name: Option<String>,
    pub(super) count: u64,
    pub(super) granularity: u32,
    pub(super) recording: bool,
    pub(super) busy: bool,
    #[serde(default)]
    pub(super) persistent: bool,
    #[serde(default)]
    pub(super) inconsistent: bool,
}

#[derive(Debug, Deserialize)]
struct RawGraph {
    nodes: Vec<RawNode>,
    edges: Vec<RawEdge>,
}

#[derive(Debug, Deserialize)]
struct RawNode {
    id: u64,
    name: String,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Debug, Deserialize)]
struct RawEdge {
    parent: u64,
    child: u64,
    name: String,
}

/// The graph at one moment.
#[derive(Debug, Default)]
pub(super) struct Graph {
    nodes: HashMap<String, Node>,
    /// Node name → edge name → child node name; of several edges of one name the first.
    children: HashMap<String, HashMap<String, String>>,
    /// Device (its id or QOM path) → root node name.
    roots: HashMap<String, String>,
    /// Names of the nodes that no other node stands on, in QEMU's order.
    tops: Vec<String>,
}

impl Graph {
    /// Asks QEMU.
    ///
    /// # Errors
    /// When QEMU does not answer, or in a way that is not understood.
    pub(super) async fn query(qmp: &Qmp) -> Result<Self> {
        let nodes = qmp.execute("query-named-block-nodes", json!({"flat": true})).await?;
        let edges = qmp.execute("x-debug-query-block-graph", json!({})).await?;
        Self::parse(nodes, edges)
    }

    pub(super) fn parse(nodes: Value, graph: Value) -> Result<Self> {
        let nodes: Vec<Node> = super::understand("query-named-block-nodes", nodes)?;
        let raw: RawGraph = super::understand("x-debug-query-block-graph", graph)?;
        let by_id: HashMap<u64, &RawNode> = raw.nodes.iter().map(|node| (node.id, node)).collect();
        let mut graph = Self::default();
        let mut stood_on = HashSet::new();
        for edge in &raw.edges {
            let (Some(parent), Some(child)) = (by_id.get(&edge.parent), by_id.get(&edge.child)) else {
                return Err(Error::new(Kind::Invalid, "QEMU's block graph has an edge without an end"));
            };
            if parent.kind == "block-driver" {
                stood_on.insert(child.name.as_str());
                let children = graph.children.entry(parent.name.clone()).or_default();
                children.entry(edge.name.clone()).or_insert_with(|| child.name.clone());
            } else if parent.kind == "block-backend" && edge.name == "root" {
                graph.roots.insert(parent.name.clone(), child.name.clone());
            }
        }
        graph.tops = raw
            .nodes
            .iter()
            .filter(|node| node.kind == "block-driver" && !stood_on.contains(node.name.as_str()))
            .map(|node| node.name.clone())
            .collect();
        graph.nodes = nodes.into_iter().map(|node| (node.node_name.clone(), node)).collect();
        Ok(graph)
    }

    pub(super) fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.get(name)
    }

    /// The node that a device (by id or QOM path) reads and writes.
    pub(super) fn root(&self, device: &str) -> Option<&Node> {
        self.node(self.roots.get(device)?)
    }

    /// Nodes that nothing stands on, leaving devices aside.
    pub(super) fn tops(&self) -> impl Iterator<Item = &Node> {
        self.tops.iter().filter_map(|name| self.node(name))
    }

    /// The image below a root: what is left when the filters on it, our own among them, are looked through.
    pub(super) fn image<'a>(&'a self, root: &'a Node) -> &'a Node {
        self.layers(root).first().and_then(|layer| layer.last()).copied().unwrap_or(root)
    }

    fn child(&self, parent: &Node, edges: &[&str]) -> Option<&Node> {
        let children = self.children.get(&parent.node_name)?;
        edges.iter().find_map(|edge| self.node(children.get(*edge)?))
    }

    /// The layers of a disk from its root down the backing chain. Filters belong to the layer below them; each layer
    /// is the list of its nodes, the one with the data last.
    pub(super) fn layers<'a>(&'a self, root: &'a Node) -> Vec<Vec<&'a Node>> {
        let mut layers = Vec::new();
        let mut layer = Vec::new();
        let mut next = Some(root);
        while let Some(node) = next.filter(|_| layers.len() + layer.len() < MAX_DEPTH) {
            layer.push(node);
            if FILTERS.contains(&node.drv.as_str()) {
                next = self.child(node, &["file", "backing"]);
            } else {
                layers.push(std::mem::take(&mut layer));
                next = self.child(node, &["backing"]);
            }
        }
        if !layer.is_empty() {
            layers.push(layer);
        }
        layers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, drv: &str) -> Value {
        json!({"node-name": name, "drv": drv, "ro": false, "unknown-field": [1],
               "image": {"virtual-size": 1 << 20, "actual-size": 4096, "filename": "x"}})
    }

    #[test]
    fn walks_filters_and_backing_files() {
        let nodes = json!([node("f", "throttle"), node("top", "qcow2"), node("base", "qcow2"), node("p", "file")]);
        let graph = json!({
            "nodes": [{"id": 1, "name": "/machine/peripheral/vda/virtio-backend", "type": "block-backend"},
                      {"id": 2, "name": "f", "type": "block-driver"}, {"id": 3, "name": "top", "type": "block-driver"},
                      {"id": 4, "name": "base", "type": "block-driver"}, {"id": 5, "name": "p", "type": "block-driver"}],
            "edges": [{"parent": 1, "child": 2, "name": "root"}, {"parent": 2, "child": 3, "name": "file"},
                      {"parent": 3, "child": 4, "name": "backing"}, {"parent": 3, "child": 5, "name": "file"}]});
        let graph = Graph::parse(nodes, graph).unwrap();
        let root = graph.root("/machine/peripheral/vda/virtio-backend").unwrap();
        let layers: Vec<Vec<&str>> =
            graph.layers(root).iter().map(|l| l.iter().map(|n| n.node_name.as_str()).collect()).collect();
        assert_eq!(layers, [vec!["f", "top"], vec!["base"]]);
        assert_eq!(graph.tops().map(|n| n.node_name.as_str()).collect::<Vec<_>>(), ["f"]);
    }

    #[test]
    fn an_edge_into_nothing_is_an_error() {
        let graph = json!({"nodes": [], "edges": [{"parent": 1, "child": 2, "name": "file"}]});
        assert_eq!(Graph::parse(json!([]), graph).unwrap_err().kind(), Kind::Invalid);
    }
}
