//! What can be backed up: a QEMU with one disk, whoever started it.

use std::cell::RefMut;
use std::path::Path;

use pullfs_tests::machine::Machine;
use pullfs_tests::qmp::Qmp;
use serde_json::{Value, json};

/// A QEMU with one disk, and a monitor for pullfs beside our own.
pub(crate) trait Vm {
    /// What pullfs mounts.
    fn source(&self) -> String;
    /// Our own monitor.
    fn qmp(&self) -> RefMut<'_, Qmp>;
    /// The disk's device, by which pullfs names the disk.
    fn disk(&self) -> &'static str;
    /// The disk's image.
    fn image(&self) -> &Path;
    /// Ends it in an orderly way: the image is complete then.
    fn quit(&mut self);
}

impl Vm for Machine {
    fn source(&self) -> String {
        Machine::source(self)
    }

    fn qmp(&self) -> RefMut<'_, Qmp> {
        Machine::qmp(self)
    }

    fn disk(&self) -> &'static str {
        "vda"
    }

    fn image(&self) -> &Path {
        Machine::image(self, self.disk())
    }

    fn quit(&mut self) {
        Machine::quit(self);
    }
}

/// What QEMU tells of the disk's active layer.
#[track_caller]
pub(crate) fn inserted(vm: &dyn Vm) -> Value {
    let devices = vm.qmp().must("query-block", json!({}));
    let path = format!("/machine/peripheral/{}/", vm.disk());
    let ours = |device: &&Value| device["qdev"].as_str().is_some_and(|qdev| qdev.starts_with(&path));
    let found = devices.as_array().into_iter().flatten().find(ours);
    found.map(|device| device["inserted"].clone()).expect("the disk")
}

/// The node of the disk's active layer.
#[track_caller]
pub(crate) fn node(vm: &dyn Vm) -> String {
    inserted(vm)["node-name"].as_str().expect("a node's name").to_owned()
}

/// Bytes that a dirty bitmap of the disk says have changed.
#[track_caller]
pub(crate) fn changed(vm: &dyn Vm, bitmap: &str) -> u64 {
    let disk = inserted(vm);
    let mut bitmaps = disk["dirty-bitmaps"].as_array().into_iter().flatten();
    let found = bitmaps.find(|found| found["name"] == bitmap).unwrap_or_else(|| panic!("no bitmap {bitmap}: {disk}"));
    found["count"].as_u64().expect("a count")
}

/// The guest writes; whether it did is seen by [`changed`].
#[track_caller]
pub(crate) fn write(vm: &dyn Vm, offset: u64, length: u64, pattern: u8) {
    let line = format!(
        "qemu-io -d /machine/peripheral/{}/virtio-backend \"write -q -P {pattern} {offset} {length}\"",
        vm.disk()
    );
    vm.qmp().must("human-monitor-command", json!({ "command-line": line }));
}
