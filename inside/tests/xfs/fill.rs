//! What there can be in a file system.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FallocateFlags, FileType, Mode, Timespec, Timestamps, XattrFlags};

use images::run;

fn directory(parent: &Path, name: &str) -> std::path::PathBuf {
    let path = parent.join(name);
    fs::create_dir_all(&path).unwrap();
    path
}

pub(crate) fn xattr(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()).unwrap_or_else(|error| panic!("{name}: {error}"));
}

/// Directories of `sizes` names, some of them removed again.
pub(crate) fn directories(root: &Path, sizes: &[usize]) {
    for size in sizes {
        let many = directory(root, &format!("many-{size}"));
        File::create(many.join("first")).unwrap();
        for number in 0..*size {
            let name = format!("{number}-{}", "long name ".repeat(number % 12));
            fs::hard_link(many.join("first"), many.join(name)).unwrap();
        }
        let holes = directory(root, &format!("holes-{size}"));
        for number in 0..size / 4 {
            File::create(holes.join(format!("f{number}"))).unwrap();
        }
        for number in (0..size / 4).filter(|number| number % 3 != 0) {
            fs::remove_file(holes.join(format!("f{number}"))).unwrap();
        }
    }
    let mut deep = directory(root, "deep");
    for level in 0..40 {
        deep = directory(&deep, &format!("level {level}"));
        fs::write(deep.join("here"), deep.as_os_str().as_bytes()).unwrap();
    }
}

pub(crate) fn names(root: &Path) {
    let odd = directory(root, "odd");
    let longest = [b'x'; 255];
    let names: [&[u8]; 8] = [b"a\nb", b"\xff\xfe", b" ", b"...", b"\\", &longest, "ä".as_bytes(), b"-rf"];
    for name in names {
        fs::write(odd.join(OsStr::from_bytes(name)), name).unwrap();
    }
    fs::hard_link(odd.join("..."), root.join("another name")).unwrap();
}

/// Links, devices, owners, modes, times.
pub(crate) fn kinds(root: &Path) {
    let kinds = directory(root, "kinds");
    for (name, length) in [("short", 3), ("inode", 300), ("blocks", 700), ("longest", 1023)] {
        symlink("t".repeat(length), kinds.join(name)).unwrap();
    }
    let device = |name: &str, kind, major, minor| {
        let number = rustix::fs::makedev(major, minor);
        rustix::fs::mknodat(CWD, kinds.join(name), kind, Mode::from_bits_truncate(0o640), number).unwrap();
    };
    device("null", FileType::CharacterDevice, 1, 3);
    device("large", FileType::BlockDevice, 259, 200_000);
    device("fifo", FileType::Fifo, 0, 0);
    UnixListener::bind(kinds.join("socket")).unwrap();
    for (name, seconds, nanoseconds) in [
        ("1938", -1_000_000_000, 999_999_999),
        ("2106", 4_294_967_300, 7),
        ("2486", 16_299_260_424, 1),
        ("1901", i64::from(i32::MIN), 0),
    ] {
        let path = kinds.join(name);
        File::create(&path).unwrap();
        let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
        let times = Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(CWD, &path, &times, AtFlags::empty()).unwrap();
    }
    let owned = kinds.join("owned");
    fs::write(&owned, "x").unwrap();
    std::os::unix::fs::chown(&owned, Some(4_000_000_000), Some(65534)).unwrap();
    fs::set_permissions(&owned, fs::Permissions::from_mode(0o6755)).unwrap();
    fs::set_permissions(&kinds, fs::Permissions::from_mode(0o1777)).unwrap();
}

/// Data with holes, unwritten, shared, in many pieces.
pub(crate) fn data(root: &Path, block: u64, pieces: u64) {
    let data = directory(root, "data");
    let file = |name: &str| File::create(data.join(name)).unwrap();
    for length in [1, 511, 4096, 4097, 100_000, 1 << 20] {
        fs::write(data.join(format!("length-{length}")), noise(length)).unwrap();
    }
    let sparse = file("sparse");
    sparse.write_all_at(&noise(10_000), 1 << 20).unwrap();
    sparse.write_all_at(b"end", 5 << 40).unwrap();
    sparse.set_len((5 << 40) + 12345).unwrap();
    file("hole").set_len(123_456_789).unwrap();

    let unwritten = file("unwritten");
    rustix::fs::fallocate(&unwritten, FallocateFlags::empty(), 0, 1 << 20).unwrap();
    unwritten.write_all_at(&noise(9000), 300_000).unwrap();
    let beyond = file("beyond");
    (&beyond).write_all(b"short").unwrap();
    rustix::fs::fallocate(&beyond, FallocateFlags::KEEP_SIZE, 0, 1 << 20).unwrap();

    let fragmented = file("fragmented");
    for piece in 0..pieces {
        fragmented.write_all_at(&noise(usize::try_from(block).unwrap()), piece * 2 * block).unwrap();
    }
    rustix::fs::fallocate(&fragmented, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 40 * block, 20 * block)
        .unwrap();
}

/// A file that shares extents with another, and some that it does not.
pub(crate) fn shared(root: &Path) {
    let data = directory(root, "data");
    let original = File::open(data.join("length-1048576")).unwrap();
    let clone = File::create(data.join("clone")).unwrap();
    rustix::fs::ioctl_ficlone(&clone, &original).unwrap();
    clone.write_all_at(&noise(5000), 200_000).unwrap();
}

pub(crate) fn xattrs(root: &Path) {
    let xattrs = directory(root, "xattrs");
    let file = |name: &str| {
        let path = xattrs.join(name);
        File::create(&path).unwrap();
        path
    };
    let few = file("few");
    xattr(&few, "user.a", b"1");
    xattr(&few, "user.empty", b"");
    xattr(&few, "trusted.b", &[0, 255, 10]);
    xattr(&few, "security.c", b"label");
    let large = file("large");
    xattr(&large, "user.all", &noise(65536));
    xattr(&large, "user.some", &noise(3000));
    let many = file("many");
    for number in 0..400 {
        let name = format!("user.{number}{}", "n".repeat(number % 100));
        xattr(&many, &name, &noise(number * 7 % 900));
    }
    for number in (0..400).step_by(3) {
        let name = format!("user.{number}{}", "n".repeat(number % 100));
        rustix::fs::lremovexattr(&many, &name).unwrap();
    }
    let list = file("list");
    run("setfacl", &["-m", "u:12345:rw,g:70000:r,u:0:x", list.to_str().unwrap()]);
    run("setfacl", &["-m", "d:u:5:rwx,u:6:r", xattrs.to_str().unwrap()]);
    file("inherits");
    symlink("nowhere", xattrs.join("link")).unwrap();
    xattr(&xattrs.join("link"), "trusted.of-a-link", b"yes");
}

/// Bytes that are hardly twice the same.
pub(crate) fn noise(length: usize) -> Vec<u8> {
    let mut state = length as u64 + 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..length).map(|_| next()).collect()
}
