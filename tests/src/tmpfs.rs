//! A small file system in memory that fills up as any other does.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::machine::Machine;
use crate::process::ok;
use crate::tools::tool;

/// A tmpfs that is unmounted when dropped.
#[derive(Debug)]
pub struct Tmpfs {
    dir: TempDir,
}

impl Tmpfs {
    /// Mounts one of `size`, as mount(8) takes it.
    #[track_caller]
    pub fn new(size: &str) -> Self {
        Self::below(&std::env::temp_dir(), size)
    }

    /// The same, where the machine sees it too: a domain of libvirt's sees no mount that comes after its libvirtd but these.
    #[track_caller]
    pub fn seen_by(machine: &Machine, size: &str) -> Self {
        match machine.flavor().libvirt() {
            Some(_) => Self::below(&machine.domain().libvirtd().mounts(), size),
            None => Self::new(size),
        }
    }

    #[track_caller]
    fn below(parent: &Path, size: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("pullfs-tmpfs-").tempdir_in(parent).expect("a temporary directory");
        ok(tool("mount").args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(dir.path()));
        Self { dir }
    }

    /// Its root.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The option that puts scratch files here.
    pub fn scratch(&self) -> String {
        format!("scratch={}", self.dir.path().display())
    }

    /// Bytes that are free.
    #[track_caller]
    pub fn free(&self) -> u64 {
        let space = rustix::fs::statvfs(self.path()).expect("a file system");
        space.f_bavail * space.f_frsize
    }

    /// Fills it at once to the last byte with a file, whose path comes back.
    #[track_caller]
    pub fn fill(&self) -> PathBuf {
        let path = self.path().join("filling");
        let mut file = File::create(&path).expect("a file");
        let full = loop {
            if let Err(error) = file.write_all(&[0x5a; 4096]) {
                break error;
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::StorageFull, "{full}");
        path
    }

    /// Whether there is nothing in it.
    #[track_caller]
    pub fn is_empty(&self) -> bool {
        fs::read_dir(self.path()).expect("a directory").next().is_none()
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Lazily: a machine may have a file of it open that nobody sees.
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}
