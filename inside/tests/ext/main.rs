//! ext2, ext3 and ext4 as they are read here against the kernel's mount of the same image, byte for byte.

mod compare;
mod dirty;
mod fill;
mod hashes;
mod hostile;
mod image;
mod peer;

use std::time::{Duration, SystemTime};

use fill::{EXT4, Takes, fill};
use image::Image;
use images::run;
use inside::FileSystem;

const GIB: u64 = 1 << 30;

/// Fills what `mkfs` makes through the kernel, and compares.
fn same(mkfs: &str, arguments: &[&str], takes: Takes) {
    let directory = tempfile::tempdir().unwrap();
    // Small ones get blocks of 1 KiB if nobody says otherwise.
    let arguments = [&["-b", "4096"], arguments].concat();
    let image = Image::make(directory.path(), mkfs, &arguments, 256);
    let mount = image.mount("loop");
    fill(&mount.0, takes);
    drop(mount);
    if let Some(features) = takes.later {
        run("tune2fs", &["-O", features, image.1.to_str().unwrap()]);
    }
    let ours = image.open().unwrap();
    let mount = image.copy("theirs").mount("loop,ro,noatime");
    let counts = compare::compare(&ours, &image, &mount.0, SystemTime::now() + Duration::from_secs(9));
    assert!(counts.files > takes.names * 6 / 7 && counts.xattrs > 20 && counts.bytes > 4_000_000, "{counts:?}");
    let theirs = rustix::fs::statvfs(&mount.0).unwrap();
    let summary = ours.summary();
    assert_eq!(summary.unclean, None);
    assert_eq!(u64::from(summary.block_size), theirs.f_bsize);
    assert_eq!(summary.free_blocks, theirs.f_bfree);
    assert_eq!(summary.files, Some((theirs.f_files, theirs.f_ffree)));
    assert_eq!(summary.kind, mkfs.trim_start_matches("mkfs."));
}

#[test]
fn ext4() {
    same("mkfs.ext4", &[], EXT4);
}

#[test]
fn ext4_of_1_kib_blocks_with_twenty_thousand_names_in_a_directory() {
    same("mkfs.ext4", &["-b", "1024", "-N", "40000"], Takes { names: 20_000, longest: 2 << 40, value: 900, ..EXT4 });
}

#[test]
fn ext4_without_64_bits_and_checksums() {
    same(
        "mkfs.ext4",
        &["-O", "^64bit,^metadata_csum,uninit_bg", "-E", "hash_seed=11111111-2222-3333-4444-555555555555"],
        EXT4,
    );
}

#[test]
fn ext4_with_meta_block_groups() {
    same(
        "mkfs.ext4",
        &["-b", "1024", "-O", "meta_bg,^resize_inode,metadata_csum_seed", "-g", "1024"],
        Takes { longest: 2 << 40, value: 900, ..EXT4 },
    );
}

#[test]
fn ext4_with_data_in_inodes() {
    same("mkfs.ext4", &["-O", "inline_data", "-I", "512"], EXT4);
}

#[test]
fn ext4_of_small_inodes_with_data_in_them() {
    same("mkfs.ext4", &["-O", "inline_data,^has_journal", "-I", "256"], EXT4);
}

#[test]
fn ext4_of_clusters() {
    same("mkfs.ext4", &["-O", "bigalloc", "-C", "16384"], EXT4);
}

#[test]
fn ext4_with_attributes_in_inodes_of_their_own() {
    same("mkfs.ext4", &["-O", "ea_inode,orphan_file"], Takes { later: Some("quota,project"), value: 60_000, ..EXT4 });
}

#[test]
fn ext4_for_large_directories_and_without_a_journal() {
    same("mkfs.ext4", &["-O", "large_dir,^has_journal,sparse_super2,mmp"], EXT4);
}

#[test]
fn ext2() {
    same("mkfs.ext2", &[], Takes { longest: 1024 * GIB, allocates: false, ..EXT4 });
}

#[test]
fn ext2_of_1_kib_blocks_and_old_inodes() {
    same(
        "mkfs.ext2",
        &["-b", "1024", "-I", "128", "-O", "^dir_index,^filetype"],
        Takes { longest: 15 * GIB, value: 500, allocates: false, ..EXT4 },
    );
}

#[test]
fn ext3() {
    same("mkfs.ext3", &["-b", "2048"], Takes { longest: 200 * GIB, value: 1500, allocates: false, ..EXT4 });
}
