//! LVM2: logical volumes over several disks of a machine.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::group::{Group, number, text};
use super::image::{FILL, Mounted, fill};
use super::{differences, errno};
use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::leftovers::Leftovers;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::Mount;
use pullfs_tests::process::ok;
use pullfs_tests::tools::tool;
use rustix::io::Errno;
use serde_json::Value;
use tempfile::TempDir;

/// How large each disk is, in bytes.
const DISK: u64 = 96 * MIB;

fn directory() -> TempDir {
    tempfile::Builder::new().prefix("pullfs-inside-").tempdir().expect("a temporary directory")
}

/// An image of a disk, all of it a hole.
fn image(dir: &TempDir, id: &str) -> PathBuf {
    let path = dir.path().join(id);
    File::create(&path).and_then(|file| file.set_len(DISK)).expect("an image");
    path
}

/// An ext4 of that size in a file of its own, filled by a script.
fn file_system(dir: &TempDir, name: &str, size: u64, script: &str) -> PathBuf {
    let path = dir.path().join(format!("{name}.plain"));
    File::create(&path).and_then(|file| file.set_len(size)).expect("a file");
    ok(tool("mkfs.ext4").args(["-q", "-L", name]).arg(&path));
    fill(&path, "ext4", (0, size), script, &["300"]);
    path
}

fn start(flavor: Flavor, images: &[(&str, &Path)]) -> Machine {
    let disk = |(id, path): &(&str, &Path)| Disk::raw(id, path.metadata().expect("its size").len()).from_image(path);
    images.iter().fold(Machine::build(flavor), |machine, image| machine.disk(disk(image))).start()
}

#[track_caller]
fn table(mount: &Mount) -> Value {
    let text = fs::read_to_string(mount.path("lvm/table.json")).expect("table.json");
    serde_json::from_str(&text).expect("JSON")
}

/// What the table tells of a logical volume.
#[track_caller]
fn of<'a>(table: &'a Value, name: &str) -> &'a Value {
    let groups = table["groups"].as_array().expect("groups");
    let mut volumes = groups.iter().flat_map(|group| group["volumes"].as_array().expect("volumes"));
    volumes.find(|volume| volume["name"] == name).unwrap_or_else(|| panic!("{name}: {table}"))
}

#[track_caller]
fn is_refused(mount: &Mount, table: &Value, path: &str, why: &str) {
    let name = path.rsplit('/').next().expect("a name");
    let problem = of(table, name)["problem"].as_str().unwrap_or_default();
    assert!(problem.contains(why), "{path}: {table}");
    for path in [path.to_owned(), format!("{path}.raw")] {
        assert_eq!(errno(mount.path("lvm").join(&path).metadata()), Some(Errno::NOENT), "{path}");
    }
}

on!(logical_volumes_over_two_disks_are_where_lvm_has_them: new = New, old = Old);
fn logical_volumes_over_two_disks_are_where_lvm_has_them(flavor: Flavor) {
    let dir = directory();
    let (vda, vdb) = (image(&dir, "vda"), image(&dir, "vdb"));
    ok(tool("sgdisk").args(["-n", "1:2048:+64M", "-t", "1:8e00"]).arg(&vdb));
    let group = Group::new("data-0.x", &[(&vda, 0, DISK), (&vdb, MIB, 64 * MIB)]);
    group.volume("striped", &["-i", "2", "-I", "64k", "-L", "48M"]);
    group.volume("linear", &["-L", "16M", group.physical[1].device()]);
    group.run(&["lvextend", "-q", "-L", "+16M", "data-0.x/linear", group.physical[0].device()]);
    let striped = file_system(&dir, "striped", 48 * MIB, FILL);
    let linear = file_system(&dir, "linear", 32 * MIB, "cd \"$1\"; head -c 25000000 /dev/urandom > large");
    group.write("striped", &striped);
    group.write("linear", &linear);

    let machine = start(flavor, &[("vda", &vda), ("vdb", &vdb)]);
    let nothing = Leftovers::of(&machine);
    let mount = Mount::of(&machine);
    ok(tool("find").arg(mount.mnt()).arg("-ls"));
    assert_eq!((mount.state(), Leftovers::of(&machine)), ("none".to_owned(), nothing), "a look started something");
    let volumes = mount.path("lvm/data-0.x");
    // Whoever names it, has it; and what the guest writes then is of no instant that is shown.
    let first = File::open(volumes.join("striped.raw")).expect("a volume");
    for place in [2 * MIB, 20 * MIB] {
        machine.write("vda", place, 8 * MIB, 0xaa);
        machine.write("vdb", MIB + place, 8 * MIB, 0xaa);
    }
    for (name, plain) in [("striped", &striped), ("linear", &linear)] {
        let raw = volumes.join(format!("{name}.raw"));
        ok(tool("cmp").args([&raw, plain]));
        let copy = mount.beside(name);
        ok(tool("cp").arg(&raw).arg(&copy));
        ok(tool("cmp").args([&copy, plain]));
        let kernel = Mounted::part(plain, "ext4", "loop,ro", (0, plain.metadata().expect("its size").len()));
        let files = volumes.join(name).join("files");
        assert_eq!(differences(&files, &kernel.0), "", "{name}, in our tree, against the kernel's");
        assert_eq!(differences(&kernel.0, &files), "", "{name}, the other way round");
        assert!(!volumes.join(name).join("UNCLEAN.txt").exists());
    }
    let copied = mount.beside("striped").metadata().expect("a copy").blocks() * 512;
    assert!(copied < 40 * MIB, "holes are true: {copied} bytes were copied");
    let mut piece = vec![0; 3 << 20];
    let mut expected = piece.clone();
    for at in [0, 65_500, 10_000_001] {
        first.read_exact_at(&mut piece, at).expect("a piece");
        File::open(&striped).and_then(|file| file.read_exact_at(&mut expected, at)).expect("the same");
        assert!(piece == expected, "at {at}");
    }

    let table = table(&mount);
    let told = &table["groups"][0];
    assert_eq!((&told["name"], &table["problems"]), (&"data-0.x".into(), &Value::Array(Vec::new())), "{table}");
    assert_eq!(told["id"], group.report("vgs", "vg_uuid")[0]["vg_uuid"]);
    for row in group.report("lvs", "lv_name,lv_uuid,lv_size,segtype") {
        let ours = of(&table, &text(&row, "lv_name"));
        assert_eq!((&ours["id"], ours["size"].as_u64()), (&row["lv_uuid"], Some(number(&row, "lv_size"))), "{table}");
        assert_eq!((&ours["type"], &ours["content"]["label"]), (&row["segtype"], &row["lv_name"]), "{table}");
        assert_eq!((&ours["content"]["kind"], &ours["problem"]), (&"ext4".into(), &Value::Null), "{table}");
    }
    for (row, place) in group.report("pvs", "pv_uuid").iter().zip([("vda", 0), ("vdb", 1)]) {
        let physical = told["physical_volumes"].as_array().expect("physical volumes");
        let ours = physical.iter().find(|one| one["id"] == row["pv_uuid"]).expect("a physical volume");
        assert_eq!((ours["disk"].as_str(), ours["partition"].as_u64()), (Some(place.0), Some(place.1)), "{table}");
    }
    drop(first);
    assert!(mount.unmount().success());
}

