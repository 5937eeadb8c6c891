//! Scratch images in a storage pool, on the host of a libvirt that need not be this one.
//!
//! Nobody may be there to end a backup before its scratch space is full: the network goes away, and the guest must not stand
//! still for it. So all room that a scratch image can ever take is allocated before the backup begins: a file that is as long
//! as disk and tables together, with an empty qcow2 image at its start. QEMU finds the image's end where the tables say it
//! is, and takes the clusters behind it one after another, which the file has.
//!
//! Each errand has a connection of its own, and needs no domain: what was made is removed also when the domain has ended.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use libvirt::{Code, Connection, Pool};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::link::{LIMIT, Target, explain};
use super::xml;
use crate::block::extents::Extents;
use crate::error::{Error, Kind, Result};
use crate::image::qcow2::{ClusterSize, Qcow2};
use crate::image::{Image, Segment};

/// How long allocating the room may take: no time where the file system can do it by itself, and it is of no use elsewhere.
const RESERVE_LIMIT: Duration = Duration::from_secs(120);

/// Errands under way at once; those that hang are among them.
const MAX_ERRANDS: usize = 4;

/// What a pool has left afterwards, in bytes: others may have images there that grow.
const SPARE: u64 = 64 << 20;

/// What the tables of a scratch image take at most beside a part of 1024 of the disk, in bytes: eight times what they do.
const TABLES: u64 = 16 << 20;

/// A volume to be made.
#[derive(Debug, Clone)]
pub(super) struct Scratch {
    /// The name tells whose it is.
    pub(super) name: String,
    /// Of the disk, in bytes.
    pub(super) disk: u64,
}

/// Volumes of ours in a pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Volumes {
    pub(super) pool: String,
    pub(super) names: Vec<String>,
}

/// The way to the storage pools of a libvirt.
#[derive(Clone)]
pub(super) struct Store {
    target: Target,
    errands: Arc<Semaphore>,
}

impl Store {
    pub(super) fn new(target: Target) -> Self {
        Self { target, errands: Arc::new(Semaphore::new(MAX_ERRANDS)) }
    }

    /// Makes the volumes, each with an empty image in it; where they are.
    pub(super) async fn reserve(
        &self,
        pool: &str,
        volumes: Vec<Scratch>,
        owner: Option<(u32, u32)>,
    ) -> Result<Vec<PathBuf>> {
        let given_up = GivenUp::default();
        let (nobody_waits, name) = (given_up.0.clone(), pool.to_owned());
        let run = self.run("reserve scratch space", RESERVE_LIMIT, move |connection| {
            let pool = usable(connection, &name)?;
            let needed = volumes.iter().map(|volume| size(volume.disk)).fold(0, u64::saturating_add);
            let room = room(&pool, &name)?;
            if needed > room {
                return Err(Error::new(
                    Kind::NoSpace,
                    format!(
                        "the storage pool {name} has {} MiB of room, {} MiB are needed for all that the guest may overwrite: \
                         make room, name another one with -o scratch=pool:NAME, or fewer disks with -o disks=",
                        room >> 20,
                        needed >> 20
                    ),
                ));
            }
            let mut paths = Vec::new();
            for volume in &volumes {
                if nobody_waits.load(Ordering::Relaxed) {
                    return Err(Error::new(Kind::Timeout, "nobody waits for the scratch space any more"));
                }
                paths.push(make(&pool, &name, volume, owner)?);
            }
            Ok(paths)
        });
        let made = run.await;
        drop(given_up);
        made
    }

    /// Removes the volumes; those that are not there are fine.
    pub(super) async fn remove(&self, volumes: &Volumes) -> Result<()> {
        let Volumes { pool: name, names } = volumes.clone();
        self.run("remove scratch images", LIMIT, move |connection| {
            let what = format!("cannot remove scratch images from storage pool {name}");
            let pool = match connection.pool(&name) {
                Err(error) if error.code() == Code::NoPool => {
                    tracing::warn!("{what}: libvirt does not know it any more; {} may be left", names.join(", "));
                    return Ok(());
                }
                other => other.map_err(|error| explain(&what, error))?,
            };
            let mut outcome = Ok(());
            for name in &names {
                let removed = pool.volume(name).and_then(|volume| volume.delete());
                match removed {
                    Err(error) if error.code() == Code::NoVolume => {}
                    Err(error) => outcome = Err(explain(&what, error)),
                    Ok(()) => {}
                }
            }
            outcome
        })
        .await
    }

