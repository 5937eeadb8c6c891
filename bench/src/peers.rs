//! Those that show the same export as a file, or copy it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use pullfs_tests::machine::Machine;
use pullfs_tests::mount::is_mounted;
use pullfs_tests::process::{Running, wait_until};
use pullfs_tests::tools::tool;
use serde_json::json;
use tempfile::TempDir;

use crate::held::Held;
use crate::results::OURS;
use crate::work::sequential::{NBDFUSE, QEMU_FUSE};

/// For a file system to appear, or to go.
const LIMIT: Duration = Duration::from_secs(60);

/// nbdfuse with its defaults, over a socket of the same export.
struct Nbdfuse {
    server: Running,
    dir: TempDir,
}

impl Nbdfuse {
    #[track_caller]
    fn of(uri: &str) -> Self {
        let dir = mount_point();
        let mut command = tool("nbdfuse");
        command.arg("-r").arg(dir.path().join("mnt")).arg(uri);
        let mut server = Running::start(&command, &dir.path().join("log"));
        let peer = dir.path().join("mnt");
        wait_until("nbdfuse", LIMIT, || {
            server.check();
            is_mounted(&peer)
        });
        Self { server, dir }
    }

    fn disk(&self) -> PathBuf {
        self.dir.path().join("mnt/nbd")
    }

    fn pid(&self) -> u32 {
        self.server.pid()
    }
}

impl Drop for Nbdfuse {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.dir.path().join("mnt")).status();
    }
}

/// QEMU's own FUSE export of the same node, in the same process: nothing is between the two but the kernel.
struct QemuFuse<'a> {
    machine: &'a Machine,
    dir: TempDir,
}

/// Its id.
const EXPORT: &str = "bench-fuse";

impl<'a> QemuFuse<'a> {
    #[track_caller]
    fn of(held: &Held<'a>) -> Self {
        let dir = mount_point();
        File::create(dir.path().join("disk")).expect("a file to export over");
        let peer = Self { machine: held.machine, dir };
        let arguments = json!({
            "type": "fuse", "id": EXPORT, "node-name": held.node(), "mountpoint": peer.disk(), "writable": false,
        });
        peer.machine.qmp().must("block-export-add", arguments);
        peer
    }

    fn disk(&self) -> PathBuf {
        self.dir.path().join("disk")
    }
}

impl Drop for QemuFuse<'_> {
    fn drop(&mut self) {
        // A panic may have left the machine without an answer; what is left then goes with its process.
        if self.machine.qmp().execute("block-export-del", json!({ "id": EXPORT })).is_ok() {
            let gone = |data: &serde_json::Value| data["id"] == EXPORT;
            self.machine.qmp().wait_event("BLOCK_EXPORT_DELETED", LIMIT, gone);
        }
    }
}

/// Those that show a disk as a file, ourselves among them.
pub(crate) const FILE_SYSTEMS: [&str; 3] = [OURS, NBDFUSE, QEMU_FUSE];

/// Has one of [`FILE_SYSTEMS`] show a machine's disk, at a point in time and in a mount of its own: `work` is given the
/// file, and the file system's process. QEMU's export has none besides QEMU.
#[track_caller]
pub(crate) fn shown<R>(who: &str, machine: &Machine, work: impl FnOnce(&Path, Option<u32>) -> R) -> R {
    let held = Held::of(machine);
    match who {
        NBDFUSE => {
            let peer = Nbdfuse::of(&held.uri());
            work(&peer.disk(), Some(peer.pid()))
        }
        QEMU_FUSE => work(&QemuFuse::of(&held).disk(), None),
        _ => work(&held.mount.disk("vda"), Some(held.mount.pid())),
    }
}

/// A way to run nbdcopy.
pub(crate) struct Nbdcopy {
    pub(crate) name: &'static str,
    settings: &'static [&'static str],
}

/// nbdcopy as it is, and with the settings that were the fastest elsewhere: the best of them is what counts.
pub(crate) const NBDCOPY: [Nbdcopy; 3] = [
    Nbdcopy { name: "nbdcopy", settings: &[] },
    Nbdcopy { name: "nbdcopy, 1 connection × 16", settings: &["--connections=1", "--requests=16"] },
    Nbdcopy { name: "nbdcopy, 4 × 256 KiB", settings: &["--connections=4", "--requests=8", "--request-size=262144"] },
];

impl Nbdcopy {
    /// Copies an export to a file, or to `null:`.
    #[track_caller]
    pub(crate) fn command(&self, uri: &str, target: &Path) -> Command {
        let mut command = tool("nbdcopy");
        command.args(self.settings).arg(uri).arg(target);
        command
    }
}

/// `qemu-img convert` of an export to a raw file.
#[track_caller]
pub(crate) fn convert(uri: &str, target: &Path) -> Command {
    let mut command = tool("qemu-img");
    command.args(["convert", "-f", "raw", "-O", "raw", uri]).arg(target);
    command
}

/// `qemu-img convert` of an export of so many bytes to nowhere.
#[track_caller]
pub(crate) fn convert_to_null(uri: &str, size: u64) -> Command {
    let mut command = tool("qemu-img");
    command.args(["convert", "-n", "-f", "raw", uri, "--target-image-opts"]);
    command.arg(format!("driver=raw,file.driver=null-co,file.size={size}"));
    command
}

fn mount_point() -> TempDir {
    let dir = tempfile::Builder::new().prefix("pullfs-bench-").tempdir().expect("a temporary directory");
    std::fs::create_dir(dir.path().join("mnt")).expect("a directory");
    dir
}
