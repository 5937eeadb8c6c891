//! An ordinary user of the host: `nobody`, with a directory and a copy of the program of its own.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::machine::Machine;
use crate::mount::is_mounted;
use crate::process::{Finished, ok, run};
use crate::tools;

/// `nobody`, on Debian.
pub const UID: u32 = 65534;

/// `nogroup`.
pub const GID: u32 = 65534;

/// The user. What it has mounted is unmounted when this is dropped.
#[derive(Debug)]
pub struct User {
    dir: TempDir,
}

impl User {
    /// Makes the user's directory: `mnt`, `scratch`, `run` for its session, and `pullfs`.
    #[expect(clippy::new_without_default, reason = "a default value does not make directories")]
    #[track_caller]
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("pullfs-user-").tempdir().expect("a temporary directory");
        for name in ["mnt", "scratch", "run"] {
            let path = dir.path().join(name);
            fs::create_dir(&path).expect("a directory");
            own(&path);
            fs::set_permissions(&path, Permissions::from_mode(0o700)).expect("modes");
        }
        own(dir.path());
        // By a process of its own: another test that starts a program just now would have the copy open for writing.
        ok(tools::tool("cp").arg(tools::pullfs()).arg(dir.path()));
        open_to_all(dir.path());
        // As udev has it on every desktop and server; a container may have no udev.
        fs::set_permissions("/dev/fuse", Permissions::from_mode(0o666)).expect("the device");
        Self { dir }
    }

    /// A file in the user's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A command that runs as the user.
    #[track_caller]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = as_nobody();
        command.arg(program).env("XDG_RUNTIME_DIR", self.path("run")).current_dir(self.dir.path());
        command
    }

    /// The program, run as the user.
    #[track_caller]
    pub fn pullfs(&self) -> Command {
        self.command(self.path("pullfs"))
    }

    /// Mounts a source on `mnt`, in the background.
    #[track_caller]
    pub fn mount(&self, source: &str, options: &str) -> Finished {
        let options = format!("scratch={},{options}", self.path("scratch").display());
        run(self.pullfs().args(["mount", source]).arg(self.path("mnt")).args(["-o", &options]))
    }

    /// What the user reads of its mount; nobody else may, not even root.
    #[track_caller]
    pub fn status(&self) -> Value {
        let text = ok(self.command("cat").arg(self.path("mnt/status.json")));
        serde_json::from_str(&text).expect("status.json")
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let mnt = self.path("mnt");
        if is_mounted(&mnt) {
            let _ = Command::new("umount").arg("-l").arg(mnt).status();
        }
    }
}

/// The start of a command that runs as `nobody`, without any group of ours.
#[track_caller]
pub fn as_nobody() -> Command {
    let mut command = tools::tool("setpriv");
    command.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups", "--"]);
    command
}

/// Lets every user come into a directory.
#[track_caller]
pub fn open_to_all(dir: &Path) {
    fs::set_permissions(dir, Permissions::from_mode(0o755)).expect("a directory of ours");
}

/// Gives a file to the user.
#[track_caller]
pub fn own(path: &Path) {
    chown(path, Some(UID), Some(GID)).expect("a file of ours");
}

/// Lets the user reach a machine's QMP socket.
#[track_caller]
pub fn admit(machine: &Machine) {
    open_to_all(machine.dir());
    own(&machine.dir().join("pull.qmp"));
}
