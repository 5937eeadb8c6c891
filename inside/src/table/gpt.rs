//! GUID partition tables (UEFI specification 2.10, chapter 5).
//!
//! ```text
//! sector 1: header ─▶ entries      …partitions…      entries ◀─ header: last sector
//! ```
//! A header counts only with a right checksum of itself and of its entries, and where it says that it is. The primary one is
//! taken, else the backup; what is wrong with either is said.

use super::{Partition, Scheme, Table};
use crate::checksum::crc32;
use crate::numbers::maybe::{array, le32, le64};
use crate::raw::{guid, has, read};
use crate::utf16;
use crate::{Disk, Result};

pub(super) const SIGNATURE: &[u8] = b"EFI PART";
const SECTOR_SIZES: [u32; 2] = [512, 4096];

/// The least and the most that an entry is taken for, in bytes. The specification allows for any power of two from 128 on.
const ENTRY_SIZES: std::ops::RangeInclusive<u32> = 128..=4096;

/// Most bytes of entries that are read: 32,768 of the least size, where everybody makes 128.
const MAX_ENTRIES: u64 = 4 << 20;

/// Entries are read in pieces of so many bytes.
const PIECE: u64 = 64 << 10;

/// A header that is right, with its entries.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Header {
    sector_size: u32,
    other: u64,
    last_usable: u64,
    disk: [u8; 16],
    count: u32,
    checksum: u32,
    used: Vec<Used>,
    more: bool,
}

/// An entry that is in use.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Used {
    number: u32,
    kind: [u8; 16],
    id: [u8; 16],
    first: u64,
    last: u64,
    name: String,
}

/// What is where a header should be.
enum Found {
    Good(Header),
    /// It has the signature of one; where it says that the other is.
    Damaged(String, Option<u64>),
    Nothing,
}

