//! The programs that hold a machine's disks.

use std::process::Command;

use crate::libvirt::Version;
use crate::tools;

/// Which program holds the disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavor {
    /// The installed QEMU, 9.0 or newer: a point in time is a job with a snapshot-access node.
    New,
    /// QEMU 7.2: a point in time is a scratch image backed by the live disk.
    Old,
    /// The installed qemu-storage-daemon.
    Daemon,
    /// A domain of libvirt 11.3's, with the QEMU of [`Flavor::New`].
    Libvirt,
    /// A domain of libvirt 9.0's, with the QEMU of [`Flavor::Old`].
    LibvirtOld,
}

impl Flavor {
    /// Whether this flavor can be had; a test returns early when it was declared (`make test`) that it cannot.
    #[track_caller]
    pub fn available(self) -> bool {
        let qemu = if self.is_old() { tools::qemu_old().is_some() } else { tools::qemu_new() };
        let available = qemu && self.libvirt().is_none_or(|version| version.root().is_some());
        if !available {
            eprintln!("NOT TESTED: there is no {self:?} QEMU");
        }
        available
    }

    /// Whether its QEMU is 7.2.
    pub fn is_old(self) -> bool {
        matches!(self, Self::Old | Self::LibvirtOld)
    }

    /// The libvirt that the disks are reached by; none if it is QEMU itself.
    pub fn libvirt(self) -> Option<Version> {
        match self {
            Self::New | Self::Old | Self::Daemon => None,
            Self::Libvirt => Some(Version::New),
            Self::LibvirtOld => Some(Version::Old),
        }
    }

    /// What `status.json` must call the way of taking a point in time.
    pub fn fleece(self) -> &'static str {
        match self {
            Self::New | Self::Daemon => "job",
            Self::Old | Self::Libvirt | Self::LibvirtOld => "backing",
        }
    }

    /// QEMU's emulator of this flavor, with its firmware and modules.
    #[track_caller]
    pub fn emulator(self) -> Command {
        if !self.is_old() {
            return Command::new(tools::path("qemu-system-x86_64"));
        }
        let root = tools::qemu_old().expect("QEMU 7.2; see Flavor::available");
        let modules = std::fs::read_dir(root.join("usr/lib"))
            .expect("QEMU 7.2's libraries")
            .filter_map(|entry| Some(entry.ok()?.path().join("qemu")))
            .find(|dir| dir.join("accel-tcg-x86_64.so").exists())
            .expect("QEMU 7.2's modules");
        let mut command = Command::new(root.join("usr/bin/qemu-system-x86_64"));
        command.env("QEMU_MODULE_DIR", modules);
        for firmware in ["usr/share/qemu", "usr/share/seabios"] {
            command.arg("-L").arg(root.join(firmware));
        }
        command
    }

    /// The node of a disk's format driver, where it is the test that names it.
    pub fn node(self, id: &str) -> String {
        // qemu-storage-daemon has no devices: there, the node's name is the disk's.
        if self == Self::Daemon { id.to_owned() } else { format!("fmt-{id}") }
    }
}
