//! A machine that QEMU (or qemu-storage-daemon) runs, reached over QMP.
//!
//! [`transport`] carries commands and events; `detect` finds out what this QEMU can do safely; `graph` and `inventory`
//! read its disks and bitmaps, [`examine`] for somebody who only looks; `steps` take a point in time, over the calls of `session`, and `undo` is what they may leave,
//! over those of `removal`;
//! `watch` turns QEMU's events into what they mean for the point in time, and answers whether it is kept at this moment;
//! [`recover`] undoes what a mount that died has left.

pub(super) mod bitmaps;
mod by_path;
pub(super) mod checkpoint;
mod detect;
pub mod examine;
#[cfg(any(test, feature = "testing"))]
pub mod fuzz;
mod graph;
pub mod ids;
mod inventory;
pub mod monitor;
pub(super) mod note;
pub mod recover;
mod removal;
pub(super) mod scratch;
mod server;
pub(super) mod session;
mod steps;
pub mod transport;
mod undo;
mod watch;

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use nbd_pool::Address;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::broadcast;

use self::detect::Abilities;
use self::ids::{DiskIds, MountId, Role};
use self::monitor::Monitor;
use self::session::Session;
use self::steps::{Frozen, Keeping, Places, Plan, PlannedDisk};
use self::transport::Qmp;
use self::undo::{Context, Leftover};
use self::watch::{Expected, Watch};
use super::network;
use super::warden::{Held, Warden};
use super::{Base, Disk, Event, Fleece, Inventory, Machine, Scratch, Taken, TakenDisk, Vm, Wanted};
use crate::block::Source;
use crate::block::changes::FrozenMap;
use crate::block::nbd::{Export, NbdSource};
use crate::block::once::ReadOnce;
use crate::block::throttle::{Throttle, Throttled};
use crate::error::{Error, Kind, Result, chain, printable};
use crate::options;
use crate::point::journal::Journal;
use crate::point::plan::Ledger;
use crate::quiesce::Quiesce;

/// What a QMP source needs to know.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The source as the user gave it.
    pub source: String,
    /// Its monitor.
    pub monitor: Monitor,
    /// Which mount this is.
    pub mount: MountId,
    /// A directory of this mount alone, mode 0700.
    pub runtime_dir: PathBuf,
    /// Where scratch files go.
    pub scratch_dir: PathBuf,
    /// What they may take at most to begin with, in bytes; none for as much as there is.
    pub scratch_limit: Option<u64>,
    /// Whether what was read once is given back.
    pub read_once: bool,
    /// What spares the guest's disks, as far as it limits anything.
    pub throttle: Arc<Throttle>,
    /// Only these disks; none for all.
    pub disks: Option<BTreeSet<String>>,
    /// How points in time are to be kept.
    pub fleece: options::Fleece,
    /// An NBD server that is there already.
    pub server: Option<Address>,
    /// How the guest is quiesced, where that is possible.
    pub quiesce: Option<Quiesce>,
    /// Bounds of the NBD connections. TLS is for a server that is there already; the one of a point in time is ours, on
    /// a unix socket in a directory of ours.
    pub nbd: nbd_pool::Config,
}

/// A machine behind a QMP socket.
pub struct QmpVm {
    settings: Settings,
    machine: Machine,
    able: Abilities,
    context: Context,
    ledger: Ledger<Leftover>,
    watch: Watch,
    warden: Warden,
}

/// Events kept for a slow receiver.
const MAX_EVENTS: usize = 64;

/// Reads the fields that are needed out of an answer.
fn understand<T: DeserializeOwned>(command: &str, answer: Value) -> Result<T> {
    serde_json::from_value(answer).map_err(|error| {
        // It may quote what it does not understand.
        let why = printable(&error.to_string());
        Error::with_source(Kind::Invalid, format!("the answer of QEMU to {command} is not understood"), why)
    })
}

