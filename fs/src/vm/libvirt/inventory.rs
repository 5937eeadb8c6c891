//! A domain's disks and checkpoints, in the words of the rest of pullfs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use libvirt::Code;

use super::link::{LIMIT, Link};
use super::xml;
use crate::error::{Error, Kind, Result};
use crate::tree::name;
use crate::vm::qmp::bitmaps::complete;
use crate::vm::{Bitmap, Disk, Inventory, Made, Part, Skipped, SkippedKind, Unusable};

/// Granularity of libvirt's bitmaps, in bytes: QEMU's own choice, which only images of small clusters have finer.
const GRANULARITY: u32 = 65536;

/// Most disks and checkpoints that are looked at, as with QMP machines.
const MOST: usize = 4096;

/// What there is, and what more is needed to take a point in time.
pub(super) struct Found {
    pub(super) domain: xml::Domain,
    pub(super) inventory: Inventory,
    /// Checkpoints, parents before children, with their parents.
    pub(super) lineage: Vec<(Arc<str>, Option<String>)>,
}

/// libvirt's answers.
struct Told {
    domain: xml::Domain,
    /// By the domain's disks that can be backed up, their sizes in bytes.
    sizes: BTreeMap<String, libvirt::Result<libvirt::BlockInfo>>,
    checkpoints: Vec<Result<Described>>,
}

/// A checkpoint.
struct Described {
    checkpoint: xml::Checkpoint,
    /// Whether QEMU was asked what changed since: a disk that nothing is told of then is one that nobody knows it of any more.
    is_sized: bool,
}

/// Asks, in one go.
pub(super) async fn query(link: &Link, only: Option<&BTreeSet<String>>) -> Result<Found> {
    let described = link.call("describe the domain", LIMIT, libvirt::Domain::xml).await?;
    let domain = xml::domain(&described)?;
    if domain.disks.len() > MOST {
        return Err(Error::new(Kind::TooLarge, format!("the domain has more than {MOST} disks")));
    }
    let targets: Vec<String> =
        domain.disks.iter().filter(|disk| disk.refused.is_none()).map(|disk| disk.target.clone()).collect();
    let told = link.call("tell the sizes of the disks and checkpoints", LIMIT, move |domain| {
        let mut sizes = Vec::with_capacity(targets.len());
        for target in targets {
            let info = domain.block_info(&target);
            match info {
                // Nobody must take a disk for gone because its domain is busy.
                Err(error) if error.code() == Code::Timeout => return Err(error),
                info => sizes.push((target, info)),
            }
        }
        Ok((sizes, checkpoints(domain)?))
    });
    let (sizes, described) = told.await?;
    let checkpoints = described
        .into_iter()
        .map(|(described, is_sized)| xml::checkpoint(&described).map(|checkpoint| Described { checkpoint, is_sized }));
    let told = Told { domain, sizes: sizes.into_iter().collect(), checkpoints: checkpoints.collect() };
    Ok(assemble(told, only))
}

/// Describes all checkpoints, and whether with their sizes. For those QEMU is asked; libvirt does that for half a minute each while
/// the domain is migrated, saved, or busy otherwise, so nobody has it try more than once.
fn checkpoints(domain: &libvirt::Domain) -> libvirt::Result<Vec<(String, bool)>> {
    let checkpoints = domain.checkpoints()?;
    // One that does not run has no job, which is an error to libvirt.
    let job = if checkpoints.is_empty() { None } else { domain.job_stats().ok().flatten() };
    let mut is_busy = job.is_some_and(|job| !job.backup);
    let mut described = Vec::new();
    // Newer ones first: what the guest writes meanwhile must not make them look older than they are.
    for checkpoint in checkpoints.iter().take(MOST).rev() {
        let told = checkpoint.xml(!is_busy).or_else(|error| {
            is_busy |= error.code() == Code::Timeout;
            // What is broken in QEMU has no size.
            checkpoint.xml(false)
        });
        match told {
            Ok(told) => described.push((told, !is_busy)),
            // It was deleted meanwhile.
            Err(error) if error.code() == Code::NoCheckpoint => {}
            Err(error) => return Err(error),
        }
    }
    described.reverse();
    Ok(described)
}

