//! A libvirtd of our own, and virtnbdbackup beside it.
//!
//! It runs in namespaces that are gone with it: its configuration, state and sockets lie on file systems that nobody else
//! sees, and the kernel ends every process that it started, QEMU too. Whatever ends this process ends it. A libvirtd that
//! the computer has for other purposes is not touched.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use pullfs_tests::process::{Running, has_ended, ok, run, run_within};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::process::LIMIT;

/// For libvirtd to answer: it asks each QEMU that is installed what it can do.
const START_LIMIT: Duration = Duration::from_secs(60);
/// Between two looks at it.
const PAUSE: Duration = Duration::from_millis(50);
/// What has to be installed.
const PROGRAMS: [&str; 6] = ["libvirtd", "virsh", "virtnbdbackup", "virtnbdrestore", "unshare", "nsenter"];

/// A libvirtd, until it is dropped.
pub(crate) struct Libvirt {
    server: Running,
    /// The first process of its namespaces, as we see it.
    inside: u32,
    _dir: TempDir,
}

impl Libvirt {
    /// Starts it, or says why that cannot be done here.
    pub(crate) fn start() -> Result<Self, String> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let missing = PROGRAMS.iter().find(|name| !std::env::split_paths(&path).any(|dir| dir.join(name).is_file()));
        if let Some(missing) = missing {
            return Err(format!("there is no {missing}"));
        }
        let dir = tempfile::Builder::new().prefix("pullfs-bench-").tempdir().expect("a temporary directory");
        let mut command = Command::new("setpriv");
        // Nobody but the kernel ends it: `unshare` does not listen to SIGTERM, and what it started ends with it.
        command.args(["--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "slave", "--net"]);
        command.args(["--pid", "--fork", "--kill-child=KILL", "--mount-proc"]);
        command.args(["sh", "-euc", include_str!("libvirtd.sh")]);
        let server = Running::start(&command, &dir.path().join("log"));
        let mut libvirt = Self { server, inside: 0, _dir: dir };
        let end = Instant::now() + START_LIMIT;
        while Instant::now() < end && !has_ended(libvirt.server.pid()) {
            if let Some(inside) = child_of(libvirt.server.pid()) {
                libvirt.inside = inside;
                if run(&mut libvirt.command("virsh", &["list"])).code == Some(0) {
                    return Ok(libvirt);
                }
            }
            thread::sleep(PAUSE);
        }
        let log = libvirt.server.log();
        Err(format!("libvirtd does not start: {}", log.lines().last().unwrap_or("it says nothing")))
    }

    /// A program that talks to this libvirtd.
    pub(crate) fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--target={}", self.inside)).args(["--mount", "--pid", "--", program]).args(arguments);
        command
    }

    /// virsh, which must succeed.
    #[track_caller]
    pub(crate) fn virsh(&self, arguments: &[&str]) -> String {
        ok(&mut self.command("virsh", arguments))
    }
}

impl Drop for Libvirt {
    fn drop(&mut self) {
        self.server.signal(Signal::KILL);
    }
}

/// The first child of a process.
fn child_of(pid: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

/// virtnbdbackup with its defaults, and the directory in which it keeps what it needs from one backup to the next: one
/// that it makes in a temporary directory.
pub(crate) struct Virtnbdbackup<'a> {
    libvirt: &'a Libvirt,
    domain: &'a str,
    dir: PathBuf,
}

impl<'a> Virtnbdbackup<'a> {
    pub(crate) fn of(libvirt: &'a Libvirt, domain: &'a str, dir: &Path) -> Self {
        Self { libvirt, domain, dir: dir.to_owned() }
    }

    /// The command that takes a full backup (`full`), or one of what changed since the last (`inc`).
    pub(crate) fn command(&self, level: &str) -> Command {
        let mut command =
            self.libvirt.command("virtnbdbackup", &["--noprogress", "-d", self.domain, "-l", level, "-o"]);
        command.arg(&self.dir);
        command
    }

    /// The file of a full backup.
    pub(crate) fn full(&self) -> PathBuf {
        self.dir.join("vda.full.data")
    }

    /// The file of the increment that made a checkpoint.
    pub(crate) fn increment(&self, checkpoint: &str) -> PathBuf {
        self.dir.join(format!("vda.inc.{checkpoint}.data"))
    }

    /// Restores the last of the backups; the image.
    #[track_caller]
    pub(crate) fn restored(&self) -> PathBuf {
        let target = self.dir.join("restored");
        let mut command = self.libvirt.command("virtnbdrestore", &["--noprogress", "-a", "restore", "-i"]);
        command
            .arg(&self.dir)
            .arg("--socketfile")
            .arg(self.dir.join("nbd"))
            .arg("-o")
            .arg(&target)
            .arg("-L")
            .arg(self.dir.join("restore.log"));
        run_within(&mut command, LIMIT).success();
        target.join("vda.qcow2")
    }
}