impl QmpVm {
    /// Connects, and finds out what the machine can do. Changes nothing in it. Whatever is made in it later is noted in
    /// the journal first.
    ///
    /// # Errors
    /// When it cannot be reached, or cannot be backed up safely.
    pub async fn connect(settings: Settings, journal: Option<Journal>) -> Result<Self> {
        let qmp = Qmp::connect(&settings.monitor).await?;
        let able = detect::detect(&qmp, settings.fleece).await?;
        let (events, _) = broadcast::channel(MAX_EVENTS);
        let session = Session { qmp: qmp.clone() };
        let warden = Warden::start(Arc::new(session.clone()), events.clone(), settings.scratch_limit);
        let vm = Self {
            machine: Machine {
                source: settings.source.clone(),
                name: able.name.clone(),
                qemu: able.version.to_string(),
                fleece: able.fleece,
            },
            context: Context::new(session, able.descriptors),
            ledger: Ledger::new(journal),
            watch: Watch::start(&qmp, settings.mount.clone(), events, warden.alarm()),
            warden,
            able,
            settings,
        };
        if vm.settings.read_once && vm.able.fleece == Fleece::Backing {
            return Err(Error::new(
                Kind::Unsupported,
                format!("read_once needs fleece=job or filter, which QEMU {} cannot do safely", vm.able.version),
            ));
        }
        let found = vm.found().await?;
        vm.check(&found)?;
        detect::refuse_iothreads(&qmp, &vm.able, &found.qdevs).await?;
        Ok(vm)
    }

    fn qmp(&self) -> &Qmp {
        &self.context.session.qmp
    }

    async fn found(&self) -> Result<inventory::Found> {
        inventory::query(self.qmp(), self.settings.disks.as_ref()).await
    }

    fn check(&self, found: &inventory::Found) -> Result<()> {
        check(self.settings.disks.as_ref(), found)
    }

    /// Runs the plan of a point in time; when the instant was. What a failure leaves goes with [`Vm::release`].
    async fn run(&self, number: u64, jobs: Vec<String>, plan: Plan, quiesce: bool) -> Result<SystemTime> {
        self.ledger.run(&self.context, plan.before).await?;
        let scratch = Arc::new(self.context.scratch_files()?);
        self.warden.hold(Held { number, jobs, scratch }).await?;
        let frozen = match self.settings.quiesce.as_ref().filter(|_| quiesce) {
            Some(quiesce) => Some(quiesce.freeze().await?),
            None => None,
        };
        let instant = self.ledger.run(&self.context, plan.instant).await;
        let time = SystemTime::now();
        // The guest goes on before anything else is done or said.
        if instant.is_err() {
            self.ledger.relieve(&self.context).await;
        }
        let thawed = match frozen {
            Some(frozen) => frozen.thaw().await.map(drop),
            None => Ok(()),
        };
        instant?;
        // It goes on: who stops it from now on has reasons of his own.
        self.ledger.keep(|left| matches!(left, Leftover::Pause));
        thawed?;
        self.ledger.run(&self.context, plan.after).await?;
        // A checkpoint counts from here on.
        self.ledger.keep(|left| matches!(left, Leftover::Checkpoint { .. }));
        Ok(time)
    }

    fn can_quiesce(&self, wanted: &Wanted) -> Result<()> {
        if wanted.quiesce && self.settings.quiesce.is_none() {
            return Err(Error::new(
                Kind::Unsupported,
                "to quiesce the guest its agent's socket is needed: mount with -o agent=PATH",
            ));
        }
        Ok(())
    }

    /// How a point in time of these disks is kept now.
    async fn keeping(&self, disks: &[Arc<PlannedDisk>]) -> Result<Keeping> {
        let (fleece, breaks) = (self.able.fleece, self.able.breaks);
        let read_once = self.settings.read_once;
        if fleece != Fleece::Filter {
            // A scratch image over the live disk would show live data once it is broken.
            return Ok(Keeping { fleece, breaks: breaks && fleece == Fleece::Job, runs: true, read_once });
        }
        if let Some(disk) = disks.iter().find(|disk| disk.qdev.is_none()) {
            return Err(Error::new(
                Kind::Unsupported,
                format!("fleece=filter needs a guest's device to put a filter under; disk {} has none", disk.name),
            ));
        }
        Ok(Keeping { fleece, breaks: false, runs: self.context.session.runs().await?, read_once })
    }

