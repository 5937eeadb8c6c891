//! A machine that is mounted, as the other commands see it: through its `status.json`.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;
use pullfs_fs::fuse::mount::find;
use rustix::io::Errno;
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
    // A daemon that was started by an older pullfs does not tell of these.
    #[serde(default)]
    pub(crate) reads: Reads,
    #[serde(default)]
    pub(crate) cache: Cache,
}

/// What readers got so far.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Reads {
    pub(crate) count: u64,
    pub(crate) bytes: u64,
}

#[derive(Debug, Default, Deserialize)]
pub(crate) struct Cache {
    /// Bytes that were asked of the machine.
    pub(crate) fetched: u64,
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
    /// When it was made, where that is known.
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
    pub(crate) number: u64,
    pub(crate) time: Option<String>,
    /// The checkpoint that was made at the same instant, if one was.
    pub(crate) checkpoint: Option<String>,
    pub(crate) open_files: usize,
    pub(crate) scratch: Option<Scratch>,
}

/// Where old data goes, in bytes.
#[derive(Debug, Deserialize)]
pub(crate) struct Scratch {
    pub(crate) used: u64,
    /// In the file system.
    pub(crate) free: u64,
    /// What it may take at most.
    pub(crate) limit: Option<u64>,
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
    ///
    /// A directory of a whole host is mounted by that, as by any other look into it.
    pub(crate) fn find(path: &Path) -> Outcome<Self> {
        if let Ok(mounted) = Self::find_as_it_is(path) {
            return Ok(mounted);
        }
        std::fs::read_dir(path).ok();
        Self::find_as_it_is(path)
    }

    /// The mount at `path`, unless nothing is mounted there.
    pub(crate) fn find_as_it_is(path: &Path) -> Outcome<Self> {
        let absolute = std::path::absolute(path).with_context(|| path.display().to_string())?;
        // The daemon may hang or be dead, so the path is not walked if it is the mount point as it stands.
        for candidate in [Ok(absolute.clone()), absolute.canonicalize()].into_iter().flatten() {
            if find(&candidate)?.is_some() {
                return Ok(Self { path: candidate });
            }
        }
        Err(Failure::message(Code::NotFound, format!("no machine is mounted on {}", path.display())))
    }

    /// The mount at exactly this place.
    pub(crate) fn of(path: PathBuf) -> Self {
        Self { path }
    }

    /// The mount that a file or directory is on, if it is a pullfs mount.
    pub(crate) fn around(path: &Path) -> Option<Self> {
        let path = path.canonicalize().ok()?;
        let mount = path.ancestors().find(|candidate| matches!(find(candidate), Ok(Some(_))))?;
        Some(Self { path: mount.to_owned() })
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

    /// A request of the file system that failed. The kernel passes on a number only; the daemon keeps the words.
    pub(crate) fn failed(&self, what: &str, error: &io::Error) -> Failure {
        // The kernel's own answer as a rule, which the daemon knows nothing of.
        let own = [io::ErrorKind::NotFound, io::ErrorKind::PermissionDenied, io::ErrorKind::UnexpectedEof];
        self.failure(what, error, !own.contains(&error.kind()))
    }

    /// A command that the daemon refused.
    pub(crate) fn refused(&self, what: &str, error: &io::Error) -> Failure {
        self.failure(what, error, true)
    }

    fn failure(&self, what: &str, error: &io::Error, by_daemon: bool) -> Failure {
        let errno = error.raw_os_error();
        let is = |code: Errno| errno == Some(code.raw_os_error());
        let code = match error.kind() {
            io::ErrorKind::ResourceBusy => Code::Busy,
            io::ErrorKind::NotFound => Code::NotFound,
            _ if is(Errno::NODATA) => Code::NotFound,
            _ => Code::System,
        };
        let words = if !by_daemon {
            None
        } else if is(Errno::STALE) {
            let end = self.status().ok().and_then(|status| status.last_end);
            end.map(|end| format!("the point in time ended: {}", end.reason))
        } else {
            self.status().ok().and_then(|status| status.last_error).map(|noted| noted.message)
        };
        Failure::message(code, format!("{what}: {}", words.unwrap_or_else(|| error.to_string())))
    }
}
