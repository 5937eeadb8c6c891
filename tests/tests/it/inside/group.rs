//! Volume groups that the real LVM2 makes. The kernel's device mapper is not needed: what is on a logical volume is written by
//! the test, to where LVM2 says that its extents are.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use pullfs_tests::process::{ok, run};
use pullfs_tests::tools::{tool, unpacked};
use serde_json::Value;
use tempfile::TempDir;

/// A physical volume: its image, and where it begins in that, in bytes.
pub(super) struct Physical {
    pub(super) image: PathBuf,
    pub(super) offset: u64,
    /// Its loop device.
    device: String,
}

impl Physical {
    pub(super) fn device(&self) -> &str {
        &self.device
    }
}

impl Drop for Physical {
    fn drop(&mut self) {
        run(tool("losetup").arg("--detach").arg(&self.device));
    }
}

/// A group that has all of some physical volumes, and LVM2 with a configuration that lets it see nothing but them.
pub(super) struct Group {
    pub(super) name: String,
    pub(super) physical: Vec<Physical>,
    directory: TempDir,
}

impl Group {
    /// Makes one of parts of images: image, offset, size.
    #[track_caller]
    pub(super) fn new(name: &str, parts: &[(&Path, u64, u64)]) -> Self {
        let physical: Vec<Physical> = parts
            .iter()
            .map(|&(image, offset, size)| {
                let mut losetup = tool("losetup");
                losetup.args(["--find", "--show", "--offset", &offset.to_string(), "--sizelimit", &size.to_string()]);
                let device = ok(losetup.arg(image)).trim().to_owned();
                Physical { image: image.to_owned(), offset, device }
            })
            .collect();
        let directory = tempfile::Builder::new().prefix("pullfs-lvm-").tempdir().expect("a temporary directory");
        let seen = physical.iter().map(|one| format!("\"a|^{}$|\", ", one.device)).collect::<Vec<_>>().concat();
        let configuration = format!(
            "devices {{ filter = [{seen} \"r|.*|\"] obtain_device_list_from_udev = 0 use_devicesfile = 0 }}\n\
             global {{ locking_dir = \"{}\" use_lvmpolld = 0 event_activation = 0 use_lvmlockd = 0 }}\n\
             activation {{ udev_sync = 0 udev_rules = 0 monitoring = 0 }}\nbackup {{ backup = 0 archive = 0 }}\n",
            directory.path().join("lock").display()
        );
        fs::write(directory.path().join("lvm.conf"), configuration).expect("a configuration");
        let group = Self { name: name.to_owned(), physical, directory };
        let devices: Vec<&str> = group.physical.iter().map(Physical::device).collect();
        group.run(&[&["pvcreate", "-q"], &devices[..]].concat());
        group.run(&[&["vgcreate", "-q", name], &devices[..]].concat());
        group
    }

    /// Has LVM2 do something; what it says.
    #[track_caller]
    pub(super) fn run(&self, arguments: &[&str]) -> String {
        let (command, rest) = arguments.split_first().expect("a command");
        let mut lvm = std::process::Command::new(unpacked("lvm2").join("sbin/lvm"));
        lvm.args([command, "--driverloaded", "n"]).args(rest);
        ok(lvm.env("LVM_SUPPRESS_FD_WARNINGS", "1").env("LVM_SYSTEM_DIR", self.directory.path()))
    }

    /// Makes a logical volume.
    #[track_caller]
    pub(super) fn volume(&self, name: &str, arguments: &[&str]) {
        self.run(&[&["lvcreate", "-q", "-an", "-Zn", "-Wn", "-n", name, &self.name], arguments].concat());
    }

    /// A report in bytes.
    #[track_caller]
    pub(super) fn report(&self, command: &str, fields: &str) -> Vec<Value> {
        let said = self.run(&[command, "--reportformat", "json", "--units", "b", "--nosuffix", "-o", fields]);
        let said: Value = serde_json::from_str(&said).expect("JSON");
        said["report"][0].as_object().and_then(|report| report.values().next()?.as_array().cloned()).expect("rows")
    }

    /// Writes what a file holds to a logical volume, as the device mapper would: a chunk on each disk in turn.
    #[track_caller]
    pub(super) fn write(&self, volume: &str, content: &Path) {
        let starts: BTreeMap<String, u64> = self
            .report("pvs", "pv_name,pe_start")
            .iter()
            .map(|row| (text(row, "pv_name"), number(row, "pe_start")))
            .collect();
        let extent = number(&self.report("vgs", "vg_extent_size")[0], "vg_extent_size");
        let content = File::open(content).expect("what is to be on the volume");
        for row in self.report("lvs", "lv_name,seg_start,seg_size,stripe_size,seg_pe_ranges") {
            if text(&row, "lv_name") != volume {
                continue;
            }
            let places: Vec<(File, u64)> = text(&row, "seg_pe_ranges")
                .split_whitespace()
                .map(|range| {
                    let (device, extents) = range.rsplit_once(':').expect("a device");
                    let first: u64 = extents.split('-').next().expect("an extent").parse().expect("a number");
                    let on = self.physical.iter().find(|one| one.device == device).expect("a physical volume");
                    let file = File::options().write(true).open(&on.image).expect("an image");
                    (file, on.offset + starts[device] + first * extent)
                })
                .collect();
            let (start, size) = (number(&row, "seg_start"), number(&row, "seg_size"));
            let chunk = if places.len() == 1 { 1 << 20 } else { number(&row, "stripe_size") };
            let mut bytes = vec![0; usize::try_from(chunk).expect("a size")];
            for index in 0..size / chunk {
                content.read_exact_at(&mut bytes, start + index * chunk).expect("a chunk");
                let turns = u64::try_from(places.len()).expect("a number");
                let (file, place) = &places[usize::try_from(index % turns).expect("a number")];
                if bytes.iter().any(|byte| *byte != 0) {
                    file.write_all_at(&bytes, place + index / turns * chunk).expect("a chunk");
                }
            }
        }
    }
}

pub(super) fn text(row: &Value, field: &str) -> String {
    row[field].as_str().expect("a text").to_owned()
}

pub(super) fn number(row: &Value, field: &str) -> u64 {
    text(row, field).parse().expect("a number")
}
