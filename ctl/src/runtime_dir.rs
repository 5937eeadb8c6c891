//! The directory of one mount for its sockets and its journal: mode 0700, removed at the end.

use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use pullfs_fs::recovery::state_dir;
use pullfs_fs::vm::qmp::ids::MountId;

/// Removed when dropped.
pub(crate) struct RuntimeDir(PathBuf);

impl RuntimeDir {
    pub(crate) fn create(mount: &MountId) -> anyhow::Result<Self> {
        let base = state_dir();
        let private = |path: &Path, recursive: bool| {
            std::fs::DirBuilder::new()
                .mode(0o700)
                .recursive(recursive)
                .create(path)
                .with_context(|| format!("cannot make the directory {}", path.display()))
        };
        private(&base, true)?;
        let found = std::fs::symlink_metadata(&base)?;
        let ours = found.is_dir() && found.uid() == rustix::process::geteuid().as_raw() && found.mode() & 0o022 == 0;
        anyhow::ensure!(
            ours,
            "{} can be changed by other users; sockets are not safe there: remove it",
            base.display()
        );
        let path = base.join(mount.to_string());
        private(&path, false)?;
        Ok(Self(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Where it is: the directory of all mounts of this user.
    pub(crate) fn base(&self) -> &Path {
        self.0.parent().unwrap_or(&self.0)
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
        if let Err(error) = std::fs::remove_dir_all(&self.0)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!("cannot remove {}: {error}", self.0.display());
        }
    }
}
