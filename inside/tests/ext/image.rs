//! Images of file systems, and the kernel's mounts of them. Nothing is left behind.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use images::run;
use inside::Disk;
use inside::ext::{Ext, open};

/// A file as a disk.
pub(crate) struct Image(pub(crate) File, pub(crate) PathBuf);

impl Disk for Image {
    fn size(&self) -> u64 {
        self.0.metadata().unwrap().len()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }
}

impl Image {
    /// The file system that is made by `mkfs` with `arguments` in `megabytes`.
    pub(crate) fn make(directory: &Path, mkfs: &str, arguments: &[&str], megabytes: u64) -> Self {
        let path = directory.join("image");
        File::create(&path).unwrap().set_len(megabytes << 20).unwrap();
        let mut all = vec!["-q", "-F", "-U", "6a3b2c1d-0000-4000-8000-000000000001"];
        all.extend(arguments);
        all.push(path.to_str().unwrap());
        run(mkfs, &all);
        Self::at(path)
    }

    pub(crate) fn at(path: PathBuf) -> Self {
        Self(File::options().read(true).write(true).open(&path).unwrap(), path)
    }

    /// As it is now, under another name.
    pub(crate) fn copy(&self, name: &str) -> Self {
        let path = self.1.with_file_name(name);
        run("cp", &["--sparse=always", "--reflink=auto", self.1.to_str().unwrap(), path.to_str().unwrap()]);
        Self::at(path)
    }

    /// An image is mounted once: its loop device outlives the mount by a moment, and remembers what it read.
    pub(crate) fn mount(&self, options: &str) -> Mount {
        let point = self.1.with_extension("mounted");
        std::fs::create_dir_all(&point).unwrap();
        run("mount", &["-o", options, self.1.to_str().unwrap(), point.to_str().unwrap()]);
        Mount(point)
    }

    pub(crate) fn open(&self) -> inside::Result<Ext<&Self>> {
        open(self)
    }

    pub(crate) fn read(&self, offset: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.read_at(offset, &mut bytes).unwrap();
        bytes
    }

    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) {
        self.0.write_all_at(bytes, offset).unwrap();
    }

    /// All of it, in memory.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        (&self.0).seek(SeekFrom::Start(0)).unwrap();
        (&self.0).read_to_end(&mut bytes).unwrap();
        bytes
    }
}

/// Commands of debugfs, which writes to the image.
pub(crate) fn debugfs(image: &Image, commands: &str) {
    let path = image.1.to_str().unwrap();
    let mut command = Command::new("debugfs");
    command.args(["-w", "-f", "-", path]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(commands.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

/// A mount of the kernel's, unmounted at its end.
pub(crate) struct Mount(pub(crate) PathBuf);

impl Drop for Mount {
    fn drop(&mut self) {
        // Whoever made itself a namespace meanwhile has this mount too, and the file system stays: so it is clean before.
        attempt("mount", &["-o", "remount,ro"], &self.0);
        if !attempt("umount", &[], &self.0) {
            attempt("umount", &["-l"], &self.0);
        }
    }
}

/// Again and again for some seconds: another test that starts a program has all files open for a moment.
fn attempt(program: &str, arguments: &[&str], path: &Path) -> bool {
    (0..100).any(|_| {
        let status = Command::new(program).args(arguments).arg(path).stderr(Stdio::null()).status();
        let done = status.is_ok_and(|status| status.success());
        if !done {
            thread::sleep(Duration::from_millis(50));
        }
        done
    })
}
