//! What is inside of disks: partitions and the guest's own files, of a running machine.

mod changed;
mod copies;
mod damaged;
mod group;
mod image;
mod killed;
mod live;
mod lvm;
mod many;
mod ntfs;

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use image::{DISK, Mounted};
use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::leftovers::Leftovers;
use pullfs_tests::machine::Machine;
use pullfs_tests::mount::Mount;
use pullfs_tests::process::{ok, run, run_within};
use pullfs_tests::tools::tool;
use pullfs_tests::user::{User, admit};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use serde_json::Value;
use tempfile::TempDir;

/// A machine whose disk has partitions, and a copy of its image that nobody uses.
struct Scene {
    machine: Machine,
    copy: PathBuf,
    _dir: TempDir,
}

impl Scene {
    #[track_caller]
    fn new(flavor: Flavor) -> Self {
        let dir = tempfile::Builder::new().prefix("pullfs-inside-").tempdir().expect("a temporary directory");
        let (image, copy) = (dir.path().join("vda.raw"), dir.path().join("copy.raw"));
        image::make(&image);
        ok(tool("cp").arg("--sparse=always").args([&image, &copy]));
        let machine = Machine::build(flavor).disk(Disk::raw("vda", DISK).from_image(&image)).start();
        Self { machine, copy, _dir: dir }
    }
}

/// How many files are compared with what another driver shows: as `PULLFS_TEST_FILES` says, or as usual.
pub(crate) fn compared(usual: u32) -> u32 {
    let files = std::env::var("PULLFS_TEST_FILES");
    files.map_or(usual, |files| files.parse().expect("a number of files"))
}

/// For rsync to compare 100,000 files on a busy machine.
const COMPARE_LIMIT: Duration = Duration::from_secs(1800);

fn errno(outcome: std::io::Result<impl Sized>) -> Option<Errno> {
    outcome.err().and_then(|error| Errno::from_io_error(&error))
}

/// What rsync would have to change to make `theirs` what `ours` is: also content, links, owners, times, attributes.
#[track_caller]
pub(crate) fn differences(ours: &Path, theirs: &Path) -> String {
    let mut rsync = tool("rsync");
    rsync.args([
        "-n",
        "-aHAX",
        "--devices",
        "--specials",
        "--numeric-ids",
        "--checksum",
        "--delete",
        "--itemize-changes",
        // The kernel shows the access control lists of XFS once more, in its own form.
        "--filter=-x trusted.SGI_ACL_*",
    ]);
    run_within(rsync.arg(format!("{}/", ours.display())).arg(theirs), COMPARE_LIMIT).success()
}

/// What rsync copies of a guest's files, beside the mount.
#[track_caller]
fn restored(mount: &Mount, files: &Path) -> PathBuf {
    let restored = mount.beside("restored");
    let mut rsync = tool("rsync");
    rsync.args(["-aHAX", "--numeric-ids"]).arg(format!("{}/", files.display())).arg(&restored);
    run_within(&mut rsync, COMPARE_LIMIT).success();
    restored
}

