//! An ext2, ext3 or ext4 file system, of which an input has the blocks that are not zeroes.

use inside::ext::open;

use crate::walk::walk;

/// Length of the blocks in an input, in bytes: the smallest that there are.
const BLOCK: usize = 1024;

/// The largest image, in blocks: 8 MiB.
const LARGEST: u16 = 8192;

/// The image of an input: its length in blocks, then for each block its number and its bytes. Numbers are of 16 bits, the low
/// half first.
fn image(input: &[u8]) -> Vec<u8> {
    let Some((length, mut rest)) = input.split_first_chunk() else { return Vec::new() };
    let mut image = vec![0; usize::from(u16::from_le_bytes(*length).min(LARGEST)) * BLOCK];
    while let Some((number, bytes)) = rest.split_first_chunk() {
        let (bytes, others) = bytes.split_at(bytes.len().min(BLOCK));
        let start = usize::from(u16::from_le_bytes(*number)) * BLOCK;
        if let Some(place) = image.get_mut(start..start + bytes.len()) {
            place.copy_from_slice(bytes);
        }
        rest = others;
    }
    image
}

/// Opens it, and looks at everything.
pub(crate) fn run(input: &[u8]) {
    let image = image(input);
    if let Ok(system) = open(&image) {
        walk(&system, image.len().try_into().unwrap_or(u64::MAX));
    }
}