fn assemble(told: Told, only: Option<&BTreeSet<String>>) -> Found {
    let mut inventory = Inventory::default();
    let Told { domain, sizes, checkpoints } = told;
    let mut skip = |kind, name: &str, reason: String| {
        inventory.skipped.push(Skipped { kind, name: name.to_owned(), reason });
    };
    let mut disks = Vec::new();
    for disk in &domain.disks {
        let reason = match (disk.refused, sizes.get(&disk.target)) {
            _ if only.is_some_and(|only| !only.contains(&disk.target)) => {
                Err("left out by the option disks=".to_owned())
            }
            (Some(reason), _) => Err(reason.to_owned()),
            (None, Some(Ok(info))) => name::check(&disk.target).map(|()| info).map_err(str::to_owned),
            (None, Some(Err(error))) => Err(format!("libvirt does not tell its size: {error}")),
            (None, None) => Err("libvirt does not tell its size".to_owned()),
        };
        match reason {
            Err(reason) => skip(SkippedKind::Disk, &disk.target, reason),
            Ok(info) => disks.push(Disk {
                name: disk.target.as_str().into(),
                node: disk.target.clone(),
                format: disk.format.clone(),
                size: info.capacity,
                allocated: info.allocation.min(info.capacity),
                image: disk.image.clone(),
                bitmap_node: disk.target.clone(),
                keeps_bitmaps: keeps_bitmaps(&disk.format),
                bitmaps: BTreeMap::new(),
            }),
        }
    }
    for name in &domain.passed {
        skip(
            SkippedKind::Disk,
            name,
            "a SCSI device of the host that the guest has as it is; libvirt backs up none".to_owned(),
        );
    }
    let mut lineage = Vec::new();
    for checkpoint in checkpoints {
        let Described { checkpoint, is_sized } = match checkpoint {
            Ok(described) => described,
            Err(error) => {
                skip(SkippedKind::Bitmap, "a checkpoint", crate::error::chain(&error));
                continue;
            }
        };
        if let Err(reason) = name::check(&checkpoint.name) {
            skip(SkippedKind::Bitmap, &checkpoint.name, reason.to_owned());
            continue;
        }
        let name: Arc<str> = checkpoint.name.as_str().into();
        for on in &checkpoint.disks {
            if let Some(disk) = disks.iter_mut().find(|disk| *disk.name == *on.target) {
                let made = checkpoint.made.as_ref().and_then(|made| {
                    let (_, size) = made.sizes.iter().find(|(target, _)| *target == on.target)?;
                    Some(Made { time: made.time, size: *size })
                });
                let changed = match on.size {
                    Some(size) => Ok(size),
                    None if is_sized => Err(Unusable::Lost(LOST.to_owned())),
                    None => Err(Unusable::Untold(UNTOLD.to_owned())),
                };
                disk.bitmaps.insert(name.clone(), bitmap(disk.size, changed, made, &checkpoint.name));
            }
        }
        lineage.push((name, checkpoint.parent));
    }
    doubt(&mut lineage, &disks);
    complete(&mut disks);
    inventory.disks = disks;
    Found { domain, inventory, lineage }
}

/// Cuts off each checkpoint since which more changed on a disk than since the one that it is said to have come after: it did
/// not, whatever libvirt was told (`virsh checkpoint-create --redefine`).
fn doubt(lineage: &mut [(Arc<str>, Option<String>)], disks: &[Disk]) {
    let parents: BTreeMap<Arc<str>, Option<String>> = lineage.iter().cloned().collect();
    let is_newer = |name: &str, disk: &Disk| {
        let Some(own) = disk.bitmaps.get(name).filter(|bitmap| is_usable(bitmap)) else { return true };
        let mut at = name;
        // A circle ends by count.
        for _ in 0..parents.len() {
            let Some(up) = parents.get(at).and_then(Option::as_deref) else { break };
            if let Some(older) = disk.bitmaps.get(up).filter(|bitmap| is_usable(bitmap)) {
                return own.dirty_bytes <= older.dirty_bytes;
            }
            at = up;
        }
        true
    };
    for (name, parent) in lineage {
        if parent.is_some() && !disks.iter().all(|disk| is_newer(name, disk)) {
            *parent = None;
        }
    }
}

/// Whether libvirt makes checkpoints of disks of this format.
fn keeps_bitmaps(format: &str) -> bool {
    format == "qcow2"
}

