//! A disk that is a file.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use inside::Disk;
use tempfile::TempDir;

use crate::{feed, ok};

/// A disk that is a file.
#[derive(Debug)]
pub struct Image {
    /// Where it is.
    pub path: PathBuf,
    file: File,
    /// In which it lies, if it has one of its own.
    _directory: Option<TempDir>,
}

impl Image {
    /// A new one in a directory of its own, of that many bytes, all of it a hole.
    pub fn new(size: u64) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let image = Self::blank(&directory.path().join("disk"), size);
        Self { _directory: Some(directory), ..image }
    }

    /// A new one there, of that many bytes, all of it a hole.
    pub fn blank(path: &Path, size: u64) -> Self {
        File::create(path).and_then(|file| file.set_len(size)).expect("a file of that size");
        Self::open(path)
    }

    /// The one that is there.
    pub fn open(path: &Path) -> Self {
        let file = File::options().read(true).write(true).open(path).expect("an image");
        Self { path: path.to_owned(), file, _directory: None }
    }

    /// Writes at an offset, in bytes.
    pub fn write(&self, offset: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, offset).expect("written");
    }

    /// So many bytes from an offset on.
    pub fn bytes(&self, offset: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.read_at(offset, &mut bytes).expect("read");
        bytes
    }

    /// Cuts it off at that many bytes, or adds a hole.
    pub fn resize(&self, size: u64) {
        self.file.set_len(size).expect("its size");
    }

    /// Runs a tool with the image as its last argument; what it says.
    pub fn run(&self, tool: &str, arguments: &[&str]) -> String {
        ok(Command::new(tool).args(arguments).arg(&self.path))
    }

    /// As [`Self::run`], with something to read.
    pub fn feed(&self, tool: &str, arguments: &[&str], input: &str) -> String {
        feed(Command::new(tool).args(arguments).arg(&self.path), input)
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
