//! A domain of libvirt, backed up through libvirt's own API, so that libvirt knows what happens.
//!
//! [`link`] has the connection; [`xml`] reads and writes libvirt's descriptions; `inventory` says what there is; `undo` has
//! the steps of a point in time and what they leave, `begin` takes them; `place` is where QEMU's user reaches scratch images and
//! the socket, and [`elsewhere`] with `pool` what takes its place where libvirt is on another host, which [`ssh`] may lead to;
//! `delete` deletes checkpoints;
//! `watch` says whether the point in time is kept, and `guard` and `end` let go of the guest; [`recover`] undoes what a mount
//! that died has left; [`host`] lists the domains that there are; [`redefine`] makes checkpoints known to libvirt again that it
//! has forgotten.
//!
//! A domain has one backup at a time, and a backup tells of each disk the changes since one checkpoint. Those since a newer
//! one are among them: they are told roughly. For an older one another point in time is needed ([`Base::One`]).

mod begin;
mod delete;
pub mod elsewhere;
mod end;
pub mod examine;
mod guard;
pub mod host;
mod inventory;
pub mod link;
pub mod mounted;
mod place;
mod pool;
pub mod recover;
pub mod redefine;
pub mod roster;
pub mod ssh;
mod undo;
mod watch;
mod xml;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};

use async_trait::async_trait;
use nbd_pool::Address;
use tokio::sync::{broadcast, mpsc};
use tokio::task::JoinHandle;

use self::elsewhere::Elsewhere;
use self::inventory::Found;
use self::link::{LIMIT, Link, Target};
use self::undo::{Context, Leftover, NewCheckpoint};
use self::watch::{Held, Keep, Shared, Suspicion};
use super::confirm::Confirmations;
use super::network;
use super::qmp::bitmaps::complete;
use super::qmp::checkpoint::check as check_checkpoint;
use super::qmp::ids::MountId;
use super::qmp::note;
use super::warden::Warden;
use super::{Base, Disk, Event, Fleece, Inventory, Machine, Made, Scratch, Taken, TakenDisk, Vm, Wanted};
use crate::block::Source;
use crate::block::changes::FrozenMap;
use crate::block::nbd::{Export, NbdSource};
use crate::block::throttle::{Throttle, Throttled};
use crate::error::{Error, Kind, Result, chain};
use crate::point::journal::Journal;
use crate::point::plan::Ledger;

/// Loads libvirt's library, unless that was done before; after the daemon has given up its rights it may be too late.
///
/// # Errors
/// [`Kind::Unsupported`] where it is not installed.
pub fn load() -> Result<()> {
    libvirt::load().map_err(|error| link::explain("libvirt machines cannot be mounted here", error))
}

/// The name that a disk's frozen bitmap is exported by.
const BITMAP: &str = "since";

/// Events kept for a slow receiver.
const MAX_EVENTS: usize = 64;

/// Suspicions that wait to be looked into.
const MAX_SUSPICIONS: usize = 64;

/// The oldest QEMU that is taken, 7.2.0, as libvirt tells it.
const OLDEST: u64 = 7_002_000;

/// From this QEMU on, a disk that a thread of its own serves can be backed up without danger to the guest.
const THREADS_SAFE: (u32, u32) = (9, 0);

/// What a libvirt source needs to know.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The source as the user gave it.
    pub source: String,
    /// Its domain.
    pub target: Target,
    /// Which mount this is.
    pub mount: MountId,
    /// How it is backed up from another host; none on its own.
    pub elsewhere: Option<Elsewhere>,
    /// Where scratch files and the NBD server's socket go.
    pub scratch_dir: PathBuf,
    /// What they may take at most, in bytes; none for as much as there is.
    pub scratch_limit: Option<u64>,
    /// What spares the guest's disks.
    pub throttle: Arc<Throttle>,
    /// Only these disks; none for all.
    pub disks: Option<BTreeSet<String>>,
    /// Bounds of the NBD connections.
    pub nbd: nbd_pool::Config,
}

