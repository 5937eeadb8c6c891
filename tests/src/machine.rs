//! Machines under test: QEMU 10, QEMU 7.2, qemu-storage-daemon and domains of libvirt's, with disks of known content.
//!
//! A machine of QEMU runs, but no guest on it (a [`crate::guest::Guest`] does): [`Machine::write`] and its kin go
//! through the device's own block backend, as a guest's requests do. In qemu-storage-daemon they go through a writable
//! FUSE export, which leaves the one NBD server of a process to pullfs. A domain of libvirt's is QEMU with a monitor of the
//! test's own; only what libvirt has to know of goes through it.

use std::cell::{RefCell, RefMut};
use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::process::Signal;
use serde_json::json;

use crate::builder::Builder;
use crate::disk::{CLUSTER, Disk};
use crate::flavor::Flavor;
use crate::libvirt::Domain;
use crate::mount::is_mounted;
use crate::process::{Running, ok};
use crate::qmp::Qmp;
use crate::tools;

/// 1 MiB.
pub const MIB: u64 = 1 << 20;

/// For what QEMU does at once, on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// A machine that runs until it is dropped.
#[derive(Debug)]
pub struct Machine {
    // Before the directory, so that no file goes while it is in use.
    server: Running,
    qmp: RefCell<Qmp>,
    spec: Builder,
}

impl Machine {
    /// Begins to describe a machine.
    pub fn build(flavor: Flavor) -> Builder {
        Builder::new(flavor)
    }

    /// Starts a small machine of two disks, one in each format where both can have checkpoints and one with an odd end, on which `monday` records what changes
    /// from now on.
    #[track_caller]
    pub fn of_two_disks(flavor: Flavor) -> Self {
        let machine = Self::build(flavor)
            .disk(Disk::qcow2("vda", 8 * MIB).filled(&[(0, MIB)]))
            .disk(Disk::with_checkpoints(flavor, "vdb", 4 * MIB + 512).filled(&[(MIB, MIB)]))
            .start();
        for id in ["vda", "vdb"] {
            machine.add_bitmap(id, "monday", CLUSTER);
        }
        machine
    }

    pub(crate) fn running(server: Running, qmp: Qmp, spec: Builder) -> Self {
        Self { server, qmp: RefCell::new(qmp), spec }
    }

    /// The source that pullfs mounts, with the [`Machine::options`] that it needs.
    pub fn source(&self) -> String {
        match &self.spec.domain {
            Some(domain) => format!("libvirt:{}", domain.name()),
            None => format!("qmp:{}", self.spec.dir.path().join("pull.qmp").display()),
        }
    }

    /// A mount's options, and those that the source needs.
    pub fn options(&self, options: &str) -> String {
        let uri = self.spec.domain.as_ref().map(|domain| format!("uri={}", domain.libvirtd().uri()));
        let options = Some(options.to_owned()).filter(|options| !options.is_empty());
        uri.into_iter().chain(options).collect::<Vec<_>>().join(",")
    }

    /// What libvirt knows of it.
    #[track_caller]
    pub fn domain(&self) -> &Domain {
        self.spec.domain.as_ref().expect("a domain of libvirt's")
    }

    /// The machine's own directory: a place for a test's files, gone with the machine.
    pub fn dir(&self) -> &Path {
        self.spec.dir.path()
    }

    /// The names of its disks.
    pub(crate) fn disks(&self) -> impl Iterator<Item = &str> {
        self.spec.disks.iter().map(|disk| &*disk.id)
    }

    /// What holds the disks.
    pub fn flavor(&self) -> Flavor {
        self.spec.flavor
    }

    /// The process that holds the disks.
    pub fn server(&mut self) -> &mut Running {
        &mut self.server
    }

