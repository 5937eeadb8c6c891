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

type Probe = fn(&Look<'_>) -> Result<Option<Content>>;

const PROBES: [(Probe, Mark); 19] = [
    (members::raid, Mark::Last),
    (members::bcache, Mark::One),
    (members::drbd, Mark::Last),
    (members::lvm2, Mark::Last),
    (members::luks, Mark::Last),
    (members::bitlocker, Mark::Last),
    (fat::vfat, Mark::Tolerant),
    (others::swap, Mark::One),
    (others::xfs, Mark::One),
    (ext::ext, Mark::One),
    (others::iso9660, Mark::Tolerant),
    (members::zfs, Mark::Last),
    (ntfs::ntfs, Mark::One),
    (others::refs, Mark::One),
    (others::squashfs, Mark::One),
    (others::btrfs, Mark::One),
    (fat::exfat, Mark::One),
    (others::f2fs, Mark::One),
    (others::named, Mark::One),
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
        let Some(content) = one(&look)? else { continue };
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
        Self { kind, label, uuid, refused: None }
    }

    fn refused(kind: &'static str, label: Option<Vec<u8>>, uuid: Option<String>, why: impl Into<String>) -> Self {
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