/// A domain of libvirt.
pub struct LibvirtVm {
    settings: Settings,
    machine: Machine,
    context: Arc<Context>,
    ledger: Ledger<Leftover>,
    held: Shared,
    events: broadcast::Sender<Event>,
    confirmations: Confirmations,
    warden: Warden,
    watch: JoinHandle<()>,
}

impl Drop for LibvirtVm {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

impl LibvirtVm {
    /// Connects, and finds out what the machine can do. Changes nothing in it. Whatever is made for it later is noted in
    /// the journal first.
    ///
    /// # Errors
    /// When it cannot be reached, does not run, or cannot be backed up safely.
    pub async fn connect(settings: Settings, journal: Option<Journal>) -> Result<Self> {
        let (events, _) = broadcast::channel(MAX_EVENTS);
        let held = Shared::default();
        let (suspect, suspicions) = mpsc::channel(MAX_SUSPICIONS);
        let on_event = {
            let (events, held) = (events.clone(), held.clone());
            move |event: &libvirt::Event| {
                if let Some(suspicion) = Suspicion::of(event) {
                    // Where there is no room, it is looked into already.
                    suspect.try_send(suspicion).ok();
                }
                if let Some(event) = watch::lost(&held, event) {
                    // Nobody listens before the first point in time.
                    events.send(event).ok();
                }
            }
        };
        let link = Link::start(settings.target.clone(), Box::new(on_event));
        let context = Arc::new(Context::new(link, settings.target.clone()));
        let keep = Arc::new(Keep { context: context.clone(), held: held.clone(), events: events.clone() });
        let warden = guard::start(settings.target.clone(), keep.clone(), events.clone(), settings.scratch_limit);
        let watch = tokio::spawn(watch::look_into(keep.clone(), warden.alarm(), suspicions));
        let (_, qemu) = context.link.call("tell its version", LIMIT, libvirt::Domain::versions).await?;
        is_recent(qemu)?;
        let found = inventory::query(&context.link, settings.disks.as_ref()).await?;
        match &settings.elsewhere {
            Some(elsewhere) => drop(context.room(&elsewhere.pool).await?),
            None => place::check(&place::dir(&settings.scratch_dir, &settings.mount.to_string()))?,
        }
        let vm = Self {
            machine: Machine {
                source: settings.source.clone(),
                name: Some(found.domain.name.clone()),
                qemu: version(qemu),
                fleece: Fleece::Backing,
            },
            settings,
            context,
            ledger: Ledger::new(journal),
            held,
            events,
            confirmations: Confirmations::start(keep),
            warden,
            watch,
        };
        vm.check(&found)?;
        Ok(vm)
    }

    async fn found(&self) -> Result<Found> {
        let found = inventory::query(&self.context.link, self.settings.disks.as_ref()).await.map_err(gone)?;
        if found.domain.active { Ok(found) } else { Err(Error::new(Kind::Gone, "the domain does not run")) }
    }

    fn check(&self, found: &Found) -> Result<()> {
        check(self.settings.disks.as_ref(), found)
    }

    /// Refuses at once what libvirt would have wait for half a minute, and then refuse.
    async fn check_alone(&self) -> Result<()> {
        let told = self.context.link.call("tell what goes on in the domain", LIMIT, libvirt::Domain::job_stats);
        let message = match told.await.map_err(gone)? {
            None => return Ok(()),
            Some(job) if job.backup => {
                "another backup of the domain runs, and libvirt has one at a time: wait for its end (`virsh domjobinfo`), or \
                 end it (`virsh domjobabort`); `pullfs doctor` says whether it is one of pullfs"
            }
            Some(_) => "the domain is being saved, dumped or migrated (`virsh domjobinfo`): wait for the end of it",
        };
        Err(Error::new(Kind::Busy, message))
    }

