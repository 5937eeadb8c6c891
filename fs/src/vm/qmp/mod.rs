//! A machine that QEMU (or qemu-storage-daemon) runs, reached over QMP.
//!
//! [`transport`] carries commands and events; `detect` finds out what this QEMU can do safely; `graph` and `inventory`
//! read its disks and bitmaps; `steps` take a point in time and undo it, over the calls of `session`; `watch` turns
//! QEMU's events into what they mean for the point in time, and answers whether it is kept at this moment.

mod detect;
mod graph;
pub mod ids;
mod inventory;
mod session;
mod steps;
pub mod transport;
mod watch;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use async_trait::async_trait;
use nbd_pool::Address;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::broadcast;

use self::detect::Abilities;
use self::ids::{DiskIds, MountId, Role};
use self::session::Session;
use self::steps::{Context, Frozen, PlannedDisk, Step};
use self::transport::Qmp;
use self::watch::Watch;
use super::{Disk, Event, Fleece, Inventory, Machine, Taken, TakenDisk, Vm};
use crate::block::nbd::{Export, NbdSource};
use crate::error::{Error, Kind, Result};
use crate::options;
use crate::point::plan::Ledger;

/// What a QMP source needs to know.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The source as the user gave it.
    pub source: String,
    /// The QMP socket.
    pub socket: PathBuf,
    /// Which mount this is.
    pub mount: MountId,
    /// A directory of this mount alone, mode 0700.
    pub runtime_dir: PathBuf,
    /// Where scratch files go.
    pub scratch_dir: PathBuf,
    /// Only these disks; none for all.
    pub disks: Option<BTreeSet<String>>,
    /// How points in time are to be kept.
    pub fleece: options::Fleece,
    /// An NBD server that is there already.
    pub server: Option<Address>,
    /// Bounds of the NBD connections.
    pub nbd: nbd_pool::Config,
}

/// A machine behind a QMP socket.
pub struct QmpVm {
    settings: Settings,
    machine: Machine,
    able: Abilities,
    context: Context,
    ledger: Ledger<Step>,
    watch: Watch,
}

/// Reads the fields that are needed out of an answer.
fn understand<T: DeserializeOwned>(command: &str, answer: Value) -> Result<T> {
    serde_json::from_value(answer).map_err(|error| {
        Error::with_source(Kind::Invalid, format!("the answer of QEMU to {command} is not understood"), error)
    })
}

impl QmpVm {
    /// Connects, and finds out what the machine can do. Changes nothing in it.
    ///
    /// # Errors
    /// When it cannot be reached, or cannot be backed up safely.
    pub async fn connect(settings: Settings) -> Result<Self> {
        let qmp = Qmp::connect(&settings.socket).await?;
        let able = detect::detect(&qmp, settings.fleece).await?;
        let vm = Self {
            machine: Machine {
                source: settings.source.clone(),
                name: able.name.clone(),
                qemu: able.version.to_string(),
                fleece: able.fleece,
            },
            context: Context {
                session: Session { qmp: qmp.clone() },
                fleece: able.fleece,
                scratch_dir: settings.scratch_dir.clone(),
                socket: settings.runtime_dir.join("nbd.sock"),
                descriptors: able.descriptors,
                files: Mutex::default(),
            },
            ledger: Ledger::default(),
            watch: Watch::start(&qmp, settings.mount.clone()),
            able,
            settings,
        };
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

    /// Refuses a machine without disks, and names in `disks=` that it does not have.
    fn check(&self, found: &inventory::Found) -> Result<()> {
        let Inventory { disks, skipped } = &found.inventory;
        let known = |name: &String| disks.iter().any(|disk| *disk.name == **name);
        if let Some(name) = self.settings.disks.iter().flatten().find(|name| !known(name)) {
            let reason = skipped.iter().find(|skipped| skipped.name == *name);
            let reason = reason.map_or("there is no such disk", |skipped| skipped.reason.as_str());
            return Err(Error::new(
                Kind::NotFound,
                format!("disk {name} of the option disks= cannot be read: {reason}"),
            ));
        }
        if disks.is_empty() {
            return Err(Error::new(Kind::NotFound, "this machine has no disk that could be read"));
        }
        Ok(())
    }

    fn planned(&self, number: u64, index: usize, disk: &Disk) -> PlannedDisk {
        let frozen = disk
            .bitmaps
            .iter()
            .filter(|(_, bitmap)| bitmap.unusable.is_none())
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
            size: disk.size,
            frozen,
        }
    }

    fn view(&self, disk: &PlannedDisk) -> TakenDisk {
        let own = || Address::Unix(self.context.socket.clone());
        let export = Export {
            address: self.settings.server.clone().unwrap_or_else(own),
            name: disk.ids.of(Role::Point),
            config: self.settings.nbd.clone(),
        };
        let frozen = disk.frozen.iter().map(|bitmap| (bitmap.checkpoint.clone(), bitmap.name.clone())).collect();
        TakenDisk { source: Arc::new(NbdSource::new(export, disk.size)), frozen }
    }
}

#[async_trait]
impl Vm for QmpVm {
    fn machine(&self) -> &Machine {
        &self.machine
    }

    async fn inventory(&self) -> Result<Inventory> {
        Ok(self.found().await?.inventory)
    }

    async fn take(&self, number: u64) -> Result<Taken> {
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
        detect::refuse_iothreads(self.qmp(), &self.able, &found.qdevs).await?;
        let inventory = Arc::new(found.inventory);
        let disks: Vec<PlannedDisk> =
            inventory.disks.iter().enumerate().map(|(index, disk)| self.planned(number, index, disk)).collect();
        let server = self.settings.server.is_none().then(|| self.settings.mount.to_string());
        let (until_frozen, after) = steps::plan(&disks, self.able.fleece, server);
        self.ledger.run(&self.context, until_frozen).await?;
        let time = SystemTime::now();
        self.ledger.run(&self.context, after).await?;
        self.watch.expect(number, disks.iter().map(|disk| disk.ids.of(Role::Point)).collect());
        Ok(Taken {
            number,
            time,
            disks: disks.iter().map(|disk| self.view(disk)).collect(),
            inventory,
            needs_confirmation: self.able.fleece == Fleece::Backing,
        })
    }

    async fn release(&self) -> Result<()> {
        if self.ledger.is_empty() {
            return Ok(());
        }
        self.ledger.undo(&self.context).await
    }

    async fn confirm(&self, number: u64) -> Result<()> {
        self.watch.confirm(number).await
    }

    fn events(&self) -> broadcast::Receiver<Event> {
        self.watch.events()
    }

    async fn disconnect(&self) {
        self.watch.stop();
    }
}