    /// How many bytes a pool has for scratch images; an error if it cannot be used.
    pub(super) async fn room(&self, pool: &str) -> Result<u64> {
        let name = pool.to_owned();
        self.run("tell of a storage pool", LIMIT, move |connection| {
            let pool = usable(connection, &name)?;
            room(&pool, &name)
        })
        .await
    }

    /// Does an errand. When the limit passes it goes on, and nobody learns what became of it.
    async fn run<T: Send + 'static>(
        &self,
        what: &str,
        limit: Duration,
        errand: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let uri = &self.target.uri;
        let hangs = |_| Error::new(Kind::Gone, format!("libvirt at {uri}: {MAX_ERRANDS} calls wait for its answer"));
        let permit = self.errands.clone().try_acquire_owned().map_err(hangs)?;
        let target = self.target.clone();
        let run = spawn_blocking(move || {
            let _permit = permit;
            let connection = target.connect(&format!("cannot reach libvirt at {}", target.uri))?;
            errand(&connection)
        });
        let slow = |_| Error::new(Kind::Timeout, format!("libvirt did not {what} within {} s", limit.as_secs()));
        let outcome = timeout(limit, run).await.map_err(slow)?;
        outcome.map_err(|error| Error::with_source(Kind::Io, "a call of libvirt panicked", error))?
    }
}

/// Set when nobody waits for an errand any more.
#[derive(Default)]
struct GivenUp(Arc<AtomicBool>);

