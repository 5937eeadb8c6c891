//! The directory of one mount for its sockets and its journal: mode 0700, removed at the end.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use pullfs_fs::recovery::{claim, state_dir};
use pullfs_fs::vm::qmp::ids::MountId;

/// Tries to make it: whoever cleans up may take a new one for nobody's, until it is locked.
const TRIES: u32 = 100;
const PAUSE: Duration = Duration::from_millis(2);

/// Removed when dropped, and locked until then, or until this process ends.
pub(crate) struct RuntimeDir {
    path: PathBuf,
    _claim: File,
}

impl RuntimeDir {
    pub(crate) fn create(mount: &MountId) -> anyhow::Result<Self> {
        let base = state_dir();
        let private =
            |path: &Path, recursive: bool| std::fs::DirBuilder::new().mode(0o700).recursive(recursive).create(path);
        let unmade = |path: &Path| format!("cannot make the directory {}", path.display());
        private(&base, true).with_context(|| unmade(&base))?;
        let found = std::fs::symlink_metadata(&base)?;
        let ours = found.is_dir() && found.uid() == rustix::process::geteuid().as_raw() && found.mode() & 0o022 == 0;
        anyhow::ensure!(
            ours,
            "{} can be changed by other users; sockets are not safe there: remove it",
            base.display()
        );
        let path = base.join(mount.to_string());
        for tried in 0..TRIES {
            match private(&path, false) {
                // It is still being removed.
                Err(error) if tried > 0 && error.kind() == ErrorKind::AlreadyExists => {}
                made => {
                    made.with_context(|| unmade(&path))?;
                    let claim =
                        claim(&path).with_context(|| format!("cannot lock the directory {}", path.display()))?;
                    if let Some(claim) = claim {
                        return Ok(Self { path, _claim: claim });
                    }
                }
            }
            std::thread::sleep(PAUSE);
        }
        anyhow::bail!("the directory {} is removed again and again: try again", path.display())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where it is: the directory of all mounts of this user.
    pub(crate) fn base(&self) -> &Path {
        self.path.parent().unwrap_or(&self.path)
    }
}

impl RuntimeDir {
    /// Leaves it for whoever cleans up after this mount.
    pub(crate) fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for RuntimeDir {
    fn drop(&mut self) {
        // Its guardian may have been faster.
        if let Err(error) = std::fs::remove_dir_all(&self.path)
            && error.kind() != ErrorKind::NotFound
        {
            tracing::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}
