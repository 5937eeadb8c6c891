//! Physical volumes: the label in one of the first sectors, and the metadata areas that it tells of.

use crate::checksum::crc32;
use crate::numbers::maybe::{le32, le64};
use crate::raw::{has, read};
use crate::{Disk, Result};

/// What LVM2's checksums begin with.
const INITIAL: u32 = 0xf597_a6cf;

const SECTOR: usize = 512;

/// What marks the header of a metadata area.
const AREA: &[u8; 16] = b" LVM2 x[5A%r0N*>";

/// Most metadata areas of a physical volume; LVM2 makes at most two.
const MAX_AREAS: usize = 4;

/// Longest text that is taken, in bytes.
const MAX_TEXT: u64 = 4 << 20;

/// A physical volume, and the texts of its metadata areas.
pub(super) struct Physical {
    pub(super) id: String,
    pub(super) texts: Vec<Vec<u8>>,
    pub(super) problems: Vec<String>,
}

/// The label's sector, from the beginning of a disk.
fn sector(front: &[u8]) -> Option<&[u8]> {
    let sectors = (0..4_u64).zip(front.chunks_exact(SECTOR));
    let mut labels = sectors.filter(|(number, sector)| {
        has(sector, 0, b"LABELONE")
            && has(sector, 24, b"LVM2 001")
            && le64(sector, 8) == Some(*number)
            && le32(sector, 16) == Some(crc32(INITIAL, &sector[20..]))
    });
    labels.next().map(|(_, sector)| sector)
}

fn header(sector: &[u8]) -> Option<(&[u8], String)> {
    let header = sector.get(usize::try_from(le32(sector, 20)?).ok()?..)?;
    let id = header.get(..32).filter(|id| id.iter().all(u8::is_ascii_alphanumeric))?;
    let mut text = String::with_capacity(38);
    for (index, byte) in id.iter().enumerate() {
        if matches!(index, 6 | 10 | 14 | 18 | 22 | 26) {
            text.push('-');
        }
        text.push(char::from(*byte));
    }
    Some((header, text))
}

/// The UUID of the physical volume that begins so, as LVM2 writes it.
pub(crate) fn id(front: &[u8]) -> Option<String> {
    header(sector(front)?).map(|(_, id)| id)
}

impl Physical {
    pub(super) fn read<D: Disk>(disk: &D) -> Result<Option<Self>> {
        let Some(front) = read(disk, 0, 4 * SECTOR)? else { return Ok(None) };
        let Some((header, id)) = sector(&front).and_then(header) else { return Ok(None) };
        let mut physical = Self { id, texts: Vec::new(), problems: Vec::new() };
        for (offset, size) in areas(header).unwrap_or_default() {
            match text(disk, offset, size)? {
                Ok(text) => physical.texts.extend(text),
                Err(why) => {
                    let problem = format!("a metadata area of physical volume {} cannot be used: {why}", physical.id);
                    physical.problems.push(problem);
                }
            }
        }
        Ok(Some(physical))
    }
}

/// The metadata areas, by offset and size in bytes. They come after the areas for data; zeroes end either list.
fn areas(header: &[u8]) -> Option<Vec<(u64, u64)>> {
    let mut pairs = header.get(40..)?.chunks_exact(16).map(|pair| Some((le64(pair, 0)?, le64(pair, 8)?)));
    pairs.by_ref().find(|pair| matches!(pair, Some((0, _))))?;
    let areas = pairs.map_while(|pair| pair.filter(|(offset, _)| *offset != 0));
    Some(areas.take(MAX_AREAS).collect())
}

/// The text that a metadata area has; none if it has none at the moment.
fn text<D: Disk>(disk: &D, offset: u64, size: u64) -> Result<std::result::Result<Option<Vec<u8>>, &'static str>> {
    const HEADER: u64 = 512;
    const IGNORED: u32 = 1;
    let Some(header) = read(disk, offset, SECTOR)? else { return Ok(Err("it is not on the disk")) };
    if !has(&header, 4, AREA) || le32(&header, 0) != Some(crc32(INITIAL, &header[4..])) {
        return Ok(Err("its header has a wrong checksum"));
    }
    if le32(&header, 20) != Some(1) || le64(&header, 24) != Some(offset) || le64(&header, 32) != Some(size) {
        return Ok(Err("its header is of another version or area"));
    }
    let place = (le64(&header, 40), le64(&header, 48), le32(&header, 56), le32(&header, 60));
    let (Some(start), Some(length), Some(checksum), Some(flags)) = place else {
        return Ok(Err("its header is cut off"));
    };
    if start == 0 || length == 0 || flags & IGNORED != 0 {
        return Ok(Ok(None));
    }
    if length > MAX_TEXT {
        return Ok(Err("its text is longer than is read here"));
    }
    if start < HEADER || start >= size || length > size - HEADER {
        return Ok(Err("its text is outside of it"));
    }
    // The area is a ring: what does not fit before its end goes on after the header.
    let before = length.min(size - start);
    let mut text = Vec::new();
    for (from, piece) in [(start, before), (HEADER, length - before)] {
        let Some(from) = offset.checked_add(from) else { return Ok(Err("it is not on the disk")) };
        let Some(piece) = read(disk, from, usize::try_from(piece).unwrap_or(0))? else {
            return Ok(Err("it is not on the disk"));
        };
        text.extend(piece);
    }
    if crc32(INITIAL, &text) != checksum {
        return Ok(Err("its text has a wrong checksum"));
    }
    Ok(Ok(Some(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_are_those_after_the_first_list() {
        let mut header = vec![b'a'; 40];
        for number in [1_u64 << 20, 0, 0, 0, 4096, 1000, 9000, 7, 0, 0, 5, 5] {
            header.extend(number.to_le_bytes());
        }
        assert_eq!(areas(&header), Some(vec![(4096, 1000), (9000, 7)]));
        assert_eq!(areas(&header[..50]), None);
    }

    #[test]
    fn a_text_goes_round_the_ring() {
        let (size, start) = (2048_u64, 1948_u64);
        let text = b"x".repeat(60).into_iter().chain(b"y".repeat(90)).collect::<Vec<_>>();
        let mut disk = vec![0_u8; 4096 + 2048];
        let area = &mut disk[4096..];
        area[1948..].copy_from_slice(&text[..100]);
        area[512..562].copy_from_slice(&text[100..]);
        area[4..20].copy_from_slice(AREA);
        area[20] = 1;
        for (at, number) in [(24, 4096), (32, size), (40, start), (48, 150)] {
            area[at..at + 8].copy_from_slice(&u64::to_le_bytes(number));
        }
        area[56..60].copy_from_slice(&crc32(INITIAL, &text).to_le_bytes());
        let checksum = crc32(INITIAL, &area[4..512]);
        area[..4].copy_from_slice(&checksum.to_le_bytes());
        assert_eq!(super::text(&disk, 4096, size).unwrap(), Ok(Some(text)));
        disk[4096 + 512] ^= 1;
        assert_eq!(super::text(&disk, 4096, size).unwrap(), Err("its text has a wrong checksum"));
        disk[4096 + 40] ^= 1;
        assert_eq!(super::text(&disk, 4096, size).unwrap(), Err("its header has a wrong checksum"));
    }
}