impl Drop for GivenUp {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What a scratch image of a disk of so many bytes can grow to.
pub(super) fn size(disk: u64) -> u64 {
    disk.saturating_add(disk / 1024).saturating_add(TABLES).next_multiple_of(1 << 20)
}

fn usable(connection: &Connection, name: &str) -> Result<Pool> {
    let failed = |error| explain(&format!("storage pool {name} cannot be used for scratch images"), error);
    let pool = connection.pool(name).map_err(|error| match error.code() {
        // No file is missing.
        Code::NoPool => Error::with_source(Kind::Unsupported, format!("libvirt has no storage pool {name}"), error),
        _ => failed(error),
    })?;
    let kind = xml::pool_kind(&pool.xml().map_err(failed)?)?;
    if !matches!(kind.as_str(), "dir" | "fs") {
        return Err(Error::new(
            Kind::Unsupported,
            format!("storage pool {name} is of type {kind}; scratch images take one of type dir or fs"),
        ));
    }
    if !pool.info().map_err(failed)?.active {
        return Err(Error::new(
            Kind::Unsupported,
            format!("storage pool {name} is not active: virsh pool-start {name}"),
        ));
    }
    Ok(pool)
}

fn room(pool: &Pool, name: &str) -> Result<u64> {
    // While others make volumes there libvirt tells what it knew before. What there is not cannot be allocated anyway.
    pool.refresh().ok();
    let told = pool.info().map_err(|error| explain(&format!("storage pool {name} does not tell its room"), error))?;
    Ok(told.available.saturating_sub(SPARE))
}

/// Makes a volume with an empty image in it, and sees that the room is taken.
fn make(pool: &Pool, name: &str, scratch: &Scratch, owner: Option<(u32, u32)>) -> Result<PathBuf> {
    let size = size(scratch.disk);
    let what = format!("cannot reserve {} MiB in storage pool {name} for scratch image {}", size >> 20, scratch.name);
    let failed = |error: libvirt::Error| {
        // libvirt has no code for it.
        let full = error.to_string().contains("No space left");
        let error = explain(&what, error);
        if full { Error::with_source(Kind::NoSpace, what.clone(), error) } else { error }
    };
    let volume = pool.create(&xml::volume(&scratch.name, size, owner)).map_err(failed)?;
    volume.upload(&empty(scratch.disk)?).map_err(failed)?;
    if volume.allocation().map_err(failed)? < size {
        return Err(Error::new(
            Kind::Unsupported,
            format!(
                "storage pool {name} does not keep the room that is reserved, as file systems that compress do: name one on \
                 ext4 or xfs with -o scratch=pool:NAME"
            ),
        ));
    }
    volume.path().map(PathBuf::from).map_err(failed)
}

/// The beginning of an empty image of a disk of so many bytes; zeroes follow.
fn empty(disk: u64) -> Result<Vec<u8>> {
    let image = Qcow2::new(disk, ClusterSize::default(), &Extents::default(), &Extents::default(), None)?;
    let mut bytes = Vec::new();
    let mut zeroes = 0;
    for segment in image.map(0..image.size()) {
        match segment {
            Segment::Bytes(written) => {
                bytes.resize(bytes.len() + std::mem::take(&mut zeroes), 0);
                bytes.extend_from_slice(&written);
            }
            Segment::Zero(length) | Segment::Disk { length, .. } => zeroes += length,
        }
    }
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    bytes.truncate(end);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const URI: &str = "test:///default";

    fn volumes(names: &[&str]) -> Volumes {
        Volumes { pool: "default-pool".to_owned(), names: names.iter().map(ToString::to_string).collect() }
    }

    #[test]
    fn an_empty_image_is_short_and_begins_like_the_whole() {
        for disk in [512, 1 << 30, 1 << 44] {
            let bytes = empty(disk).unwrap();
            assert!(bytes.starts_with(b"QFI\xfb") && bytes.len() < 1 << 20, "{disk}: {}", bytes.len());
            let image = Qcow2::new(disk, ClusterSize::default(), &Extents::default(), &Extents::default(), None);
            assert!(image.unwrap().size() < size(disk) - disk);
        }
    }

    /// A cluster of an L2 table for each 512 MiB, two bytes of reference count for each cluster, and the tables of both.
    #[test]
    fn there_is_room_for_the_disk_and_all_tables() {
        const CLUSTER: u64 = 65536;
        for disk in [1_u64, 1 << 20, 1 << 30, 5 << 40, 1 << 50] {
            let data = disk.div_ceil(CLUSTER);
            let tables = data.div_ceil(8192);
            let l1 = (tables * 8).div_ceil(CLUSTER);
            let blocks = (data + tables + l1).div_ceil(32768) + 2;
            // While it grows there are two tables of reference counts, the larger one half as large again as needed.
            let refcounts = 3 * (blocks * 8).div_ceil(CLUSTER) + 2;
            let clusters = 1 + data + tables + l1 + blocks + refcounts;
            assert!(size(disk) >= clusters * CLUSTER, "{disk}");
            assert!(size(disk) <= disk + disk / 1000 + (17 << 20) + 1, "{disk}");
        }
    }

    #[tokio::test]
    async fn what_cannot_be_used_is_said() {
        let store = Store::new(Target::new("none", URI));
        assert!(store.room("default-pool").await.unwrap() > 1 << 20);
        let none = store.room("none").await.unwrap_err();
        assert!(none.kind() == Kind::Unsupported && none.to_string().contains("no storage pool none"), "{none}");
        let large = Scratch { name: "pullfs-0a1b2c-1-0.qcow2".to_owned(), disk: 1 << 60 };
        let error = store.reserve("default-pool", vec![large], None).await.unwrap_err();
        assert_eq!(error.kind(), Kind::NoSpace);
        assert!(error.to_string().contains("scratch=pool:NAME"), "{error}");
        store.remove(&volumes(&["pullfs-0a1b2c-1-0.qcow2"])).await.unwrap();
        store.remove(&Volumes { pool: "none".to_owned(), ..volumes(&["a"]) }).await.unwrap();
    }
}
