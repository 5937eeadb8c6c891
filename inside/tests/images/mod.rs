//! Images of disks in a temporary directory, and the tools that make them.
#![allow(dead_code, reason = "each test uses some of it")]

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use inside::Disk;
use tempfile::TempDir;

/// A disk that is a file.
pub(crate) struct Image {
    pub(crate) path: PathBuf,
    file: File,
    _directory: TempDir,
}

impl Image {
    /// A new one, all of it a hole.
    pub(crate) fn new(size: u64) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("disk");
        let file = File::options().read(true).write(true).create_new(true).open(&path).expect("a file");
        file.set_len(size).expect("its size");
        Self { path, file, _directory: directory }
    }

    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, offset).expect("written");
    }

    pub(crate) fn bytes(&self, offset: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.read_at(offset, &mut bytes).expect("read");
        bytes
    }

    pub(crate) fn resize(&self, size: u64) {
        self.file.set_len(size).expect("its size");
    }

    /// Runs a tool with the image as its last argument; what it says.
    pub(crate) fn run(&self, tool: &str, arguments: &[&str]) -> String {
        let path = self.path.to_str().expect("a name in UTF-8");
        run(tool, &[arguments, &[path]].concat(), "")
    }

    /// As [`Self::run`], with something to read.
    pub(crate) fn feed(&self, tool: &str, arguments: &[&str], input: &str) -> String {
        let path = self.path.to_str().expect("a name in UTF-8");
        run(tool, &[arguments, &[path]].concat(), input)
    }
}

impl Disk for Image {
    fn size(&self) -> u64 {
        self.file.metadata().expect("its size").len()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }
}

/// Runs a tool that has to succeed; what it says.
pub(crate) fn run(tool: impl AsRef<OsStr>, arguments: &[&str], input: &str) -> String {
    let tool = tool.as_ref();
    let stdin = tempfile::tempfile().expect("a file");
    stdin.write_all_at(input.as_bytes(), 0).expect("written");
    let mut command = Command::new(tool);
    let output = command.args(arguments).stdin(stdin).env("LC_ALL", "C.UTF-8").output();
    let output =
        output.unwrap_or_else(|error| panic!("{} (see PACKAGES_TEST in the Makefile): {error}", tool.display()));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{} {arguments:?}: {} {said} {}",
        tool.display(),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    said
}

/// A loop device, for the tools that take no file.
pub(crate) struct Loop(pub(crate) String);

impl Loop {
    pub(crate) fn new(path: &Path, sector_size: u32) -> Self {
        let path = path.to_str().expect("a name in UTF-8");
        let name = run("losetup", &["--show", "-f", "--sector-size", &sector_size.to_string(), path], "");
        Self(name.trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.0]).status();
    }
}
