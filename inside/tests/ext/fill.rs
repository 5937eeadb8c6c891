//! Files of every kind, written through the kernel.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, chown, lchown, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

use images::run;
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Mode, Timespec, Timestamps, XattrFlags, fallocate, lsetxattr, makedev,
    mknodat, utimensat,
};

/// What a file system can take.
#[derive(Clone, Copy)]
pub(crate) struct Takes {
    /// Longest sparse file, in bytes.
    pub(crate) longest: u64,
    /// Names in the largest directory.
    pub(crate) names: usize,
    /// Longest value of an extended attribute.
    pub(crate) value: usize,
    /// fallocate(2).
    pub(crate) allocates: bool,
    /// Features that the kernel of the tests does not write, and that come when it has written.
    pub(crate) later: Option<&'static str>,
}

/// What ext4 takes.
pub(crate) const EXT4: Takes = Takes { longest: 8 << 40, names: 2000, value: 3000, allocates: true, later: None };

pub(crate) fn fill(root: &Path, takes: Takes) {
    names(root);
    files(root, takes);
    links(root);
    special(root);
    attributes(root, takes);
    times(root);
    let many = root.join("many");
    fs::create_dir(&many).unwrap();
    for number in 0..takes.names {
        File::create(many.join(format!("name {number} of many, some longer than others {}", "-".repeat(number % 50))))
            .unwrap();
    }
    for number in (0..takes.names).step_by(7) {
        fs::remove_file(
            many.join(format!("name {number} of many, some longer than others {}", "-".repeat(number % 50))),
        )
        .unwrap();
    }
}

fn names(root: &Path) {
    let mut deep = root.to_owned();
    for level in 0..40 {
        deep.push(format!("level {level}"));
        fs::create_dir(&deep).unwrap();
        fs::write(deep.join("file"), format!("{level}\n")).unwrap();
    }
    let odd = root.join("odd");
    fs::create_dir(&odd).unwrap();
    let names: [&[u8]; 8] = [b"\xff\xfe\x80", b"a\nb", b" ", b"\\", b"...", &[b'x'; 255], &[0xc3; 255], b"\x01\x7f"];
    for name in names {
        fs::write(odd.join(OsStr::from_bytes(name)), name).unwrap();
    }
    fs::create_dir(root.join("empty")).unwrap();
}

fn files(root: &Path, takes: Takes) {
    for size in [0, 1, 59, 60, 61, 100, 150, 1023, 1024, 4095, 4096, 4097, 100_000, 3_000_000] {
        fs::write(root.join(format!("file of {size}")), pattern(size)).unwrap();
    }
    let sparse = File::create(root.join("sparse")).unwrap();
    for at in [70_000_u64, 1_000_000, 5_000_123, 400_000_000] {
        sparse.write_all_at(&pattern(9000), at.min(takes.longest / 2)).unwrap();
    }
    sparse.set_len(600_000_000).unwrap();
    let huge = File::create(root.join("huge")).unwrap();
    // The end first: a file that begins small may be in its inode, and cannot go that far then.
    for at in [takes.longest - 10, takes.longest / 3, 0] {
        huge.write_all_at(b"0123456789", at).unwrap();
    }
    let comb = File::create(root.join("comb")).unwrap();
    for tooth in 0..900 {
        comb.write_all_at(&[1, 2, 3], tooth * 8192 + 5000).unwrap();
    }
    File::create(root.join("all hole")).unwrap().set_len(123_456).unwrap();
    if takes.allocates {
        let file = File::create(root.join("allocated")).unwrap();
        fallocate(&file, FallocateFlags::empty(), 0, 2_000_000).unwrap();
        file.write_all_at(&pattern(50_000), 300_000).unwrap();
        file.sync_all().unwrap();
        let file = File::create(root.join("allocated past its end")).unwrap();
        file.write_all_at(b"short", 0).unwrap();
        fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 1_000_000).unwrap();
        let punched = File::create(root.join("punched")).unwrap();
        punched.write_all_at(&pattern(500_000), 0).unwrap();
        fallocate(&punched, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 100_000, 200_000).unwrap();
    }
}

