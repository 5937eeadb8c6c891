//! What a disk or a partition holds, by the marks that it bears: told as libblkid tells it.
//!
//! Marks are looked for in libblkid's order. A member of an array, a physical volume or something encrypted ends the search; with two
//! file systems at once nobody can know which is the live one, so neither is opened.

mod ext;
mod fat;
mod members;
mod ntfs;
mod others;

use crate::raw::read;
use crate::table::Content;
use crate::wire::is_known;
use crate::{Disk, Result};

/// What of the beginning is read at once, in bytes: the last mark in it is that of btrfs, in the block at 64 KiB.
const FRONT: usize = 68 << 10;

/// Something to look at.
struct Look<'a> {
    disk: &'a dyn Disk,
    front: Vec<u8>,
}

/// Where a search is at.
enum Mark {
    /// Nothing else is to be looked for.
    Last,
    /// A file system, which others may hide behind.
    One,
    /// As `One`; that others are there too is usual.
    Tolerant,
}

/// One look.
enum Probe {
    /// At the beginning only.
    Front(fn(&[u8]) -> Option<Content>),
    /// Elsewhere too.
    Disk(fn(&Look<'_>) -> Result<Option<Content>>),
}

const PROBES: [(Probe, Mark); 19] = [
    (Probe::Disk(members::raid), Mark::Last),
    (Probe::Front(members::bcache), Mark::One),
    (Probe::Disk(members::drbd), Mark::Last),
    (Probe::Front(members::lvm2), Mark::Last),
    (Probe::Front(members::luks), Mark::Last),
    (Probe::Front(members::bitlocker), Mark::Last),
    (Probe::Disk(fat::vfat), Mark::Tolerant),
    (Probe::Front(others::swap), Mark::One),
    (Probe::Front(others::xfs), Mark::One),
    (Probe::Front(ext::ext), Mark::One),
    (Probe::Front(others::iso9660), Mark::Tolerant),
    (Probe::Disk(members::zfs), Mark::Last),
    (Probe::Disk(ntfs::ntfs), Mark::One),
    (Probe::Front(others::refs), Mark::One),
    (Probe::Front(others::squashfs), Mark::One),
    (Probe::Front(others::btrfs), Mark::One),
    (Probe::Disk(fat::exfat), Mark::One),
    (Probe::Front(others::f2fs), Mark::One),
    (Probe::Front(others::named), Mark::One),
];

/// What a disk or a partition holds; none if it is nothing that is known here.
///
/// # Errors
/// What the disk fails with.
pub fn probe<D: Disk>(disk: &D) -> Result<Option<Content>> {
    search(disk, &PROBES)
}

/// What the array holds whose bytes these are, which is no array once more: as many levels as a disk tells would be no bound.
fn within(array: &dyn Disk) -> Result<Option<Content>> {
    search(array, &PROBES[1..])
}

fn search(disk: &dyn Disk, probes: &[(Probe, Mark)]) -> Result<Option<Content>> {
    let length = usize::try_from(disk.size()).unwrap_or(FRONT).min(FRONT);
    let Some(front) = read(disk, 0, length)? else { return Ok(None) };
    let look = Look { disk, front };
    let mut found: Option<Content> = None;
    let mut strict = 0;
    for (one, mark) in probes {
        let content = match one {
            Probe::Front(probe) => probe(&look.front),
            Probe::Disk(probe) => probe(&look)?,
        };
        let Some(content) = content else { continue };
        strict += usize::from(!matches!(mark, Mark::Tolerant));
        match &mut found {
            None => found = Some(content),
            Some(first) if strict > 0 => {
                first.refused = Some(format!(
                    "it bears the marks of {} and of {}: which of them is in use cannot be told",
                    first.kind, content.kind
                ));
                break;
            }
            Some(_) => {}
        }
        if matches!(mark, Mark::Last) {
            break;
        }
    }
    Ok(found)
}

impl Content {
    fn new(kind: &'static str, label: Option<Vec<u8>>, uuid: Option<String>) -> Self {
        debug_assert!(is_known(kind), "{kind}");
        Self { kind, label, uuid, refused: None }
    }

    fn refused(kind: &'static str, label: Option<Vec<u8>>, uuid: Option<String>, why: impl Into<String>) -> Self {
        debug_assert!(is_known(kind), "{kind}");
        Self { kind, label, uuid, refused: Some(why.into()) }
    }

    fn not_read(kind: &'static str, label: Option<Vec<u8>>, uuid: Option<String>) -> Self {
        Self::refused(kind, label, uuid, format!("{kind} is not read: only its blocks are shown"))
    }
}

/// The serial number of a volume as Microsoft's tools write it; none if it is zero.
fn serial(bytes: [u8; 4]) -> Option<String> {
    let [a, b, c, d] = bytes;
    (bytes != [0; 4]).then(|| format!("{d:02X}{c:02X}-{b:02X}{a:02X}"))
}

/// A text as a label; none if it is empty.
fn text_label(text: &str) -> Option<Vec<u8>> {
    crate::raw::label(text.as_bytes())
}
