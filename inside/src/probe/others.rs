//! File systems whose label and UUID are at a fixed place.

use super::{Look, text_label};
use crate::raw::{Crc, array, be16, be32, byte, has, label, le16, le32, utf16, uuid};
use crate::table::Content;
use crate::Result;

/// File systems that are named and no more.
const NAMED: [(&str, usize, &[u8]); 6] = [
    ("jfs", 32 << 10, b"JFS1"),
    ("reiserfs", (64 << 10) + 52, b"ReIsEr2Fs"),
    ("reiserfs", (64 << 10) + 52, b"ReIsEr3Fs"),
    ("hfsplus", 1024, b"H+\0\x04"),
    ("hfsplus", 1024, b"HX\0\x05"),
    ("apfs", 32, b"NXSB"),
];

pub(super) fn named(look: &Look<'_>) -> Result<Option<Content>> {
    let found = NAMED.iter().find(|(_, at, magic)| has(&look.front, *at, magic));
    Ok(found.map(|(kind, ..)| Content::not_read(kind, None, None)))
}

pub(super) fn refs(look: &Look<'_>) -> Result<Option<Content>> {
    Ok(has(&look.front, 0, b"\0\0\0ReFS\0").then(|| Content::not_read("ReFS", None, None)))
}

pub(super) fn xfs(look: &Look<'_>) -> Result<Option<Content>> {
    let found = |bytes: &[u8]| {
        let (block, sector) = (be32(bytes, 4)?, be16(bytes, 102)?);
        let fine = has(bytes, 0, b"XFSB") && block.is_power_of_two() && sector.is_power_of_two();
        let fine = fine && (512..=65536).contains(&block) && (512..=32768).contains(&sector);
        fine.then_some(Content::new("xfs", label(bytes.get(108..120)?), uuid(array(bytes, 32)?)))
    };
    Ok(found(&look.front))
}

pub(super) fn btrfs(look: &Look<'_>) -> Result<Option<Content>> {
    const PLACE: usize = 64 << 10;
    let found = |bytes: &[u8]| {
        if !has(bytes, 0x40, b"_BHRfS_M") {
            return None;
        }
        let crc32c = le16(bytes, 0xc4)? == 0;
        if crc32c && !Crc::castagnoli(u32::MAX).over(bytes.get(32..4096)?).state() != le32(bytes, 0)? {
            return None;
        }
        Some(Content::not_read("btrfs", label(bytes.get(0x12b..0x22b)?), uuid(array(bytes, 0x20)?)))
    };
    Ok(look.front.get(PLACE..).and_then(found))
}

pub(super) fn swap(look: &Look<'_>) -> Result<Option<Content>> {
    const HIBERNATED: [&[u8]; 5] = [b"S1SUSPEND\0", b"S2SUSPEND\0", b"ULSUSPEND\0", b"\xed\xc3\x02\xe9\x98\x56\xe5\x0c", b"LINHIB0001"];
    let bytes = &look.front;
    let found = |page: usize| {
        let mark = page - 10;
        let version = le32(bytes, 1024)?;
        let (name, id) = (label(bytes.get(0x41c..0x42c)?), uuid(array(bytes, 0x40c)?));
        let version_1 = version == 1 || version == 1_u32.swap_bytes();
        if has(bytes, mark, b"SWAPSPACE2") && version_1 && le32(bytes, 1028)? != 0 {
            let why = "it is swap space: it has no files, and what is in it is the machine's memory";
            return Some(Content::refused("swap", name, id, why));
        }
        if has(bytes, mark, b"SWAP-SPACE") {
            return Some(Content::refused("swap", None, None, "it is swap space of an old kind: it has no files"));
        }
        if HIBERNATED.iter().any(|magic| has(bytes, mark, magic)) {
            let why = "it is swap space with a hibernated machine's memory: it has no files";
            return Some(Content::refused("swsuspend", name.filter(|_| version_1), id.filter(|_| version_1), why));
        }
        None
    };
    Ok([4096, 8192, 16384, 32768, 65536].into_iter().find_map(found))
}

pub(super) fn squashfs(look: &Look<'_>) -> Result<Option<Content>> {
    let bytes = &look.front;
    if has(bytes, 0, b"hsqs") && le16(bytes, 28).is_some_and(|version| version >= 4) {
        return Ok(Some(Content::not_read("squashfs", None, None)));
    }
    let old = (has(bytes, 0, b"hsqs") && le16(bytes, 28).is_some_and(|version| version < 4))
        || (has(bytes, 0, b"sqsh") && be16(bytes, 28).is_some_and(|version| version < 4));
    Ok(old.then(|| Content::not_read("squashfs3", None, None)))
}

pub(super) fn f2fs(look: &Look<'_>) -> Result<Option<Content>> {
    let found = |bytes: &[u8]| {
        if !has(bytes, 0, &[0x10, 0x20, 0xf5, 0xf2]) {
            return None;
        }
        let (id, name) = (uuid(array(bytes, 108)?), utf16(bytes.get(124..1148)?, u16::from_le_bytes));
        Some(Content::not_read("f2fs", text_label(&name), id))
    };
    Ok(look.front.get(1024..).and_then(found))
}

pub(super) fn iso9660(look: &Look<'_>) -> Result<Option<Content>> {
    const FIRST: usize = 32 << 10;
    const SIZE: usize = 2048;
    let descriptor = |index: usize| {
        look.front.get(FIRST + SIZE * index..FIRST + SIZE * (index + 1)).filter(|bytes| has(bytes, 1, b"CD001"))
    };
    let Some(primary) = descriptor(0).filter(|bytes| byte(bytes, 0).is_some_and(|kind| kind < 3)) else {
        return Ok(None);
    };
    let mut primary = primary;
    let mut joliet = None;
    for bytes in (0..16).map_while(descriptor) {
        match byte(bytes, 0) {
            Some(1) => primary = bytes,
            Some(2) if [b"%/@", b"%/C", b"%/E"].iter().any(|sequence| has(bytes, 88, *sequence)) => {
                joliet = bytes.get(40..72).map(|name| utf16(name, u16::from_be_bytes));
            }
            Some(255) => break,
            _ => {}
        }
    }
    let plain = primary.get(40..72).and_then(label);
    let name = joliet.and_then(|name| text_label(&name)).filter(|name| name.len() < 16).or(plain);
    let id = primary.get(830..847).and_then(date).or_else(|| primary.get(813..830).and_then(date));
    Ok(Some(Content::not_read("iso9660", name, id)))
}

/// A volume's date as its UUID.
fn date(bytes: &[u8]) -> Option<String> {
    let digits = bytes.get(..16)?;
    if !digits.iter().all(u8::is_ascii_digit) || digits.iter().all(|&digit| digit == b'0') {
        return None;
    }
    let pair = |at: usize| String::from_utf8_lossy(&digits[at..at + 2]).into_owned();
    let parts: Vec<String> = (4..16).step_by(2).map(pair).collect();
    Some(format!("{}{}-{}", pair(0), pair(2), parts.join("-")))
}
