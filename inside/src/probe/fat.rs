//! FAT12, FAT16, FAT32 and exFAT. A FAT volume's label is an entry of its root directory.

use std::ops::ControlFlow;

use super::{Look, serial, text_label};
use crate::numbers::maybe::{array, byte, le16, le32};
use crate::raw::{has, label, read};
use crate::table::Content;
use crate::utf16;
use crate::{Disk, Result};

/// What of a root directory is looked through for the label, in clusters and in bytes.
const MAX_CLUSTERS: u32 = 100;
const MAX_DIRECTORY: usize = 1 << 20;

/// Most clusters of FAT12, FAT16 and FAT32.
const MOST_CLUSTERS: [u32; 3] = [0xff4, 0xfff4, 0x0fff_fff6];

/// What a boot sector tells of where things are.
struct Geometry {
    sector: u64,
    cluster: u64,
    reserved: u64,
    fat_size: u64,
    directory_entries: u16,
    root: Option<u32>,
}

pub(super) fn vfat(look: &Look<'_>) -> Result<Option<Content>> {
    let Some((geometry, id)) = look.front.get(..512).and_then(boot_sector) else { return Ok(None) };
    Ok(Some(Content::new("vfat", geometry.label(look.disk)?, id.and_then(serial))))
}

/// The geometry and the serial number, if it is the boot sector of a FAT file system.
fn boot_sector(bytes: &[u8]) -> Option<(Geometry, Option<[u8; 4]>)> {
    let strong = [(0x52, &b"MSWIN"[..]), (0x52, b"FAT32   "), (0x36, b"MSDOS"), (0x36, b"FAT")];
    let weak = [(0, &[0xeb][..]), (0, &[0xe9]), (0x1fe, &[0x55, 0xaa])];
    if !strong.iter().any(|(at, magic)| has(bytes, *at, magic)) {
        // A boot sector that looks like FAT was put before other file systems too: before JFS and HPFS.
        let foreign = has(bytes, 0x36, b"JFS     ") || has(bytes, 0x36, b"HPFS    ");
        if foreign || !weak.iter().any(|(at, magic)| has(bytes, *at, magic)) || !has(bytes, 0x1fe, &[0x55, 0xaa]) {
            return None;
        }
    }
    let (sector, cluster) = (le16(bytes, 11)?, byte(bytes, 13)?);
    let (reserved, fats, directory_entries) = (le16(bytes, 14)?, byte(bytes, 16)?, le16(bytes, 17)?);
    let media = byte(bytes, 21)?;
    let (short_length, long_length) = (u32::from(le16(bytes, 22)?), le32(bytes, 36)?);
    if !(512..=4096).contains(&sector) || !sector.is_power_of_two() || !cluster.is_power_of_two() {
        return None;
    }
    if reserved == 0 || fats == 0 || !(media == 0xf0 || media >= 0xf8) {
        return None;
    }
    let wide = short_length == 0 && long_length != 0;
    let fat_length = if wide { long_length } else { short_length };
    let sectors = match le16(bytes, 19)? {
        0 => le32(bytes, 32)?,
        few => u32::from(few),
    };
    let fat_size = fat_length.checked_mul(u32::from(fats))?;
    let directory = (u32::from(directory_entries) * 32).div_ceil(u32::from(sector));
    let data = u32::from(reserved).checked_add(fat_size)?.checked_add(directory)?;
    let clusters = sectors.checked_sub(data)? / u32::from(cluster);
    let [fat12, fat16, fat32] = MOST_CLUSTERS;
    let most = if wide {
        fat32
    } else if clusters > fat12 {
        fat16
    } else {
        fat12
    };
    if clusters > most {
        return None;
    }
    let id_at = if wide { 0x43 } else { 0x27 };
    let signed = wide || matches!(byte(bytes, 0x26)?, 0x28 | 0x29);
    let geometry = Geometry {
        sector: sector.into(),
        cluster: cluster.into(),
        reserved: reserved.into(),
        fat_size: fat_size.into(),
        directory_entries,
        root: if wide { Some(le32(bytes, 44)?) } else { None },
    };
    Some((geometry, if signed { array(bytes, id_at) } else { None }))
}

