//! Images that are copied as they are at one moment, also while a loop device writes to them; XFS in such images.

use std::process::Command;

use tempfile::TempDir;

use crate::{Image, Mount, ok, run};

/// Size of the smallest XFS that mkfs.xfs makes, in MiB.
pub const SIZE: u64 = 320;

/// Where images lie: a file system whose files share extents.
#[derive(Debug)]
pub struct Store {
    mount: Mount,
    // Dropped after what is mounted in it.
    _directory: TempDir,
}

impl Store {
    /// A new one. This thread, and those that it starts, have mounts of their own from then on.
    pub fn new() -> Self {
        alone();
        // In memory where there is such a place: loop devices on a busy disk are slow.
        let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory");
        let image = Image::blank(&directory.path().join("store"), 64 << 30);
        image.run("mkfs.xfs", &["-q", "-m", "reflink=1"]);
        let mount = Mount::new(&image.path, &directory.path().join("mnt"), "loop,noatime,discard");
        Self { mount, _directory: directory }
    }

    /// An image of that many MiB with an XFS that mkfs.xfs made.
    pub fn made(&self, name: &str, mib: u64, arguments: &[&str]) -> Image {
        let image = Image::blank(&self.mount.0.join(name), mib << 20);
        image.run("mkfs.xfs", &[&["-q"], arguments].concat());
        image
    }
}

impl Default for Store {
    fn default() -> Self {
        Self::new()
    }
}

/// Gives this thread mounts of its own. Else whoever makes such a copy of all mounts meanwhile keeps ours, and an unmount of them
/// is none until that is gone.
#[expect(deprecated, reason = "the one in its place is unsafe for the sake of flags that are not used here")]
fn alone() {
    rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNS).expect("root");
    run("mount", &["--make-rprivate", "/"]);
}

/// Of images in a [`Store`].
impl Image {
    /// Mounts the XFS in it, beside it.
    pub fn mount(&self, options: &str) -> Mount {
        Mount::new(&self.path, &self.path.with_extension("mnt"), &format!("loop,noatime,nouuid,{options}"))
    }

    /// The image as it is now, beside it.
    #[must_use]
    pub fn copy(&self, name: &str) -> Self {
        let path = self.path.with_file_name(name);
        ok(Command::new("cp").arg("--reflink=always").args([&self.path, &path]));
        Self::open(&path)
    }
}
