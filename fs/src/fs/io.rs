//! Reading, seeking, and commands to `control`.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::sync::oneshot;

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
    pub async fn read(self: &Arc<Self>, handle: u64, offset: u64, size: u32) -> Result<Bytes> {
        let (tell, told) = oneshot::channel();
        self.begin_read(handle, offset, size, move |outcome| drop(tell.send(outcome)));
        told.await.map_err(|error| Error::with_source(Kind::Io, "a read was cut off", error))?
    }

    /// Begins what [`Fs::read`] does, without waiting; any thread may. `done` is told how it ends, on the thread that finds
    /// out.
    pub fn begin_read(
        self: &Arc<Self>,
        handle: u64,
        offset: u64,
        size: u32,
        done: impl FnOnce(Result<Bytes>) + Send + 'static,
    ) {
        let handle = match self.handles.get(handle) {
            Ok(handle) => handle,
            Err(error) => return done(Err(error)),
        };
        let range = offset..offset.saturating_add(u64::from(size));
        match &*handle {
            Handle::Status(text) => {
                let place = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(text.len());
                done(Ok(text.slice(place(range.start)..place(range.end))));
            }
            Handle::File(file) => {
                if let Err(error) = file.lease.check() {
                    return done(self.counted(Err(error)));
                }
                let (fs, kept) = (self.clone(), handle.clone());
                image::begin_read(&*file.image, &file.disk, range.clone(), move |outcome| {
                    let Handle::File(file) = &*kept else { return };
                    let outcome = fs.ended(file, outcome);
                    let read = outcome.is_ok();
                    done(fs.counted(outcome));
                    // Never in the way of the first byte.
                    if read {
                        file.image.was_read();
                    }
                });
                self.read_ahead(file, &range);
            }
            Handle::Control | Handle::Directory(_) | Handle::Guest(_) => {
                done(Err(Error::new(Kind::Invalid, "this cannot be read")));
            }
        }
    }

    /// A read has ended; what may be given out of it.
    fn ended(&self, file: &OpenFile, outcome: Result<Bytes>) -> Result<Bytes> {
        if let Err(error) = &outcome
            && error.kind() == Kind::Broken
        {
            self.points.broken(file.lease.number());
        }
        // The end of the point in time explains a failure better than the connection that broke with it.
        file.lease.check()?;
        outcome
    }

    fn counted(&self, outcome: Result<Bytes>) -> Result<Bytes> {
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

    /// Fetches what the reader of a range is likely to want next.
    fn read_ahead(&self, file: &OpenFile, range: &Range<u64>) {
        let range = range.start..range.end.min(file.image.size());
        if let Some(neighbours) = &file.neighbours {
            let place = file.image.map(range.clone()).into_iter().find_map(|segment| segment.on_disk());
            if let Some(wanted) = place.and_then(|place| neighbours.read(&place, self.live.readahead())) {
                file.disk.read_ahead(wanted);
            }
            return;
        }
        let wanted = (!range.is_empty()).then(|| file.ahead().read(&range, self.live.readahead())).flatten();
        if let Some(wanted) = wanted {
            let reached = image::read_ahead(&*file.image, &file.disk, wanted.clone());
            if reached < wanted.end {
                file.ahead().fell_short(reached);
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
            Some(Command::Set(setting)) => self.set(setting).await,
            None => Err(Error::new(
                Kind::Invalid,
                "control takes one command a write: begin [quiesce] [checkpoint=NAME or since=NAME], release, delete NAME, or set \
                 NAME=VALUE",
            )),
        };
        self.noted(outcome)?;
        Ok(data.len())
    }
}
