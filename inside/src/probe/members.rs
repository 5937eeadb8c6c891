//! What is no file system, but a part of something, or something that is locked.

use super::Look;
use crate::numbers::maybe::{array, be16, be32, be64, le64};
use crate::raw::{has, label, read, uuid};
use crate::table::Content;
use crate::{Part, Result, lvm, raid};

pub(super) fn raid(look: &Look<'_>) -> Result<Option<Content>> {
    let Some(member) = raid::member(look.disk)? else { return Ok(None) };
    let refused = match member.data {
        Err(why) => Some(why),
        Ok(range) => {
            let part = Part::new(look.disk, range.start, range.end - range.start);
            match super::within(&part)? {
                None => Some("it is a mirror of something that is not known here".to_owned()),
                Some(inner) => inner.refused.map(|why| format!("it is a mirror of {}: {why}", inner.kind)),
            }
        }
    };
    Ok(Some(Content { kind: "linux_raid_member", label: member.name, uuid: member.array, refused }))
}

pub(super) fn bcache(front: &[u8]) -> Option<Content> {
    const MAGIC: [u8; 16] =
        [0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca, 0x82, 0x65, 0xf5, 0x7f, 0x48, 0xba, 0x6d, 0x81];
    let bytes = front.get(4096..)?;
    // It says in which sector it is itself.
    let fine = has(bytes, 24, &MAGIC) && le64(bytes, 8)? == 8;
    let why = "it is a part of a bcache, whose newest blocks may be on another disk";
    fine.then_some(Content::refused("bcache", label(bytes.get(72..104)?), uuid(array(bytes, 40)?), why))
}

pub(super) fn lvm2(front: &[u8]) -> Option<Content> {
    let why = "it is a physical volume of LVM2: its files are those of its volume group's logical volumes";
    lvm::label_of(front).map(|id| Content::refused("LVM2_member", None, Some(id), why))
}

/// What a header has as text.
fn text(bytes: &[u8]) -> Option<String> {
    let text = String::from_utf8(label(bytes)?).ok()?;
    text.chars().all(|one| one.is_ascii_graphic()).then_some(text)
}

pub(super) fn luks(front: &[u8]) -> Option<Content> {
    let version = be16(front, 6).filter(|_| has(front, 0, b"LUKS\xba\xbe"))?;
    let name = if version == 2 { label(front.get(24..72)?) } else { None };
    let why = format!("encrypted: LUKS{version} gives nothing without its key; back it up as blocks");
    Some(Content::refused("crypto_LUKS", name, text(front.get(168..208)?), why))
}

pub(super) fn bitlocker(front: &[u8]) -> Option<Content> {
    /// What marks `BitLocker` To Go, whose first sector is that of a FAT file system with the program that unlocks it.
    const TO_GO: [u8; 16] =
        [0x3b, 0xd6, 0x67, 0x49, 0x29, 0x2e, 0xd8, 0x4a, 0x83, 0x99, 0xf6, 0xa3, 0x39, 0xe3, 0xd0, 0x01];
    let found = has(front, 3, b"-FVE-FS-") || (has(front, 3, b"MSWIN4.1") && has(front, 424, &TO_GO));
    let why = "encrypted: BitLocker gives nothing without its key; back it up as blocks";
    found.then(|| Content::refused("BitLocker", None, None, why))
}

pub(super) fn drbd(look: &Look<'_>) -> Result<Option<Content>> {
    // The block of internal metadata is the last of the disk.
    let Some(place) = (look.disk.size() & !4095).checked_sub(4096) else { return Ok(None) };
    let Some(bytes) = read(look.disk, place, 4096)? else { return Ok(None) };
    let found = [0x8374_0268, 0x8374_026b, 0x8374_026d].iter().any(|magic| be32(&bytes, 60) == Some(*magic));
    let why = "it is a part of a DRBD device: which of its copies is the newest cannot be told from one";
    Ok(found.then(|| Content::refused("drbd", None, None, why)))
}

/// ZFS keeps four labels of 256 KiB each, two at either end; in each a list of names and values, and then the uberblocks.
pub(super) fn zfs(look: &Look<'_>) -> Result<Option<Content>> {
    const LABEL: u64 = 256 << 10;
    const LIST: u64 = 16 << 10;
    const LIST_SIZE: usize = 112 << 10;
    const UBERBLOCKS: u64 = 128 << 10;
    const UBERBLOCK: u64 = 0x00ba_b10c;
    /// As many have to be there: a stray one is not enough.
    const LEAST: usize = 4;
    let end = look.disk.size() & !(LABEL - 1);
    let places = [Some(0), Some(LABEL), end.checked_sub(2 * LABEL), end.checked_sub(LABEL)];
    for place in places.into_iter().flatten() {
        // A list in XDR begins so; only behind one there is more to read.
        let Some(begin) = read(look.disk, place + LIST, 8)? else { continue };
        if begin[0] != 1 || begin[2..] != [0; 6] {
            continue;
        }
        let Some(bytes) = read(look.disk, place + UBERBLOCKS, 128 << 10)? else { continue };
        let marked = |block: &&[u8]| le64(block, 0) == Some(UBERBLOCK) || be64(block, 0) == Some(UBERBLOCK);
        if bytes.chunks_exact(1024).filter(marked).count() < LEAST {
            continue;
        }
        let list = read(look.disk, place + LIST, LIST_SIZE)?.unwrap_or_default();
        let (name, id) = (list_value(&list, b"name"), list_value(&list, b"pool_guid"));
        let name = name.and_then(|value| {
            let length = usize::try_from(be32(value, 0)?).ok()?;
            label(value.get(4..)?.get(..length)?)
        });
        let id = id.and_then(|value| be64(value, 0)).map(|id| id.to_string());
        return Ok(Some(Content::not_read("zfs_member", name, id)));
    }
    Ok(None)
}

/// The value of a name in a list in XDR: for each pair its size, the size when unpacked, the name, a type, a count, the value.
fn list_value<'a>(list: &'a [u8], wanted: &[u8]) -> Option<&'a [u8]> {
    let mut rest = list.get(12..)?;
    loop {
        let size = usize::try_from(be32(rest, 0)?).ok().filter(|&size| size >= 20)?;
        let pair = rest.get(..size)?;
        let length = usize::try_from(be32(pair, 8)?).ok()?;
        let name = pair.get(12..)?.get(..length)?;
        let value = pair.get(12..)?.get(length.checked_next_multiple_of(4)?..)?.get(8..)?;
        if name == wanted {
            return Some(value);
        }
        rest = rest.get(size..)?;
    }
}
