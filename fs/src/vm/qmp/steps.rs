//! The steps of taking a point in time, each with its undo, in the order of the plan:
//!
//! ```text
//! per disk: File ── Format ── Scratch        where old clusters will go
//! all:      Freeze                           THE INSTANT: one transaction, all disks, all recording bitmaps
//!           Merge                            bitmaps that recorded no more
//! per disk: Access                           (fleece=job) the node that reads as the disk did
//! all:      Server                           unless an existing one is used
//! per disk: Export
//! ```
//! With `fleece=job` the guest's writes go through the backup job's filter, which copies the old cluster to the
//! scratch image first; the snapshot-access node reads from there or from the disk. With `fleece=backing` the scratch
//! image has the live disk as its backing file and is exported itself.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use serde_json::{Value, json};

use super::ids::{DiskIds, Role};
use super::session::Session;
use super::transport::refused;
use crate::error::{Error, Kind, Result};
use crate::point::plan;
use crate::vm::{Fleece, Part};

/// What steps work on.
pub(super) struct Context {
    pub(super) session: Session,
    pub(super) fleece: Fleece,
    /// Where scratch files are made.
    pub(super) scratch_dir: PathBuf,
    /// The socket that QEMU's NBD server listens on, in a directory of ours.
    pub(super) socket: PathBuf,
    /// Whether the monitor takes descriptors.
    pub(super) descriptors: bool,
    /// Our own descriptors of scratch files, by node. Held for a moment only.
    pub(super) files: Mutex<HashMap<String, File>>,
}

impl Context {
    fn files(&self) -> MutexGuard<'_, HashMap<String, File>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A bitmap to be frozen: its name on the scratch image, and what it is the OR of.
#[derive(Debug, Clone)]
pub(super) struct Frozen {
    pub(super) name: String,
    pub(super) checkpoint: Arc<str>,
    pub(super) granularity: u32,
    /// The bitmaps that have the checkpoint's name.
    pub(super) parts: Vec<Part>,
}

/// A disk as the steps need it.
#[derive(Debug, Clone)]
pub(super) struct PlannedDisk {
    pub(super) ids: DiskIds,
    pub(super) name: String,
    pub(super) node: String,
    pub(super) size: u64,
    pub(super) frozen: Vec<Frozen>,
    /// The bitmaps of a checkpoint that begins at the instant.
    pub(super) new: Vec<NewBitmap>,
}

/// A bitmap that is made at the instant and stays.
#[derive(Debug, Clone)]
pub(super) struct NewBitmap {
    pub(super) node: String,
    pub(super) name: String,
    pub(super) granularity: u32,
    pub(super) persistent: bool,
    pub(super) disabled: bool,
}

#[derive(Debug, Clone)]
pub(super) enum Step {
    File(PlannedDisk),
    Format(PlannedDisk),
    Scratch(PlannedDisk),
    Freeze(Vec<PlannedDisk>),
    Merge(Vec<PlannedDisk>),
    Access(PlannedDisk),
    Server(String),
    Export(PlannedDisk),
}

/// The steps of a point in time.
pub(super) struct Plan {
    /// What leads up to the instant.
    pub(super) before: Vec<Step>,
    /// The instant.
    pub(super) freeze: Step,
    /// What follows.
    pub(super) after: Vec<Step>,
}

/// The whole plan. `server` is the name of the NBD server's descriptor, none if an existing server is used.
pub(super) fn plan(disks: &[PlannedDisk], fleece: Fleece, server: Option<String>) -> Plan {
    let each = |step: fn(PlannedDisk) -> Step| disks.iter().cloned().map(step);
    let mut before = Vec::new();
    for disk in disks {
        before.extend([Step::File(disk.clone()), Step::Format(disk.clone()), Step::Scratch(disk.clone())]);
    }
    let mut after = Vec::new();
    if disks
        .iter()
        .flat_map(|disk| &disk.frozen)
        .flat_map(|bitmap| &bitmap.parts)
        .any(|part| !part.recording && !part.note)
    {
        after.push(Step::Merge(disks.to_vec()));
    }
    if fleece == Fleece::Job {
        after.extend(each(Step::Access));
    }
    after.extend(server.map(Step::Server));
    after.extend(each(Step::Export));
    Plan { before, freeze: Step::Freeze(disks.to_vec()), after }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(disk) => write!(f, "adding a scratch file for {}", disk.name),
            Self::Format(disk) => write!(f, "formatting the scratch file of {}", disk.name),
            Self::Scratch(disk) => write!(f, "opening the scratch image of {}", disk.name),
            Self::Freeze(disks) => write!(f, "freezing {} disks at one instant", disks.len()),
            Self::Merge(_) => f.write_str("merging dirty bitmaps of the backing chain"),
            Self::Access(disk) => write!(f, "opening the frozen view of {}", disk.name),
            Self::Server(_) => f.write_str("starting the NBD server"),
            Self::Export(disk) => write!(f, "exporting {}", disk.name),
        }
    }
}

