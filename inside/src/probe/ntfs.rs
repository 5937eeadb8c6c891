//! NTFS. Its label is an attribute of the file `$Volume`, the fourth record of its master file table.

use super::{Look, text_label};
use crate::Result;
use crate::numbers::maybe::{byte, le16, le32, le64};
use crate::raw::{has, read};
use crate::table::Content;
use crate::utf16;

/// The number of `$Volume`'s record.
const VOLUME: u64 = 3;

/// Most bytes of a record that are taken.
const MAX_RECORD: u64 = 64 << 10;

struct Geometry {
    sector: usize,
    /// Where the master file table begins, in bytes.
    table: u64,
    /// The size of its records, in bytes.
    record: u64,
}

pub(super) fn ntfs(look: &Look<'_>) -> Result<Option<Content>> {
    let bytes = &look.front;
    let Some((geometry, serial)) = boot_sector(bytes) else { return Ok(None) };
    let length = usize::try_from(geometry.record).unwrap_or(0);
    let place = geometry.table.checked_add(VOLUME * geometry.record);
    let mut label = None;
    if let Some(place) = place
        && let Some(mut record) = read(look.disk, place, length)?
    {
        label = volume_name(&mut record, geometry.sector);
    }
    Ok(Some(Content::new("ntfs", label, Some(format!("{serial:016X}")))))
}

/// A number that is a count if it is positive, else the exponent of a size.
fn size_of(number: u8, unit: u64) -> Option<u64> {
    if number < 0x80 { unit.checked_mul(number.into()) } else { 1_u64.checked_shl(number.wrapping_neg().into()) }
}

fn boot_sector(bytes: &[u8]) -> Option<(Geometry, u64)> {
    if !has(bytes, 3, b"NTFS    ") {
        return None;
    }
    let sector = le16(bytes, 11)?;
    if !(256..=4096).contains(&sector) || !sector.is_power_of_two() {
        return None;
    }
    // What a FAT file system has here is zero.
    if le16(bytes, 14)? != 0 || byte(bytes, 16)? != 0 || le16(bytes, 17)? != 0 || le16(bytes, 19)? != 0 {
        return None;
    }
    if le16(bytes, 22)? != 0 {
        return None;
    }
    let clusters = byte(bytes, 13)?;
    let per_cluster = if clusters > 0x80 { size_of(clusters, 1)? } else { u64::from(clusters) };
    let cluster =
        per_cluster.checked_mul(sector.into()).filter(|&size| per_cluster.is_power_of_two() && size <= 2 << 20)?;
    let record = size_of(byte(bytes, 0x40)?, cluster).filter(|size| (256..=MAX_RECORD).contains(size))?;
    let table = le64(bytes, 0x30)?.checked_mul(cluster)?;
    Some((Geometry { sector: sector.into(), table, record }, le64(bytes, 0x48)?))
}

/// The name in the record of `$Volume`.
fn volume_name(record: &mut [u8], sector: usize) -> Option<Vec<u8>> {
    const NAME: u32 = 0x60;
    if !has(record, 0, b"FILE") {
        return None;
    }
    // The last two bytes of each sector are kept apart, to tell a record that was written in part.
    let (array, count) = (usize::from(le16(record, 4)?), usize::from(le16(record, 6)?));
    for index in 1..count {
        let kept = record.get(array.checked_add(2 * index)?..)?.get(..2)?.to_vec();
        let end = index.checked_mul(sector)?;
        record.get_mut(end.checked_sub(2)?..end)?.copy_from_slice(&kept);
    }
    let mut at = usize::from(le16(record, 0x14)?);
    loop {
        let (kind, length) = (le32(record, at)?, usize::try_from(le32(record, at.checked_add(4)?)?).ok()?);
        if kind == u32::MAX || length < 24 {
            return None;
        }
        let attribute = record.get(at..at.checked_add(length)?)?;
        if kind == NAME && byte(attribute, 8)? == 0 {
            let (from, length) = (usize::from(le16(attribute, 0x14)?), usize::try_from(le32(attribute, 0x10)?).ok()?);
            let name = attribute.get(from..from.checked_add(length)?)?;
            return text_label(&utf16::text(name, u16::from_le_bytes));
        }
        at = at.checked_add(length)?;
    }
}
