//! What is found of a machine's disks and mounts, whoever runs it.

use std::collections::{BTreeMap, BTreeSet};

use pullfs_fs::error::{Error, chain};
use pullfs_fs::point::journal::Header;
use pullfs_fs::vm::{Inventory, SkippedKind, Unusable};

use super::finding::Finding;
use crate::status::size;

/// Where the machine is mounted, for a finding's cure.
pub(super) fn mounted(Header { mount_point, pid, .. }: &Header) -> String {
    format!("it is mounted on {} (pid {pid}); pullfs umount {0} first", mount_point.display())
}

/// The disks, those that are left out, and why a mount would be refused.
pub(super) fn disks(inventory: &Inventory, refused: Option<&Error>) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(error) = refused {
        let cure = "leave such disks out with -o disks=, or change the machine";
        findings.push(Finding::wrong("disks", chain(error), cure));
    } else {
        let names: Vec<String> = inventory
            .disks
            .iter()
            .map(|disk| format!("{} ({}, {})", disk.name, disk.format, size(disk.size)))
            .collect();
        findings.push(Finding::ok("disks", names.join(", ")));
    }
    for skipped in &inventory.skipped {
        let (what, cure) = match skipped.kind {
            SkippedKind::Disk => ("disk", "it is not in the backup; nothing is to be done unless it should be"),
            SkippedKind::Bitmap => ("dirty bitmap", "it is no checkpoint; nothing is to be done unless it should be"),
        };
        findings.push(Finding::hint("left-out", format!("{what} {}: {}", skipped.name, skipped.reason), cure));
    }
    findings
}

/// Checkpoints of which nobody can tell what changed since.
pub(super) fn checkpoints(inventory: &Inventory) -> Vec<Finding> {
    let mut broken: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let mut all = BTreeSet::new();
    for disk in &inventory.disks {
        for (name, bitmap) in &disk.bitmaps {
            all.insert(name);
            if let Some(Unusable::Lost(why)) = &bitmap.unusable {
                broken.entry(name).or_default().push(format!("{}: {why}", disk.name));
            }
        }
    }
    let told = |(name, disks): (&str, Vec<String>)| {
        let what = format!("{name} cannot be read ({})", disks.join("; "));
        let cure = format!("make the next backup a full one, then pullfs checkpoint delete MNT {name}");
        Finding::hint("checkpoints", what, cure)
    };
    if broken.is_empty() {
        return vec![Finding::ok("checkpoints", format!("{}, none broken", all.len()))];
    }
    broken.into_iter().map(told).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use pullfs_fs::error::Kind;
    use pullfs_fs::vm::{Bitmap, Disk, Skipped};

    use super::super::finding::State;
    use super::*;

    fn inventory(unusable: Option<&str>) -> Inventory {
        let bitmap = Bitmap {
            dirty_bytes: 0,
            granularity: 65536,
            recording: true,
            persistent: true,
            inconsistent: unusable.is_some(),
            unusable: unusable.map(|why| Unusable::Lost(why.to_owned())),
            whole: None,
            made: None,
            parts: Vec::new(),
        };
        let disk = Disk {
            name: "vda".into(),
            node: "n".to_owned(),
            format: "qcow2".to_owned(),
            size: 1 << 20,
            allocated: 0,
            bitmap_node: "n".to_owned(),
            image: String::new(),
            keeps_bitmaps: true,
            bitmaps: [(Arc::from("monday"), bitmap)].into(),
        };
        let skipped = Skipped { kind: SkippedKind::Disk, name: "sda".to_owned(), reason: "it is read-only".to_owned() };
        Inventory { disks: vec![disk], skipped: vec![skipped] }
    }

    #[test]
    fn disks_and_checkpoints_are_told_with_what_is_the_matter() {
        let states = |findings: &[Finding]| findings.iter().map(|finding| finding.state).collect::<Vec<_>>();
        let found = disks(&inventory(None), None);
        assert_eq!(states(&found), [State::Ok, State::Hint]);
        assert!(found[0].what.contains("vda (qcow2, 1.0 MiB)") && found[1].what.contains("sda: it is read-only"));
        let error = Error::new(Kind::Unsupported, "disk vda has an iothread");
        assert_eq!(states(&disks(&inventory(None), Some(&error))), [State::Wrong, State::Hint]);
        assert_eq!(states(&checkpoints(&inventory(None))), [State::Ok]);
        let broken = checkpoints(&inventory(Some("it was lost")));
        assert!(broken[0].state == State::Hint && broken[0].what.contains("monday"), "{broken:?}");
    }

    #[test]
    fn who_has_the_machine_is_named() {
        let header = Header::new("pullfs-0a1b2c".into(), "qmp:/a".into(), "/mnt/a".into());
        assert!(mounted(&header).contains("pullfs umount /mnt/a"));
    }
}