    fn planned(
        &self,
        number: u64,
        index: usize,
        disk: &Disk,
        qdev: Option<&String>,
        checkpoint: Option<&(Arc<str>, SystemTime)>,
    ) -> PlannedDisk {
        let frozen = disk
            .bitmaps
            .iter()
            .filter(|(_, bitmap)| bitmap.unusable.is_none() && bitmap.whole.is_none())
            .enumerate()
            .map(|(index, (checkpoint, bitmap))| Frozen {
                // A checkpoint's own name may be longer than NBD allows.
                name: format!("c{index}"),
                checkpoint: checkpoint.clone(),
                granularity: bitmap.granularity,
                parts: bitmap.parts.clone(),
            })
            .collect();
        PlannedDisk {
            ids: DiskIds::new(&self.settings.mount, number, index),
            name: disk.name.to_string(),
            node: disk.node.clone(),
            qdev: qdev.cloned(),
            size: disk.size,
            frozen,
            new: checkpoint.map(|(name, time)| checkpoint::bitmaps(disk, name, *time)).unwrap_or_default(),
        }
    }

    /// The socket that QEMU's NBD server listens on, in a directory of ours.
    fn socket(&self) -> PathBuf {
        self.settings.runtime_dir.join("nbd.sock")
    }

    /// `disk` is what `planned` was made of.
    fn view(&self, planned: &PlannedDisk, disk: &Disk) -> TakenDisk {
        let config = self.settings.nbd.clone();
        let (address, config) = match &self.settings.server {
            Some(server) => (server.clone(), network::bounded(server, config)),
            None => (Address::Unix(self.socket()), nbd_pool::Config { tls: None, ..config }),
        };
        let export = Export { address, name: planned.ids.of(Role::Point), config };
        let names: HashMap<&str, &String> =
            planned.frozen.iter().map(|frozen| (&*frozen.checkpoint, &frozen.name)).collect();
        let usable = disk.bitmaps.iter().filter(|(_, bitmap)| bitmap.unusable.is_none());
        let frozen = usable.map(|(checkpoint, bitmap)| {
            let name = names.get(&**checkpoint).copied().cloned();
            (checkpoint.clone(), FrozenMap { name, also: bitmap.also(disk.size), rough: None })
        });
        let source: Arc<dyn Source> = Arc::new(NbdSource::new(export, disk.size));
        let source: Arc<dyn Source> = Arc::new(Throttled::new(source, self.settings.throttle.clone()));
        let source = if self.settings.read_once { Arc::new(ReadOnce::new(source, disk.size)) } else { source };
        TakenDisk { source, frozen: frozen.collect() }
    }
}

/// Refuses a machine without disks, and names in `disks=` that it does not have.
fn check(only: Option<&BTreeSet<String>>, found: &inventory::Found) -> Result<()> {
    let Inventory { disks, skipped } = &found.inventory;
    let known = |name: &String| disks.iter().any(|disk| *disk.name == **name);
    if let Some(name) = only.into_iter().flatten().find(|name| !known(name)) {
        let reason = skipped.iter().find(|skipped| skipped.name == *name);
        let reason = reason.map_or("there is no such disk", |skipped| skipped.reason.as_str());
        return Err(Error::new(Kind::NotFound, format!("disk {name} of the option disks= cannot be read: {reason}")));
    }
    if disks.is_empty() {
        return Err(Error::new(Kind::NotFound, "this machine has no disk that could be read"));
    }
    Ok(())
}

#[async_trait]
impl Vm for QmpVm {
    fn machine(&self) -> &Machine {
        &self.machine
    }

    async fn inventory(&self) -> Result<Inventory> {
        Ok(self.found().await?.inventory)
    }