impl Geometry {
    /// The label, which is an entry of the root directory.
    fn label(&self, disk: &dyn Disk) -> Result<Option<Vec<u8>>> {
        // Sectors below 2³³ of at most 4096 bytes: no overflow.
        let after_fats = (self.reserved + self.fat_size) * self.sector;
        let Some(mut cluster) = self.root else {
            let entries = read(disk, after_fats, usize::from(self.directory_entries) * 32)?;
            return Ok(entries.and_then(|entries| volume_label(&entries).break_value().flatten()));
        };
        let size = self.cluster * self.sector;
        for _ in 0..MAX_CLUSTERS {
            let Some(index) = cluster.checked_sub(2) else { break };
            let offset = after_fats + u64::from(index) * size;
            let Some(entries) = read(disk, offset, usize::try_from(size).unwrap_or(0))? else { break };
            if let ControlFlow::Break(found) = volume_label(&entries) {
                return Ok(found);
            }
            let next = self.reserved * self.sector + u64::from(cluster) * 4;
            let Some(next) = read(disk, next, 4)?.and_then(|next| le32(&next, 0)) else { break };
            cluster = next & 0x0fff_ffff;
            if cluster >= 0x0fff_fff7 {
                break;
            }
        }
        Ok(None)
    }
}

/// The label among entries of a directory; goes on if the directory does.
fn volume_label(entries: &[u8]) -> ControlFlow<Option<Vec<u8>>> {
    const VOLUME_OR_DIRECTORY: u8 = 0x18;
    const VOLUME: u8 = 0x08;
    const LONG_NAME: u8 = 0x0f;
    for entry in entries.chunks_exact(32) {
        let (attributes, cluster) = (entry[11], (le16(entry, 20), le16(entry, 26)));
        if entry[0] == 0 {
            return ControlFlow::Break(None);
        }
        if entry[0] == 0xe5 || cluster != (Some(0), Some(0)) || attributes & 0x3f == LONG_NAME {
            continue;
        }
        if attributes & VOLUME_OR_DIRECTORY == VOLUME {
            let name = array(entry, 0).map(|[first, rest @ ..]: [u8; 11]| {
                let first = if first == 0x05 { 0xe5 } else { first };
                [&[first][..], &rest].concat()
            });
            return ControlFlow::Break(name.and_then(|name| label(&name)));
        }
    }
    ControlFlow::Continue(())
}

/// What a boot sector of exFAT tells of where things are: sizes as powers of two, places in sectors.
struct Exfat {
    sector: u32,
    cluster: u32,
    fat: u32,
    heap: u32,
    root: u32,
    id: [u8; 4],
}

pub(super) fn exfat(look: &Look<'_>) -> Result<Option<Content>> {
    let Some(found) = Exfat::parse(&look.front) else { return Ok(None) };
    Ok(Some(Content::not_read("exfat", found.label(look.disk)?, serial(found.id))))
}

impl Exfat {
    fn parse(bytes: &[u8]) -> Option<Self> {
        if !has(bytes, 3, b"EXFAT   ") || !has(bytes, 0x1fe, &[0x55, 0xaa]) {
            return None;
        }
        let (sector, cluster) = (u32::from(byte(bytes, 108)?), u32::from(byte(bytes, 109)?));
        let (fat, heap, root) = (le32(bytes, 80)?, le32(bytes, 88)?, le32(bytes, 96)?);
        let fine = (9..=12).contains(&sector) && sector + cluster <= 25;
        fine.then_some(Self { sector, cluster, fat, heap, root, id: array(bytes, 100)? })
    }

    fn label(&self, disk: &dyn Disk) -> Result<Option<Vec<u8>>> {
        const LABEL: u8 = 0x83;
        let size = 1_usize << (self.sector + self.cluster);
        let (mut here, mut seen) = (self.root, 0);
        while let Some(index) = here.checked_sub(2).filter(|_| here < 0xffff_fff7 && seen < MAX_DIRECTORY) {
            let offset = (u64::from(self.heap) << self.sector) + (u64::from(index) << (self.sector + self.cluster));
            let Some(entries) = read(disk, offset, size.min(MAX_DIRECTORY))? else { break };
            for entry in entries.chunks_exact(32) {
                if entry[0] == 0 {
                    return Ok(None);
                }
                if entry[0] == LABEL {
                    let length = 2 * usize::from(entry[1]).min(11);
                    return Ok(text_label(&utf16::text(&entry[2..2 + length], u16::from_le_bytes)));
                }
            }
            seen += size;
            let next = (u64::from(self.fat) << self.sector) + 4 * u64::from(here);
            let Some(next) = read(disk, next, 4)?.and_then(|next| le32(&next, 0)) else { break };
            here = next;
        }
        Ok(None)
    }
}