    /// The test's own monitor.
    pub fn qmp(&self) -> RefMut<'_, Qmp> {
        self.qmp.borrow_mut()
    }

    /// The node of a disk's format driver, which is the active layer's.
    #[track_caller]
    pub fn node(&self, id: &str) -> String {
        self.disk(id).node.clone().unwrap_or_else(|| self.spec.flavor.node(id))
    }

    /// A disk's image.
    #[track_caller]
    pub fn image(&self, id: &str) -> &Path {
        self.disk(id).image()
    }

    /// A disk's format.
    #[track_caller]
    pub fn format(&self, id: &str) -> &'static str {
        self.disk(id).format
    }

    /// Starts to record changes of a disk in a bitmap, persistent where the format can keep it. libvirt is told that it is a
    /// checkpoint's.
    #[track_caller]
    pub fn add_bitmap(&self, id: &str, name: &str, granularity: u64) {
        let persistent = self.format(id) == "qcow2";
        let arguments =
            json!({"node": self.node(id), "name": name, "granularity": granularity, "persistent": persistent});
        self.qmp().must("block-dirty-bitmap-add", arguments);
        // libvirt has no checkpoints of disks that cannot keep a bitmap.
        if let Some(domain) = self.spec.domain.as_ref().filter(|_| persistent) {
            domain.note_checkpoint(self.dir(), name, id);
        }
    }

    /// The guest writes `length` bytes of `pattern`.
    #[track_caller]
    pub fn write(&self, id: &str, offset: u64, length: u64, pattern: u8) {
        match self.guest_file(id) {
            Some(file) => {
                let data = vec![pattern; usize::try_from(length).expect("a length that fits memory")];
                file.write_all_at(&data, offset).expect("writing through the export");
                file.sync_all().expect("flushing the export");
            }
            None => self.guest_io(id, &format!("write -P {pattern} {offset} {length}"), "wrote"),
        }
    }

    /// The guest writes these bytes.
    #[track_caller]
    pub fn write_bytes(&self, id: &str, offset: u64, bytes: &[u8]) {
        if let Some(file) = self.guest_file(id) {
            file.write_all_at(bytes, offset).expect("writing through the export");
            file.sync_all().expect("flushing the export");
        } else {
            let data = self.spec.dir.path().join("written");
            std::fs::write(&data, bytes).expect("what is written, in a file");
            self.guest_io(id, &format!("write -s {} {offset} {}", data.display(), bytes.len()), "wrote");
        }
    }

    /// The guest discards `length` bytes.
    #[track_caller]
    pub fn discard(&self, id: &str, offset: u64, length: u64) {
        match self.guest_file(id) {
            // The export takes whole clusters only; a device's discards are no finer as a rule.
            Some(file) => {
                let (start, end) = (offset.next_multiple_of(CLUSTER), (offset + length) / CLUSTER * CLUSTER);
                if start < end {
                    punch(&file, FallocateFlags::PUNCH_HOLE, start, end - start);
                }
            }
            None => self.guest_io(id, &format!("discard {offset} {length}"), "discard"),
        }
    }

    /// The guest asks for `length` bytes of zeroes, unmapped if the disk likes to.
    #[track_caller]
    pub fn write_zeroes(&self, id: &str, offset: u64, length: u64) {
        match self.guest_file(id) {
            Some(file) => punch(&file, FallocateFlags::ZERO_RANGE, offset, length),
            None => self.guest_io(id, &format!("write -z -u {offset} {length}"), "wrote"),
        }
    }

    /// Makes the disk's image, as a file, current.
    #[track_caller]
    pub fn flush(&self, id: &str) {
        match self.guest_file(id) {
            Some(file) => file.sync_all().expect("flushing the export"),
            // qemu-io says nothing about a flush, so its success is seen by what follows it.
            None => self.guest_io(id, "flush", ""),
        }
    }

    /// Copies a disk's present content to a raw file, with QEMU's own tool. The machine must not write meanwhile.
    #[track_caller]
    pub fn copy(&self, id: &str, name: &str) -> PathBuf {
        self.flush(id);
        let copy = self.spec.dir.path().join(name);
        let mut convert = tools::tool("qemu-img");
        convert.args(["convert", "-U", "-f", self.format(id), "-O", "raw"]);
        ok(convert.arg(self.image(id)).arg(&copy));
        copy
    }

    /// Somebody cancels the job that keeps a point in time, or with libvirt, which guards its jobs, the whole backup.
    #[track_caller]
    pub fn cancel_backup(&self) {
        if let Some(domain) = &self.spec.domain {
            domain.virsh("domjobabort", &[]).success();
            return;
        }
        let jobs = self.qmp().must("query-jobs", json!({}));
        self.qmp().must("job-cancel", json!({"id": jobs[0]["id"]}));
    }

    /// Does `work` while qemu-storage-daemon's writable export of a disk is away: it shares its node with no NBD export
    /// of the same node. Devices of QEMU do.
    #[track_caller]
    pub fn without_guest<R>(&self, id: &str, work: impl FnOnce() -> R) -> R {
        if self.spec.flavor != Flavor::Daemon {
            return work();
        }
        let export = format!("guest-{id}");
        self.qmp().must("block-export-del", json!({ "id": export }));
        let gone = |data: &serde_json::Value| data["id"] == export.as_str();
        self.qmp().wait_event("BLOCK_EXPORT_DELETED", LIMIT, gone);
        let result = work();
        let mountpoint = self.spec.dir.path().join(format!("{id}.guest"));
        let arguments = json!({
            "type": "fuse", "id": export, "node-name": self.node(id), "mountpoint": mountpoint, "writable": true,
        });
        self.qmp().must("block-export-add", arguments);
        result
    }

    /// Quits in an orderly way, which stores persistent bitmaps in their images; the directory stays.
    #[track_caller]
    pub fn quit(&mut self) {
        self.qmp().must("quit", json!({}));
        self.server.wait(LIMIT);
    }

    /// Ends without an orderly close, as in a power failure. What the guest flushed is in the images.
    #[track_caller]
    pub fn kill(&mut self) {
        self.server.signal(Signal::KILL);
        self.server.wait(LIMIT);
    }

    /// Starts again after its end, with the disks as they are.
    #[track_caller]
    pub fn restart(&mut self) {
        for disk in &mut self.spec.disks {
            // Nodes get their names from the command line again.
            disk.node = None;
        }
        let (server, qmp) = self.spec.launch();
        self.server = server;
        self.qmp = RefCell::new(qmp);
    }

    /// An overlay has become the active layer of a disk.
    #[track_caller]
    pub(crate) fn overlaid(&mut self, id: &str, node: String, image: PathBuf) {
        let disk = self.spec.disks.iter_mut().find(|disk| disk.id == id).expect("a disk");
        (disk.node, disk.image, disk.format) = (Some(node), Some(image), "qcow2");
    }

    /// Grows a disk, as the guest sees it at once.
    #[track_caller]
    pub fn resize(&self, id: &str, size: u64) {
        match &self.spec.domain {
            Some(domain) => drop(domain.virsh("blockresize", &[id, &format!("{size}B")]).success()),
            None => drop(self.qmp().must("block_resize", json!({"node-name": self.node(id), "size": size}))),
        }
    }

    #[track_caller]
    fn disk(&self, id: &str) -> &Disk {
        self.spec.disks.iter().find(|disk| disk.id == id).unwrap_or_else(|| panic!("no disk {id}"))
    }

    fn guest_file(&self, id: &str) -> Option<File> {
        let path = self.spec.dir.path().join(format!("{id}.guest"));
        let open = || OpenOptions::new().read(true).write(true).open(&path).expect("the FUSE export");
        (self.spec.flavor == Flavor::Daemon).then(open)
    }

    /// A guest's request by qemu-io. The reply to the monitor's command does not say how it went: the output does.
    #[track_caller]
    fn guest_io(&self, id: &str, command: &str, expected: &str) {
        let before = self.server.log_length();
        // libvirt allows a device no id that it might have chosen itself.
        let own = if self.spec.domain.is_some() { "ua-" } else { "" };
        let line = format!("qemu-io -d /machine/peripheral/{own}{id}/virtio-backend \"{command}\"");
        self.qmp().must("human-monitor-command", json!({ "command-line": line }));
        let said = self.server.log_since(before);
        // QEMU's own words, such as on an NBD client that went away, are not the command's.
        let said: Vec<&str> = said.lines().filter(|line| !line.contains("qemu-system")).collect();
        let said = said.join("\n");
        let fine = said.contains(expected) && !said.contains("failed") && !said.contains("rror");
        assert!(fine, "the guest's `{command}` on {id}: {said:?}");
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.server.stop();
        // A qemu-storage-daemon that had to be killed leaves its FUSE exports mounted.
        for disk in &self.spec.disks {
            let guest = self.spec.dir.path().join(format!("{}.guest", disk.id));
            let dead = std::fs::metadata(&guest).is_err_and(|e| e.kind() == ErrorKind::NotConnected);
            if dead || is_mounted(&guest) {
                let _ = Command::new("umount").arg("-l").arg(guest).status();
            }
        }
    }
}

fn punch(file: &File, how: FallocateFlags, offset: u64, length: u64) {
    let flags = how | FallocateFlags::KEEP_SIZE;
    fallocate(file, flags, offset, length).unwrap_or_else(|e| panic!("{how:?} through the export: {e}"));
    file.sync_all().expect("flushing the export");
}
