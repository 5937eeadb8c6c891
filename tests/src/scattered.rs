//! A bitmap with up to millions of dirty extents, in no time: written into a qcow2 image where QEMU keeps it.
//!
//! A million small writes of a guest take minutes. Here qemu-io makes one in each part of the bitmap, so that the image
//! has a cluster for it; then every other bit of those clusters is set. QEMU loads the bitmap as it loads any.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::process::ok;
use crate::tools::tool;

/// The granularity of the bitmap, and the length of each of its extents. The gaps are as long.
pub const GRANULARITY: u64 = 512;

/// A cluster of the image holds this many bits of the bitmap.
const BITS: u64 = 65536 * 8;
/// The header extension that tells where the bitmaps are.
const BITMAPS_EXTENSION: u32 = 0x2385_2875;
/// Of an entry of a bitmap's table: where its cluster is.
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;

/// Makes a qcow2 image with a bitmap `name` of so many extents, which is a multiple of 4.
#[track_caller]
pub fn image(path: &Path, name: &str, extents: u64) {
    assert!(extents > 0 && extents.is_multiple_of(4), "a byte of the bitmap holds four extents and four gaps");
    let parts = (extents * 2).div_ceil(BITS);
    let part = BITS * GRANULARITY;
    let size = (parts * part).to_string();
    ok(tool("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(path).arg(size));
    let granularity = GRANULARITY.to_string();
    ok(tool("qemu-img").args(["bitmap", "--add", "-g", &granularity]).arg(path).arg(name));
    let mut qemu_io = tool("qemu-io");
    qemu_io.args(["-f", "qcow2"]);
    for index in 0..parts {
        qemu_io.args(["-c", &format!("write -q {} {GRANULARITY}", index * part)]);
    }
    ok(qemu_io.arg(path));

    let image = File::options().read(true).write(true).open(path).expect("the image");
    let directory = directory(&image);
    let table = u64_at(&image, directory);
    assert_eq!(u64::from(u32_at(&image, directory + 8)), parts, "the bitmap's table has an entry for each part");
    for index in 0..parts {
        let cluster = u64_at(&image, table + index * 8) & OFFSET_MASK;
        assert_ne!(cluster, 0, "part {index} of the bitmap is in the image");
        let left = extents / 4 - index * BITS / 8;
        let mut bits = vec![0x55; usize::try_from(left.min(BITS / 8)).expect("a cluster")];
        bits.resize(65536, 0);
        image.write_all_at(&bits, cluster).expect("setting bits");
    }
}

/// Where the image's only bitmap is described.
#[track_caller]
fn directory(image: &File) -> u64 {
    let mut at = u64::from(u32_at(image, 100));
    loop {
        let (kind, length) = (u32_at(image, at), u64::from(u32_at(image, at + 4)));
        match kind {
            BITMAPS_EXTENSION => return u64_at(image, at + 8 + 16),
            0 => panic!("the image has no bitmaps"),
            _ => at += 8 + length.next_multiple_of(8),
        }
    }
}

fn u32_at(image: &File, offset: u64) -> u32 {
    let mut bytes = [0; 4];
    image.read_exact_at(&mut bytes, offset).expect("reading the image");
    u32::from_be_bytes(bytes)
}

fn u64_at(image: &File, offset: u64) -> u64 {
    let mut bytes = [0; 8];
    image.read_exact_at(&mut bytes, offset).expect("reading the image");
    u64::from_be_bytes(bytes)
}
