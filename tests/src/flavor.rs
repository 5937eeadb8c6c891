//! The programs that hold a machine's disks.

use std::process::Command;

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
}

impl Flavor {
    /// Whether this flavor can be had; a test returns early when it was declared (`make test`) that it cannot.
    #[track_caller]
    pub fn available(self) -> bool {
        let available = match self {
            Self::New | Self::Daemon => tools::qemu_new(),
            Self::Old => tools::qemu_old().is_some(),
        };
        if !available {
            eprintln!("NOT TESTED: there is no {self:?} QEMU");
        }
        available
    }

    /// What `status.json` must call the way of taking a point in time.
    pub fn fleece(self) -> &'static str {
        match self {
            Self::New | Self::Daemon => "job",
            Self::Old => "backing",
        }
    }

    /// QEMU's emulator of this flavor, with its firmware and modules.
    #[track_caller]
    pub fn emulator(self) -> Command {
        if self != Self::Old {
            return tools::tool("qemu-system-x86_64");
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

    /// The node of a disk's format driver.
    pub fn node(self, id: &str) -> String {
        // qemu-storage-daemon has no devices: there, the node's name is the disk's.
        if self == Self::Daemon { id.to_owned() } else { format!("fmt-{id}") }
    }
}
