//! Open files and directories.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::DirEntry;
use super::guest::GuestDirectory;
use crate::block::ahead::Ahead;
use crate::block::spread::Store;
use crate::error::{Error, Kind, Result};
use crate::guest::volumes::Neighbours;
use crate::image::Image;
use crate::point::Lease;

/// A file that shows a disk.
pub(super) struct OpenFile {
    /// The checkpoint it belongs to.
    pub(super) checkpoint: Option<Arc<str>>,
    pub(super) lease: Lease,
    pub(super) image: Arc<dyn Image>,
    pub(super) disk: Store,
    /// Who reads it, and where they are. Held for look-ups only.
    pub(super) ahead: Mutex<Ahead>,
    /// Files beside it on the disk, of a guest's small one.
    pub(super) neighbours: Option<Arc<Neighbours>>,
}

impl OpenFile {
    pub(super) fn ahead(&self) -> MutexGuard<'_, Ahead> {
        self.ahead.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) enum Handle {
    Directory(Vec<DirEntry>),
    /// One of a guest's.
    Guest(GuestDirectory),
    /// The text as it was when the file was opened.
    Status(Bytes),
    Control,
    File(OpenFile),
}

/// How long a file may seem to be open after close(2), which returns before the file system is told: one of its threads
/// has that in hand while another one has what the same program asks next.
const CLOSING_LIMIT: Duration = Duration::from_millis(200);

/// All of them, by number. Bounded by the open files that the system allows its users.
#[derive(Default)]
pub(super) struct Handles {
    next: AtomicU64,
    /// Held for look-ups only.
    open: Mutex<HashMap<u64, Arc<Handle>>>,
    /// Told of each that is closed.
    closed: Notify,
}

impl Handles {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Handle>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, handle: Handle) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(number, Arc::new(handle));
        number
    }

    /// # Errors
    /// [`Kind::Invalid`] if nothing is open under that number.
    pub(super) fn get(&self, number: u64) -> Result<Arc<Handle>> {
        let found = self.lock().get(&number).cloned();
        found.ok_or_else(|| Error::new(Kind::Invalid, format!("no file is open under handle {number}")))
    }

    /// Whether a file of a checkpoint is open.
    pub(super) fn any_of_checkpoint(&self, name: &str) -> bool {
        let belongs = |handle: &Handle| match handle {
            Handle::File(file) => file.checkpoint.as_deref() == Some(name),
            _ => false,
        };
        self.lock().values().any(|handle| belongs(handle))
    }

    pub(super) fn remove(&self, number: u64) {
        let removed = self.lock().remove(&number);
        // Its share in the point in time goes with it.
        drop(removed);
        self.closed.notify_waiters();
    }

    /// Waits until files that are just being closed are not in the way any more, and not for those that stay open.
    pub(super) async fn settle(&self, in_the_way: impl Fn() -> bool) {
        let settled = async {
            loop {
                let closed = self.closed.notified();
                if !in_the_way() {
                    return;
                }
                closed.await;
            }
        };
        // What is in the way then is refused in words.
        timeout(CLOSING_LIMIT, settled).await.ok();
    }
}