on!(what_is_not_all_there_is_refused_and_the_rest_is_read: new = New);
fn what_is_not_all_there_is_refused_and_the_rest_is_read(flavor: Flavor) {
    let dir = directory();
    let (vda, vdb) = (image(&dir, "vda"), image(&dir, "vdb"));
    let group = Group::new("vg", &[(&vda, 0, DISK), (&vdb, 0, DISK)]);
    let [one, other] = [0, 1].map(|at| group.physical[at].device().to_owned());
    group.volume("alone", &["-L", "16M", &one]);
    group.volume("both", &["-i", "2", "-L", "16M"]);
    group.volume("early", &["-L", "16M", &other]);
    group.volume("late", &["-L", "32M", &other]);
    let alone = file_system(&dir, "alone", 16 * MIB, "echo all of it is here > \"$1\"/word");
    group.write("alone", &alone);
    group.write("early", &alone);
    // The second disk is shorter than it was: what lies past its end is gone.
    drop(group);
    File::options().write(true).open(&vdb).and_then(|file| file.set_len(48 * MIB)).expect("a shorter image");
    let machine = start(flavor, &[("vda", &vda), ("vdb", &vdb)]);
    let word = |mount: &Mount, name: &str| fs::read_to_string(mount.path(&format!("lvm/vg/{name}/files/word")));
    let mount = Mount::of(&machine);
    let cut = table(&mount);
    is_refused(&mount, &cut, "vg/late", "past the end");
    for name in ["alone", "early"] {
        assert_eq!(word(&mount, name).expect("a file"), "all of it is here\n");
    }
    assert_eq!(mount.path("lvm/vg/both.raw").metadata().expect("a volume").len(), 16 * MIB);
    assert!(!mount.path("lvm/vg/both").exists(), "nothing is on it");
    assert!(mount.unmount().success());

    let mount = Mount::with(&machine, "disks=vda");
    let missing = table(&mount);
    for name in ["vg/both", "vg/early", "vg/late"] {
        is_refused(&mount, &missing, name, "is missing");
    }
    assert_eq!(word(&mount, "alone").expect("a file"), "all of it is here\n");
    assert!(mount.status()["last_error"].is_null(), "{}", mount.status());
    assert!(mount.unmount().success());
}

on!(groups_of_one_name_and_disks_of_one_group_are_not_mixed_up: new = New);
fn groups_of_one_name_and_disks_of_one_group_are_not_mixed_up(flavor: Flavor) {
    let dir = directory();
    let images = ["vda", "vdb", "vdc"].map(|id| image(&dir, id));
    let [vda, vdb, vdc] = &images;
    let plain = file_system(&dir, "plain", 16 * MIB, "echo word > \"$1\"/word");
    for path in [vda, vdb] {
        let group = Group::new("vg", &[(path, 0, DISK)]);
        group.volume("root", &["-L", "16M"]);
        group.write("root", &plain);
    }
    ok(tool("cp").arg("--sparse=always").args([vdb, vdc]));
    let machine = start(flavor, &[("vda", vda), ("vdb", vdb), ("vdc", vdc)]);
    let mount = Mount::with(&machine, "disks=vda+vdb");
    let namesakes = table(&mount);
    is_refused(&mount, &namesakes, "vg/root", "two volume groups have its group's name");
    assert_eq!(errno(mount.path("lvm/vg").metadata()), Some(Errno::NOENT));
    assert!(mount.unmount().success());
    // A copy of a disk: neither is the right one.
    let mount = Mount::with(&machine, "disks=vdb+vdc");
    let copies = table(&mount);
    assert!(copies["problems"][0].as_str().unwrap_or_default().contains("more than one disk"), "{copies}");
    is_refused(&mount, &copies, "vg/root", "is missing");
    assert!(mount.unmount().success());
    let mount = Mount::with(&machine, "disks=vdc");
    assert_eq!(fs::read_to_string(mount.path("lvm/vg/root/files/word")).expect("a file"), "word\n");
    assert!(mount.unmount().success());
}
