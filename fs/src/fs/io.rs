//! Reading, seeking, and commands to `control`.

use std::ops::Range;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::Fs;
use super::command::Command;
use super::handle::{Handle, OpenFile};
use crate::error::{Error, Kind, Result};
use crate::image::{self, Seek};

/// Longest command that `control` takes, in bytes.
const MAX_COMMAND: usize = 4096;

impl Fs {
    /// Reads at most `size` bytes at `offset`; less only at the end of the file.
    ///
    /// # Errors
    /// [`Kind::Stale`] or [`Kind::Io`] when the point in time has ended; any failure of reading the disk.
    pub async fn read(&self, handle: u64, offset: u64, size: u32) -> Result<Bytes> {
        let handle = self.handles.get(handle)?;
        let range = offset..offset.saturating_add(u64::from(size));
        match &*handle {
            Handle::Status(text) => {
                let place = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(text.len());
                Ok(text.slice(place(range.start)..place(range.end)))
            }
            Handle::File(file) => {
                let outcome = self.read_file(file, range).await;
                match &outcome {
                    Ok(bytes) => {
                        self.counters.count.fetch_add(1, Ordering::Relaxed);
                        self.counters.bytes.fetch_add(u64::try_from(bytes.len()).unwrap_or(0), Ordering::Relaxed);
                    }
                    Err(_) => {
                        self.counters.failed.fetch_add(1, Ordering::Relaxed);
                    }
                }
                self.noted(outcome)
            }
            Handle::Control | Handle::Directory(_) => Err(Error::new(Kind::Invalid, "this cannot be read")),
        }
    }

    async fn read_file(&self, file: &OpenFile, range: Range<u64>) -> Result<Bytes> {
        file.lease.check()?;
        match image::read(&*file.image, &file.source, range).await {
            Ok(bytes) => {
                file.lease.confirm().await?;
                Ok(bytes)
            }
            Err(error) => {
                if error.kind() == Kind::Broken {
                    self.points.broken(file.lease.number());
                }
                // The end of the point in time explains the failure better than the connection that broke with it.
                file.lease.check()?;
                Err(error)
            }
        }
    }

    /// lseek(2) with `SEEK_DATA` or `SEEK_HOLE`.
    ///
    /// # Errors
    /// [`Kind::NoSuchData`] past the last data; otherwise as [`Fs::read`].
    pub async fn seek(&self, handle: u64, offset: u64, what: Seek) -> Result<u64> {
        let handle = self.handles.get(handle)?;
        let Handle::File(file) = &*handle else {
            return Err(Error::new(Kind::Invalid, "holes are only in files that show disks"));
        };
        let sought = async {
            file.lease.check()?;
            let found = file.image.seek(offset, what).await;
            file.lease.confirm().await?;
            found
        };
        self.noted(sought.await)
    }

    /// Writes to `control`: one command a write.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for anything but a command; what the command fails with.
    pub async fn write(&self, handle: u64, data: &[u8]) -> Result<usize> {
        if !matches!(&*self.handles.get(handle)?, Handle::Control) {
            return Err(Error::new(Kind::Denied, "only control can be written"));
        }
        let text = (data.len() <= MAX_COMMAND).then(|| std::str::from_utf8(data).ok()).flatten();
        let outcome = match Command::parse(text.unwrap_or_default()) {
            Some(Command::Begin(wanted)) => self.begin(wanted).await,
            Some(Command::Release) => self.points.release().await,
            Some(Command::Delete(checkpoint)) => self.delete_checkpoint(&checkpoint).await,
            None => Err(Error::new(
                Kind::Invalid,
                "control takes one command a write: begin [quiesce] [checkpoint=NAME], release, or delete NAME",
            )),
        };
        self.noted(outcome)?;
        Ok(data.len())
    }
}
