//! The copy: a file or a block device that is written in place.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::fs::{FallocateFlags, FlockOperation, OFlags, SeekFrom, fallocate, flock, seek};
use rustix::io::Errno;

use super::noted::{dir_of, sync_dir};
use crate::failure::{Code, Failure, Outcome};

/// Zeroes are looked for in blocks of so many bytes, aligned on the disk: what file systems allocate by.
const BLOCK: u64 = 4096;

/// Longest hole that is punched at once, so that progress shows and an interrupt does not wait.
const LONGEST_HOLE: u64 = 1 << 30;

/// Zeroes are written in pieces of so many bytes where no hole can be punched.
const ZEROES: usize = 1 << 20;

/// What a path leads to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    Missing(PathBuf),
    Regular(PathBuf),
    Device(PathBuf),
}

impl Place {
    /// Follows links, so that a copy has one name and one identity.
    pub(super) fn find(path: &Path) -> Outcome<Self> {
        let shown = path.display();
        let wrong = |message: &str| Failure::message(Code::Usage, format!("{shown} {message}"));
        match path.canonicalize() {
            Ok(path) => {
                let kind = std::fs::metadata(&path).with_context(|| shown.to_string())?.file_type();
                match kind {
                    _ if kind.is_file() => Ok(Self::Regular(path)),
                    _ if kind.is_block_device() => Ok(Self::Device(path)),
                    _ => Err(wrong("is neither a file nor a block device")),
                }
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                if path.is_symlink() {
                    return Err(wrong("is a link that leads nowhere"));
                }
                let name = path.file_name().ok_or_else(|| wrong("is no name of a file"))?;
                let dir = dir_of(path);
                let dir = dir.canonicalize().with_context(|| format!("cannot use the directory {}", dir.display()))?;
                Ok(Self::Missing(dir.join(name)))
            }
            Err(error) => Err(anyhow::Error::new(error).context(format!("cannot use {shown}")).into()),
        }
    }

    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Missing(path) | Self::Regular(path) | Self::Device(path) => path,
        }
    }
}

/// The copy, locked against other runs.
#[derive(Debug)]
pub(super) struct Dest {
    file: File,
    path: PathBuf,
    device: bool,
    /// Nothing was ever written to it, so it reads as zeroes already.
    fresh: bool,
    /// Whether holes can be punched, as far as it is known.
    punches: bool,
    /// Bytes of data written so far.
    pub(super) written: u64,
    /// Bytes made zeroes so far.
    pub(super) zeroed: u64,
}

