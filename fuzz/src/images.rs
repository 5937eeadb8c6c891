//! Ext2, ext3 and ext4, FAT and NTFS, of which an input has the units that are not zeroes.

use inside::{FileSystem, Result, ext, fat, ntfs};

use crate::walk::walk;

/// The largest image, in bytes.
const LARGEST: usize = 8 << 20;

/// Ext's unit is its smallest block, in bytes.
pub(crate) const BLOCK: usize = 1024;

/// That of the others, in bytes: records of NTFS are mostly empty.
pub(crate) const LINE: usize = 64;

/// The image of an input: its length in units, then for each unit its number and its bytes. Numbers are of 16 bits, the low half
/// first.
pub(crate) fn image(input: &[u8], unit: usize) -> Vec<u8> {
    let Some((length, mut rest)) = input.split_first_chunk() else { return Vec::new() };
    let mut image = vec![0; (usize::from(u16::from_le_bytes(*length)) * unit).min(LARGEST)];
    while let Some((number, bytes)) = rest.split_first_chunk() {
        let (bytes, others) = bytes.split_at(bytes.len().min(unit));
        let start = usize::from(u16::from_le_bytes(*number)) * unit;
        if let Some(place) = image.get_mut(start..start + bytes.len()) {
            place.copy_from_slice(bytes);
        }
        rest = others;
    }
    image
}

/// Looks at everything, if it can be opened.
fn look(image: &[u8], opened: Result<impl FileSystem>) {
    if let Ok(system) = opened {
        walk(&system, image.len().try_into().unwrap_or(u64::MAX));
    }
}

pub(crate) fn ext(input: &[u8]) {
    let image = image(input, BLOCK);
    look(&image, ext::open(&image));
}

pub(crate) fn fat(input: &[u8]) {
    let image = image(input, LINE);
    look(&image, fat::open(&image));
}

pub(crate) fn ntfs(input: &[u8]) {
    let image = image(input, LINE);
    look(&image, ntfs::open(&image));
}
