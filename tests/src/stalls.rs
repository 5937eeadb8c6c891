//! A guest that does nothing but overwrite its disk and say how long its slowest write took; see tests/setup/stalls.c.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::disk::Disk;
use crate::flavor::Flavor;
use crate::guest::{BOOT_LIMIT, linux, said};
use crate::machine::Machine;
use crate::model::SECTOR;
use crate::process::wait_until;

/// A guest that overwrites its only disk, `vda`, which is raw.
#[derive(Debug)]
pub struct Stalls {
    machine: Machine,
    serial: PathBuf,
    _images: TempDir,
}

impl Stalls {
    /// Boots a guest with a disk of so many MiB, none of them zeroes, and returns when the first one is overwritten.
    #[track_caller]
    pub fn boot(flavor: Flavor, mib: u64) -> Self {
        Self::boot_with(flavor, mib, "", &[])
    }

    /// The same with further words on its kernel's command line, and arguments of QEMU.
    #[track_caller]
    pub fn boot_with(flavor: Flavor, mib: u64, words: &str, arguments: &[String]) -> Self {
        Self::boot_on(flavor, Disk::raw("vda", 0), mib, words, arguments)
    }

    /// Boots a guest on a disk that does so many requests a second, for all who use it.
    #[track_caller]
    pub fn boot_slowed(flavor: Flavor, mib: u64, requests: u64) -> Self {
        let group = json!({"qom-type": "throttle-group", "id": "slow", "limits": {"iops-total": requests}});
        let arguments = ["-object".to_owned(), group.to_string()];
        Self::boot_on(flavor, Disk::raw("vda", 0).slowed_by("slow"), mib, "", &arguments)
    }

    #[track_caller]
    fn boot_on(flavor: Flavor, disk: Disk, mib: u64, words: &str, arguments: &[String]) -> Self {
        let guest = Self::start(flavor, disk, mib, words, arguments);
        guest.wait_written(1);
        guest
    }

    /// Starts a guest, and does not wait for it.
    #[track_caller]
    pub(crate) fn start(flavor: Flavor, disk: Disk, mib: u64, words: &str, arguments: &[String]) -> Self {
        let images = tempfile::Builder::new().prefix("pullfs-guest-").tempdir().expect("a temporary directory");
        let (image, serial) = (images.path().join("vda.raw"), images.path().join("serial"));
        let mut file = File::create(&image).expect("an image");
        for number in 0..mib {
            file.write_all(&pattern(number)).expect("filling an image");
        }
        let machine = Machine::build(flavor)
            .disk(disk.from_image(&image))
            .arguments(&linux(&format!("pullfs.mode=stalls {words}"), &serial))
            .arguments(arguments)
            .start();
        Self { machine, serial, _images: images }
    }

    /// The machine that the guest runs on.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// MiB that it has written so far.
    pub fn written(&self) -> u64 {
        self.last("written=")
    }

    /// How long its slowest write took so far, by its own clock.
    pub fn longest(&self) -> Duration {
        Duration::from_millis(self.last("longest="))
    }

    /// Waits until it has written `mib` in all; panics if it is in trouble.
    #[track_caller]
    pub fn wait_written(&self, mib: u64) {
        wait_until(&format!("{mib} MiB written by the guest"), BOOT_LIMIT, || {
            self.untroubled();
            self.written() >= mib
        });
    }

    /// Waits until it has written `mib` more.
    #[track_caller]
    pub fn wait_more(&self, mib: u64) {
        self.wait_written(self.written() + mib);
    }

    /// Panics if a write, a read or its kernel said that something failed, or it did not read what it had written.
    #[track_caller]
    pub fn untroubled(&self) {
        let said = self.said();
        for trouble in ["cannot", "I/O error", "blk_update_request", "Call Trace"] {
            assert!(!said.contains(trouble), "the guest is in trouble:\n{said}");
        }
    }

    /// Everything on the serial console, but for a last line that has not arrived whole.
    pub fn said(&self) -> String {
        said(&self.serial)
    }

    /// The events since the last call that tell of a machine that stood still, or of a request that failed.
    pub fn stops(&self) -> Vec<Value> {
        let mut events = self.machine.qmp().events();
        events.retain(|event| event["event"] == "STOP" || event["event"] == "BLOCK_IO_ERROR");
        events
    }

    /// Reads and writes of its disk so far, as QEMU counts them.
    #[track_caller]
    pub fn requests(&self) -> u64 {
        let devices = self.machine.qmp().must("query-blockstats", json!({}));
        let count = |field: &str| devices[0]["stats"][field].as_u64().expect("a number");
        count("rd_operations") + count("wr_operations")
    }

    /// What `query-status` says.
    #[track_caller]
    pub fn status(&self) -> String {
        let status = self.machine.qmp().must("query-status", json!({}));
        status["status"].as_str().expect("a status").to_owned()
    }

    fn last(&self, field: &str) -> u64 {
        let number = |line: &str| line.split(field).nth(1)?.split_whitespace().next()?.parse().ok();
        self.said().lines().rev().find_map(number).unwrap_or(0)
    }
}

const MIB: usize = 1 << 20;

/// A MiB no sector of which is like any other, or like what the guest writes.
fn pattern(number: u64) -> Vec<u8> {
    let sectors = 0..u64::try_from(MIB / SECTOR).expect("a number");
    let sectors: Vec<_> =
        sectors.map(|sector| [(u64::MAX - (number << 20 | sector)).to_le_bytes(); SECTOR / 8]).collect();
    sectors.as_flattened().as_flattened().to_vec()
}
