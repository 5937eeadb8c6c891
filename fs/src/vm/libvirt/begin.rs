//! The steps of a point in time, in their order: scratch images first, then the guest's file systems, then the backup.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nbd_pool::Address;
use tokio::time::{sleep, timeout};

use super::elsewhere::Elsewhere;
use super::inventory::Found;
use super::link::LIMIT;
use super::pool;
use super::undo::{self, Leftover, NewCheckpoint, Step};
use super::xml::{self, BackupDisk, Listens};
use super::{BITMAP, LibvirtVm, Planned, place};
use crate::error::{Error, Kind, Result};
use crate::vm::Disk;
use crate::vm::warden::{self, ScratchFile};

/// How long the guest's file systems may stay frozen.
const FROZEN_LIMIT: Duration = Duration::from_secs(10);

/// How often it is looked whether all of a backup's jobs run, and how long after the last time.
const MOST_LOOKS: u32 = 50;
const LOOK_PAUSE: Duration = Duration::from_millis(40);

/// Clusters of the scratch images, in bytes.
const CLUSTER: u64 = 65536;

struct Steps {
    /// Makes the scratch images, unless that was done.
    place: Option<Step>,
    begin: Step,
    begun: Step,
    /// The disks, in the order of their scratch images.
    targets: Vec<String>,
}

impl LibvirtVm {
    /// What no other backup has.
    pub(super) fn mark(&self, planned: &[Planned]) -> String {
        match self.settings.elsewhere {
            None => place::socket(&self.place()).display().to_string(),
            Some(_) => planned.first().map(|plan| plan.export.clone()).unwrap_or_default(),
        }
    }

    fn place(&self) -> PathBuf {
        place::dir(&self.settings.scratch_dir, &self.settings.mount.to_string())
    }

    /// Does all of it; when the instant was, and where the disks are read.
    pub(super) async fn begin(
        &self,
        number: u64,
        quiesce: bool,
        found: &Found,
        planned: &[Planned],
        checkpoint: Option<NewCheckpoint>,
    ) -> Result<(SystemTime, Address)> {
        let mark = self.mark(planned);
        let begun = Step::Begun { mark: mark.clone() };
        if let Some(elsewhere) = &self.settings.elsewhere {
            let backups = self.reserve(elsewhere, found, planned).await?;
            let backup = Step::Begin { mark, backups, checkpoint, place: None };
            let steps = Steps { place: None, begin: backup, begun, targets: Vec::new() };
            let time = self.run(number, steps, quiesce).await?;
            let port = elsewhere.ports().get(self.context.begun()).copied();
            let port = port.ok_or_else(|| Error::new(Kind::Io, "the backup began on no port"))?;
            return Ok((time, elsewhere.address(port)));
        }
        let dir = self.place();
        let disks = &found.inventory.disks;
        let images: Vec<PathBuf> = (0..disks.len()).map(|index| place::image(&dir, index)).collect();
        let backups = vec![describe(&Listens::Socket(&mark), found, planned, &images)?];
        let user = found.domain.user.map(|(user, _)| user);
        let steps = Steps {
            place: Some(Step::Place { dir: dir.clone(), sizes: disks.iter().map(|disk| disk.size).collect(), user }),
            begin: Step::Begin { mark, backups, checkpoint, place: Some((dir.clone(), user)) },
            begun,
            targets: disks.iter().map(|disk| disk.name.to_string()).collect(),
        };
        let time = self.run(number, steps, quiesce).await?;
        place::unlink_images(&dir, disks.len());
        Ok((time, Address::Unix(place::socket(&dir))))
    }

