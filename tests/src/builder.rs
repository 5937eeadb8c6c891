//! What a machine is to be, and its start.

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::disk::Disk;
use crate::flavor::Flavor;
use crate::machine::Machine;
use crate::network::{self, Network};
use crate::process::{Running, wait_until};
use crate::qmp::Qmp;
use crate::tools;

/// QEMU 7.2 under TCG on a busy machine takes a while to its first greeting.
const START_LIMIT: Duration = Duration::from_secs(60);

/// The processor's instruction to halt, for good where interrupts are off.
const HLT: u8 = 0xf4;

/// What a machine is to be.
#[derive(Debug)]
pub struct Builder {
    pub(crate) flavor: Flavor,
    pub(crate) dir: TempDir,
    pub(crate) disks: Vec<Disk>,
    iothread: bool,
    scsi: bool,
    namespace: Option<String>,
    arguments: Vec<String>,
}

impl Builder {
    pub(crate) fn new(flavor: Flavor) -> Self {
        let dir = tempfile::Builder::new().prefix("pullfs-test-").tempdir().expect("a temporary directory");
        Self { flavor, dir, disks: Vec::new(), iothread: false, scsi: false, namespace: None, arguments: Vec::new() }
    }

    /// Adds a disk, and makes its image unless it has one.
    #[must_use]
    pub fn disk(mut self, mut disk: Disk) -> Self {
        disk.create_in(self.dir.path());
        self.disks.push(disk);
        self
    }

    /// Gives every disk one common iothread.
    #[must_use]
    pub fn iothread(mut self) -> Self {
        self.iothread = true;
        self
    }

    /// Puts the disks on a SCSI controller, which has places for more of them than a PCI bus. Only a guest writes to those.
    #[must_use]
    pub fn scsi(mut self) -> Self {
        self.scsi = true;
        self
    }

    /// Lets the machine live at the far end of a network.
    #[must_use]
    pub fn behind(mut self, network: &Network) -> Self {
        self.namespace = Some(network.namespace().to_owned());
        self
    }

    /// Further arguments of the command line.
    #[must_use]
    pub fn arguments(mut self, arguments: &[String]) -> Self {
        self.arguments.extend_from_slice(arguments);
        self
    }

    /// Starts the machine, and returns when it answers on the test's own QMP socket.
    #[track_caller]
    pub fn start(self) -> Machine {
        let (server, qmp) = self.launch();
        Machine::running(server, qmp, self)
    }

    /// Starts the program that holds the disks, for the first time or again.
    #[track_caller]
    pub(crate) fn launch(&self) -> (Running, Qmp) {
        let (pull, control) = (self.dir.path().join("pull.qmp"), self.dir.path().join("ctl.qmp"));
        // The limit of the system is 108 bytes; QEMU's error for a longer path is hard to find.
        assert!(pull.as_os_str().len() < 100, "TMPDIR is too long for sockets");
        for socket in [&pull, &control] {
            // A program that was killed has left them.
            let _ = std::fs::remove_file(socket);
        }
        let mut command = match self.flavor {
            Flavor::Daemon => self.daemon(&[&pull, &control]),
            Flavor::New | Flavor::Old => self.system(&[&pull, &control]),
        };
        command.args(&self.arguments);
        if let Some(namespace) = &self.namespace {
            command = inside(namespace, &command);
        }
        let mut server = Running::start(&command, &self.dir.path().join("machine.log"));
        wait_until("the machine's QMP socket", START_LIMIT, || {
            server.check();
            control.exists()
        });
        let qmp = Qmp::connect(&control, START_LIMIT).unwrap_or_else(|e| panic!("{e:#}\n{}", server.log()));
        (server, qmp)
    }

    fn system(&self, sockets: &[&PathBuf]) -> Command {
        let mut command = self.flavor.emulator();
        command.args(["-nodefaults", "-display", "none", "-accel", "tcg"]);
        for socket in sockets {
            command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", socket.display()));
        }
        if self.iothread {
            command.args(["-object", "iothread,id=io0"]);
        }
        if self.scsi {
            command.args(["-device", "virtio-scsi-pci"]);
        }
        for disk in &self.disks {
            command.arg("-blockdev").arg(disk.blockdev(&self.flavor.node(&disk.id)));
            let iothread = if self.iothread { ",iothread=io0" } else { "" };
            let node = self.flavor.node(&disk.id);
            let device = if self.scsi { "scsi-hd" } else { "virtio-blk-pci" };
            command.arg("-device").arg(format!("{device},id={},drive={node}{iothread}", disk.id));
        }
        if !self.arguments.iter().any(|argument| argument == "-kernel") {
            // Firmware that halts: the machine runs, as its users' machines do, and does nothing by itself.
            let firmware = self.dir.path().join("firmware");
            std::fs::write(&firmware, vec![HLT; 64 << 10]).expect("firmware");
            command.args(["-m", "64", "-bios"]).arg(firmware);
        }
        command
    }

    fn daemon(&self, sockets: &[&PathBuf]) -> Command {
        let mut command = tools::tool("qemu-storage-daemon");
        for disk in &self.disks {
            let node = self.flavor.node(&disk.id);
            let guest = self.dir.path().join(format!("{}.guest", disk.id));
            File::create(&guest).expect("a file to export over");
            command.arg("--blockdev").arg(disk.blockdev(&node));
            command.arg("--export").arg(format!(
                "type=fuse,id=guest-{},node-name={node},mountpoint={},writable=on",
                disk.id,
                guest.display()
            ));
        }
        // After the disks: where the socket answers, everything is there.
        for (index, socket) in sockets.iter().enumerate() {
            command.arg("--chardev").arg(format!("socket,id=c{index},path={},server=on,wait=off", socket.display()));
            command.arg("--monitor").arg(format!("chardev=c{index}"));
        }
        command
    }
}

/// The same command in a network namespace.
fn inside(namespace: &str, command: &Command) -> Command {
    let mut inside = network::entering(namespace, command.get_program());
    inside.args(command.get_args());
    for (key, value) in command.get_envs() {
        inside.env(key, value.unwrap_or_default());
    }
    inside
}