/// Bytes that are not the same anywhere.
pub(crate) fn pattern(size: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32 ^ u32::try_from(size).unwrap();
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[1]
    };
    (0..size).map(|_| next()).collect()
}

fn links(root: &Path) {
    let links = root.join("links");
    fs::create_dir(&links).unwrap();
    fs::write(links.join("one"), "linked").unwrap();
    for number in 0..30 {
        fs::hard_link(links.join("one"), links.join(format!("name {number}"))).unwrap();
    }
    for length in [1, 58, 59, 60, 61, 100, 150, 255, 900, 1000] {
        symlink("t".repeat(length), links.join(format!("to {length}"))).unwrap();
    }
    symlink(OsStr::from_bytes(b"../odd/\xff\xfe\x80"), links.join("to bytes")).unwrap();
    for number in 0..60 {
        fs::create_dir(links.join(format!("directory {number}"))).unwrap();
    }
}

fn special(root: &Path) {
    let special = root.join("special");
    fs::create_dir(&special).unwrap();
    let nodes = [
        ("null", FileType::CharacterDevice, makedev(1, 3)),
        ("disk", FileType::BlockDevice, makedev(8, 255)),
        ("large", FileType::CharacterDevice, makedev(4095, 1_048_575)),
        ("between", FileType::BlockDevice, makedev(300, 256)),
        ("pipe", FileType::Fifo, 0),
    ];
    for (name, kind, device) in nodes {
        mknodat(CWD, special.join(name), kind, Mode::from_raw_mode(0o640), device).unwrap();
    }
    drop(UnixListener::bind(special.join("socket")));
    for (name, mode) in [("setuid", 0o4755), ("setgid", 0o2711), ("sticky", 0o1777), ("nothing", 0)] {
        let path = special.join(name);
        fs::write(&path, name).unwrap();
        chown(&path, Some(1000), Some(70_000)).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    }
    symlink("nowhere", special.join("owned")).unwrap();
    lchown(special.join("owned"), Some(4_000_000_000), Some(65_536)).unwrap();
}

fn attributes(root: &Path, takes: Takes) {
    let directory = root.join("attributes");
    fs::create_dir(&directory).unwrap();
    for (name, values) in [("few", 1_usize), ("some", 4), ("many", (takes.value / 150).min(20))] {
        let path = directory.join(name);
        fs::write(&path, name).unwrap();
        for number in 0..values {
            let value = pattern(number * 17 % 120);
            lsetxattr(&path, format!("user.{}", "n".repeat(number + 1)), &value, XattrFlags::empty()).unwrap();
        }
        lsetxattr(&path, "trusted.overlay.opaque", b"y", XattrFlags::empty()).unwrap();
        lsetxattr(&path, "security.mine", b"label\0", XattrFlags::empty()).unwrap();
        run("setfacl", &["-m", "u:1000:rw,g:70000:r,u:4000000000:x", path.to_str().unwrap()]);
    }
    fs::write(directory.join("large"), pattern(5000)).unwrap();
    lsetxattr(directory.join("large"), "user.large", &pattern(takes.value), XattrFlags::empty()).unwrap();
    run("setfacl", &["-d", "-m", "u:12:rwx", directory.to_str().unwrap()]);
    fs::write(directory.join("inherits"), "").unwrap();
    lsetxattr(&directory, "user.empty", b"", XattrFlags::empty()).unwrap();
    let link = directory.join("link");
    symlink("a target", &link).unwrap();
    lsetxattr(&link, "trusted.of.link", b"v", XattrFlags::empty()).unwrap();
}

fn times(root: &Path) {
    let times = root.join("times");
    fs::create_dir(&times).unwrap();
    for seconds in
        [-2_147_483_648_i64, -1, 0, 1, 2_147_483_647, 2_147_483_648, 4_294_967_296, 9_999_999_999, 15_032_385_535]
    {
        let path = times.join(seconds.to_string());
        File::create(&path).unwrap().write_all(b"t").unwrap();
        let at = |seconds, nanoseconds| Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
        let both = Timestamps { last_access: at(seconds, 1), last_modification: at(seconds, 999_999_999) };
        utimensat(CWD, &path, &both, AtFlags::empty()).unwrap();
    }
}