#[async_trait]
impl plan::Step for Step {
    type Context = Context;

    async fn apply(&self, context: &Context) -> Result<()> {
        let session = &context.session;
        match self {
            Self::File(disk) => add_file(context, &disk.ids).await,
            Self::Format(disk) => session.format(&disk.ids.of(Role::Format), &disk.ids.of(Role::File), disk.size).await,
            Self::Scratch(disk) => session.add_node(scratch(disk, context.fleece)).await,
            Self::Freeze(disks) => {
                let actions = disks.iter().flat_map(freeze).collect();
                session.transaction(actions).await.map_err(|error| in_the_way(error, disks))
            }
            Self::Merge(disks) => {
                session.transaction(disks.iter().flat_map(|disk| merges(disk, false)).collect()).await
            }
            Self::Access(disk) => {
                let (name, filter) = (disk.ids.of(Role::Access), disk.ids.of(Role::Filter));
                session.add_node(json!({"driver": "snapshot-access", "node-name": name, "file": filter})).await
            }
            Self::Server(name) => start_server(context, name).await,
            Self::Export(disk) => session.add_export(export(disk, context.fleece)).await,
        }
    }

    async fn undo(&self, context: &Context) -> Result<()> {
        let session = &context.session;
        match self {
            Self::File(disk) => {
                let node = disk.ids.of(Role::File);
                session.remove_node(&node).await?;
                // QEMU before 9.1 closes a removed descriptor of a paused machine only when that runs again: until
                // then at least no disk space goes with it.
                if let Some(file) = context.files().remove(&node) {
                    file.set_len(0)
                        .map_err(|error| Error::with_source(Kind::Io, "cannot empty a scratch file", error))?;
                }
                if context.descriptors {
                    session.remove_descriptors(&node).await?;
                }
                remove_scratch(&scratch_place(context, &disk.ids))
            }
            Self::Format(disk) => session.end_job(&disk.ids.of(Role::Format)).await,
            Self::Scratch(disk) => session.remove_node(&disk.ids.of(Role::Scratch)).await,
            Self::Freeze(disks) => {
                for disk in disks {
                    session.end_job(&disk.ids.of(Role::Point)).await?;
                }
                Ok(())
            }
            // The merged bitmaps go with the scratch image.
            Self::Merge(_) => Ok(()),
            Self::Access(disk) => session.remove_node(&disk.ids.of(Role::Access)).await,
            Self::Server(_) => {
                // A path means that the server may be ours: it is made first and removed last.
                if context.socket.exists() {
                    session.stop_server().await?;
                }
                remove_path(&context.socket)
            }
            Self::Export(disk) => session.remove_export(&disk.ids.of(Role::Point)).await,
        }
    }
}

/// A directory of our own, for as long as a scratch file has a name.
fn scratch_place(context: &Context, ids: &DiskIds) -> PathBuf {
    context.scratch_dir.join(format!("{}.scratch", ids.of(Role::File)))
}

const SCRATCH_NAME: &str = "old-clusters";

fn remove_scratch(place: &Path) -> Result<()> {
    remove_path(&place.join(SCRATCH_NAME))?;
    match std::fs::remove_dir(place) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::with_source(Kind::Io, format!("cannot remove {}", place.display()), error))
        }
        _ => Ok(()),
    }
}

fn remove_path(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::with_source(Kind::Io, format!("cannot remove {}", path.display()), error))
        }
        _ => Ok(()),
    }
}

/// A file that has no name, or loses it as soon as QEMU has opened it: whoever dies, nothing of it stays on disk.
async fn add_file(context: &Context, ids: &DiskIds) -> Result<()> {
    let node = ids.of(Role::File);
    let open = |filename: String| json!({"driver": "file", "node-name": node, "filename": filename, "discard": "unmap", "auto-read-only": false});
    let dir = &context.scratch_dir;
    let failed = |error| {
        Error::with_source(
            Kind::Io,
            format!("cannot make a scratch file in {} (option scratch=)", dir.display()),
            error,
        )
    };
    if context.descriptors {
        let file = tempfile::tempfile_in(dir).map_err(failed)?;
        context.files().insert(node.clone(), file.try_clone().map_err(failed)?);
        let set = context.session.add_descriptor(OwnedFd::from(file), &node).await?;
        return context.session.add_node(open(format!("/dev/fdset/{set}"))).await;
    }
    let place = scratch_place(context, ids);
    std::fs::DirBuilder::new().mode(0o700).create(&place).map_err(failed)?;
    let path = place.join(SCRATCH_NAME);
    let name = path.to_str().ok_or_else(|| {
        Error::new(Kind::Invalid, format!("{} is not UTF-8, which QEMU needs for scratch=", dir.display()))
    })?;
    File::create_new(&path).map_err(failed)?;
    let added = context.session.add_node(open(name.to_owned())).await;
    remove_scratch(&place)?;
    added
}

