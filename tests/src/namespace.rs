//! A mount namespace in which pullfs is installed: `/sbin/mount.pullfs` for mount(8), an fstab and a `/run` of its own.
//!
//! What is mounted in it is seen nowhere else, and nothing of the computer's is written to.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::mount::END_LIMIT;
use crate::process::{Finished, Running, run, wait_until};
use crate::tools::{mount_helper, pullfs, tool};

/// For a few mounts, on a busy machine.
const LIMIT: Duration = Duration::from_secs(20);

/// Lets go of what is mounted in the computer's namespace, by other tests: a new namespace has copies of all mounts, and what
/// is unmounted there would be served on here.
pub const FORGET_OTHERS: &str = "findmnt --noheadings --list --raw --types fuse,fuse.pullfs --output TARGET | \
                                 while read -r place; do umount --lazy --no-canonicalize \"$place\" || :; done";

/// What its first process does then: $1 is its directory. It lives until it is told to end.
const ENTER: &str = "mount -t overlay -o lowerdir=$1/programs:/usr/sbin overlay /usr/sbin && \
                     mount -t tmpfs -o mode=755 tmpfs /run && \
                     mount --bind $1/fstab /etc/fstab && \
                     touch $1/ready && exec sleep infinity";

/// The namespace. What is mounted in it is unmounted when this is dropped.
#[derive(Debug)]
pub struct Namespace {
    holder: Running,
    dir: TempDir,
}

impl Namespace {
    /// Makes one, as root.
    #[expect(clippy::new_without_default, reason = "a default value does not make a namespace")]
    #[track_caller]
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("pullfs-namespace-").tempdir().expect("a temporary directory");
        let path = |name: &str| dir.path().join(name);
        for name in ["programs", "mnt", "a dir"] {
            fs::create_dir(path(name)).expect("a directory");
        }
        // The helper runs the pullfs that is beside it.
        symlink(mount_helper(), path("programs/mount.pullfs")).expect("a link");
        symlink(pullfs(), path("programs/pullfs")).expect("a link");
        fs::write(path("fstab"), "").expect("an fstab");
        let mut unshare = tool("unshare");
        unshare.args(["--mount", "--propagation", "private", "sh", "-c", &format!("{FORGET_OTHERS}; {ENTER}"), "sh"]);
        unshare.arg(dir.path());
        let mut holder = Running::start(&unshare, &path("log"));
        wait_until("a namespace", LIMIT, || {
            holder.check();
            path("ready").exists()
        });
        Self { holder, dir }
    }

    /// An empty directory to mount on.
    pub fn mnt(&self) -> PathBuf {
        self.path("mnt")
    }

    /// A file beside it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes its `/etc/fstab`.
    #[track_caller]
    pub fn fstab(&self, text: &str) {
        // In place: it is bound by its inode.
        fs::write(self.path("fstab"), text).expect("an fstab");
    }

    /// A command in it.
    #[track_caller]
    pub fn command(&self, program: &str) -> Command {
        let mut command = tool("nsenter");
        command.arg(format!("--mount=/proc/{}/ns/mnt", self.holder.pid())).arg(program);
        command
    }

    /// Runs a command line of plain words in it.
    #[track_caller]
    pub fn run(&self, line: &str) -> Finished {
        let mut words = line.split_whitespace();
        run(self.command(words.next().expect("a program")).args(words))
    }

    /// Runs one that must succeed; its standard output.
    #[track_caller]
    pub fn ok(&self, line: &str) -> String {
        self.run(line).success()
    }

    /// How many pullfs mounts are there at `path`.
    #[track_caller]
    pub fn mounts(&self, path: &Path) -> usize {
        let mounts = self.ok("cat /proc/self/mounts");
        let place = format!(" {} fuse.pullfs ", path.display().to_string().replace(' ', "\\040"));
        mounts.lines().filter(|line| line.contains(&place)).count()
    }

    /// Waits until no daemon of a mount is left.
    #[track_caller]
    pub fn daemons_end(&self) {
        // Each has a directory for as long as it lives.
        let left = || self.run("ls /run/pullfs").stdout;
        wait_until("the end of the daemons", END_LIMIT, || left().trim().is_empty());
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let mounts = self.run("findmnt --noheadings --list --raw --types fuse.pullfs --output TARGET").stdout;
        for place in mounts.lines() {
            let place = place.replace("\\x20", " ");
            let _ = run(self.command("umount").arg("--lazy").arg(place));
        }
    }
}