const LOST: &str = "its bitmap is missing or broken; take a full backup and a new checkpoint, and delete this one";

const UNTOLD: &str = "libvirt does not tell of it now: the domain is being saved, dumped or migrated, or busy otherwise \
                      (`virsh domjobinfo`); it is as good as ever afterwards";

fn bitmap(disk: u64, changed: std::result::Result<u64, Unusable>, made: Option<Made>, name: &str) -> Bitmap {
    let (dirty_bytes, unusable) = match changed {
        Ok(bytes) => (bytes.min(disk), None),
        Err(unusable) => (disk, Some(unusable)),
    };
    Bitmap {
        dirty_bytes,
        granularity: GRANULARITY,
        recording: true,
        persistent: true,
        inconsistent: matches!(unusable, Some(Unusable::Lost(_))),
        unusable,
        whole: None,
        made,
        parts: vec![Part { node: String::new(), name: name.to_owned(), note: false, recording: true, removable: true }],
    }
}

/// Whether libvirt can tell what changed since this one.
pub(super) fn is_usable(bitmap: &Bitmap) -> bool {
    bitmap.unusable.is_none() && bitmap.whole.is_none()
}

/// A bitmap that was just made.
pub(super) fn fresh(made: Made, name: &str) -> Bitmap {
    bitmap(made.size, Ok(0), Some(made), name)
}

impl Found {
    /// The newest checkpoint that can be read on a disk.
    pub(super) fn newest(&self) -> Option<&Arc<str>> {
        self.lineage.iter().rev().map(|(name, _)| name).find(|name| self.is_usable(name))
    }

    /// libvirt's names of the guest's devices whose disks are read; what becomes of others is nothing to a point in time.
    pub(super) fn aliases(&self) -> Vec<String> {
        let is_read = |disk: &&xml::Disk| self.inventory.disks.iter().any(|read| *read.name == *disk.target);
        self.domain.disks.iter().filter(is_read).filter_map(|disk| disk.alias.clone()).collect()
    }

    /// The targets of all disks of the domain but those that are `kept`.
    pub(super) fn others(&self, kept: impl Fn(&Disk) -> bool) -> Vec<&str> {
        let disks = self.inventory.disks.iter().filter(|disk| kept(disk));
        let kept: BTreeSet<&str> = disks.map(|disk| &*disk.name).collect();
        self.domain.disks.iter().map(|disk| &*disk.target).filter(|target| !kept.contains(target)).collect()
    }

    /// Refuses what cannot be said now, of any checkpoint.
    pub(super) fn check_told(&self) -> Result<()> {
        let mut bitmaps = self.inventory.disks.iter().flat_map(|disk| &disk.bitmaps);
        match bitmaps.find(|(_, bitmap)| matches!(bitmap.unusable, Some(Unusable::Untold(_)))) {
            Some((name, _)) => Err(Error::new(Kind::Busy, format!("checkpoint {name}: {UNTOLD}"))),
            None => Ok(()),
        }
    }

    /// Whether what changed since a checkpoint can be told on a disk.
    pub(super) fn is_usable(&self, checkpoint: &str) -> bool {
        let mut bitmaps = self.inventory.disks.iter().filter_map(|disk| disk.bitmaps.get(checkpoint));
        bitmaps.any(is_usable)
    }