on!(the_guests_files_are_what_its_kernel_shows: new = New, old = Old);
fn the_guests_files_are_what_its_kernel_shows(flavor: Flavor) {
    let scene = Scene::new(flavor);
    let mount = Mount::of(&scene.machine);
    let files = mount.path("current/vda/partitions/1/files");
    ok(tool("cp").arg(files.join("etc/hosts")).arg(mount.beside("hosts")));
    assert_eq!(fs::read_to_string(mount.beside("hosts")).expect("a copy"), "127.0.0.1 localhost\n");

    let kernel = Mounted::of(&scene.copy, "loop,ro");
    assert_eq!(differences(&files, &kernel.0), "", "in our tree, against the kernel's");
    assert_eq!(differences(&kernel.0, &files), "", "the other way round");
    ok(tool("diff")
        .args(["-r", "--no-dereference"])
        .args([&files, &kernel.0])
        .arg("--exclude=fifo")
        .arg("--exclude=device")
        .arg("--exclude=block"));
    for name in ["home/sparse", "home/user/large", "etc/hosts", "many", "etc/absolute", "home/device"] {
        let (ours, theirs) = (files.join(name).symlink_metadata(), kernel.0.join(name).symlink_metadata());
        let (ours, theirs) = (ours.expect("a file"), theirs.expect("a file"));
        let all =
            |of: &fs::Metadata| (of.mode(), of.nlink(), of.size(), of.blocks(), of.rdev(), of.mtime_nsec(), of.ctime());
        assert_eq!(all(&ours), all(&theirs), "{name}");
    }
    let one = files.join("home/user/large").metadata().expect("a file").ino();
    assert_eq!(files.join("home/user/deep/second-name").metadata().expect("a file").ino(), one);
    let holes = |path: &Path| {
        let file = File::open(path.join("home/sparse")).expect("a file");
        [0, 10_000_000].map(|from| (seek(&file, SeekFrom::Hole(from)), seek(&file, SeekFrom::Data(from))))
    };
    assert_eq!(holes(&files), holes(&kernel.0));
    assert_eq!(
        run(tool("getfattr").args(["-d", "-m-", "--absolute-names"]).arg(files.join("etc/hosts")))
            .stdout
            .lines()
            .count(),
        5
    );

    let restored = restored(&mount, &files);
    assert_eq!(differences(&kernel.0, &restored), "", "what was restored");
    assert!(mount.unmount().success());
}

on!(partitions_are_windows_of_the_disk: new = New, old = Old, daemon = Daemon);
fn partitions_are_windows_of_the_disk(flavor: Flavor) {
    let scene = Scene::new(flavor);
    let mount = Mount::of(&scene.machine);
    let partitions = mount.path("current/vda/partitions");
    let mut text = String::new();
    File::open(partitions.join("table.json")).and_then(|mut file| file.read_to_string(&mut text)).expect("table.json");
    let table: Value = serde_json::from_str(&text).expect("JSON");
    let sfdisk: Value = serde_json::from_str(&ok(tool("sfdisk").arg("--json").arg(&scene.copy))).expect("JSON");
    let lower = |value: &Value| value.as_str().expect("a text").to_lowercase();
    assert_eq!((table["scheme"].as_str(), lower(&table["id"])), (Some("gpt"), lower(&sfdisk["partitiontable"]["id"])));
    let theirs = sfdisk["partitiontable"]["partitions"].as_array().expect("partitions");
    for (ours, theirs) in table["partitions"].as_array().expect("partitions").iter().zip(theirs) {
        let bytes = |name: &str| theirs[name].as_u64().map(|sectors| sectors * 512);
        assert_eq!((ours["offset"].as_u64(), ours["size"].as_u64()), (bytes("start"), bytes("size")), "{ours}");
        assert_eq!((lower(&ours["type"]), lower(&ours["id"])), (lower(&theirs["type"]), lower(&theirs["uuid"])));
        let (offset, size) = (bytes("start").expect("a start"), bytes("size").expect("a size"));
        let number = &ours["number"];
        let raw = File::open(partitions.join(format!("{number}.raw"))).expect("a partition");
        let whole = File::open(&scene.copy).expect("the image");
        assert_eq!(raw.metadata().expect("its size").len(), size);
        let (mut one, mut other) = (vec![0; 1 << 20], vec![0; 1 << 20]);
        for at in (0..size).step_by(1 << 20) {
            raw.read_exact_at(&mut one, at).expect("a partition's bytes");
            whole.read_exact_at(&mut other, offset + at).expect("the disk's bytes");
            assert!(one == other, "partition {number} at {at}");
        }
    }
    assert_eq!(table["partitions"].as_array().map(Vec::len), Some(3));
    let content = &table["partitions"][0]["content"];
    assert_eq!((content["kind"].as_str(), content["label"].as_str()), (Some("ext4"), Some("guest root")));
    assert_eq!(table["partitions"][0]["name"], "the root");
    assert!(partitions.join("1").is_dir() && !partitions.join("2").exists() && !partitions.join("3").exists());
    let copy = mount.beside("2.raw");
    ok(tool("cp").arg(partitions.join("2.raw")).arg(&copy));
    assert_eq!(copy.metadata().expect("a copy").blocks(), 0, "nothing is in it");
    assert!(mount.unmount().success());
}

