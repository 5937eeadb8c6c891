//! `status.json`: everything there is to know. Reading it starts nothing.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::SystemTime;

use serde::Serialize;

use crate::block::cache::Usage;
use crate::block::{Traffic, throttle};
use crate::error::Kind;
use crate::guest::Tally;
use crate::options::in_force::InForce;
use crate::options::settings::{Origin, Resolved, Setting};
use crate::point::owner::{Phase, View};
use crate::vm::{Base, Bitmap, Disk, Inventory, Machine, Scratch, Skipped, Unusable};

#[derive(Serialize)]
struct Document<'a> {
    /// Of this document's form: fields are added within one, none changes or goes.
    version: u32,
    pullfs: &'static str,
    pid: u32,
    mount_id: &'a str,
    mount: MountStatus<'a>,
    guard: Guard,
    sandbox: &'a Sandbox,
    /// What spares the guest's disks; none if nothing does.
    throttle: Option<throttle::Now>,
    machine: &'a Machine,
    #[serde(skip_serializing_if = "Option::is_none")]
    unreachable: Option<&'a str>,
    disks: Vec<DiskStatus<'a>>,
    skipped: &'a [Skipped],
    checkpoints: Vec<CheckpointStatus<'a>>,
    point: PointStatus,
    points: Attempts,
    last_end: Option<EndStatus<'a>>,
    last_error: Option<&'a Noted>,
    reads: Reads,
    cache: Usage,
    /// Who reads what is inside of disks.
    readers: Tally,
}

/// The version of the form.
const VERSION: u32 = 1;

/// How the machine is mounted.
#[derive(Serialize)]
struct MountStatus<'a> {
    /// Where; none if the file system is not mounted at all, as in tests.
    point: Option<String>,
    /// Since when.
    time: String,
    options: InForce<'a>,
    /// Who decided, by the name of the option; those that are as they are built in are not among them.
    origins: BTreeMap<&'static str, &'a Origin>,
    /// The configuration file that was asked; none if nobody said.
    config: Option<String>,
    /// What environment and `-o` said when it was mounted.
    settings: Vec<&'a Setting>,
}

/// The guardian process.
#[derive(Serialize)]
struct Guard {
    pid: u32,
}

#[derive(Serialize)]
struct DiskStatus<'a> {
    name: &'a str,
    node: &'a str,
    format: &'a str,
    size: u64,
    /// Estimate of the bytes that hold data.
    allocated: u64,
    /// Whether checkpoints that are made survive a restart of the machine.
    keeps_checkpoints: bool,
}

#[derive(Serialize)]
struct CheckpointStatus<'a> {
    name: &'a str,
    /// When it was made; none if somebody else made it.
    created: Option<String>,
    /// Whether somebody else made it.
    foreign: bool,
    dirty_bytes: u64,
    disks: BTreeMap<&'a str, BitmapStatus<'a>>,
}

#[derive(Serialize)]
struct BitmapStatus<'a> {
    dirty_bytes: u64,
    granularity: u32,
    recording: bool,
    persistent: bool,
    inconsistent: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    unusable: Option<&'a str>,
    /// Why all of the disk counts as changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    whole: Option<&'a str>,
}

#[derive(Serialize)]
struct PointStatus {
    state: &'static str,
    number: u64,
    time: Option<String>,
    /// The checkpoint that was made at the same instant.
    checkpoint: Option<String>,
    /// Whether the guest's file systems were frozen for the instant.
    quiesced: bool,
    /// The checkpoint since which it has the changes, where it has those since one alone.
    base: Option<String>,
    /// The disks it has, by name: one that was plugged in since is not among them.
    disks: Vec<String>,
    open_files: usize,
    /// File systems of guests that were looked into.
    file_systems: usize,
    /// Old data of what the guest overwrote since, and room for more; none where that is not known.
    scratch: Option<Scratch>,
    /// What was asked of the machine's disks for it.
    nbd: Option<Traffic>,
}

#[derive(Serialize)]
struct EndStatus<'a> {
    /// One word for why.
    kind: &'static str,
    reason: &'a str,
    time: String,
}

/// An error that was noted, for whoever only got an errno.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Noted {
    /// One word for it.
    pub(super) kind: &'static str,
    pub(super) message: String,
    pub(super) time: String,
}

impl Noted {
    pub(super) fn now(kind: Kind, message: String) -> Self {
        Self { kind: kind.word(), message, time: rfc3339(SystemTime::now()) }
    }
}

/// Points in time since the mount.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Attempts {
    pub(super) taken: u64,
    /// Those that could not be taken.
    pub(super) failed: u64,
}

/// Reads served so far.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Reads {
    pub(super) count: u64,
    pub(super) bytes: u64,
    pub(super) failed: u64,
}

/// What the daemon gave up before it spoke to the machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Sandbox {
    /// The capabilities that it kept.
    pub capabilities: Vec<String>,
    /// Whether no program that it starts can gain any.
    pub no_new_privileges: bool,
    /// How much of the restriction of paths and ports is enforced; none of it if absent.
    pub landlock: Option<String>,
    /// Whether system calls are filtered.
    pub system_calls: bool,
    /// Whether it may leave core dumps.
    pub core_dumps: bool,
    /// What could not be enforced, and why.
    pub missing: Vec<String>,
}