    fn admitted(wanted: &Wanted, found: &Found) -> Result<()> {
        if let Some(since) = &wanted.since
            && !found.lineage.iter().any(|(name, _)| name == since)
        {
            return Err(Error::new(Kind::NotFound, format!("there is no checkpoint {since}")));
        }
        if let Some(since) = &wanted.since
            && !found.is_usable(since)
        {
            return Err(Error::new(Kind::Io, format!("checkpoint {since} cannot be read on any disk")));
        }
        let Some(name) = &wanted.checkpoint else { return Ok(()) };
        check_checkpoint(name, &found.inventory)?;
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
        if !name.bytes().all(allowed) {
            return Err(Error::new(
                Kind::Invalid,
                format!(
                    "cannot make checkpoint {name:?}: libvirt allows letters from a to z, digits, _, - and . alone"
                ),
            ));
        }
        if found.lineage.iter().any(|(known, _)| known == name) {
            return Err(Error::new(
                Kind::Exists,
                format!("cannot make checkpoint {name:?}: libvirt has one of that name"),
            ));
        }
        if !found.inventory.disks.iter().any(|disk| disk.keeps_bitmaps) {
            return Err(Error::new(
                Kind::Unsupported,
                format!("cannot make checkpoint {name:?}: libvirt makes them of qcow2 disks alone, and there is none"),
            ));
        }
        Ok(())
    }

    fn view(
        &self,
        disk: &Disk,
        plan: &Planned,
        base: Option<&Arc<str>>,
        found: &Found,
        address: &Address,
    ) -> TakenDisk {
        let tls = self.settings.elsewhere.as_ref().map(|elsewhere| elsewhere.tls.clone());
        let config = nbd_pool::Config { tls, ..network::bounded(address, self.settings.nbd.clone()) };
        let export = Export { address: address.clone(), name: plan.export.clone(), config };
        let usable = disk.bitmaps.iter().filter(|(_, bitmap)| bitmap.unusable.is_none());
        let map = |(checkpoint, bitmap): (&Arc<str>, &super::Bitmap)| {
            let also = bitmap.also(disk.size);
            let known = found.lineage.iter().any(|(name, _)| name == checkpoint);
            if bitmap.whole.is_some() {
                // What changed since on the other disks, this point in time may not have.
                let had = base.is_some_and(|base| base == checkpoint || found.descends(checkpoint, base));
                let served = had || !known || !found.is_usable(checkpoint);
                return served.then(|| (checkpoint.clone(), FrozenMap { name: None, also, rough: None }));
            }
            match &plan.since {
                // It was made at this instant.
                _ if !known => Some((checkpoint.clone(), FrozenMap { name: None, also, rough: None })),
                Some(since) if since == checkpoint => {
                    Some((checkpoint.clone(), FrozenMap { name: Some(BITMAP.to_owned()), also, rough: None }))
                }
                Some(since) if found.descends(checkpoint, since) => {
                    let rough = Some(since.clone());
                    Some((checkpoint.clone(), FrozenMap { name: Some(BITMAP.to_owned()), also, rough }))
                }
                _ => None,
            }
        };
        let source: Arc<dyn Source> = Arc::new(NbdSource::new(export, disk.size));
        let source: Arc<dyn Source> = Arc::new(Throttled::new(source, self.settings.throttle.clone()));
        TakenDisk { source, frozen: usable.filter_map(map).collect() }
    }
}

/// What a domain that was there fails of once libvirt does not know it any more: its files are still shown, and none of them is what is
/// missing.
fn gone(error: Error) -> Error {
    match error.kind() {
        Kind::NotFound => Error::with_source(Kind::Gone, "libvirt does not know the domain any more", error),
        _ => error,
    }
}

/// Refuses a domain without disks, names in `disks=` that it does not have, and what a backup would be a danger to.
fn check(only: Option<&BTreeSet<String>>, found: &Found) -> Result<()> {
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
    if found.domain.iothreads && found.domain.least.is_none_or(|least| least < THREADS_SAFE) {
        return Err(Error::new(
            Kind::Unsupported,
            "an iothread serves a disk of the domain, and the QEMU that it runs in may be older than 8.2.3: such a one can end, and \
             the guest with it, when the backup does. libvirt tells no more of it than the machine type, which has to be of 9.0 \
             or later; or mount its monitor, qmp:PATH",
        ));
    }
    Ok(())
}

/// Why a point in time could not be had: what ended it before it was there says more than what failed then.
fn because(mut lost: broadcast::Receiver<Event>, number: u64, error: Error) -> Error {
    while let Ok(event) = lost.try_recv() {
        match event {
            Event::Lost { number: which, words, .. } if which == number => {
                return Error::with_source(Kind::Io, words, error);
            }
            _ => {}
        }
    }
    error
}

/// Refuses a host's QEMU, of this version as libvirt tells it, that no mount by a monitor would take either.
///
/// # Errors
/// [`Kind::Unsupported`].
pub fn is_recent(qemu: u64) -> Result<()> {
    if qemu >= OLDEST {
        return Ok(());
    }
    let (has, needs) = (version(qemu), version(OLDEST));
    let why = format!("QEMU {has} is too old: pullfs needs {needs} or later; update QEMU on this host");
    Err(Error::new(Kind::Unsupported, why))
}

/// A version as libvirt tells it, for people.
fn version(number: u64) -> String {
    format!("{}.{}.{}", number / 1_000_000, number / 1_000 % 1_000, number % 1_000)
}

/// What is planned for a disk.
struct Planned {
    export: String,
    /// The checkpoint since which its changes are told.
    since: Option<Arc<str>>,
}

/// The checkpoint that a disk's changes are told since, if the whole machine's is `base`: the same, or where the disk has no
/// bitmap of it the oldest after it.
fn since(disk: &Disk, base: Option<&Arc<str>>, found: &Found) -> Option<Arc<str>> {
    let base = base?;
    let usable = |name: &str| disk.bitmaps.get(name).is_some_and(inventory::is_usable);
    let mut names = found.lineage.iter().map(|(name, _)| name);
    names.find(|name| usable(name) && (*name == base || found.descends(name, base))).cloned()
}

#[async_trait]
impl Vm for LibvirtVm {
    fn machine(&self) -> &Machine {
        &self.machine
    }