on!(looking_from_outside_starts_nothing: new = New);
fn looking_from_outside_starts_nothing(flavor: Flavor) {
    let scene = Scene::new(flavor);
    let nothing = Leftovers::of(&scene.machine);
    let mount = Mount::of(&scene.machine);
    ok(tool("find").arg(mount.mnt()).args(["-ls"]));
    ok(tool("ls").args(["-laR"]).arg(mount.mnt()));
    ok(tool("du").arg(mount.mnt()));
    ok(tool("getfattr").args(["-R", "-d", "-m-"]).arg(mount.mnt()));
    assert_eq!(
        (mount.state(), Leftovers::of(&scene.machine)),
        ("none".to_owned(), nothing),
        "a look started something"
    );
    let partitions = mount.path("current/vda/partitions");
    let names = || {
        let entries = fs::read_dir(&partitions).expect("a directory");
        let mut names: Vec<_> =
            entries.map(|entry| entry.expect("a name").file_name().into_string().expect("text")).collect();
        names.sort();
        names
    };
    assert_eq!(names(), ["table.json"]);
    assert_eq!(fs::metadata(partitions.join("1")).expect("a partition").mode() & 0o7777, 0o500);
    assert_eq!(mount.state(), "held", "whoever names it wants it");
    assert_eq!(names(), ["1", "1.raw", "2.raw", "3.raw", "table.json"]);
    let found = ok(tool("find").arg(&partitions).arg("-type").arg("f"));
    assert!(found.contains("/1/files/etc/hosts\n"), "{found}");

    // QEMU serves one client at a time.
    assert!(mount.unmount().success());
    let manual = Mount::with(&scene.machine, "start=manual");
    for path in ["table.json", "1.raw", "1/files/etc/hosts"] {
        let path = manual.path("current/vda/partitions").join(path);
        assert_eq!(errno(File::open(&path)), Some(Errno::NODATA), "{}", path.display());
    }
    assert!(manual.unmount().success());
}

on!(nothing_inside_shows_another_instant: new = New);
fn nothing_inside_shows_another_instant(flavor: Flavor) {
    let scene = Scene::new(flavor);
    let mount = Mount::of(&scene.machine);
    let files = mount.path("current/vda/partitions/1/files");
    let large = File::open(files.join("home/user/large")).expect("a file");
    let directory = File::open(files.join("home/user")).expect("a directory");
    let before = fs::read(files.join("home/user/large")).expect("its bytes");
    let inode = |file: &File| file.metadata().map(|of| of.ino());
    let old = inode(&large).expect("its number");
    // The guest writes over all of the file's data: the file system is where it was.
    let at = before.windows(64).next().expect("bytes").to_vec();
    let image = fs::read(&scene.copy).expect("the image");
    let place = image.windows(64).position(|window| window == at).expect("the file's first bytes");
    mount.command(&["release"]).success();
    scene.machine.write("vda", (place as u64).next_multiple_of(512), 512, 0xaa);
    let mut bytes = [0; 512];
    assert!(matches!(errno(large.read_exact_at(&mut bytes, 0)), Some(Errno::STALE | Errno::IO)));
    assert!(matches!(errno(inode(&large)), None | Some(Errno::STALE | Errno::IO)));
    let relative = |directory: &File| {
        rustix::fs::openat(directory, "large", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty())
    };
    assert!(matches!(relative(&directory).err(), Some(Errno::STALE | Errno::IO)), "by way of an old directory");
    assert_eq!(mount.state(), "none");
    let new = File::open(files.join("home/user/large")).expect("the file of the next point in time");
    new.read_exact_at(&mut bytes, 0).expect("its bytes");
    assert_eq!(inode(&new).expect("its number"), old);
    assert_ne!(bytes[..], before[..512], "it is the next one's");
    for _ in 0..2 {
        assert!(matches!(errno(large.read_exact_at(&mut bytes, 0)), Some(Errno::STALE | Errno::IO)));
        assert!(matches!(relative(&directory).err(), Some(Errno::STALE | Errno::IO)));
    }
    drop((large, directory, new));
    assert!(mount.unmount().success());
}

