//! What a machine is to be, and its start.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;

use crate::disk::Disk;
use crate::flavor::Flavor;
use crate::libvirt::{self, Domain, Libvirtd};
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
    pub(crate) iothread: bool,
    pub(crate) scsi: bool,
    /// libvirt's description of further devices.
    pub(crate) devices: String,
    namespace: Option<String>,
    arguments: Vec<String>,
    libvirtd: Option<Arc<Libvirtd>>,
    /// What libvirt knows of it, once it does.
    pub(crate) domain: Option<Domain>,
}

impl Builder {
    pub(crate) fn new(flavor: Flavor) -> Self {
        let dir = tempfile::Builder::new().prefix("pullfs-test-").tempdir().expect("a temporary directory");
        Self {
            flavor,
            dir,
            disks: Vec::new(),
            iothread: false,
            scsi: false,
            devices: String::new(),
            namespace: None,
            arguments: Vec::new(),
            libvirtd: None,
            domain: None,
        }
    }

    /// What is to hold the disks.
    pub fn flavor(&self) -> Flavor {
        self.flavor
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

    /// Makes it a domain of this libvirtd, which is the flavor's, rather than of the one that tests share.
    #[must_use]
    pub fn on(mut self, libvirtd: &Arc<Libvirtd>) -> Self {
        assert_eq!(self.flavor.libvirt(), Some(libvirtd.version()), "the libvirt of the flavor");
        self.libvirtd = Some(libvirtd.clone());
        self
    }

    /// Gives a domain of libvirt's further devices, such as a CD-ROM, in libvirt's words.
    #[must_use]
    pub fn devices(mut self, xml: &str) -> Self {
        assert!(self.flavor.libvirt().is_some(), "only libvirt understands its words");
        self.devices.push_str(xml);
        self
    }

    /// Gives the guest's agent its port, whose other end is this socket.
    #[must_use]
    pub fn agent(self, socket: &Path) -> Self {
        const NAME: &str = "org.qemu.guest_agent.0";
        let path = socket.display().to_string();
        if self.flavor.libvirt().is_some() {
            let source = format!("<source mode='bind' path='{}'/>", libvirt::escape(&path));
            return self
                .devices(&format!("<channel type='unix'>{source}<target type='virtio' name='{NAME}'/></channel>"));
        }
        let chardev = format!("socket,id=agent,path={path},server=on,wait=off");
        let port = format!("virtserialport,chardev=agent,name={NAME}");
        self.arguments(&["-chardev", &chardev, "-device", "virtio-serial-pci", "-device", &port].map(str::to_owned))
    }

    /// Further arguments of the command line.
    #[must_use]
    pub fn arguments(mut self, arguments: &[String]) -> Self {
        self.arguments.extend_from_slice(arguments);
        self
    }

    /// Starts the machine, and returns when it answers on the test's own QMP socket.
    #[track_caller]
    pub fn start(mut self) -> Machine {
        let (server, qmp) = self.launch();
        Machine::running(server, qmp, self)
    }

    /// Starts the program that holds the disks, for the first time or again.
    #[track_caller]
    pub(crate) fn launch(&mut self) -> (Running, Qmp) {
        let (pull, control) = (self.dir.path().join("pull.qmp"), self.dir.path().join("ctl.qmp"));
        // The limit of the system is 108 bytes; QEMU's error for a longer path is hard to find.
        assert!(pull.as_os_str().len() < 100, "TMPDIR is too long for sockets");
        for socket in [&pull, &control] {
            // A program that was killed has left them.
            let _ = std::fs::remove_file(socket);
        }
        let mut command = match self.flavor {
            Flavor::Libvirt | Flavor::LibvirtOld => return self.launch_domain(&control),
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

    /// Lets libvirt start it. pullfs gets no monitor: it asks libvirt.
    #[track_caller]
    fn launch_domain(&mut self, control: &Path) -> (Running, Qmp) {
        assert!(self.namespace.is_none(), "libvirt's domains are at no end of a network");
        if self.domain.is_none() {
            let version = self.flavor.libvirt().expect("a flavor of libvirt's");
            let libvirtd = self.libvirtd.take().unwrap_or_else(|| Libvirtd::shared(version));
            let arguments = [monitor(control).as_slice(), &self.firmware(), &self.arguments].concat();
            self.domain = Some(Domain::define(libvirtd, self, &arguments));
        }
        let domain = self.domain.as_ref().expect("it was defined");
        domain.start();
        let mut qmp = Qmp::connect(control, START_LIMIT).unwrap_or_else(|e| panic!("{e:#}"));
        let server = Running::adopt(domain.name(), qmp.peer().expect("QEMU"), &domain.log());
        for disk in &mut self.disks {
            disk.node = Some(libvirt::node(&mut qmp, &disk.id));
        }
        (server, qmp)
    }

    fn system(&self, sockets: &[&PathBuf]) -> Command {
        let mut command = self.flavor.emulator();
        command.args(["-nodefaults", "-display", "none", "-accel", "tcg"]);
        for socket in sockets {
            command.args(monitor(socket));
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
        command.args(self.firmware());
        command
    }

    /// Firmware that halts, unless there is a guest: the machine runs, as its users' machines do, and does nothing by itself.
    fn firmware(&self) -> Vec<String> {
        if self.arguments.iter().any(|argument| argument == "-kernel") {
            return Vec::new();
        }
        let firmware = self.dir.path().join("firmware");
        std::fs::write(&firmware, vec![HLT; 64 << 10]).expect("firmware");
        ["-m", "64", "-bios", &firmware.display().to_string()].map(str::to_owned).to_vec()
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

/// A QMP monitor at a socket.
fn monitor(socket: &Path) -> [String; 2] {
    ["-qmp".to_owned(), format!("unix:{},server=on,wait=off", socket.display())]
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
