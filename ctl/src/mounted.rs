//! A machine that is mounted, as the other commands see it: through its `status.json`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use pullfs_fs::fuse::mount::find;
use serde::Deserialize;

use crate::failure::{Code, Failure, Outcome};

#[derive(Debug, Deserialize)]
pub(crate) struct Status {
    pub(crate) pid: u32,
    pub(crate) machine: Machine,
    pub(crate) unreachable: Option<String>,
    pub(crate) disks: Vec<Disk>,
    pub(crate) skipped: Vec<Skipped>,
    pub(crate) checkpoints: Vec<Checkpoint>,
    pub(crate) point: Point,
    pub(crate) last_end: Option<End>,
    pub(crate) last_error: Option<LastError>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Machine {
    pub(crate) source: String,
    pub(crate) name: Option<String>,
    pub(crate) qemu: String,
    pub(crate) fleece: String,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Disk {
    pub(crate) name: String,
    pub(crate) format: String,
    pub(crate) size: u64,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Skipped {
    pub(crate) name: String,
    pub(crate) reason: String,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Checkpoint {
    pub(crate) name: String,
    pub(crate) created: Option<String>,
    pub(crate) dirty_bytes: u64,
    pub(crate) disks: BTreeMap<String, Bitmap>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Bitmap {
    pub(crate) dirty_bytes: u64,
    pub(crate) persistent: bool,
    pub(crate) unusable: Option<String>,
    pub(crate) whole: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Point {
    pub(crate) state: String,
    pub(crate) time: Option<String>,
    pub(crate) checkpoint: Option<String>,
    pub(crate) open_files: usize,
}

#[derive(Debug, Deserialize)]
pub(crate) struct End {
    pub(crate) reason: String,
    pub(crate) time: String,
}

#[derive(Debug, Deserialize)]
pub(crate) struct LastError {
    pub(crate) message: String,
    pub(crate) time: String,
}

/// A pullfs mount.
pub(crate) struct Mounted {
    path: PathBuf,
}

impl Mounted {
    /// The mount at `path`, which may be given in any way that leads there.
    pub(crate) fn find(path: &Path) -> Outcome<Self> {
        let absolute = std::path::absolute(path).with_context(|| path.display().to_string())?;
        // The daemon may hang or be dead, so the path is not walked if it is the mount point as it stands.
        for candidate in [Ok(absolute.clone()), absolute.canonicalize()].into_iter().flatten() {
            if find(&candidate)?.is_some() {
                return Ok(Self { path: candidate });
            }
        }
        Err(Failure::message(Code::NotFound, format!("no machine is mounted on {}", path.display())))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The text of `status.json`.
    pub(crate) fn status_text(&self) -> Outcome<String> {
        let path = self.path.join("status.json");
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(text)
    }

    pub(crate) fn status(&self) -> Outcome<Status> {
        let status =
            serde_json::from_str(&self.status_text()?).context("status.json is of another version of pullfs")?;
        Ok(status)
    }
}
