//! File systems whose label and UUID are at a fixed place.

use super::text_label;
use crate::checksum::crc32c;
use crate::numbers::maybe::{array, be16, be32, le16, le32};
use crate::raw::{has, label, uuid};
use crate::table::Content;
use crate::utf16;

/// File systems that are named and no more.
const NAMED: [(&str, usize, &[u8]); 6] = [
    ("jfs", 32 << 10, b"JFS1"),
    ("reiserfs", (64 << 10) + 52, b"ReIsEr2Fs"),
    ("reiserfs", (64 << 10) + 52, b"ReIsEr3Fs"),
    ("hfsplus", 1024, b"H+\0\x04"),
    ("hfsplus", 1024, b"HX\0\x05"),
    ("apfs", 32, b"NXSB"),
];

pub(super) fn named(front: &[u8]) -> Option<Content> {
    let found = NAMED.iter().find(|(_, at, magic)| has(front, *at, magic));
    found.map(|(kind, ..)| Content::not_read(kind, None, None))
}

pub(super) fn refs(front: &[u8]) -> Option<Content> {
    has(front, 0, b"\0\0\0ReFS\0").then(|| Content::not_read("ReFS", None, None))
}

pub(super) fn xfs(front: &[u8]) -> Option<Content> {
    let (block, sector) = (be32(front, 4)?, be16(front, 102)?);
    let fine = has(front, 0, b"XFSB") && block.is_power_of_two() && sector.is_power_of_two();
    let fine = fine && (512..=65536).contains(&block) && (512..=32768).contains(&sector);
    fine.then_some(Content::new("xfs", label(front.get(108..120)?), uuid(array(front, 32)?)))
}

pub(super) fn btrfs(front: &[u8]) -> Option<Content> {
    let bytes = front.get(64 << 10..)?;
    if !has(bytes, 0x40, b"_BHRfS_M") {
        return None;
    }
    let summed = le16(bytes, 0xc4)? == 0;
    if summed && !crc32c(!0, bytes.get(32..4096)?) != le32(bytes, 0)? {
        return None;
    }
    Some(Content::not_read("btrfs", label(bytes.get(0x12b..0x22b)?), uuid(array(bytes, 0x20)?)))
}

pub(super) fn swap(front: &[u8]) -> Option<Content> {
    [4096, 8192, 16384, 32768, 65536].into_iter().find_map(|page| swap_of(front, page))
}

/// Swap space of a machine with pages of that size, at whose end the mark is.
fn swap_of(front: &[u8], page: usize) -> Option<Content> {
    const HIBERNATED: [&[u8]; 5] =
        [b"S1SUSPEND\0", b"S2SUSPEND\0", b"ULSUSPEND\0", b"\xed\xc3\x02\xe9\x98\x56\xe5\x0c", b"LINHIB0001"];
    let mark = page - 10;
    let version = le32(front, 1024)?;
    let version_1 = version == 1 || version == 1_u32.swap_bytes();
    let (name, id) = (label(front.get(0x41c..0x42c)?), uuid(array(front, 0x40c)?));
    if has(front, mark, b"SWAPSPACE2") && version_1 && le32(front, 1028)? != 0 {
        let why = "it is swap space: it has no files, and what is in it is the machine's memory";
        return Some(Content::refused("swap", name, id, why));
    }
    if has(front, mark, b"SWAP-SPACE") {
        return Some(Content::refused("swap", None, None, "it is swap space of an old kind: it has no files"));
    }
    if HIBERNATED.iter().any(|magic| has(front, mark, magic)) {
        let why = "it is swap space with a hibernated machine's memory: it has no files";
        return Some(Content::refused("swsuspend", name.filter(|_| version_1), id.filter(|_| version_1), why));
    }
    None
}

pub(super) fn squashfs(front: &[u8]) -> Option<Content> {
    let version = match front.get(..4)? {
        b"hsqs" => le16(front, 28)?,
        b"sqsh" => be16(front, 28)?,
        _ => return None,
    };
    Some(Content::not_read(if version >= 4 { "squashfs" } else { "squashfs3" }, None, None))
}

pub(super) fn f2fs(front: &[u8]) -> Option<Content> {
    let bytes = front.get(1024..).filter(|bytes| has(bytes, 0, &[0x10, 0x20, 0xf5, 0xf2]))?;
    let (id, name) = (uuid(array(bytes, 108)?), utf16::text(bytes.get(124..1148)?, u16::from_le_bytes));
    Some(Content::not_read("f2fs", text_label(&name), id))
}

pub(super) fn iso9660(front: &[u8]) -> Option<Content> {
    const FIRST: usize = 32 << 10;
    const SIZE: usize = 2048;
    let descriptor = |index: usize| {
        front.get(FIRST + SIZE * index..FIRST + SIZE * (index + 1)).filter(|bytes| has(bytes, 1, b"CD001"))
    };
    let mut primary = descriptor(0).filter(|bytes| bytes[0] < 3)?;
    let mut joliet = None;
    for bytes in (0..16).map_while(descriptor) {
        match bytes[0] {
            1 => primary = bytes,
            2 if [b"%/@", b"%/C", b"%/E"].iter().any(|sequence| has(bytes, 88, *sequence)) => {
                joliet = bytes.get(40..72).map(|name| utf16::text(name, u16::from_be_bytes));
            }
            255 => break,
            _ => {}
        }
    }
    // A name in Unicode has room for 16 characters: where it is full, the other may have more.
    let name = joliet.and_then(|name| text_label(&name)).filter(|name| name.len() < 16);
    let name = name.or_else(|| primary.get(40..72).and_then(label));
    let id = primary.get(830..847).and_then(date).or_else(|| primary.get(813..830).and_then(date));
    Some(Content::not_read("iso9660", name, id))
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
