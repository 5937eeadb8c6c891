//! Members of Linux's software RAID (md), by their superblocks: versions 0.90, 1.0, 1.1 and 1.2.
//!
//! A mirror (RAID1) has all of the array's bytes in one piece, so one member that is in sync is enough to read it; where a doubt
//! remains whether it is, it is refused. Other levels are refused.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::numbers::maybe::{array, le16, le32, le64};
use crate::raw::{has, label, read, uuid};
use crate::{Disk, Result};

const MAGIC: u32 = 0xa92b_4efc;

/// Bytes of a superblock of version 0.90, and of one of version 1 with the roles of its devices.
const OLD: usize = 4096;
const NEW: usize = 4096;

/// Where superblocks of version 0.90 are: at the last multiple of this that has as much after it, in bytes.
const OLD_PLACE: u64 = 64 << 10;

/// A member of an array.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The version of its superblock: `0.90`, `1.2`.
    pub version: &'static str,
    /// The array's UUID, as blkid(8) writes it.
    pub array: Option<String>,
    /// The array's name: bytes.
    pub name: Option<Vec<u8>>,
    /// The array's level: 1 for a mirror; as md(4) has it for the others.
    pub level: i32,
    /// How often the array's superblocks were written: the member with fewer of them than another has missed writes; see
    /// [`outdated`].
    pub events: u64,
    /// How many other members it takes for whole. If there are, they may know better: a member that was dropped is the last to hear
    /// of it.
    pub others: usize,
    /// Where on the member the array's bytes are, in bytes; or why they cannot be read from it: a sentence.
    pub data: std::result::Result<Range<u64>, String>,
}

/// What a disk says of the array that it is a member of; none if it is no member.
///
/// # Errors
/// What the disk fails with.
pub fn member<D: Disk + ?Sized>(disk: &D) -> Result<Option<Member>> {
    let size = disk.size();
    if let Some(offset) = (size & !(OLD_PLACE - 1)).checked_sub(OLD_PLACE)
        && let Some(bytes) = read(disk, offset, OLD)?
        && let Some(member) = old(&bytes, offset)
    {
        return Ok(Some(member));
    }
    let end = (size & !511).checked_sub(8 << 10).map(|place| place & !4095);
    for (version, place) in [("1.0", end), ("1.1", Some(0)), ("1.2", Some(4096))] {
        if let Some(place) = place
            && let Some(bytes) = read(disk, place, NEW.min(usize::try_from(size).unwrap_or(NEW)))?
            && let Some(member) = new(&bytes, version, place, size)
        {
            return Ok(Some(member));
        }
    }
    Ok(None)
}

/// Which of some disks are members of an array that have missed writes which another member among them has: by their places.
///
/// # Errors
/// What a disk fails with.
pub fn outdated<D: Disk>(disks: &[D]) -> Result<Vec<usize>> {
    let mut newest: BTreeMap<String, u64> = BTreeMap::new();
    let mut members = Vec::new();
    for (at, disk) in disks.iter().enumerate() {
        let Some(Member { array: Some(array), events, .. }) = member(disk)? else { continue };
        let known = newest.entry(array.clone()).or_default();
        *known = events.max(*known);
        members.push((at, array, events));
    }
    let old = members.into_iter().filter(|(_, array, events)| newest.get(array).is_some_and(|newest| events < newest));
    Ok(old.map(|(at, ..)| at).collect())
}

/// A sum of words as md keeps it.
fn folded(sum: u64) -> u64 {
    ((sum & 0xffff_ffff) + (sum >> 32)) & 0xffff_ffff
}

fn level_problem(level: i32) -> Option<String> {
    let name = match level {
        1 => return None,
        -1 => "linear".to_owned(),
        -4 => "multipath".to_owned(),
        level @ (0 | 4 | 5 | 6 | 10) => format!("RAID{level}"),
        level => format!("level {level}"),
    };
    Some(format!("it is a member of an md array of {name}, whose bytes are on several disks: only RAID1 is read"))
}

const NOT_FIRST: &str =
    "the array is active, and this mirror may still be copied to from another: look at the first one";

/// A superblock of version 0.90: words in the byte order of the machine that wrote it, nearly always least byte first.
fn old(bytes: &[u8], offset: u64) -> Option<Member> {
    let big = le32(bytes, 0)? == MAGIC.swap_bytes();
    let word = |index: usize| le32(bytes, 4 * index).map(|word| if big { word.swap_bytes() } else { word });
    if word(0)? != MAGIC || word(1)? != 0 || word(2)? < 90 {
        return None;
    }
    let mut sum = 0_u64;
    for index in (0..OLD / 4).filter(|&index| index != 38) {
        sum += u64::from(word(index)?);
    }
    if folded(sum) != u64::from(word(38)?) {
        return None;
    }
    let mut identity = [0; 16];
    for (place, index) in identity.chunks_exact_mut(4).zip([5, 13, 14, 15]) {
        place.copy_from_slice(&word(index)?.to_be_bytes());
    }
    let (low, high) = if big { (word(40)?, word(39)?) } else { (word(39)?, word(40)?) };
    let level = word(7)?.cast_signed();
    let size = u64::from(word(8)?) << 10;
    let data = match level_problem(level) {
        Some(problem) => Err(problem),
        None => old_state(&word).unwrap_or(Ok(())).and_then(|()| {
            if size == 0 || size > offset {
                Err("its superblock tells an impossible size".to_owned())
            } else {
                Ok(0..size)
            }
        }),
    };
    let events = u64::from(high) << 32 | u64::from(low);
    let others = old_mirrors(&word)?.iter().filter(|&&role| Some(role) != word(992 + 3)).count();
    Some(Member { version: "0.90", array: uuid(identity), name: None, level, events, others, data })
}

