//! A domain of libvirt's: the QEMU that virtnbdbackup backs up, with a monitor for pullfs.

use std::cell::{RefCell, RefMut};
use std::path::{Path, PathBuf};
use std::time::Duration;

use pullfs_tests::disk::Disk;
use pullfs_tests::process::{run, wait_until};
use pullfs_tests::qmp::Qmp;
use pullfs_tests::tools::tool;
use serde_json::json;
use tempfile::TempDir;

use crate::libvirt::Libvirt;
use crate::vm::Vm;

/// For QEMU under TCG to answer, or to write what it has in memory and end.
const LIMIT: Duration = Duration::from_secs(60);

/// A domain that is paused before its first instruction, until it is dropped.
pub(crate) struct Domain<'a> {
    libvirt: &'a Libvirt,
    qmp: RefCell<Qmp>,
    image: PathBuf,
    dir: TempDir,
}

impl<'a> Domain<'a> {
    /// Its name.
    pub(crate) const NAME: &'static str = "bench";

    /// Makes a disk's image, and starts a domain with it. One at a time.
    #[track_caller]
    pub(crate) fn start(libvirt: &'a Libvirt, mut disk: Disk) -> Self {
        let dir = tempfile::Builder::new().prefix("pullfs-bench-").tempdir_in("/var/tmp").expect("a directory");
        disk.create_in(dir.path());
        let description = dir.path().join("domain.xml");
        std::fs::write(&description, describe(disk.image(), dir.path())).expect("the domain's description");
        // Checkpoints are for domains that libvirt keeps a description of.
        libvirt.virsh(&["define", &description.display().to_string()]);
        libvirt.virsh(&["start", "--paused", Self::NAME]);
        let qmp = Qmp::connect(&dir.path().join("ctl.qmp"), LIMIT).unwrap_or_else(|e| panic!("{e:#}"));
        Self { libvirt, qmp: RefCell::new(qmp), image: disk.image().to_owned(), dir }
    }
}

impl Vm for Domain<'_> {
    fn source(&self) -> String {
        format!("qmp:{}", self.dir.path().join("pull.qmp").display())
    }

    fn qmp(&self) -> RefMut<'_, Qmp> {
        self.qmp.borrow_mut()
    }

    fn disk(&self) -> &'static str {
        // libvirt's name for its first virtio disk.
        "virtio-disk0"
    }

    fn image(&self) -> &Path {
        &self.image
    }

    #[track_caller]
    fn quit(&mut self) {
        self.qmp().must("quit", json!({}));
        unlocked(&self.image);
    }
}

impl Drop for Domain<'_> {
    fn drop(&mut self) {
        for command in [["destroy", Self::NAME].as_slice(), &["undefine", Self::NAME, "--checkpoints-metadata"]] {
            // It may have ended, and whatever is left ends with libvirtd.
            let _ = run(&mut self.libvirt.command("virsh", command));
        }
    }
}

/// Waits until nobody writes an image any more.
#[track_caller]
pub(crate) fn unlocked(image: &Path) {
    let what = format!("{} to be let go of", image.display());
    wait_until(&what, LIMIT, || run(tool("qemu-img").arg("info").arg(image)).code == Some(0));
}

/// The domain for libvirt: nothing but a disk, and two monitors in `dir`.
fn describe(image: &Path, dir: &Path) -> String {
    let emulator = ["/usr/bin", "/usr/local/bin"].map(|dir| Path::new(dir).join("qemu-system-x86_64"));
    let emulator = emulator.iter().find(|path| path.exists()).unwrap_or(&emulator[0]);
    let monitors = ["pull.qmp", "ctl.qmp"].map(|name| {
        let socket = dir.join(name);
        format!("<qemu:arg value='-qmp'/><qemu:arg value='unix:{},server=on,wait=off'/>", socket.display())
    });
    format!(
        "<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
           <name>{name}</name>
           <memory unit='MiB'>64</memory>
           <vcpu>1</vcpu>
           <os><type arch='x86_64' machine='q35'>hvm</type></os>
           <features><acpi/></features>
           <devices>
             <emulator>{emulator}</emulator>
             <disk type='file' device='disk'>
               <driver name='qemu' type='qcow2' discard='unmap'/>
               <source file='{image}'/>
               <target dev='vda' bus='virtio'/>
             </disk>
             <controller type='usb' model='none'/>
             <memballoon model='none'/>
           </devices>
           <qemu:commandline>{monitors}</qemu:commandline>
         </domain>",
        name = Domain::NAME,
        emulator = emulator.display(),
        image = image.display(),
        monitors = monitors.concat(),
    )
}