impl Dest {
    /// Opens what is there, and creates what is missing.
    pub(super) fn open(place: &Place) -> Outcome<Self> {
        let path = place.path();
        let mut options = OpenOptions::new();
        options.write(true);
        match place {
            Place::Missing(_) => options.create_new(true).mode(0o600),
            Place::Regular(_) => &mut options,
            // The kernel then refuses a device that is mounted or otherwise in use.
            Place::Device(_) => options.custom_flags(OFlags::EXCL.bits().cast_signed()),
        };
        let busy = |why: &str| Failure::message(Code::Busy, format!("{} is in use: {why}", path.display()));
        let file = match options.open(path) {
            Err(error) if error.kind() == ErrorKind::ResourceBusy => {
                return Err(busy("it is mounted, or part of another device"));
            }
            other => other.with_context(|| format!("cannot write to {}", path.display()))?,
        };
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => return Err(busy("another `pullfs sync` writes to it")),
            other => other.with_context(|| format!("cannot lock {}", path.display()))?,
        }
        let fresh = matches!(place, Place::Missing(_));
        if fresh {
            sync_dir(dir_of(path))?;
        }
        let device = matches!(place, Place::Device(_));
        Ok(Self { file, path: path.to_owned(), device, fresh, punches: true, written: 0, zeroed: 0 })
    }

    pub(super) fn size(&self) -> anyhow::Result<u64> {
        seek(&self.file, SeekFrom::End(0)).with_context(|| format!("cannot tell the size of {}", self.path.display()))
    }

    pub(super) fn is_device(&self) -> bool {
        self.device
    }

    /// Fails if a disk of `size` bytes has no room; a file can be made longer.
    pub(super) fn can_hold(&self, size: u64) -> anyhow::Result<()> {
        let has = self.size()?;
        anyhow::ensure!(
            !self.device || has >= size,
            "{} is too small: it has {has} bytes, the disk {size}; nothing was written",
            self.path.display()
        );
        Ok(())
    }

    /// Gives a file the size of the disk. A device keeps its own.
    pub(super) fn resize(&mut self, size: u64) -> anyhow::Result<()> {
        if !self.device && self.size()? != size {
            self.file
                .set_len(size)
                .with_context(|| format!("cannot make {} {size} bytes long", self.path.display()))?;
        }
        Ok(())
    }

    /// Writes `data` at `offset`; blocks of zeroes become holes.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) -> anyhow::Result<()> {
        for (range, zero) in runs(offset, data) {
            let at = offset + length(&data[..range.start]);
            let run = &data[range];
            if zero {
                self.zero(at..at + length(run))?;
            } else {
                self.put(at, run)?;
                self.written += length(run);
            }
        }
        Ok(())
    }

    /// Makes a range zeroes, as holes where the file system has them.
    pub(super) fn zero(&mut self, range: Range<u64>) -> anyhow::Result<()> {
        if self.fresh {
            return Ok(());
        }
        let mut at = range.start;
        while at < range.end {
            let next = range.end.min(at + LONGEST_HOLE);
            if !self.punch(at..next)? {
                self.put_zeroes(at..next)?;
            }
            at = next;
        }
        self.zeroed += range.end - range.start;
        Ok(())
    }

    fn punch(&mut self, range: Range<u64>) -> anyhow::Result<bool> {
        if !self.punches {
            return Ok(false);
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match fallocate(&self.file, flags, range.start, range.end - range.start) {
            Ok(()) => Ok(true),
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV) => {
                self.punches = false;
                Ok(false)
            }
            // A device takes whole blocks of its own only.
            Err(Errno::INVAL) if self.device => Ok(false),
            Err(error) => Err(error).with_context(|| format!("cannot punch a hole into {}", self.path.display())),
        }
    }

    fn put_zeroes(&mut self, range: Range<u64>) -> anyhow::Result<()> {
        let zeroes = vec![0; ZEROES];
        let mut at = range.start;
        while at < range.end {
            let count = usize::try_from(range.end - at).unwrap_or(usize::MAX).min(ZEROES);
            self.put(at, &zeroes[..count])?;
            at += length(&zeroes[..count]);
        }
        Ok(())
    }

    fn put(&self, offset: u64, data: &[u8]) -> anyhow::Result<()> {
        self.file.write_all_at(data, offset).with_context(|| format!("cannot write to {}", self.path.display()))
    }

    /// Returns when all that was written would survive a loss of power.
    pub(super) fn flush(&self) -> anyhow::Result<()> {
        self.file.sync_all().with_context(|| format!("cannot flush {}", self.path.display()))
    }
}

/// Cuts data that belongs at `offset` into runs of blocks that are all zeroes and runs that are not.
fn runs(offset: u64, data: &[u8]) -> Vec<(Range<usize>, bool)> {
    let mut runs: Vec<(Range<usize>, bool)> = Vec::new();
    let mut at = 0;
    while at < data.len() {
        let place = offset + length(&data[..at]);
        let until_next = usize::try_from(BLOCK - place % BLOCK).unwrap_or(data.len());
        let end = data.len().min(at + until_next);
        let zero = is_zero(&data[at..end]);
        match runs.last_mut() {
            Some((last, same)) if *same == zero => last.end = end,
            _ => runs.push((at..end, zero)),
        }
        at = end;
    }
    runs
}

fn is_zero(data: &[u8]) -> bool {
    // The first byte says no as a rule; the rest is for the compiler to do in whole words.
    data.first() == Some(&0) && data.iter().fold(0, |all, byte| all | byte) == 0
}

fn length(data: &[u8]) -> u64 {
    u64::try_from(data.len()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "dest_tests.rs"]
mod tests;
