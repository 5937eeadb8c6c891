//! Options that change while mounted: `set` and `reload` of `control`.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::Fs;
use crate::block::throttle::Limits;
use crate::error::Result;
use crate::options::settings::{Resolved, Setting};
use crate::point::policy::Terms;

/// The options that are in force.
pub(super) struct Live {
    /// Held, in order of arrival, by whoever changes an option: the last one who was told is the one that is told of.
    changing: tokio::sync::Mutex<()>,
    /// Held for a moment only.
    now: Mutex<Arc<Resolved>>,
    /// `readahead=`: each read asks for it.
    readahead: AtomicU64,
    /// The configuration file that the mount was made with, whether it was there or not; none if nobody said.
    pub(super) config: Option<PathBuf>,
}

impl Live {
    pub(super) fn new(resolved: Resolved, config: Option<PathBuf>) -> Self {
        Self {
            changing: tokio::sync::Mutex::default(),
            readahead: AtomicU64::new(resolved.options.readahead),
            now: Mutex::new(Arc::new(resolved)),
            config,
        }
    }

    pub(super) fn now(&self) -> Arc<Resolved> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn readahead(&self) -> u64 {
        self.readahead.load(Ordering::Relaxed)
    }
}

impl Fs {
    /// Changes one option, and ends no point in time by it.
    ///
    /// # Errors
    /// As [`Resolved::changed`]; [`Kind::Busy`](crate::error::Kind::Busy) if the point in time that is held would end at
    /// once. Then all is as before.
    pub(super) async fn set(&self, setting: Setting) -> Result<()> {
        let _turn = self.live.changing.lock().await;
        let before = self.live.now();
        let changed = before.changed(setting.clone())?;
        let (options, before) = (&changed.options, &before.options);
        if options.scratch_limit != before.scratch_limit {
            self.vm.limit_scratch(options.scratch_limit).await?;
        }
        if Terms::from(options) != Terms::from(before) {
            self.points.change(Terms::from(options)).await?;
        }
        if Limits::from(options) != Limits::from(before) {
            self.throttle.change(Limits::from(options));
        }
        self.live.readahead.store(options.readahead, Ordering::Relaxed);
        tracing::info!("{} decided of mount option {}", setting.origin, setting.name);
        *self.live.now.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(changed);
        Ok(())
    }
}
