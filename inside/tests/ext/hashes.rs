//! Directories whose names are found by their hashes, in every way that there is to hash them.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::ffi::OsStringExt;
use std::time::SystemTime;

use images::run;

use crate::compare::compare;
use crate::image::{Image, debugfs};

const SEED: &str = "hash_seed=11111111-2222-3333-4444-555555555555";

/// With [`SEED`] and half MD4, each four of names that are 224 times `c` and one of these numbers in 31 digits have one hash. No
/// more than three fit in a block of 1 KiB.
const COLLISIONS: [u32; 20] = [
    7_860_296, 10_326_823, 10_699_165, 34_324_594, 5_233_077, 6_759_796, 15_748_745, 37_548_552, 8_047_743, 15_896_479,
    33_738_968, 36_993_830, 8_217_376, 23_819_990, 35_617_807, 38_319_696, 8_993_256, 28_181_745, 34_182_584,
    38_769_308,
];

#[test]
fn every_kind_of_hash_leads_to_the_name() {
    let directory = tempfile::tempdir().unwrap();
    for (method, signs) in [("half_md4", 1), ("half_md4", 2), ("tea", 1), ("tea", 2), ("legacy", 1), ("legacy", 2)] {
        let path = directory.path().join(format!("{method} {signs}"));
        fs::create_dir(&path).unwrap();
        let image = Image::make(&path, "mkfs.ext4", &["-b", "1024", "-N", "2000", "-E", SEED], 8);
        run("tune2fs", &["-E", &format!("hash_alg={method}"), image.1.to_str().unwrap()]);
        debugfs(&image, &format!("set_super_value flags {signs}\n"));
        let mount = image.mount("loop");
        let many = mount.0.join("many");
        fs::create_dir(&many).unwrap();
        for number in COLLISIONS {
            File::create(many.join(format!("{}{number:031}", "c".repeat(224)))).unwrap();
        }
        for number in 0..=255_u8 {
            // Characters past 127, which count as negative numbers or not.
            let name: Vec<u8> =
                (0..40_u8).map(|at| (number.rotate_left(u32::from(at % 3)) ^ at.wrapping_mul(37)) | 0x80).collect();
            File::create(many.join(OsString::from_vec(name))).unwrap();
        }
        drop(mount);
        let ours = image.open().unwrap();
        let mount = image.copy("theirs").mount("loop,ro,noatime");
        assert_eq!(compare(&ours, &image, &mount.0, SystemTime::now()).files, 1 + 1 + 1 + 20 + 256, "{method} {signs}");
    }
}