on!(whoever_mounted_it_may_read_all_of_it: new = New);
fn whoever_mounted_it_may_read_all_of_it(flavor: Flavor) {
    let scene = Scene::new(flavor);
    admit(&scene.machine);
    let user = User::new();
    user.mount(&scene.machine.source(), "").success();
    let files = user.path("mnt/current/vda/partitions/1/files");
    let read = |path: &str| ok(user.command("cat").arg(files.join(path)));
    assert_eq!(read("etc/hosts"), "127.0.0.1 localhost\n", "which the guest lets only its root read");
    assert_eq!(read("many/a file with a name of its own, number 1499"), "1499\n", "nor anybody else");
    ok(user.command("test").arg("-r").arg(files.join("etc/hosts")));
    for arguments in [["-w", "etc/hosts"], ["-x", "etc/hosts"]] {
        assert_eq!(
            run(user.command("test").arg(arguments[0]).arg(files.join(arguments[1]))).code,
            Some(1),
            "{arguments:?}"
        );
    }
    let listed = ok(user.command("stat").args(["-c", "%a %u:%g"]).arg(files.join("home/user/large")));
    assert_eq!(listed, "4750 1234:5678\n", "owners and modes are the guest's");
    for command in ["touch", "rm", "mkdir", "rmdir"] {
        assert_ne!(run(user.command(command).arg(files.join("etc/hosts"))).code, Some(0), "{command}");
    }
    let names =
        run(user.command("getfattr").args(["-d", "-m-", "--absolute-names"]).arg(files.join("etc/hosts"))).stdout;
    assert!(names.contains("user.note") && !names.contains("trusted."), "{names}");
    ok(user.command("cp").arg("-r").arg(files.join("home/user")).arg(user.path("copy")));
    assert_ne!(run(tool("cat").arg(files.join("etc/hosts"))).code, Some(0), "not even root");
}

on!(others_see_what_the_options_say: new = New);
fn others_see_what_the_options_say(flavor: Flavor) {
    let scene = Scene::new(flavor);
    let other = |mount: &Mount, path: &str| {
        pullfs_tests::user::open_to_all(mount.mnt().parent().expect("a directory"));
        let mut cat = pullfs_tests::user::as_nobody();
        run(cat.arg("cat").arg(mount.path("current/vda/partitions/1/files").join(path))).code == Some(0)
    };
    let private = Mount::with(&scene.machine, "allow_other");
    assert!(!other(&private, "etc/hosts"), "umask=077");
    drop(private);
    let open = Mount::with(&scene.machine, "allow_other,umask=022");
    assert!(!other(&open, "etc/hosts"), "the guest lets only its root read it");
    assert!(other(&open, "etc/listed"), "the guest's list lets this user read it");
    assert!(!other(&open, "etc/denied"), "the guest's group may not: its mode has what the list gives to anybody");
    assert!(other(&open, "many/a file with a name of its own, number 7"));
    drop(open);
    let given = Mount::with(&scene.machine, "allow_other,uid=65534");
    assert!(other(&given, "etc/hosts"), "it was given to nobody");
    let meta = fs::metadata(given.path("current/vda/partitions/1/files/etc/hosts")).expect("a file");
    assert_eq!((meta.uid(), meta.mode() & 0o7777), (65534, 0o400));
    assert!(given.unmount().success());
}