    /// Whether `checkpoint` was made after `base`, in the same line: all that changed since the one changed since the other.
    pub(super) fn descends(&self, checkpoint: &str, base: &str) -> bool {
        let parent = |name: &str| {
            self.lineage.iter().find(|(each, _)| **each == *name).and_then(|(_, parent)| parent.as_deref())
        };
        let mut at = checkpoint;
        // Each step is one up; a circle ends by count.
        for _ in 0..self.lineage.len() {
            match parent(at) {
                Some(up) if up == base => return true,
                Some(up) => at = up,
                None => return false,
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told() -> Told {
        let disk = |target: &str, format: &str, refused| xml::Disk {
            target: target.to_owned(),
            alias: None,
            format: format.to_owned(),
            image: format!("/{target}"),
            refused,
        };
        let checkpoint = |name: &str, parent: Option<&str>, size| {
            let on = xml::CheckpointDisk { target: "vda".to_owned(), size };
            let parent = parent.map(str::to_owned);
            let checkpoint = xml::Checkpoint { name: name.to_owned(), parent, made: None, disks: vec![on] };
            Ok(Described { checkpoint, is_sized: true })
        };
        let info = libvirt::BlockInfo { capacity: 1 << 20, allocation: 1 << 30 };
        Told {
            domain: xml::Domain {
                name: "vm".to_owned(),
                uuid: "u".to_owned(),
                active: true,
                disks: vec![
                    disk("vda", "qcow2", None),
                    disk("vdb", "raw", None),
                    disk("sda", "raw", Some("there is no medium in it")),
                ],
                user: None,
                passed: vec!["hostdev0".to_owned()],
                iothreads: false,
                least: None,
            },
            sizes: ["vda", "vdb"].map(|target| (target.to_owned(), Ok(info))).into(),
            checkpoints: vec![
                checkpoint("a", None, Some(4 << 20)),
                checkpoint("b", Some("a"), Some(65536)),
                checkpoint("c", Some("b"), None),
                checkpoint(".hidden/", Some("c"), Some(0)),
            ],
        }
    }

    #[test]
    fn what_cannot_be_had_is_said() {
        let found = assemble(told(), None);
        let names: Vec<_> = found.inventory.disks.iter().map(|disk| (&*disk.name, disk.keeps_bitmaps)).collect();
        let vdb = &found.inventory.disks[1].bitmaps;
        assert!(vdb.len() == 3 && vdb.values().all(|bitmap| bitmap.whole.is_some()), "all of it counts as changed");
        assert_eq!(names, [("vda", true), ("vdb", false)]);
        let skipped: Vec<&str> = found.inventory.skipped.iter().map(|skipped| &*skipped.name).collect();
        assert_eq!(skipped, ["sda", "hostdev0", ".hidden/"]);
        let vda = &found.inventory.disks[0];
        assert_eq!((vda.allocated, vda.bitmaps["a"].dirty_bytes), (1 << 20, 1 << 20), "no more than there is");
        assert!(vda.bitmaps["c"].unusable.is_some() && vda.bitmaps["c"].unchanged_since(1 << 20).is_none());
        let only = BTreeSet::from(["vdb".to_owned()]);
        let found = assemble(told(), Some(&only));
        assert_eq!(found.inventory.disks.len(), 1);
        assert!(found.inventory.skipped.iter().any(|skipped| skipped.reason.contains("disks=")));
    }

    #[test]
    fn what_is_not_told_now_is_not_lost() {
        let mut told = told();
        assert!(assemble(self::told(), None).check_told().is_ok(), "c is lost, which is known");
        told.checkpoints[2].as_mut().unwrap().is_sized = false;
        let found = assemble(told, None);
        let c = &found.inventory.disks[0].bitmaps["c"];
        assert!(!c.inconsistent && c.unusable == Some(Unusable::Untold(UNTOLD.to_owned())) && c.dirty_bytes == 1 << 20);
        assert_eq!(found.check_told().unwrap_err().kind(), Kind::Busy);
    }

    #[test]
    fn disks_that_are_not_read_may_go() {
        let mut told = told();
        for disk in &mut told.domain.disks {
            disk.alias = Some(format!("ua-{}", disk.target));
        }
        assert_eq!(assemble(told, Some(&BTreeSet::from(["vdb".to_owned()]))).aliases(), ["ua-vdb"]);
    }

    #[test]
    fn the_line_of_checkpoints_is_followed() {
        let found = assemble(told(), None);
        assert_eq!(found.newest().map(|name| &**name), Some("b"), "c cannot be read");
        assert!(found.descends("b", "a") && found.descends("c", "a"));
        assert!(!found.descends("a", "b") && !found.descends("a", "a") && !found.descends("x", "a"));
    }

    #[test]
    fn a_line_that_cannot_be_is_cut() {
        let mut told = told();
        // More changed since b than since a, which so is the newer one; c's own bitmap is of no use.
        told.checkpoints[0].as_mut().unwrap().checkpoint.disks[0].size = Some(4096);
        let found = assemble(told, None);
        assert!(!found.descends("b", "a") && !found.descends("c", "a") && found.descends("c", "b"));
    }
}
