//! Images in files, mounted and copied.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use inside::Disk;

/// Smallest size of an XFS that mkfs.xfs makes, in MiB.
pub(crate) const SIZE: u64 = 320;

pub(crate) fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {words}");
}

/// A mount, until it is dropped.
pub(crate) struct Mount(pub(crate) PathBuf);

impl Mount {
    fn new(image: &Path, at: &Path, options: &str) -> Self {
        std::fs::create_dir_all(at).unwrap();
        let arguments = ["-t", "xfs", "-o", options, image.to_str().unwrap(), at.to_str().unwrap()];
        // The loop device of a mount before may not be gone yet.
        for _ in 0..50 {
            if Command::new("mount").args(arguments).output().is_ok_and(|output| output.status.success()) {
                return Self(at.to_owned());
            }
            thread::sleep(Duration::from_millis(100));
        }
        run("mount", &arguments);
        Self(at.to_owned())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        for _ in 0..50 {
            if Command::new("umount").arg(&self.0).output().is_ok_and(|output| output.status.success()) {
                return;
            }
            thread::sleep(Duration::from_millis(100));
        }
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Where images lie: a file system that copies a file as it is at one moment, also while its loop device is written to.
pub(crate) struct Store {
    mount: Mount,
    // Dropped after what is mounted in it.
    _directory: tempfile::TempDir,
}

impl Store {
    pub(crate) fn new() -> Self {
        alone();
        // In memory where there is such a place: loop devices on a busy disk are slow.
        let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let image = directory.path().join("store");
        File::create(&image).unwrap().set_len(64 << 30).unwrap();
        run("mkfs.xfs", &["-q", "-m", "reflink=1", image.to_str().unwrap()]);
        let mount = Mount::new(&image, &directory.path().join("mnt"), "loop,noatime,discard");
        Self { mount, _directory: directory }
    }

    pub(crate) fn image(&self, name: &str) -> Image {
        Image { path: self.mount.0.join(name) }
    }

    /// An image that mkfs.xfs made.
    pub(crate) fn made(&self, name: &str, mib: u64, arguments: &[&str]) -> Image {
        let image = self.image(name);
        File::create(&image.path).unwrap().set_len(mib << 20).unwrap();
        run("mkfs.xfs", &[&["-q"], arguments, &[image.path.to_str().unwrap()]].concat());
        image
    }
}

/// Gives this thread mounts of its own. Else whoever makes such a copy of all mounts meanwhile keeps ours, and an unmount of them
/// is none until that is gone.
#[expect(deprecated, reason = "the one in its place is unsafe for the sake of flags that are not used here")]
fn alone() {
    rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNS).expect("root");
    run("mount", &["--make-rprivate", "/"]);
}

pub(crate) struct Image {
    pub(crate) path: PathBuf,
}

impl Image {
    pub(crate) fn mount(&self, options: &str) -> Mount {
        Mount::new(&self.path, &self.path.with_extension("mnt"), &format!("loop,noatime,nouuid,{options}"))
    }

    /// The image as it is now.
    pub(crate) fn copy(&self, name: &str) -> Image {
        let path = self.path.with_file_name(name);
        run("cp", &["--reflink=always", self.path.to_str().unwrap(), path.to_str().unwrap()]);
        Image { path }
    }

    pub(crate) fn disk(&self) -> FileDisk {
        FileDisk(File::open(&self.path).unwrap())
    }
}

pub(crate) struct FileDisk(pub(crate) File);

impl Disk for FileDisk {
    fn size(&self) -> u64 {
        self.0.metadata().unwrap().len()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }
}