/// What the document is made of.
pub(super) struct Facts<'a> {
    pub(super) mount_id: &'a str,
    /// Where the machine is mounted, and since when.
    pub(super) mounted: (Option<&'a Path>, SystemTime),
    pub(super) options: InForce<'a>,
    pub(super) resolved: &'a Resolved,
    /// The configuration file.
    pub(super) config: Option<&'a Path>,
    /// The process that cleans up after this one; 0 if there is none.
    pub(super) guardian: u32,
    pub(super) sandbox: &'a Sandbox,
    pub(super) throttle: Option<throttle::Now>,
    pub(super) machine: &'a Machine,
    /// The machine now.
    pub(super) inventory: &'a Inventory,
    /// Why the machine cannot be asked now, if it cannot.
    pub(super) unreachable: Option<&'a str>,
    pub(super) view: &'a View,
    pub(super) attempts: Attempts,
    pub(super) last_error: Option<&'a Noted>,
    pub(super) reads: Reads,
    pub(super) cache: Usage,
    pub(super) readers: Tally,
}

fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}

pub(super) fn render(facts: Facts<'_>) -> Vec<u8> {
    let view = facts.view;
    let inventory = facts.inventory;
    let held = view.held.as_ref();
    let document = Document {
        version: VERSION,
        pullfs: env!("CARGO_PKG_VERSION"),
        pid: std::process::id(),
        mount_id: facts.mount_id,
        mount: MountStatus {
            point: facts.mounted.0.map(|path| path.display().to_string()),
            time: rfc3339(facts.mounted.1),
            options: facts.options,
            origins: facts.resolved.origins(),
            config: facts.config.map(|path| path.display().to_string()),
            settings: facts.resolved.over_files().collect(),
        },
        guard: Guard { pid: facts.guardian },
        sandbox: facts.sandbox,
        throttle: facts.throttle,
        machine: facts.machine,
        unreachable: facts.unreachable,
        disks: inventory.disks.iter().map(disk).collect(),
        skipped: &inventory.skipped,
        checkpoints: checkpoints(inventory),
        point: PointStatus {
            state: match view.phase {
                Phase::None => "none",
                Phase::Taking => "taking",
                Phase::Held => "held",
                Phase::Releasing => "releasing",
            },
            number: view.number,
            time: held.map(|point| rfc3339(point.time())),
            quiesced: held.is_some_and(|point| point.quiesced()),
            base: held.and_then(|point| match point.base() {
                Base::One(base) => base.as_deref().map(str::to_owned),
                Base::All => None,
            }),
            checkpoint: held.and_then(|point| point.checkpoint()).map(ToString::to_string),
            disks: held
                .map(|point| point.inventory().disks.iter().map(|disk| disk.name.to_string()).collect())
                .unwrap_or_default(),
            open_files: held.map_or(0, |point| point.open_files()),
            file_systems: held.map_or(0, |point| point.volumes().open()),
            scratch: held.and_then(|point| point.scratch()),
            nbd: held.map(|point| point.traffic()),
        },
        points: facts.attempts,
        last_end: view.last_end.as_ref().map(|end| EndStatus {
            kind: end.kind.word(),
            reason: &end.reason,
            time: rfc3339(end.time),
        }),
        last_error: facts.last_error,
        reads: facts.reads,
        cache: facts.cache,
        readers: facts.readers,
    };
    let mut text = serde_json::to_vec_pretty(&document).unwrap_or_default();
    text.push(b'\n');
    text
}

fn disk(disk: &Disk) -> DiskStatus<'_> {
    DiskStatus {
        name: &disk.name,
        node: &disk.node,
        format: &disk.format,
        size: disk.size,
        allocated: disk.allocated,
        keeps_checkpoints: disk.keeps_bitmaps,
    }
}

fn checkpoints(inventory: &Inventory) -> Vec<CheckpointStatus<'_>> {
    let mut all: BTreeMap<&str, BTreeMap<&str, &Bitmap>> = BTreeMap::new();
    for disk in &inventory.disks {
        for (checkpoint, bitmap) in &disk.bitmaps {
            all.entry(checkpoint).or_default().insert(&disk.name, bitmap);
        }
    }
    all.into_iter().map(|(name, disks)| checkpoint(name, &disks)).collect()
}

fn checkpoint<'a>(name: &'a str, disks: &BTreeMap<&'a str, &'a Bitmap>) -> CheckpointStatus<'a> {
    let made = disks.values().filter_map(|bitmap| bitmap.made).map(|made| made.time).min();
    CheckpointStatus {
        name,
        created: made.map(rfc3339),
        foreign: made.is_none(),
        dirty_bytes: disks.values().map(|bitmap| bitmap.dirty_bytes).fold(0, u64::saturating_add),
        disks: disks.iter().map(|(disk, bitmap)| (*disk, status(bitmap))).collect(),
    }
}

fn status(bitmap: &Bitmap) -> BitmapStatus<'_> {
    BitmapStatus {
        dirty_bytes: bitmap.dirty_bytes,
        granularity: bitmap.granularity,
        recording: bitmap.recording,
        persistent: bitmap.persistent,
        inconsistent: bitmap.inconsistent,
        unusable: bitmap.unusable.as_ref().map(Unusable::why),
        whole: bitmap.whole.as_deref(),
    }
}
