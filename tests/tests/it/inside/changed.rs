//! `changed-files.txt` names the files that a kernel changed, and no others.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::image::{Mounted, fill};
use super::killed::children;
use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::Mount;
use pullfs_tests::process::{ok, signal_pid};
use pullfs_tests::tools::tool;
use rustix::process::Signal;

/// Where the file system is on a disk with partitions, in bytes.
const START: u64 = MIB;
/// How large it is, in bytes: XFS has no smaller ones.
const SIZE: u64 = 300 * MIB;
/// What comes after it: partitions that nobody can read.
const REST: u64 = 8 * MIB;
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

/// What changed of it, sorted, as it is listed below `files/`; a path is made of bytes.
const CHANGED: [&[u8]; 8] = [
    b"etc/small2",
    b"etc/small4",
    b"home/new/file",
    b"home/user/deep/another-name",
    b"home/user/deep/odd\\012\\134 \xff",
    b"home/user/file 2",
    b"home/user/file 3",
    b"home/user/file 4",
];

/// A file system on a disk, by itself or as its first partition.
#[derive(Clone, Copy)]
struct Place {
    kind: &'static str,
    partition: u32,
    start: u64,
}

impl Place {
    fn of_partition(kind: &'static str) -> Self {
        Self { kind, partition: 1, start: START }
    }

    fn whole_disk(kind: &'static str) -> Self {
        Self { kind, partition: 0, start: 0 }
    }

    fn disk_size(self) -> u64 {
        if self.partition == 0 { SIZE } else { START + SIZE + REST }
    }

    /// The file system of an image, mounted by the kernel until that is dropped.
    #[track_caller]
    fn mounted(self, image: &Path) -> Mounted {
        Mounted::part(image, self.kind, "loop", (self.start, SIZE))
    }

    /// Runs a script in it.
    #[track_caller]
    fn script(self, image: &Path, script: &str) {
        fill(image, self.kind, (self.start, SIZE), script, &[]);
    }

    /// A disk with it, and with a second partition that nobody can read where it has any.
    fn make(self, image: &Path) {
        File::create(image).expect("an image").set_len(self.disk_size()).expect("its size");
        if self.partition > 0 {
            ok(tool("sgdisk").args(["-n", "1:2048:+300M", "-n", "2:0:+4M", "-t", "2:8300"]).arg(image));
        }
        let part = image.with_extension("part");
        File::create(&part).expect("a partition").set_len(SIZE).expect("its size");
        match self.kind {
            "xfs" => ok(tool("mkfs.xfs").arg("-q").arg(&part)),
            _ => ok(tool("mkfs.ext4").args(["-q", "-b", "4096"]).arg(&part)),
        };
        let mut dd = tool("dd");
        dd.args(["bs=1M", "conv=notrunc,sparse", "status=none", &format!("seek={}", self.start / MIB)]);
        ok(dd.arg(format!("if={}", part.display())).arg(format!("of={}", image.display())));
        self.script(image, FILL);
    }
}