    /// Has all scratch space reserved in the storage pool; descriptions of the backup, one for each port.
    async fn reserve(&self, elsewhere: &Elsewhere, found: &Found, planned: &[Planned]) -> Result<Vec<String>> {
        // Whoever does not know the host learns so before anything is made.
        let address = elsewhere.listens().await?;
        let volumes = found.inventory.disks.iter().zip(planned);
        let volumes = volumes
            .map(|(disk, plan)| pool::Scratch { name: format!("{}.qcow2", plan.export), disk: disk.size })
            .collect();
        let reserve = Step::Reserve { pool: elsewhere.pool.clone(), volumes, owner: found.domain.user };
        self.ledger.run(&self.context, vec![vec![reserve]]).await?;
        let images = self.context.images();
        let ports = elsewhere.ports().into_iter();
        ports.map(|port| describe(&Listens::Tls(address, port), found, planned, &images)).collect()
    }

    /// Runs the steps; when the instant was.
    async fn run(&self, number: u64, steps: Steps, quiesce: bool) -> Result<SystemTime> {
        let (context, ledger) = (&*self.context, &self.ledger);
        let Steps { place, begin, begun, targets } = steps;
        ledger.run(context, vec![place.into_iter().collect()]).await?;
        let failed = |error| Error::with_source(Kind::Io, "cannot keep a descriptor of a scratch file", error);
        let files: std::io::Result<Vec<ScratchFile>> = context
            .files()
            .iter()
            .zip(targets)
            .map(|(file, target)| Ok(ScratchFile { node: target, file: file.try_clone()? }))
            .collect();
        let scratch = Arc::new(files.map_err(failed)?);
        self.warden.hold(warden::Held { number, jobs: Vec::new(), scratch }).await?;
        if quiesce {
            ledger.run(context, vec![vec![Step::Freeze]]).await?;
        }
        let begins = ledger.run(context, vec![vec![begin]]);
        let outcome = if quiesce {
            // libvirt may wait for long; the guest may not.
            let slow = |_| {
                let limit = FROZEN_LIMIT.as_secs();
                Error::new(
                    Kind::Timeout,
                    format!("libvirt did not begin a backup within {limit} s of the guest's freeze"),
                )
            };
            timeout(FROZEN_LIMIT, begins).await.map_err(slow).and_then(|begun| begun)
        } else {
            begins.await
        };
        let time = SystemTime::now();
        if quiesce {
            // The guest goes on before anything else is done or said.
            undo::thaw(context).await?;
            ledger.keep(|left| matches!(left, Leftover::Frozen));
        }
        outcome?;
        // The scratch images have the names by which libvirt warns of them.
        self.warden.alarm().grew();
        ledger.run(context, vec![vec![begun]]).await?;
        Ok(time)
    }

    /// What libvirt says that the jobs of all disks come to, in bytes, once all of them run.
    pub(super) async fn total(&self, disks: &[Disk]) -> Result<u64> {
        // QEMU counts in clusters of the copy, which are those of our scratch images (block/block-copy.c).
        let clusters = disks.iter().map(|disk| disk.size.next_multiple_of(CLUSTER));
        let expected = clusters.fold(0, u64::saturating_add);
        let mut looks = 1;
        loop {
            let told = self.context.link.call("tell of the backup", LIMIT, libvirt::Domain::job_stats).await?;
            match told {
                Some(stats) if stats.backup && stats.scratch_total == expected => return Ok(expected),
                // QEMU's jobs begin one after another.
                Some(stats) if stats.backup && looks < MOST_LOOKS => sleep(LOOK_PAUSE).await,
                told => {
                    let why = format!(
                        "libvirt's backup does not have all disks: its jobs come to {told:?}, the disks to {expected} bytes"
                    );
                    return Err(Error::new(Kind::Io, why));
                }
            }
            looks += 1;
        }
    }
}

/// Describes the backup to libvirt.
fn describe(listens: &Listens<'_>, found: &Found, planned: &[Planned], images: &[PathBuf]) -> Result<String> {
    let disks = found.inventory.disks.iter().zip(planned).zip(images);
    let disks: Vec<BackupDisk<'_>> = disks
        .map(|((disk, plan), scratch)| BackupDisk {
            target: &disk.name,
            export: &plan.export,
            scratch,
            since: plan.since.as_deref().map(|since| (since, BITMAP)),
        })
        .collect();
    xml::backup(listens, &disks, &found.others(|_| true))
}