    async fn inventory(&self) -> Result<Inventory> {
        Ok(self.found().await?.inventory)
    }

    async fn admit(&self, wanted: &Wanted) -> Result<()> {
        if wanted.checkpoint.is_none() && wanted.since.is_none() {
            return Ok(());
        }
        Self::admitted(wanted, &self.found().await?)
    }

    async fn take(&self, number: u64, wanted: &Wanted) -> Result<Taken> {
        if wanted.quiesce && self.settings.elsewhere.is_some() {
            let why = "nobody could thaw the guest of another host while the network is away: take the point in time without --quiesce, \
                       or on its own host";
            return Err(Error::new(Kind::Unsupported, why));
        }
        self.release().await?;
        self.check_alone().await?;
        let found = self.found().await?;
        self.check(&found)?;
        found.check_told()?;
        let base = wanted.since.as_ref().filter(|since| found.is_usable(since)).or_else(|| found.newest()).cloned();
        Self::admitted(&Wanted { since: base.clone(), ..wanted.clone() }, &found)?;
        let disks = &found.inventory.disks;
        let planned: Vec<Planned> = (0..)
            .zip(disks)
            .map(|(index, disk): (usize, &Disk)| Planned {
                export: format!("{}-{number}-{index}", self.settings.mount),
                since: since(disk, base.as_ref(), &found),
            })
            .collect();
        let made = note::now();
        let checkpoint = wanted.checkpoint.as_ref().map(|name| {
            let sizes = disks.iter().filter(|disk| disk.keeps_bitmaps);
            let sizes = sizes.map(|disk| (disk.name.to_string(), disk.size)).collect();
            let made = xml::Made { time: made, sizes };
            let xml = xml::new_checkpoint(name, &made, &found.others(|disk| disk.keeps_bitmaps));
            NewCheckpoint { name: name.to_string(), made: made.write(), xml }
        });
        let held = Held { number, mark: self.mark(&planned), total: None, aliases: found.aliases() };
        // What happens to the machine while the steps run must not be missed.
        let lost = self.events.subscribe();
        self.hold(Some(held.clone()));
        let taken = match self.begin(number, wanted.quiesce, &found, &planned, checkpoint).await {
            Ok((time, address)) => self.total(disks).await.map(|total| (time, address, total)),
            Err(error) => Err(error),
        };
        let (time, address, total) = match taken {
            Ok(taken) => taken,
            Err(error) => {
                if let Err(left) = self.release().await {
                    tracing::warn!("something may be left in the machine until the next try: {}", chain(&left));
                }
                return Err(redefine::forgotten(because(lost, number, error), wanted.checkpoint.as_deref()));
            }
        };
        self.hold(Some(Held { total: Some(total), ..held }));
        // It is to stay from now on.
        self.ledger.keep(|left| matches!(left, Leftover::Checkpoint { .. }));
        let mut inventory = found.inventory.clone();
        if let Some(name) = &wanted.checkpoint {
            for disk in inventory.disks.iter_mut().filter(|disk| disk.keeps_bitmaps) {
                disk.bitmaps.insert(name.clone(), inventory::fresh(Made { time: made, size: disk.size }, name));
            }
            complete(&mut inventory.disks);
        }
        let views = inventory.disks.iter().zip(&planned);
        Ok(Taken {
            number,
            time,
            checkpoint: wanted.checkpoint.clone(),
            quiesced: wanted.quiesce,
            disks: views.map(|(disk, plan)| self.view(disk, plan, base.as_ref(), &found, &address)).collect(),
            inventory: Arc::new(inventory),
            needs_confirmation: true,
            base: Base::One(base),
        })
    }

