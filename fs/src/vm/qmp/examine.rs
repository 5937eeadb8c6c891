//! Looking at a machine before it is mounted, step by step: what a mount would find. Nothing is changed in it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

use super::detect::{self, Abilities};
use super::ids::PREFIX;
use super::inventory;
use super::monitor::Monitor;
use super::recover::mounts_in;
use super::transport::Qmp;
use crate::error::{Error, Kind, Result, printable};
use crate::options;
use crate::vm::room::{Full, LEAST, Marks, Room};
use crate::vm::{Fleece, Inventory};

/// A connection to the machine. It is the monitor's one client until this is dropped.
pub struct Examiner(Qmp);

/// What a QEMU can do.
#[derive(Debug)]
pub struct Able {
    /// Its version.
    pub version: String,
    /// How points in time would be kept.
    pub fleece: Fleece,
    /// Whether it is handed scratch files and sockets, rather than their paths.
    pub descriptors: bool,
    abilities: Abilities,
}

/// Disks, and why they cannot all be backed up.
#[derive(Debug)]
pub struct Looked {
    /// What there is.
    pub inventory: Inventory,
    /// Why a mount would be refused, if it would.
    pub refused: Option<Error>,
}

/// What others do in the machine that a point in time cannot be taken beside.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Others {
    /// The ids of NBD exports: the machine's one server is in use.
    pub exports: Vec<String>,
    /// The ids of backup jobs.
    pub backups: Vec<String>,
    /// The ids of mounts of pullfs whose things are there.
    pub mounts: Vec<String>,
}

impl Examiner {
    /// Connects.
    ///
    /// # Errors
    /// As [`Qmp::connect`].
    pub async fn connect(monitor: &Monitor) -> Result<Self> {
        Qmp::connect(monitor).await.map(Self)
    }

    /// What this QEMU can do, if points in time are to be kept so.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] with the reason, when it cannot do it safely; when it does not answer.
    pub async fn able(&self, fleece: options::Fleece) -> Result<Able> {
        let abilities = detect::detect(&self.0, fleece).await?;
        let Abilities { version, fleece, descriptors, .. } = &abilities;
        Ok(Able { version: version.to_string(), fleece: *fleece, descriptors: *descriptors, abilities })
    }

    /// The disks that a mount of these (none: of all) would show.
    ///
    /// # Errors
    /// When QEMU does not answer.
    pub async fn disks(&self, able: &Able, only: Option<&BTreeSet<String>>) -> Result<Looked> {
        let found = inventory::query(&self.0, only).await?;
        let refused = match super::check(only, &found) {
            Ok(()) => self.refused(able, &found.qdevs).await?,
            Err(error) => Some(error),
        };
        Ok(Looked { inventory: found.inventory, refused })
    }

    async fn refused(&self, able: &Able, qdevs: &BTreeMap<Arc<str>, String>) -> Result<Option<Error>> {
        match detect::refuse_iothreads(&self.0, &able.abilities, qdevs).await {
            Err(error) if error.kind() == Kind::Unsupported => Ok(Some(error)),
            other => other.map(|()| None),
        }
    }

    /// What others do in it.
    ///
    /// # Errors
    /// When QEMU does not answer.
    pub async fn others(&self) -> Result<Others> {
        let jobs = self.0.execute("query-jobs", json!({})).await?;
        let exports = self.0.execute("query-block-exports", json!({})).await?;
        Ok(Others { mounts: mounts_in(&self.0).await?, ..others(&jobs, &exports) })
    }
}

fn others(jobs: &Value, exports: &Value) -> Others {
    let of_type = |list: &Value, kind: &str| {
        let ids = list.as_array().into_iter().flatten().filter(|each| each["type"] == kind);
        let ids = ids.filter_map(|each| each["id"].as_str()).filter(|id| !id.starts_with(PREFIX));
        ids.map(printable).collect()
    };
    Others { exports: of_type(exports, "nbd"), backups: of_type(jobs, "backup"), mounts: Vec::new() }
}

/// How many bytes a guest could overwrite before its point in time is given up for want of scratch space, if it began now in
/// this directory; none if there is too little to begin with.
///
/// # Errors
/// When the file system does not say.
pub fn room(dir: &Path, limit: Option<u64>, disks: u64) -> std::io::Result<Option<u64>> {
    let space = rustix::fs::statvfs(dir)?;
    let room = Room { used: 0, free: space.f_bavail.saturating_mul(space.f_frsize) };
    Ok(match Marks::new(room, limit).left(room) {
        Ok(left) if left >= LEAST.saturating_mul(disks) => Some(left),
        Ok(_) | Err(Full::FileSystem | Full::Limit(_)) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_do_is_told_from_our_own() {
        let jobs = json!([
            {"id": "drive-backup", "type": "backup"}, {"id": "pullfs-0a1b2c-1-0", "type": "backup"},
            {"id": "c", "type": "commit"},
        ]);
        let exports = json!([{"id": "libvirt", "type": "nbd"}, {"id": "disk", "type": "fuse"}]);
        let found = others(&jobs, &exports);
        assert_eq!((found.exports, found.backups), (vec!["libvirt".to_owned()], vec!["drive-backup".to_owned()]));
        assert_eq!(others(&json!({}), &json!(null)), Others::default());
    }

    #[test]
    fn room_is_what_the_rules_leave() {
        let dir = tempfile::tempdir().unwrap();
        let left = room(dir.path(), Some(64 << 20), 1).unwrap().unwrap();
        assert_eq!(left, (64 << 20) - (8 << 20), "but for the quota's reserve");
        assert_eq!(room(dir.path(), Some(64 << 20), 64).unwrap(), None, "each disk takes some");
        assert!(room(&dir.path().join("none"), None, 1).is_err());
    }
}