fn scratch(disk: &PlannedDisk, fleece: Fleece) -> Value {
    let (name, file) = (disk.ids.of(Role::Scratch), disk.ids.of(Role::File));
    let mut options = json!({"driver": "qcow2", "node-name": name, "file": file, "discard": "unmap"});
    if fleece == Fleece::Backing {
        options["backing"] = json!(disk.node);
    }
    options
}

/// The actions that freeze one disk: copies of the bitmaps that record, the new checkpoint, the backup job.
fn freeze(disk: &PlannedDisk) -> Vec<Value> {
    let scratch = disk.ids.of(Role::Scratch);
    let mut actions = Vec::new();
    for bitmap in &disk.frozen {
        let data = json!({"node": scratch, "name": bitmap.name, "granularity": bitmap.granularity, "disabled": true});
        actions.push(json!({"type": "block-dirty-bitmap-add", "data": data}));
    }
    actions.extend(merges(disk, true));
    for bitmap in &disk.new {
        let NewBitmap { node, name, granularity, persistent, disabled } = bitmap;
        let data = json!({"node": node, "name": name, "granularity": granularity, "persistent": persistent,
                          "disabled": disabled});
        actions.push(json!({"type": "block-dirty-bitmap-add", "data": data}));
    }
    actions.push(json!({"type": "blockdev-backup", "data": {
        "job-id": disk.ids.of(Role::Point), "device": disk.node, "target": scratch, "sync": "none",
        "filter-node-name": disk.ids.of(Role::Filter), "auto-dismiss": false,
    }}));
    actions
}

/// The merges of those parts that are `recording`, or of those that are not.
fn merges(disk: &PlannedDisk, recording: bool) -> Vec<Value> {
    let scratch = disk.ids.of(Role::Scratch);
    let merge = |bitmap: &Frozen| {
        let parts: Vec<Value> = bitmap
            .parts
            .iter()
            .filter(|part| part.recording == recording && !part.note)
            .map(|part| json!({"node": part.node, "name": part.name}))
            .collect();
        let data = json!({"node": scratch, "target": bitmap.name, "bitmaps": parts});
        (!parts.is_empty()).then(|| json!({"type": "block-dirty-bitmap-merge", "data": data}))
    };
    disk.frozen.iter().filter_map(merge).collect()
}

fn export(disk: &PlannedDisk, fleece: Fleece) -> Value {
    let node = match fleece {
        Fleece::Job => disk.ids.of(Role::Access),
        Fleece::Backing => disk.ids.of(Role::Scratch),
    };
    let (id, scratch) = (disk.ids.of(Role::Point), disk.ids.of(Role::Scratch));
    let bitmaps: Vec<Value> = disk.frozen.iter().map(|bitmap| json!({"node": scratch, "name": bitmap.name})).collect();
    json!({"type": "nbd", "id": id, "node-name": node, "name": id, "bitmaps": bitmaps})
}

async fn start_server(context: &Context, name: &str) -> Result<()> {
    let socket = &context.socket;
    let failed = |error| Error::with_source(Kind::Io, format!("cannot listen on {}", socket.display()), error);
    if context.descriptors {
        let listener = std::os::unix::net::UnixListener::bind(socket).map_err(failed)?;
        let started = context.session.start_server_on(OwnedFd::from(listener), name).await;
        return not_ours_if_refused(started, socket);
    }
    let path = socket
        .to_str()
        .ok_or_else(|| Error::new(Kind::Invalid, format!("{} is not UTF-8, which QEMU needs", socket.display())))?;
    let started = context.session.start_server(json!({"type": "unix", "data": {"path": path}})).await;
    not_ours_if_refused(started, socket)
}

/// A server that QEMU refused to start is somebody else's: without its path, undoing will not stop it.
fn not_ours_if_refused(started: Result<()>, socket: &Path) -> Result<()> {
    if let Err(error) = &started
        && refused(error).is_some()
    {
        remove_path(socket)?;
    }
    started
}

/// Explains why QEMU refuses to freeze; it names a node, the user knows the disk.
fn in_the_way(error: Error, disks: &[PlannedDisk]) -> Error {
    let words = refused(&error).map_or("", |refusal| refusal.description.as_str());
    if !["busy", "in use", "Conflicts with", "conflict"].iter().any(|word| words.contains(word)) {
        return error;
    }
    let named = disks.iter().find(|disk| words.contains(&format!("'{}'", disk.node)));
    let disk = named.map_or_else(|| "one of the disks".to_owned(), |disk| format!("disk {}", disk.name));
    let message = format!(
        "another block job or backup is running on {disk}; let it finish, or leave the disk out with -o disks="
    );
    Error::with_source(Kind::Busy, message, error)
}
