//! The steps of taking a point in time, each with what it may leave ([`Leftover`]), in the order of the plan:
//!
//! ```text
//! per disk: File                             where old clusters will go
//! per disk: Scratch
//! all:      Checkpoint                       if one begins: until all is done it does not count
//!           Freeze                           THE INSTANT: one transaction, all disks, all recording bitmaps
//!           Merge                            bitmaps that recorded no more
//! per disk: Access                           (not with fleece=backing) the node that reads as the disk did
//! all:      Server                           unless an existing one is used
//! per disk: Export
//! ```
//! Each line is a group, whose steps are under way at once (`point::plan`): QEMU never waits for us between two disks.
//!
//! With `fleece=job` the guest's writes go through the backup job's filter, which copies the old cluster to the
//! scratch image first; the snapshot-access node reads from there or from the disk. With `fleece=backing` the scratch
//! image has the live disk as its backing file and is exported itself. With `fleece=filter` there is no job: each disk gets
//! a `Filter` after its scratch image, and the instant is `Pause` ── `Freeze` (bitmaps alone) ── `Drives`, the guest's
//! devices go on top of the filters ── `Resume`.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use serde_json::{Value, json};

use super::ids::{DiskIds, Role};
use super::removal::Move;
use super::scratch;
use super::server;
use super::transport::refused;
use super::undo::{Context, Leftover};
use crate::error::{Error, Kind, Result};
use crate::point::plan;
use crate::vm::{Fleece, Part};

/// How long a guest's write may wait for its old data to be copied, with `fleece=filter`: seconds.
const CBW_TIMEOUT: u32 = 2;

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
    /// The guest's device, where there is one.
    pub(super) qdev: Option<String>,
    pub(super) size: u64,
    pub(super) frozen: Vec<Frozen>,
    /// The bitmaps of a checkpoint that begins at the instant.
    pub(super) new: Vec<NewBitmap>,
}

impl PlannedDisk {
    /// The checkpoint that begins at the instant, and the note on it.
    fn checkpoint(&self) -> Option<(&String, &String)> {
        let find = |disabled| self.new.iter().find(|bitmap| bitmap.disabled == disabled).map(|bitmap| &bitmap.name);
        Some((find(false)?, find(true)?))
    }