/// Whether a header that is right is in sector 1, of either size.
pub(super) fn is_there<D: Disk>(disk: &D) -> Result<bool> {
    for size in SECTOR_SIZES {
        if matches!(header(disk, size, 1)?, Found::Good(_)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The table, or why neither copy of it can be used.
pub(super) fn table<D: Disk>(disk: &D) -> Result<std::result::Result<Table, String>> {
    let mut primary = Vec::new();
    for size in SECTOR_SIZES {
        match header(disk, size, 1)? {
            Found::Good(found) => {
                let problem = backup_problem(disk, &found)?;
                return Ok(Ok(found.table(disk.size(), problem)));
            }
            Found::Damaged(why, other) => primary.push((size, why, other)),
            Found::Nothing => {}
        }
    }
    // Where a damaged header says that its backup is may be wrong too, but a backup that is right says where it is itself.
    let last = SECTOR_SIZES.map(|size| (size, last_sector(disk, size)));
    let places = last.into_iter().chain(primary.iter().map(|(size, _, other)| (*size, *other)));
    let mut backup = None;
    for (size, sector) in places.filter_map(|(size, sector)| Some((size, sector.filter(|&sector| sector > 1)?))) {
        match header(disk, size, sector)? {
            Found::Good(found) => {
                let why = primary.first().map_or("there is none", |(_, why, _)| why);
                let problem =
                    format!("the primary GUID partition table was not used: {why}; its backup in sector {sector} was");
                return Ok(Ok(found.table(disk.size(), Some(problem))));
            }
            Found::Damaged(why, _) => backup = Some(why),
            Found::Nothing => {}
        }
    }
    let primary = primary.into_iter().next().map_or_else(|| "there is none".to_owned(), |(_, why, _)| why);
    let backup = backup.unwrap_or_else(|| "there is none at the end of the disk".to_owned());
    Ok(Err(format!("the primary: {primary}; the backup: {backup}")))
}

fn last_sector<D: Disk>(disk: &D, sector_size: u32) -> Option<u64> {
    (disk.size() / u64::from(sector_size)).checked_sub(1)
}

/// What is wrong with the other copy of a primary table that is right.
fn backup_problem<D: Disk>(disk: &D, primary: &Header) -> Result<Option<String>> {
    let why = match header(disk, primary.sector_size, primary.other)? {
        Found::Good(backup) if backup.checksum == primary.checksum && backup.disk == primary.disk => {
            if last_sector(disk, primary.sector_size) == Some(primary.other) {
                return Ok(None);
            }
            return Ok(Some(
                "the backup of the GUID partition table is not at the end of the disk, which grew".to_owned(),
            ));
        }
        Found::Good(_) => "it tells other partitions than the primary one".to_owned(),
        Found::Damaged(why, _) => why,
        Found::Nothing => format!("there is none in sector {}", primary.other),
    };
    Ok(Some(format!("the backup of the GUID partition table cannot be used: {why}")))
}

fn header<D: Disk>(disk: &D, sector_size: u32, sector: u64) -> Result<Found> {
    let Some(offset) = sector.checked_mul(u64::from(sector_size)) else { return Ok(Found::Nothing) };
    let length = usize::try_from(sector_size).unwrap_or(usize::MAX);
    let Some(bytes) = read(disk, offset, length)? else { return Ok(Found::Nothing) };
    if !has(&bytes, 0, SIGNATURE) {
        return Ok(Found::Nothing);
    }
    match parse(disk, &bytes, sector_size, sector)? {
        Ok(header) => Ok(Found::Good(header)),
        Err(why) => Ok(Found::Damaged(why.to_owned(), le64(&bytes, 32))),
    }
}

/// The header in a sector, or why it is none.
fn parse<D: Disk>(
    disk: &D,
    bytes: &[u8],
    sector_size: u32,
    sector: u64,
) -> Result<std::result::Result<Header, &'static str>> {
    const SHORT: &str = "its header is cut off";
    let number = |at| le32(bytes, at);
    let long = |at| le64(bytes, at);
    let (Some(size), Some(checksum), Some(own), Some(other)) = (number(12), number(16), long(24), long(32)) else {
        return Ok(Err(SHORT));
    };
    let (Some(last_usable), Some(id), Some(entries)) = (long(48), array(bytes, 56), long(72)) else {
        return Ok(Err(SHORT));
    };
    let (Some(count), Some(entry_size), Some(entries_checksum)) = (number(80), number(84), number(88)) else {
        return Ok(Err(SHORT));
    };
    let whole = usize::try_from(size).ok().filter(|&size| size >= 92).and_then(|size| bytes.get(..size));
    let Some(whole) = whole else { return Ok(Err("its header has an impossible size")) };
    let crc = crc32(crc32(crc32(!0, &whole[..16]), &[0; 4]), &whole[20..]);
    if !crc != checksum {
        return Ok(Err("its header has a wrong checksum"));
    }
    if own != sector {
        return Ok(Err("its header says that it is elsewhere"));
    }
    if !ENTRY_SIZES.contains(&entry_size) || !entry_size.is_power_of_two() {
        return Ok(Err("its entries have a size that is not read here"));
    }
    let length = u64::from(count) * u64::from(entry_size);
    if length > MAX_ENTRIES {
        return Ok(Err("it has more entries than are read here"));
    }
    let start = entries.checked_mul(u64::from(sector_size));
    let Some(start) = start.filter(|start| start.checked_add(length).is_some_and(|end| end <= disk.size())) else {
        return Ok(Err("its entries are not on the disk"));
    };
    let mut header = Header {
        sector_size,
        other,
        last_usable,
        disk: id,
        count,
        checksum: entries_checksum,
        used: Vec::new(),
        more: false,
    };
    let right = header.read_entries(disk, start, length, entry_size)?;
    Ok(if right { Ok(header) } else { Err("its entries have a wrong checksum") })
}

impl Header {
    /// Reads the entries; whether they are right.
    fn read_entries<D: Disk>(&mut self, disk: &D, start: u64, length: u64, entry_size: u32) -> Result<bool> {
        let step = usize::try_from(entry_size).unwrap_or(usize::MAX);
        let mut crc = !0;
        let (mut done, mut number) = (0, 0);
        while done < length {
            let piece = PIECE.min(length - done);
            let mut bytes = vec![0; usize::try_from(piece).unwrap_or(0)];
            disk.read_at(start + done, &mut bytes)?;
            crc = crc32(crc, &bytes);
            for entry in bytes.chunks_exact(step) {
                number += 1;
                if let Some(used) = Used::parse(entry, number) {
                    if self.used.len() < Table::MAX_PARTITIONS {
                        self.used.push(used);
                    } else {
                        self.more = true;
                    }
                }
            }
            done += piece;
        }
        Ok(!crc == self.checksum)
    }

    fn table(self, size: u64, problem: Option<String>) -> Table {
        let mut problems: Vec<String> = problem.into_iter().collect();
        let sector = u64::from(self.sector_size);
        if self.last_usable.checked_add(1).and_then(|end| end.checked_mul(sector)).is_none_or(|end| end > size) {
            problems.push("the disk is smaller than its GUID partition table says: its end is missing".to_owned());
        }
        if self.more {
            problems.push(format!("only the first {} of its partitions are shown", Table::MAX_PARTITIONS));
        }
        let partitions = self.used.into_iter().map(|used| used.partition(sector, size)).collect();
        Table { scheme: Scheme::Gpt, sector_size: self.sector_size, id: Some(guid(self.disk)), problems, partitions }
    }
}

impl Used {
    fn parse(entry: &[u8], number: u32) -> Option<Self> {
        let kind = array(entry, 0).filter(|kind| *kind != [0; 16])?;
        let name = utf16::text(entry.get(56..128)?, u16::from_le_bytes);
        Some(Self { number, kind, id: array(entry, 16)?, first: le64(entry, 32)?, last: le64(entry, 40)?, name })
    }

    fn partition(self, sector: u64, size: u64) -> Partition {
        let start = self.first.checked_mul(sector);
        let end = self.last.checked_add(1).and_then(|end| end.checked_mul(sector));
        let (offset, length, problem) = match (start, end) {
            _ if self.first > self.last => (start.unwrap_or(u64::MAX), 0, Some("it ends before it begins".to_owned())),
            (Some(start), Some(end)) if end <= size => (start, end - start, None),
            _ => {
                let start = start.unwrap_or(u64::MAX);
                (start, size.saturating_sub(start), Some(super::past_the_end(self.first, self.last, size / sector)))
            }
        };
        Partition {
            number: self.number,
            offset,
            size: length,
            type_id: Some(guid(self.kind)),
            id: Some(guid(self.id)),
            name: (!self.name.is_empty()).then_some(self.name),
            content: None,
            problem,
        }
    }
}
