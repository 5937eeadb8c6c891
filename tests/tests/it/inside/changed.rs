//! `changed-files.txt` names the files that a kernel changed, and no others.

use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::Mount;
use pullfs_tests::process::{ok, run};
use pullfs_tests::tools::tool;

/// Where the partition is, in bytes.
const START: u64 = MIB;
/// How large it is, in bytes: XFS has no smaller ones.
const SIZE: u64 = 300 * MIB;
const DISK: u64 = START + SIZE + 8 * MIB;
/// Of the checkpoint's bitmap, in bytes, and the block size of the file systems: no two files share a granule.
const GRANULE: u64 = 4096;

const FILL: &str = r#"
set -e
cd "$1"
mkdir -p etc home/user/deep
for n in 1 2 3 4 5 6 7 8; do head -c 300000 /dev/urandom > "home/user/file $n"; done
for n in 1 2 3; do echo "$n" > etc/small$n; done
: > etc/empty
ln "home/user/file 3" home/user/deep/another-name
cp etc/small1 home/deleted
"#;

/// Everything that a guest does to files. Where one is made shorter, the rest of its last block would be written.
const CHANGE: &str = r#"
set -e
cd "$1"
printf overwritten | dd of="home/user/file 2" bs=1 seek=150000 conv=notrunc status=none
printf through-a-link | dd of=home/user/deep/another-name bs=1 seek=10 conv=notrunc status=none
printf appended >> "home/user/file 4"
echo other > etc/small2
echo new > etc/small4
: > etc/empty2
echo odd > "$(printf 'home/user/deep/odd\n\\ \377')"
mkdir home/new && head -c 50000 /dev/zero | tr '\0' z > home/new/file
rm home/deleted
mv "home/user/file 5" "home/user/deep/renamed"
chmod 600 "home/user/file 6"
truncate -s 8192 "home/user/file 7"
"#;

/// What changed of it, sorted; a path is made of bytes.
const CHANGED: [&[u8]; 8] = [
    b"1/files/etc/small2",
    b"1/files/etc/small4",
    b"1/files/home/new/file",
    b"1/files/home/user/deep/another-name",
    b"1/files/home/user/deep/odd\\012\\134 \xff",
    b"1/files/home/user/file 2",
    b"1/files/home/user/file 3",
    b"1/files/home/user/file 4",
];

/// The partition of an image, mounted by the kernel until this is dropped.
struct Mounted(PathBuf);

impl Mounted {
    #[track_caller]
    fn of(image: &Path, kind: &str) -> Self {
        let place = image.with_extension("mnt");
        fs::create_dir_all(&place).expect("a mount point");
        let options = format!("loop,noatime,offset={START},sizelimit={SIZE}");
        ok(tool("mount").args(["-t", kind, "-o", &options]).arg(image).arg(&place));
        Self(place)
    }

    /// Runs a script in it.
    #[track_caller]
    fn script(image: &Path, kind: &str, script: &str) {
        let mounted = Self::of(image, kind);
        ok(tool("sh").args(["-c", script, "script"]).arg(&mounted.0));
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        run(tool("umount").arg(&self.0));
    }
}

/// A GPT with one file system, and a second partition that nobody can read.
fn make(image: &Path, kind: &str) {
    File::create(image).expect("an image").set_len(DISK).expect("its size");
    ok(tool("sgdisk").args(["-n", "1:2048:+300M", "-n", "2:0:+4M", "-t", "2:8300"]).arg(image));
    let part = image.with_extension("part");
    File::create(&part).expect("a partition").set_len(SIZE).expect("its size");
    match kind {
        "xfs" => ok(tool("mkfs.xfs").arg("-q").arg(&part)),
        _ => ok(tool("mkfs.ext4").args(["-q", "-b", "4096"]).arg(&part)),
    };
    let mut dd = tool("dd");
    dd.args(["bs=1M", "seek=1", "conv=notrunc,sparse", "status=none"]);
    ok(dd.arg(format!("if={}", part.display())).arg(format!("of={}", image.display())));
    Mounted::script(image, kind, FILL);
}

