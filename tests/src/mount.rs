//! Mounts of a machine, by the `pullfs` binary.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::machine::Machine;
use crate::process::{Finished, run, run_within, signal_child, wait_for, wait_until};
use crate::tools;

/// From the start of `pullfs mount` to a mount that answers.
const MOUNT_LIMIT: Duration = Duration::from_secs(30);

/// For a machine that is alive to answer on a busy computer.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// From `umount` to the daemon's end.
pub const END_LIMIT: Duration = Duration::from_secs(20);

/// The magic number that statfs tells of a FUSE mount.
const FUSE_SUPER_MAGIC: i128 = 0x6573_5546;

/// A mount in the foreground: the daemon is our child. Dropping it unmounts.
#[derive(Debug)]
pub struct Mount {
    daemon: Child,
    log: PathBuf,
    dir: TempDir,
}

impl Mount {
    /// Mounts `machine` with its scratch files in [`Mount::scratch`]; panics with what the daemon said if it fails.
    #[track_caller]
    pub fn of(machine: &Machine) -> Self {
        Self::with(machine, "")
    }

    /// Mounts `machine` with further options.
    #[track_caller]
    pub fn with(machine: &Machine, options: &str) -> Self {
        Self::source(&machine.source(), &machine.options(options))
    }

    /// Mounts a source.
    #[track_caller]
    pub fn source(source: &str, options: &str) -> Self {
        // What is configured on this computer is none of a test's business.
        Self::configured(source, options, &[("PULLFS_CONFIG", "/dev/null")])
    }

    /// Mounts a source with these environment variables, of which `PULLFS_CONFIG` names the configuration file.
    #[track_caller]
    pub fn configured(source: &str, options: &str, variables: &[(&str, &str)]) -> Self {
        let dir = tempfile::Builder::new().prefix("pullfs-mount-").tempdir().expect("a temporary directory");
        for name in ["mnt", "scratch"] {
            fs::create_dir(dir.path().join(name)).expect("a directory");
        }
        let log = dir.path().join("daemon.log");
        let out = File::create(&log).expect("the daemon's log");
        let mut options = options.to_owned();
        if !options.contains("scratch=") {
            let comma = if options.is_empty() { "" } else { "," };
            options = format!("scratch={}{comma}{options}", dir.path().join("scratch").display());
        }
        let mut command = Command::new(tools::pullfs());
        command.args(["mount", source]).arg(dir.path().join("mnt")).args(["-f", "-o", &options]);
        command.envs(variables.iter().copied());
        command.stdin(Stdio::null()).stdout(out.try_clone().expect("a second handle")).stderr(out);
        let daemon = command.spawn().unwrap_or_else(|e| panic!("cannot run {command:?}: {e}"));
        let mut mount = Self { daemon, log, dir };
        let mnt = mount.mnt();
        wait_until("a mount that answers", MOUNT_LIMIT, || {
            if let Some(status) = mount.daemon.try_wait().expect("waiting for the daemon") {
                panic!("{command:?} ended with {status}\n{}", mount.log());
            }
            is_mounted(&mnt) && fs::metadata(mnt.join("status.json")).is_ok()
        });
        mount
    }

