//! A point in time that is held by pullfs, and the export of it that pullfs itself reads.
//!
//! The peers read that very export: one server, one node, one job that keeps the old data. Each measurement has a mount of
//! its own, so that nothing that pullfs keeps of an earlier one helps it.

use std::path::Path;

use pullfs_tests::machine::Machine;
use pullfs_tests::mount::Mount;
use serde_json::json;

/// A mount with a point in time.
pub(crate) struct Held<'a> {
    pub(crate) mount: Mount,
    pub(crate) machine: &'a Machine,
}

impl<'a> Held<'a> {
    /// Mounts with defaults and begins.
    #[track_caller]
    pub(crate) fn of(machine: &'a Machine) -> Self {
        Self::with(machine, "")
    }

    /// Mounts with further options and begins.
    #[track_caller]
    pub(crate) fn with(machine: &'a Machine, options: &str) -> Self {
        let mount = Mount::with(machine, options);
        mount.command(&["begin"]).success();
        Self { mount, machine }
    }

    /// The URI of the export that pullfs reads of the machine's only disk.
    #[track_caller]
    pub(crate) fn uri(&self) -> String {
        let socket = Path::new("/run/pullfs").join(self.mount.id()).join("nbd.sock");
        format!("nbd+unix:///{}?socket={}", self.export("id"), socket.display())
    }

    /// The node that is exported.
    #[track_caller]
    pub(crate) fn node(&self) -> String {
        self.export("node-name")
    }

    #[track_caller]
    fn export(&self, field: &str) -> String {
        let exports = self.machine.qmp().must("query-block-exports", json!({}));
        let prefix = self.mount.id();
        let ours = exports.as_array().into_iter().flatten();
        let mut ours = ours.filter(|export| export["id"].as_str().is_some_and(|id| id.starts_with(&prefix)));
        let name = ours.next().and_then(|export| export[field].as_str()).expect("the export of pullfs");
        name.to_owned()
    }
}
