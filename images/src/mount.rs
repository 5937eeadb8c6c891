//! Loop devices, and mounts: by the kernel, and by drivers that are processes.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::ok;

/// How long the other side of a mount or an unmount is waited for.
const LIMIT: Duration = Duration::from_secs(30);

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(20);

/// A loop device, for the tools that take no file.
#[derive(Debug)]
pub struct Loop(
    /// Its path.
    pub String,
);

impl Loop {
    /// A new one for an image, with sectors of that many bytes.
    pub fn new(path: &Path, sector_size: u32) -> Self {
        let mut command = Command::new("losetup");
        let device = ok(command.args(["--show", "-f", "--sector-size", &sector_size.to_string()]).arg(path));
        Self(device.trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.0]).status();
    }
}

/// A mount of the kernel's.
#[derive(Debug)]
pub struct Mount(
    /// Where it is.
    pub PathBuf,
);

impl Mount {
    /// Mounts an image at a directory, which is made.
    pub(crate) fn new(image: &Path, at: &Path, options: &str) -> Self {
        fs::create_dir_all(at).expect("a directory");
        let mut command = Command::new("mount");
        command.args(["-o", options]).args([image, at]);
        let mut said = Vec::new();
        // The loop device of a mount before may not be gone yet.
        let mounted = again(|| {
            let output = command.output().expect("mount(8)");
            said = output.stderr;
            output.status.success()
        });
        assert!(mounted, "{command:?}: {}", String::from_utf8_lossy(&said));
        Self(at.to_owned())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if !again(|| unmount(&self.0, &[])) {
            unmount(&self.0, &["-l"]);
        }
    }
}

/// A mount by a FUSE driver, a process that ends with it.
#[derive(Debug)]
pub struct Driver {
    process: Child,
    /// Where it is.
    pub at: PathBuf,
}

impl Driver {
    /// Starts a driver that stays in the foreground, with the directory, which is made, as its last argument.
    pub fn start(command: &mut Command, at: &Path) -> Self {
        fs::create_dir_all(at).expect("a directory");
        let process = command.arg(at).stdin(Stdio::null()).spawn().expect("a driver");
        let mut driver = Self { process, at: at.to_owned() };
        let mounted = again(|| is_mounted(at) || driver.process.try_wait().is_ok_and(|ended| ended.is_some()));
        assert!(mounted && is_mounted(at), "{} is not mounted", at.display());
        driver
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if !unmount(&self.at, &[]) {
            let _ = self.process.kill();
            unmount(&self.at, &["-l"]);
        }
        let _ = self.process.wait();
    }
}

fn unmount(path: &Path, options: &[&str]) -> bool {
    let output = Command::new("umount").args(options).arg(path).output();
    output.is_ok_and(|output| output.status.success())
}

/// Whether something is mounted at a directory.
fn is_mounted(path: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev()).ok();
    device(path) != path.parent().and_then(device)
}

/// Tries until it is done or [`LIMIT`] is over; whether it is.
fn again(mut is_done: impl FnMut() -> bool) -> bool {
    let until = Instant::now() + LIMIT;
    loop {
        let done = is_done();
        if done || Instant::now() > until {
            return done;
        }
        thread::sleep(PAUSE);
    }
}