    /// The mount point.
    pub fn mnt(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    /// A file of the mount.
    pub fn path(&self, path: &str) -> PathBuf {
        self.mnt().join(path)
    }

    /// A disk at the point in time.
    pub fn disk(&self, id: &str) -> PathBuf {
        self.path(&format!("current/{id}/disk.raw"))
    }

    /// Where QEMU's old clusters go.
    pub fn scratch(&self) -> PathBuf {
        self.dir.path().join("scratch")
    }

    /// The directory around the mount point, for a test's copies.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What the daemon has said so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The daemon's process id.
    pub fn pid(&self) -> u32 {
        self.daemon.id()
    }

    /// The process id of the guardian.
    #[track_caller]
    pub fn guardian(&self) -> u32 {
        let status = self.status();
        let pid = status["guard"]["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
        pid.unwrap_or_else(|| panic!("no guardian in {status}"))
    }

    /// `status.json`, parsed.
    #[track_caller]
    pub fn status(&self) -> Value {
        let text = fs::read_to_string(self.path("status.json")).expect("status.json");
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("status.json: {e}\n{text}"))
    }

    /// The same, with what the machine tells: a busy one is not waited for as long as it may take (docs/status.md).
    #[track_caller]
    pub fn status_of_machine(&self) -> Value {
        let mut status = Value::Null;
        wait_until("a machine that answers", ANSWER_LIMIT, || {
            status = self.status();
            status["unreachable"].is_null()
        });
        status
    }

    /// What `status.json` tells of a checkpoint.
    #[track_caller]
    pub fn status_of_checkpoint(&self, name: &str) -> Value {
        let status = self.status_of_machine();
        let found =
            status["checkpoints"].as_array().and_then(|all| all.iter().find(|one| one["name"] == name).cloned());
        found.unwrap_or_else(|| panic!("no checkpoint {name} in {status}"))
    }

    /// The state of the point in time.
    #[track_caller]
    pub fn state(&self) -> String {
        self.status()["point"]["state"].as_str().expect("point.state").to_owned()
    }

    /// The name that everything which this mount makes begins with.
    #[track_caller]
    pub fn id(&self) -> String {
        self.status()["mount_id"].as_str().expect("mount_id").to_owned()
    }

    /// `pullfs COMMAND MNT`.
    #[track_caller]
    pub fn command(&self, command: &[&str]) -> Finished {
        run(Command::new(tools::pullfs()).args(command).arg(self.mnt()))
    }

    /// Runs `pullfs checkpoint VERB` for this mount.
    #[track_caller]
    pub fn checkpoint(&self, verb: &str, name: &str) -> Finished {
        run(Command::new(tools::pullfs()).args(["checkpoint", verb]).arg(self.mnt()).arg(name))
    }

    /// Writes a command to `control`.
    ///
    /// # Errors
    /// How the command went.
    pub fn control(&self, command: &str) -> io::Result<()> {
        use std::io::Write as _;
        let mut control = fs::OpenOptions::new().write(true).open(self.path("control"))?;
        control.write_all(format!("{command}\n").as_bytes())
    }

    /// Unmounts with umount(8) and waits for the daemon's end.
    #[track_caller]
    pub fn unmount(mut self) -> ExitStatus {
        // A program that another test starts has, until it runs, copies of this process' descriptors: the mount is busy for
        // a moment.
        wait_until("umount(8)", END_LIMIT, || {
            let done = run(tools::tool("umount").arg(self.mnt()));
            assert!(done.code == Some(0) || done.stderr.contains("busy"), "{done}");
            done.code == Some(0)
        });
        self.ended()
    }

    /// Sends `signal` to the daemon and waits for its end.
    #[track_caller]
    pub fn signal(mut self, signal: Signal) -> ExitStatus {
        signal_child(&self.daemon, signal);
        let status = self.ended();
        assert!(!is_mounted(&self.mnt()), "still mounted");
        status
    }

    /// Whether the daemon has ended.
    pub fn has_ended(&mut self) -> bool {
        matches!(self.daemon.try_wait(), Ok(Some(_)))
    }

    /// Sends `signal` to the daemon.
    pub fn send(&self, signal: Signal) {
        signal_child(&self.daemon, signal);
    }

    /// Waits for the daemon's end.
    #[track_caller]
    pub fn ended(&mut self) -> ExitStatus {
        wait_for(&mut self.daemon, END_LIMIT)
            .unwrap_or_else(|| panic!("the daemon did not end within {END_LIMIT:?}\n{}", self.log()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- pullfs\n{}", self.log());
        }
        // One that a test has stopped answers no question.
        signal_child(&self.daemon, Signal::CONT);
        if is_mounted(&self.mnt()) {
            // Lazily, because a test that panics may hold files open.
            let _ = Command::new("umount").arg("-l").arg(self.mnt()).status();
        }
        let _ = wait_for(&mut self.daemon, END_LIMIT);
    }
}

/// Whether a FUSE file system is mounted at `path`, be it one whose daemon was killed.
pub fn is_mounted(path: &Path) -> bool {
    match rustix::fs::statfs(path) {
        Ok(stat) => i128::from(stat.f_type) == FUSE_SUPER_MAGIC,
        Err(error) => error == Errno::NOTCONN,
    }
}

/// `pullfs mount` in the background, as a person types it: returns when it has mounted or failed.
#[track_caller]
pub fn mount(source: &str, mnt: &Path, options: &str) -> Finished {
    let mut command = Command::new(tools::pullfs());
    command.args(["mount", source]).arg(mnt);
    if !options.is_empty() {
        command.args(["-o", options]);
    }
    run_within(&mut command, MOUNT_LIMIT)
}

/// `pullfs recover` of a machine.
#[track_caller]
pub fn recover(machine: &Machine) -> Finished {
    of_machine(machine, &["recover"], &[])
}

/// `pullfs COMMAND SOURCE FILES` of a machine.
#[track_caller]
pub fn of_machine(machine: &Machine, words: &[&str], files: &[&Path]) -> Finished {
    let mut command = Command::new(tools::pullfs());
    command.args(words).arg(machine.source()).args(files);
    let options = machine.options("");
    if !options.is_empty() {
        command.args(["-o", &options]);
    }
    run(&mut command)
}

/// Opens a file past the kernel's cache: each read asks the daemon anew.
#[track_caller]
pub fn open_direct(path: &Path) -> File {
    let flags = i32::try_from(OFlags::DIRECT.bits()).expect("a flag");
    File::options().read(true).custom_flags(flags).open(path).expect("a disk, past the cache")
}

/// `mount.pullfs`, as mount(8) calls it.
#[track_caller]
pub fn mount_helper(source: &str, mnt: &Path, arguments: &[&str]) -> Finished {
    let mut command = Command::new(tools::mount_helper());
    // It runs `pullfs`, which an installed helper finds on the path.
    let programs = tools::pullfs();
    let path = std::env::var("PATH").unwrap_or_default();
    let dir = programs.parent().expect("a directory").display();
    command.env("PATH", format!("{dir}:{path}"));
    run_within(command.arg(source).arg(mnt).args(arguments), MOUNT_LIMIT)
}

/// An empty directory to mount on; unmounts, if need be, when dropped.
#[derive(Debug)]
pub struct MountPoint {
    dir: TempDir,
}

impl MountPoint {
    /// Makes one.
    #[expect(clippy::new_without_default, reason = "a default value does not make a directory")]
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("pullfs-mount-").tempdir().expect("a temporary directory");
        for name in ["mnt", "scratch"] {
            fs::create_dir(dir.path().join(name)).expect("a directory");
        }
        Self { dir }
    }

    /// The mount point.
    pub fn mnt(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    /// The option that puts scratch files beside the mount point.
    pub fn scratch(&self) -> String {
        format!("scratch={}", self.dir.path().join("scratch").display())
    }
}

impl Drop for MountPoint {
    fn drop(&mut self) {
        if is_mounted(&self.mnt()) {
            let _ = Command::new("umount").arg("-l").arg(self.mnt()).status();
        }
    }
}