/// Has the running guest write what makes `old` to `new`.
fn write_difference(machine: &Machine, old: &Path, new: &Path, size: u64) {
    let (old, new) = (File::open(old).expect("an image"), File::open(new).expect("an image"));
    let length = usize::try_from(MIB).expect("a size in memory");
    let granule = usize::try_from(GRANULE).expect("a size in memory");
    let (mut before, mut after) = (vec![0; length], vec![0; length]);
    for at in (0..size).step_by(length) {
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
    named(flavor, Place::of_partition("ext4"));
}

on!(changed_files_of_xfs_are_named: new = New);
fn changed_files_of_xfs_are_named(flavor: Flavor) {
    named(flavor, Place::of_partition("xfs"));
}

on!(changed_files_of_a_whole_disk_are_named: new = New);
fn changed_files_of_a_whole_disk_are_named(flavor: Flavor) {
    for kind in ["ext4", "xfs"] {
        named(flavor, Place::whole_disk(kind));
    }
}

/// The lines of a list: the files, and what begins with `#`.
fn lines(text: &[u8]) -> (Vec<Vec<u8>>, Vec<String>) {
    let text = text.strip_suffix(b"\n").expect("a last line");
    let (notes, files) = text.split(|byte| *byte == b'\n').partition::<Vec<_>, _>(|line| line.starts_with(b"#"));
    let notes = notes.into_iter().map(|note| String::from_utf8(note.to_vec()).expect("text")).collect();
    (files.into_iter().map(<[u8]>::to_vec).collect(), notes)
}

fn named(flavor: Flavor, place: Place) {
    let Place { kind, partition, start } = place;
    let dir = tempfile::Builder::new().prefix("pullfs-changed-").tempdir().expect("a temporary directory");
    let (image, after) = (dir.path().join("vda.raw"), dir.path().join("after.raw"));
    place.make(&image);
    ok(tool("cp").arg("--sparse=always").args([&image, &after]));
    let before = dir.path().join("before.raw");
    ok(tool("cp").arg("--sparse=always").args([&image, &before]));
    let machine = Machine::build(flavor).disk(Disk::raw("vda", place.disk_size()).from_image(&image)).start();
    machine.add_bitmap("vda", "monday", GRANULE);

    let mount = Mount::of(&machine);
    let list = mount.path("checkpoints/monday/vda/changed-files.txt");
    let text = fs::read(&list).expect("a list");
    let (files, notes) = lines(&text);
    assert!(files.is_empty(), "nothing changed yet");
    assert_eq!(notes.last().map(String::as_str), Some("# end: 0 files"));
    mount.control("release").expect("a release");

    place.script(&after, CHANGE);
    write_difference(&machine, &before, &after, start + SIZE);
    if partition > 0 {
        machine.write("vda", start + SIZE + MIB, GRANULE, 7);
    }
    let text = fs::read(&list).expect("a list");
    assert_eq!(list.metadata().expect("its size").len(), text.len() as u64);
    let (mut files, notes) = lines(&text);
    files.sort();
    let readable = |files: &[Vec<u8>]| files.iter().map(|file| file.escape_ascii().to_string()).collect::<Vec<_>>();
    let below = format!("{partition}/files/");
    let expected: Vec<Vec<u8>> = CHANGED.iter().map(|path| [below.as_bytes(), path].concat()).collect();
    assert_eq!(readable(&files), readable(&expected), "{kind}");
    let has = |what: &str| assert!(notes.iter().any(|note| note.starts_with(what)), "{what}: {notes:#?}");
    has("# machine: ");
    has("# disk: vda");
    has("# checkpoint: monday");
    has("# point in time: ");
    if partition > 0 {
        has("# not read: partition 2: nothing that is known is on it");
    }
    assert_eq!(notes.last().map(String::as_str), Some("# end: 8 files"));

    // What is listed is where it is said, as the kernel left it.
    let kernel = place.mounted(&after);
    for path in files {
        let path = String::from_utf8_lossy(&path).into_owned();
        let Some(inside) = path.strip_prefix(&below).filter(|path| !path.contains('\\')) else { continue };
        let ours = fs::read(mount.path("current/vda/partitions").join(&path)).expect("a guest's file");
        assert!(ours == fs::read(kernel.0.join(inside)).expect("the kernel's"), "{path}");
    }
    let odd = std::ffi::OsStr::from_bytes(b"home/user/deep/odd\n\\ \xff");
    assert_eq!(fs::read(mount.path("current/vda/partitions").join(below).join(odd)).expect("odd"), b"odd\n");
    drop(kernel);
    assert!(mount.unmount().success());
}

/// Enough that the reader can be killed while they are walked.
const MANY: &str = r#"
set -e
cd "$1"
for n in 1 2 3 4 5 6 7 8; do mkdir $n; seq 4000 | split -l 1 -a 4 -d - "$n/a file of the guest, number "; done
"#;
const FILES: usize = 8 * 4000;
const MANY_SIZE: u64 = 96 * MIB;

/// How long it may take to walk them, with new readers.
const LIMIT: Duration = Duration::from_secs(60);

on!(a_list_is_whole_though_its_reader_is_killed: new = New);
fn a_list_is_whole_though_its_reader_is_killed(flavor: Flavor) {
    let dir = tempfile::Builder::new().prefix("pullfs-changed-").tempdir().expect("a temporary directory");
    let image = dir.path().join("vda.raw");
    File::create(&image).expect("an image").set_len(MANY_SIZE).expect("its size");
    ok(tool("mkfs.ext4").args(["-q", "-b", "1024", "-N", "40000"]).arg(&image));
    fill(&image, "ext4", (0, MANY_SIZE), MANY, &[]);
    let bytes = fs::read(&image).expect("the image");
    let machine = Machine::build(flavor).disk(Disk::raw("vda", MANY_SIZE).from_image(&image)).start();
    machine.add_bitmap("vda", "monday", GRANULE);
    for (at, piece) in (0..).step_by(16 << 20).zip(bytes.chunks(16 << 20)) {
        machine.write_bytes("vda", at, piece);
    }
    let mount = Mount::of(&machine);
    let list = mount.path("checkpoints/monday/vda/changed-files.txt");
    let (whole, _) = lines(&fs::read(&list).expect("a list"));
    assert_eq!(whole.len(), FILES);

    // Kills each reader that has lived for some time, `most` of them, while the list is made.
    let disturbed = |most: usize, life: Duration| {
        let mut seen = BTreeMap::new();
        let mut kills = 0;
        let text = thread::scope(|scope| {
            let walk = scope.spawn(|| fs::read(&list).expect("a list"));
            while !walk.is_finished() {
                thread::sleep(Duration::from_millis(10));
                for pid in children(mount.pid()) {
                    let since = *seen.entry(pid).or_insert_with(Instant::now);
                    if kills < most && since.elapsed() >= life && !walk.is_finished() {
                        signal_pid(pid, Signal::KILL);
                        kills += 1;
                    }
                }
            }
            walk.join().expect("a walk")
        });
        (text, kills)
    };
    let began = Instant::now();
    let (text, kills) = disturbed(3, Duration::from_millis(500));
    let (files, notes) = lines(&text);
    assert!(files == whole && kills > 0, "{} of {FILES} after {kills} kills: {notes:#?}", files.len());
    assert!(!notes.iter().any(|note| note.starts_with("# not read: ")), "{notes:#?}");
    assert!(began.elapsed() < LIMIT, "{:?}", began.elapsed());

    // It is not gone on with for ever.
    let began = Instant::now();
    let (_, notes) = lines(&disturbed(usize::MAX, Duration::ZERO).0);
    assert!(notes.iter().any(|note| note.starts_with("# incomplete: ")), "{notes:#?}");
    assert!(began.elapsed() < LIMIT, "{:?}", began.elapsed());
    assert!(lines(&fs::read(&list).expect("a list")).0 == whole, "once nobody kills it");
    assert!(mount.unmount().success());
}