/// The state of a device in a superblock of version 0.90.
const FAULTY: u32 = 1;
const IN_SYNC: u32 = 2 | 4;
const WRITE_MOSTLY: u32 = 1 << 9;

/// The roles of the devices that are in sync and are read from, by a superblock of version 0.90.
fn old_mirrors(word: &dyn Fn(usize) -> Option<u32>) -> Option<Vec<u32>> {
    let mut roles = Vec::new();
    for place in (0..27).map(|slot| 128 + 32 * slot) {
        if word(place + 4)? & (IN_SYNC | FAULTY | WRITE_MOSTLY) == IN_SYNC {
            roles.push(word(place + 3)?);
        }
    }
    Some(roles)
}

/// Whether a member by a superblock of version 0.90 has all of the array.
fn old_state(word: &dyn Fn(usize) -> Option<u32>) -> Option<std::result::Result<(), String>> {
    const CLEAN: u32 = 1;
    let reshaped = word(2)? > 90 && (word(44)?, word(45)?) != (u32::MAX, u32::MAX);
    let (role, state) = (word(992 + 3)?, word(992 + 4)?);
    if reshaped {
        return Some(Err("the array was being reshaped".to_owned()));
    }
    if state & FAULTY != 0 {
        return Some(Err("it is a faulty member of its array".to_owned()));
    }
    if state & IN_SYNC != IN_SYNC {
        return Some(Err("it is a spare of its array, or was not yet in sync".to_owned()));
    }
    let first = old_mirrors(word)?.into_iter().min();
    if word(33)? & CLEAN == 0 && (first != Some(role) || state & WRITE_MOSTLY != 0) {
        return Some(Err(NOT_FIRST.to_owned()));
    }
    Some(Ok(()))
}

/// A superblock of version 1.
fn new(bytes: &[u8], version: &'static str, place: u64, size: u64) -> Option<Member> {
    if !has(bytes, 0, &MAGIC.to_le_bytes()) || le32(bytes, 4)? != 1 || le64(bytes, 144)?.checked_mul(512)? != place {
        return None;
    }
    let devices = usize::try_from(le32(bytes, 220)?).ok().filter(|&count| count <= (NEW - 256) / 2)?;
    let covered = bytes.get(..256 + 2 * devices)?;
    let mut sum = 0_u64;
    for at in (0..covered.len()).step_by(4).filter(|&at| at != 216) {
        sum += le32(covered, at).or_else(|| le16(covered, at).map(u32::from)).map_or(0, u64::from);
    }
    if folded(sum) != u64::from(le32(bytes, 216)?) {
        return None;
    }
    let level = le32(bytes, 72)?.cast_signed();
    let data = match level_problem(level) {
        Some(problem) => Err(problem),
        None => new_data(bytes, devices, size)?,
    };
    let active = (0..devices).filter(|device| le16(bytes, 256 + 2 * device).is_some_and(|role| role <= LAST_ROLE));
    let own = usize::try_from(le32(bytes, 160)?).ok()?;
    Some(Member {
        version,
        array: uuid(array(bytes, 16)?),
        name: label(bytes.get(32..64)?),
        level,
        events: le64(bytes, 200)?,
        others: active.filter(|&device| device != own).count(),
        data,
    })
}

/// The last role of a device that is active; after it come those of spares, of faulty devices and of journals.
const LAST_ROLE: u16 = 0xfeff;

fn new_data(bytes: &[u8], devices: usize, disk: u64) -> Option<std::result::Result<Range<u64>, String>> {
    const SPARE: u16 = 0xffff;
    const FAULTY: u16 = 0xfffe;
    const RECOVERING: u32 = 2;
    const RESHAPING: u32 = 4 | 32 | 64;
    const BAD_BLOCKS: u32 = 8;
    const REPLACEMENT: u32 = 16;
    let role_of = |device: usize| le16(bytes, 256 + 2 * device);
    let features = le32(bytes, 8)?;
    let device = usize::try_from(le32(bytes, 160)?).ok()?;
    let role = if device < devices { role_of(device)? } else { SPARE };
    let refused = match role {
        SPARE => Some("it is a spare of its array"),
        FAULTY => Some("it is a faulty member of its array"),
        role if role > LAST_ROLE => Some("it is no mirror of its array, but holds something else of it"),
        _ if features & RECOVERING != 0 => Some("it was being rebuilt, and lacks a part of the array"),
        _ if features & REPLACEMENT != 0 => Some("it was being filled to take the place of another member"),
        _ if features & RESHAPING != 0 => Some("the array was being reshaped"),
        _ if features & BAD_BLOCKS != 0 => Some("it has bad blocks, which only another mirror has right"),
        _ => None,
    };
    if let Some(refused) = refused {
        return Some(Err(refused.to_owned()));
    }
    let write_mostly = bytes.get(184)? & 1 != 0;
    let first = (0..devices).filter_map(role_of).filter(|&role| role <= LAST_ROLE).min();
    let in_sync = le64(bytes, 208)? == u64::MAX;
    if !in_sync && (first != Some(role) || write_mostly) {
        return Some(Err(NOT_FIRST.to_owned()));
    }
    let (start, length) = (le64(bytes, 128)?.checked_mul(512), le64(bytes, 80)?.checked_mul(512));
    let range = start.zip(length).and_then(|(start, length)| Some(start..start.checked_add(length)?));
    Some(match range.filter(|range| !range.is_empty() && range.end <= disk) {
        Some(range) => Ok(range),
        None => Err("its superblock tells an impossible size, or it was cut off".to_owned()),
    })
}