    async fn admit(&self, wanted: &Wanted) -> Result<()> {
        self.can_quiesce(wanted)?;
        match &wanted.checkpoint {
            Some(name) => checkpoint::check(name, &self.inventory().await?),
            None => Ok(()),
        }
    }

    async fn take(&self, number: u64, wanted: &Wanted) -> Result<Taken> {
        self.can_quiesce(wanted)?;
        self.release().await?;
        let version = detect::version(self.qmp()).await?;
        if version != self.able.version {
            return Err(Error::new(
                Kind::Unsupported,
                format!("the machine now runs in QEMU {version}, not {}; mount it again", self.able.version),
            ));
        }
        let found = self.found().await?;
        self.check(&found)?;
        wanted.checkpoint.as_ref().map_or(Ok(()), |name| checkpoint::check(name, &found.inventory))?;
        detect::refuse_iothreads(self.qmp(), &self.able, &found.qdevs).await?;
        let mut inventory = found.inventory;
        let checkpoint = wanted.checkpoint.clone().map(|name| (name, note::now()));
        let each = |(index, disk): (usize, &Disk)| {
            self.planned(number, index, disk, found.qdevs.get(&disk.name), checkpoint.as_ref())
        };
        let disks: Vec<Arc<PlannedDisk>> = inventory.disks.iter().enumerate().map(each).map(Arc::new).collect();
        let server = self.settings.server.is_none().then(|| (self.settings.mount.to_string(), self.socket()));
        let keeping = self.keeping(&disks).await?;
        let places = Places { scratch: self.settings.scratch_dir.clone(), server };
        let plan = steps::plan(&disks, keeping, places);
        let jobs = match keeping.fleece {
            Fleece::Filter => Vec::new(),
            Fleece::Job | Fleece::Backing => disks.iter().map(|disk| disk.ids.of(Role::Point)).collect(),
        };
        // What happens to the machine while the plan runs must not be missed.
        let qdevs = found.qdevs.into_values().collect();
        self.watch.expect(Some(Expected { number, jobs: jobs.clone(), qdevs }));
        let time = match self.run(number, jobs, plan, wanted.quiesce).await {
            Ok(time) => time,
            Err(error) => {
                if let Err(left) = self.release().await {
                    tracing::warn!("something may be left in the machine until the next try: {}", chain(&left));
                }
                return Err(error);
            }
        };
        if let Some((name, time)) = &checkpoint {
            checkpoint::add(&mut inventory, name, *time);
        }
        Ok(Taken {
            number,
            time,
            checkpoint: wanted.checkpoint.clone(),
            quiesced: wanted.quiesce,
            disks: disks.iter().zip(&inventory.disks).map(|(planned, disk)| self.view(planned, disk)).collect(),
            inventory: Arc::new(inventory),
            needs_confirmation: self.able.fleece == Fleece::Backing,
            base: Base::All,
        })
    }

    async fn delete_checkpoint(&self, name: &str, foreign: bool) -> Result<()> {
        let bitmaps = checkpoint::bitmaps_of(name, &self.inventory().await?, foreign)?;
        self.context.session.remove_bitmaps(&bitmaps).await
    }

    async fn release(&self) -> Result<()> {
        // Watched over until it is gone.
        self.ledger.undo(&self.context).await?;
        self.watch.expect(None);
        self.warden.end().await;
        Ok(())
    }

    async fn end(&self) -> Result<()> {
        undo::undo_for_good(&self.ledger, &self.context).await?;
        self.release().await
    }

    async fn confirm(&self, number: u64) -> Result<()> {
        self.watch.confirm(number).await
    }

    fn scratch(&self) -> Option<Scratch> {
        self.warden.scratch()
    }

    async fn limit_scratch(&self, limit: Option<u64>) -> Result<()> {
        self.warden.limit(limit).await
    }

    fn is_clean(&self) -> bool {
        self.ledger.is_empty()
    }

    fn events(&self) -> broadcast::Receiver<Event> {
        self.watch.events()
    }

    async fn disconnect(&self) {
        self.watch.stop();
    }
}
