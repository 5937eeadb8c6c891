//! FAT and NTFS, of which an input has the lines that are not zeroes.

use inside::{fat, ntfs};

use crate::walk::walk;

/// Length of a line, in bytes: records of NTFS are mostly empty.
const LINE: usize = 64;

/// The image of an input: its length in lines, then for each line its number and its bytes. Numbers are of 16 bits, the low half
/// first, so an image has at most 4 MiB.
fn image(input: &[u8]) -> Vec<u8> {
    let Some((length, mut rest)) = input.split_first_chunk() else { return Vec::new() };
    let mut image = vec![0; usize::from(u16::from_le_bytes(*length)) * LINE];
    while let Some((number, bytes)) = rest.split_first_chunk() {
        let (bytes, others) = bytes.split_at(bytes.len().min(LINE));
        let start = usize::from(u16::from_le_bytes(*number)) * LINE;
        if let Some(place) = image.get_mut(start..start + bytes.len()) {
            place.copy_from_slice(bytes);
        }
        rest = others;
    }
    image
}

/// Opens a FAT file system, and looks at everything.
pub(crate) fn fat(input: &[u8]) {
    let image = image(input);
    if let Ok(system) = fat::open(&image) {
        walk(&system, image.len().try_into().unwrap_or(u64::MAX));
    }
}

/// The same with NTFS.
pub(crate) fn ntfs(input: &[u8]) {
    let image = image(input);
    if let Ok(system) = ntfs::open(&image) {
        walk(&system, image.len().try_into().unwrap_or(u64::MAX));
    }
}
