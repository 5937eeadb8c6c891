//! ext2, ext3 and ext4, told apart by the features that each of them knows.

use crate::checksum::crc32c;
use crate::numbers::maybe::{array, le32};
use crate::raw::{has, label, uuid};
use crate::table::Content;

const SUPERBLOCK: std::ops::Range<usize> = 1024..2048;

const HAS_JOURNAL: u32 = 0x4;
const METADATA_CSUM: u32 = 0x400;
const JOURNAL_DEVICE: u32 = 0x8;
/// Read-only compatible and incompatible features: those that ext2 knows, and those that ext3 knows.
const EXT_COMPATIBLE: u32 = 0x7;
const EXT2_INCOMPATIBLE: u32 = 0x12;
const EXT3_INCOMPATIBLE: u32 = 0x16;

pub(super) fn ext(front: &[u8]) -> Option<Content> {
    let bytes = front.get(SUPERBLOCK)?;
    if !has(bytes, 0x38, &[0x53, 0xef]) {
        return None;
    }
    let (compatible, incompatible, read_only) = (le32(bytes, 0x5c)?, le32(bytes, 0x60)?, le32(bytes, 0x64)?);
    if read_only & METADATA_CSUM != 0 && crc32c(!0, bytes.get(..1020)?) != le32(bytes, 1020)? {
        return None;
    }
    let (name, id) = (label(bytes.get(0x78..0x88)?), uuid(array(bytes, 0x68)?));
    if incompatible & JOURNAL_DEVICE != 0 {
        return Some(Content::refused("jbd", name, id, "it is the journal of an ext file system that is elsewhere"));
    }
    let journal = compatible & HAS_JOURNAL != 0;
    let old = read_only & !EXT_COMPATIBLE == 0;
    let kind = if old && !journal && incompatible & !EXT2_INCOMPATIBLE == 0 {
        "ext2"
    } else if old && journal && incompatible & !EXT3_INCOMPATIBLE == 0 {
        "ext3"
    } else {
        "ext4"
    };
    Some(Content::new(kind, name, id))
}