    /// Puts the guest's device on top of a filter.
    fn drive<'a>(&'a self, filter: &'a str) -> Move<'a> {
        Move { qdev: self.qdev.as_deref().unwrap_or_default(), from: &self.node, to: filter }
    }
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

/// A step; each has all that it needs.
#[derive(Debug)]
pub(super) enum Step {
    /// Adds a scratch file in a directory.
    File(Arc<PlannedDisk>, PathBuf),
    Scratch(Arc<PlannedDisk>, Fleece),
    /// (fleece=filter) The filter, which nothing goes through yet.
    Filter(Arc<PlannedDisk>),
    /// A checkpoint will count from when all else is done; the bitmaps are made at the instant.
    Checkpoint {
        name: String,
        note: String,
    },
    /// (fleece=filter) The guest stands still.
    Pause,
    Freeze(Vec<Arc<PlannedDisk>>, Keeping),
    /// (fleece=filter) From here on the guest's requests go through the filters.
    Drives(Vec<Arc<PlannedDisk>>),
    /// (fleece=filter) The guest must have stood still until now; it goes on if we stopped it.
    Resume {
        ours: bool,
    },
    Merge(Vec<Arc<PlannedDisk>>),
    Access(Arc<PlannedDisk>),
    /// The NBD server on a socket, which has a name in QEMU until the server has it.
    Server {
        name: String,
        socket: PathBuf,
    },
    Export(Arc<PlannedDisk>, Keeping),
}

/// The steps of a point in time, in groups.
pub(super) struct Plan {
    /// What leads up to the instant.
    pub(super) before: Vec<Vec<Step>>,
    /// The instant.
    pub(super) instant: Vec<Vec<Step>>,
    /// What follows.
    pub(super) after: Vec<Vec<Step>>,
}

/// Where things are made.
pub(super) struct Places {
    /// Scratch files.
    pub(super) scratch: PathBuf,
    /// Name and path of the NBD server's socket; none if an existing server is used.
    pub(super) server: Option<(String, PathBuf)>,
}

/// How a point in time is kept.
#[derive(Debug, Clone, Copy)]
pub(super) struct Keeping {
    pub(super) fleece: Fleece,
    /// Whether the backup job can be told to break the point in time rather than the guest's write (QEMU 10.1).
    pub(super) breaks: bool,
    /// Whether the guest runs, and has to be stopped for a moment (fleece=filter).
    pub(super) runs: bool,
    /// Whether exports take trims: of the view that reads as the disk did, never of the disk.
    pub(super) read_once: bool,
}

/// The whole plan. `checkpoints` are the names of new checkpoints with their notes; on each disk, the same name may have
/// another note.
pub(super) fn plan(disks: &[Arc<PlannedDisk>], keeping: Keeping, places: Places) -> Plan {
    let fleece = keeping.fleece;
    let per_disk = |step: &dyn Fn(Arc<PlannedDisk>) -> Step| disks.iter().cloned().map(step).collect::<Vec<_>>();
    let mut before =
        vec![per_disk(&|disk| Step::File(disk, places.scratch.clone())), per_disk(&|disk| Step::Scratch(disk, fleece))];
    if fleece == Fleece::Filter {
        before.push(per_disk(&Step::Filter));
    }
    let noted: BTreeSet<_> = disks.iter().filter_map(|disk| disk.checkpoint()).collect();
    let begin = |(name, note): (&String, &String)| Step::Checkpoint { name: name.clone(), note: note.clone() };
    let mut instant = vec![noted.into_iter().map(begin).collect()];
    if fleece == Fleece::Filter && keeping.runs {
        instant.push(vec![Step::Pause]);
    }
    instant.push(vec![Step::Freeze(disks.to_vec(), keeping)]);
    if fleece == Fleece::Filter {
        instant.push(vec![Step::Drives(disks.to_vec())]);
        instant.push(vec![Step::Resume { ours: keeping.runs }]);
    }
    let mut after = Vec::new();
    if disks
        .iter()
        .flat_map(|disk| &disk.frozen)
        .flat_map(|bitmap| &bitmap.parts)
        .any(|part| !part.recording && !part.note)
    {
        after.push(vec![Step::Merge(disks.to_vec())]);
    }
    if fleece != Fleece::Backing {
        after.push(per_disk(&Step::Access));
    }
    after.extend(places.server.map(|(name, socket)| vec![Step::Server { name, socket }]));
    after.push(per_disk(&|disk| Step::Export(disk, keeping)));
    Plan { before, instant, after }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(disk, _) => write!(f, "adding a scratch file for {}", disk.name),
            Self::Scratch(disk, _) => write!(f, "opening the scratch image of {}", disk.name),
            Self::Filter(disk) => write!(f, "adding a filter for {}", disk.name),
            Self::Checkpoint { name, .. } => write!(f, "beginning checkpoint {name}"),
            Self::Pause => f.write_str("stopping the guest for the instant"),
            Self::Drives(disks) => write!(f, "putting filters on {} disks", disks.len()),
            Self::Resume { .. } => f.write_str("letting the guest go on"),
            Self::Freeze(disks, _) => write!(f, "freezing {} disks at one instant", disks.len()),
            Self::Merge(_) => f.write_str("merging dirty bitmaps of the backing chain"),
            Self::Access(disk) => write!(f, "opening the frozen view of {}", disk.name),
            Self::Server { .. } => f.write_str("starting the NBD server"),
            Self::Export(disk, _) => write!(f, "exporting {}", disk.name),
        }
    }
}

#[async_trait]
impl plan::Step for Step {
    type Undo = Leftover;