/// Has the running guest write what makes `old` to `new`.
fn write_difference(machine: &Machine, old: &Path, new: &Path) {
    let (old, new) = (File::open(old).expect("an image"), File::open(new).expect("an image"));
    let length = usize::try_from(MIB).expect("a size in memory");
    let granule = usize::try_from(GRANULE).expect("a size in memory");
    let (mut before, mut after) = (vec![0; length], vec![0; length]);
    for at in (0..START + SIZE).step_by(length) {
        old.read_exact_at(&mut before, at).expect("the old state");
        new.read_exact_at(&mut after, at).expect("the new state");
        if before == after {
            continue;
        }
        let mut block = 0;
        while block < length {
            let differs = |at: usize| at < length && before[at..at + granule] != after[at..at + granule];
            let end = (block..=length).step_by(granule).find(|at| !differs(*at)).unwrap_or(length);
            if end > block {
                machine.write_bytes("vda", at + block as u64, &after[block..end]);
            }
            block = end + granule;
        }
    }
}

on!(changed_files_of_ext4_are_named: old = Old);
fn changed_files_of_ext4_are_named(flavor: Flavor) {
    named(flavor, "ext4");
}

on!(changed_files_of_xfs_are_named: new = New);
fn changed_files_of_xfs_are_named(flavor: Flavor) {
    named(flavor, "xfs");
}

fn named(flavor: Flavor, kind: &str) {
    let dir = tempfile::Builder::new().prefix("pullfs-changed-").tempdir().expect("a temporary directory");
    let (image, after) = (dir.path().join("vda.raw"), dir.path().join("after.raw"));
    make(&image, kind);
    ok(tool("cp").arg("--sparse=always").args([&image, &after]));
    let before = dir.path().join("before.raw");
    ok(tool("cp").arg("--sparse=always").args([&image, &before]));
    let machine = Machine::build(flavor).disk(Disk::raw("vda", DISK).from_image(&image)).start();
    machine.add_bitmap("vda", "monday", GRANULE);

    let mount = Mount::of(&machine);
    let list = mount.path("checkpoints/monday/vda/changed-files.txt");
    let text = fs::read(&list).expect("a list");
    let lines = |text: &[u8]| -> (Vec<Vec<u8>>, Vec<String>) {
        let text = text.strip_suffix(b"\n").expect("a last line");
        let (notes, files) = text.split(|byte| *byte == b'\n').partition::<Vec<_>, _>(|line| line.starts_with(b"#"));
        let notes = notes.into_iter().map(|note| String::from_utf8(note.to_vec()).expect("text")).collect();
        (files.into_iter().map(<[u8]>::to_vec).collect(), notes)
    };
    let (files, notes) = lines(&text);
    assert!(files.is_empty(), "nothing changed yet");
    assert_eq!(notes.last().map(String::as_str), Some("# end: 0 files"));
    mount.control("release").expect("a release");

    Mounted::script(&after, kind, CHANGE);
    write_difference(&machine, &before, &after);
    machine.write("vda", START + SIZE + MIB, GRANULE, 7);
    let text = fs::read(&list).expect("a list");
    assert_eq!(list.metadata().expect("its size").len(), text.len() as u64);
    let (mut files, notes) = lines(&text);
    files.sort();
    let readable = |files: &[Vec<u8>]| files.iter().map(|file| file.escape_ascii().to_string()).collect::<Vec<_>>();
    let expected: Vec<Vec<u8>> = CHANGED.iter().map(|path| path.to_vec()).collect();
    assert_eq!(readable(&files), readable(&expected), "{kind}");
    let has = |what: &str| assert!(notes.iter().any(|note| note.starts_with(what)), "{what}: {notes:#?}");
    has("# machine: ");
    has("# disk: vda");
    has("# checkpoint: monday");
    has("# point in time: ");
    has("# not read: partition 2: nothing that is known is on it");
    assert_eq!(notes.last().map(String::as_str), Some("# end: 8 files"));

    // What is listed is where it is said, as the kernel left it.
    let kernel = Mounted::of(&after, kind);
    for path in files {
        let path = String::from_utf8_lossy(&path).into_owned();
        let Some(inside) = path.strip_prefix("1/files/").filter(|path| !path.contains('\\')) else { continue };
        let ours = fs::read(mount.path("current/vda/partitions").join(&path)).expect("a guest's file");
        assert!(ours == fs::read(kernel.0.join(inside)).expect("the kernel's"), "{path}");
    }
    let odd = std::ffi::OsStr::from_bytes(b"home/user/deep/odd\n\\ \xff");
    assert_eq!(fs::read(mount.path("current/vda/partitions/1/files").join(odd)).expect("odd"), b"odd\n");
    drop(kernel);
    assert!(mount.unmount().success());
}
