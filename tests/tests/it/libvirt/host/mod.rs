//! A whole host: one directory for each domain that runs, which is mounted when somebody looks into it.

mod comes_and_goes;
mod dies;
mod looks;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::libvirt::Libvirtd;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::process::{self, Finished, Running, run_within, wait_until};
use pullfs_tests::tools::pullfs;
use serde_json::Value;
use tempfile::TempDir;

use super::LIMIT;

/// For a command that waits for nobody else.
const SOON: Duration = Duration::from_secs(20);

fn libvirtd(flavor: Flavor) -> Arc<Libvirtd> {
    Arc::new(Libvirtd::start(flavor.libvirt().expect("a flavor of libvirt's")))
}

fn machine(flavor: Flavor, libvirtd: &Arc<Libvirtd>) -> Machine {
    Machine::build(flavor).disk(Disk::qcow2("vda", 4 * MIB).filled(&[(0, 3 * MIB)])).on(libvirtd).start()
}

/// A host that is mounted, in the foreground. Unmounted when it is dropped.
struct Host {
    daemon: Running,
    dir: TempDir,
}

impl Host {
    #[track_caller]
    fn of(libvirtd: &Libvirtd, options: &str) -> Self {
        Self::at(&libvirtd.uri(), options)
    }

    /// Mounts what the libvirt at `uri` has.
    #[track_caller]
    fn at(uri: &str, options: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("pullfs-host-").tempdir().expect("a temporary directory");
        for name in ["mnt", "scratch"] {
            fs::create_dir(dir.path().join(name)).expect("a directory");
        }
        let daemon = Self::start(dir.path(), uri, options);
        let mut host = Self { daemon, dir };
        host.answers();
        host
    }

    fn start(dir: &Path, uri: &str, options: &str) -> Running {
        let scratch = dir.join("scratch");
        let options = format!("uri={uri},scratch={}{options}", scratch.display());
        let mut command = Command::new(pullfs());
        command.args(["mount", "-f", "-v", "-o", &options, "libvirt:"]).arg(dir.join("mnt"));
        Running::start(command.env("PULLFS_CONFIG", "/dev/null"), &dir.join("log"))
    }

    #[track_caller]
    fn answers(&mut self) {
        wait_until("a mount of the host", LIMIT, || {
            self.daemon.check();
            self.daemon.log().contains("libvirt: is mounted on")
        });
    }

    fn mnt(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    fn dir(&self, machine: &Machine) -> PathBuf {
        self.mnt().join(machine.domain().name())
    }

    fn disk(&self, machine: &Machine) -> PathBuf {
        self.dir(machine).join("current/vda/disk.raw")
    }

    /// Whether the automounter is.
    fn is_there(&self) -> bool {
        let mounts = fs::read_to_string("/proc/self/mounts").expect("the mounts");
        mounts.contains(&format!("libvirt: {} autofs ", self.mnt().display()))
    }

    /// The names of its directories.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.mnt()).expect("the mount point");
        let mut names: Vec<String> =
            entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("a name")).collect();
        names.sort();
        names
    }

    /// Processes that it has started: the guardian, and one for each domain that is mounted.
    fn children(&self) -> Vec<u32> {
        process::children(self.daemon.pid(), "")
    }

    /// How many threads and open files it has.
    fn costs(&self) -> (usize, usize) {
        let count = |what: &str| fs::read_dir(format!("/proc/{}/{what}", self.daemon.pid())).expect(what).count();
        (count("task"), count("fd"))
    }

    #[track_caller]
    fn command(&self, command: &[&str], name: &str) -> Finished {
        run_within(Command::new(pullfs()).args(command).arg(self.mnt().join(name)), LIMIT)
    }

    #[track_caller]
    fn status(&self) -> Value {
        let told = self.command(&["status", "--json"], "").success();
        serde_json::from_str(&told).unwrap_or_else(|error| panic!("{error}: {told}"))
    }

    /// What it says of a domain; null if it knows none of that name.
    #[track_caller]
    fn told(&self, machine: &Machine) -> Value {
        let status = self.status();
        let mut domains = status["domains"].as_array().expect("domains").iter();
        domains.find(|domain| domain["name"] == machine.domain().name()).cloned().unwrap_or_default()
    }

    #[track_caller]
    fn comes_to(&self, machine: &Machine, state: &str) {
        wait_until(&format!("{state}, after {}", self.told(machine)), LIMIT, || self.told(machine)["state"] == state);
    }

    /// How often the mount of a domain was begun.
    fn starts(&self) -> usize {
        self.daemon.log().matches(": its mount begins").count()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the host\n{}", self.daemon.log());
        }
        self.daemon.stop();
        if self.is_there() {
            // It was killed, and nobody looks into it before: whoever does might wait.
            let _ = Command::new(pullfs()).arg("umount").arg(self.mnt()).status();
        }
        if self.is_there() {
            let _ = Command::new("umount").arg("-l").arg(self.mnt()).status();
        }
    }
}