    async fn delete_checkpoint(&self, name: &str, foreign: bool) -> Result<()> {
        let (wanted, known) = (name.to_owned(), name.to_owned());
        let described = self
            .context
            .link
            .call("describe the checkpoint", LIMIT, move |domain| domain.checkpoint(&known)?.xml(false));
        let described = described.await.map_err(|error| match error.kind() {
            Kind::NotFound => Error::new(Kind::NotFound, format!("there is no checkpoint {name}")),
            _ => error,
        })?;
        if !foreign && xml::checkpoint(&described)?.made.is_none() {
            return Err(Error::new(
                Kind::NotOurs,
                format!("checkpoint {name} was not made by pullfs; it deletes such only with -o foreign=rw"),
            ));
        }
        let deleted = move |domain: &libvirt::Domain| delete::delete(domain, &wanted);
        self.context.link.call("delete the checkpoint", LIMIT, deleted).await
    }

    async fn release(&self) -> Result<()> {
        // Watched over until it is gone.
        self.ledger.undo(&self.context).await?;
        self.hold(None);
        self.warden.end().await;
        Ok(())
    }

    async fn confirm(&self, number: u64) -> Result<()> {
        self.confirmations.confirm(number).await
    }

    fn scratch(&self) -> Option<Scratch> {
        // What is reserved elsewhere does not grow.
        self.warden.scratch().filter(|_| self.settings.elsewhere.is_none())
    }

    async fn limit_scratch(&self, limit: Option<u64>) -> Result<()> {
        if limit.is_some() && self.settings.elsewhere.is_some() {
            let why = "scratch_limit= means nothing with scratch=pool:, where all space is reserved beforehand";
            return Err(Error::new(Kind::Invalid, why));
        }
        self.warden.limit(limit).await
    }

    fn is_clean(&self) -> bool {
        self.ledger.is_empty()
    }

    fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    async fn disconnect(&self) {
        self.confirmations.stop();
        self.watch.abort();
    }
}

impl LibvirtVm {
    fn hold(&self, held: Option<Held>) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = held;
    }
}