    fn leaves(&self) -> Vec<Leftover> {
        vec![match self {
            Self::File(disk, dir) => {
                Leftover::File { node: disk.ids.of(Role::File), place: scratch::place(dir, &disk.ids) }
            }
            Self::Scratch(disk, _) => Leftover::Node { name: disk.ids.of(Role::Scratch) },
            Self::Filter(disk) => Leftover::Node { name: disk.ids.of(Role::Filter) },
            Self::Checkpoint { name, note } => Leftover::Checkpoint { name: name.clone(), note: note.clone() },
            Self::Pause => Leftover::Pause,
            Self::Drives(disks) => {
                let drive = |Move { qdev, from, to }: Move<'_>| Leftover::Drive {
                    qdev: qdev.to_owned(),
                    node: from.to_owned(),
                    filter: to.to_owned(),
                };
                return disks.iter().map(|disk| drive(disk.drive(&disk.ids.of(Role::Filter)))).collect();
            }
            Self::Freeze(disks, keeping) if keeping.fleece != Fleece::Filter => {
                Leftover::Jobs { ids: disks.iter().map(|disk| disk.ids.of(Role::Point)).collect() }
            }
            Self::Access(disk) => Leftover::Node { name: disk.ids.of(Role::Access) },
            Self::Server { name, socket } => Leftover::Server { name: name.clone(), socket: socket.clone() },
            Self::Export(disk, _) => Leftover::Export { id: disk.ids.of(Role::Point) },
            // Bitmaps on the scratch image go with it; a guest that goes on leaves nothing.
            Self::Freeze(..) | Self::Merge(_) | Self::Resume { .. } => return Vec::new(),
        }]
    }

    async fn apply(&self, context: &Context) -> Result<()> {
        let session = &context.session;
        match self {
            Self::File(disk, dir) => scratch::add_file(context, dir, disk).await,
            Self::Scratch(disk, fleece) => session.add_node(scratch::image(disk, *fleece)).await,
            Self::Filter(disk) => session.add_node(filter(disk)).await,
            Self::Checkpoint { .. } => Ok(()),
            Self::Pause => session.pause().await,
            Self::Freeze(disks, keeping) => {
                let actions = disks.iter().flat_map(|disk| freeze(disk, *keeping)).collect();
                session.transaction(actions).await.map_err(|error| in_the_way(error, disks))
            }
            Self::Drives(disks) => {
                let filters: Vec<String> = disks.iter().map(|disk| disk.ids.of(Role::Filter)).collect();
                let drives: Vec<Move<'_>> =
                    disks.iter().zip(&filters).map(|(disk, filter)| disk.drive(filter)).collect();
                session.move_drives(&drives).await
            }
            Self::Resume { ours } => {
                if session.runs().await? {
                    let why = "somebody let the guest go on before all disks were frozen; try again";
                    return Err(Error::new(Kind::Busy, why));
                }
                if *ours { session.resume().await } else { Ok(()) }
            }
            Self::Merge(disks) => {
                session.transaction(disks.iter().flat_map(|disk| merges(disk, false)).collect()).await
            }
            Self::Access(disk) => {
                let (name, filter) = (disk.ids.of(Role::Access), disk.ids.of(Role::Filter));
                // What is trimmed there goes from the scratch image only if all on the way pass it on.
                let access =
                    json!({"driver": "snapshot-access", "node-name": name, "file": filter, "discard": "unmap"});
                session.add_node(access).await
            }
            Self::Server { name, socket } => server::start(session, context.descriptors, socket, name).await,
            Self::Export(disk, keeping) => session.add_export(export(disk, *keeping)).await,
        }
    }
}

/// A filter that rather breaks the point in time than the guest's write, when the scratch image fails or is slow.
fn filter(disk: &PlannedDisk) -> Value {
    json!({
        "driver": "copy-before-write", "node-name": disk.ids.of(Role::Filter), "file": disk.node,
        "target": disk.ids.of(Role::Scratch), "on-cbw-error": "break-snapshot", "cbw-timeout": CBW_TIMEOUT,
    })
}

/// The actions that freeze one disk: copies of the bitmaps that record, the new checkpoint, the backup job.
fn freeze(disk: &PlannedDisk, keeping: Keeping) -> Vec<Value> {
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
    if keeping.fleece == Fleece::Filter {
        return actions;
    }
    let mut backup = json!({
        "job-id": disk.ids.of(Role::Point), "device": disk.node, "target": scratch, "sync": "none",
        "filter-node-name": disk.ids.of(Role::Filter), "auto-dismiss": false,
    });
    if keeping.breaks {
        backup["on-cbw-error"] = json!("break-snapshot");
    }
    actions.push(json!({"type": "blockdev-backup", "data": backup}));
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

fn export(disk: &PlannedDisk, keeping: Keeping) -> Value {
    let node = match keeping.fleece {
        Fleece::Job | Fleece::Filter => disk.ids.of(Role::Access),
        Fleece::Backing => disk.ids.of(Role::Scratch),
    };
    let (id, scratch) = (disk.ids.of(Role::Point), disk.ids.of(Role::Scratch));
    let bitmaps: Vec<Value> = disk.frozen.iter().map(|bitmap| json!({"node": scratch, "name": bitmap.name})).collect();
    // A snapshot-access node refuses writes itself (block/snapshot-access.c).
    let writable = keeping.read_once;
    json!({"type": "nbd", "id": id, "node-name": node, "name": id, "bitmaps": bitmaps, "writable": writable})
}

/// Explains why QEMU refuses to freeze; it names a node, the user knows the disk.
fn in_the_way(error: Error, disks: &[Arc<PlannedDisk>]) -> Error {
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
