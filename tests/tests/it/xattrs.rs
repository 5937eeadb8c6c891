//! Extended attributes say what a file is of; tools that keep attributes carry them to the copy.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant};

use pullfs_tests::flavor::Flavor;
use pullfs_tests::leftovers::Leftovers;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::Mount;
use pullfs_tests::process::{ok, run};
use pullfs_tests::tools::tool;
use rustix::fs::{XattrFlags, fgetxattr, getxattr, listxattr, removexattr, setxattr};
use rustix::io::Errno;
use rustix::process::Signal;

fn machine(flavor: Flavor) -> Machine {
    let machine = Machine::of_two_disks(flavor);
    machine.write("vda", 2 * MIB, 65536 + 512, 0x77);
    machine.write("vdb", 2 * MIB, 65536, 0x77);
    machine
}

type Attributes = BTreeMap<String, String>;

/// What getfattr(1) tells of a file, without `user.pullfs.`.
#[track_caller]
fn told(path: &Path) -> Attributes {
    let text = ok(tool("getfattr").args(["-d", "--absolute-names"]).arg(path));
    let pairs = text.lines().filter_map(|line| line.strip_prefix("user.pullfs.")?.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), value.trim_matches('"').to_owned())).collect()
}

fn attributes(pairs: &[(&str, &str)]) -> Attributes {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

on!(attributes_say_what_a_file_is_of: new = New, old = Old, daemon = Daemon, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn attributes_say_what_a_file_is_of(flavor: Flavor) {
    let machine = machine(flavor);
    let nothing = Leftovers::of(&machine);
    let mount = Mount::of(&machine);
    let known = &mount.status()["machine"];
    let whose = known["name"].as_str().or(known["source"].as_str()).expect("a name or a source").to_owned();
    let delta = mount.path("checkpoints/monday/vda/delta.raw");
    let mut expected = attributes(&[
        ("machine", &whose),
        ("disk", "vda"),
        ("checkpoint", "monday"),
        ("virtual-size", "8388608"),
        ("dirty-bytes", "131072"),
    ]);
    assert_eq!(told(&delta), expected);
    assert_eq!(told(&mount.path("control")), Attributes::new());
    assert_eq!((mount.state(), Leftovers::of(&machine)), ("none".to_owned(), nothing), "a look started something");

    fs::create_dir(mount.path("checkpoints/tuesday")).expect("a checkpoint");
    // What the guest writes since is of the next one.
    machine.write("vda", 4 * MIB, 65536, 0x78);
    let time = mount.status()["point"]["time"].as_str().expect("a time").to_owned();
    expected.extend(attributes(&[("point-in-time", &time), ("at-checkpoint", "tuesday")]));
    assert_eq!(told(&delta), expected);
    expected.retain(|name, _| !["checkpoint", "dirty-bytes"].contains(&name.as_str()));
    assert_eq!(told(&mount.disk("vda")), expected);
    let of_all = told(&mount.path("checkpoints/monday"));
    assert_eq!((of_all.get("dirty-bytes"), of_all.get("disk")), (Some(&"196608".to_owned()), None), "{of_all:?}");

    // A descriptor of the last instant is not told of this one.
    let open = File::open(&delta).expect("a delta");
    mount.control("release").expect("a release");
    let mut room = [0; 300];
    assert_eq!(fgetxattr(&open, "user.pullfs.dirty-bytes", &mut room[..]), Err(Errno::STALE));
    drop(open);
    assert_eq!(told(&delta)["dirty-bytes"], "196608", "as of now");
    assert!(mount.unmount().success());
}

on!(copies_carry_the_attributes: new = New);
fn copies_carry_the_attributes(flavor: Flavor) {
    let machine = machine(flavor);
    let mount = Mount::of(&machine);
    mount.control("begin").expect("a point in time");
    let from = mount.path("checkpoints/monday");
    let expected = told(&from.join("vda/dirty.map"));
    assert_eq!(expected.len(), 6, "{expected:?}");
    // On a disk: a tmpfs of an older kernel has none.
    let room = tempfile::tempdir_in("/var/tmp").expect("a directory");
    let (copy, archive) = (room.path().join("copy"), room.path().join("archive.tar"));
    let path = |path: &Path| path.to_str().expect("a path").to_owned();
    let (from_dir, copy_dir) = (path(&from) + "/", path(&copy));
    let carry: [&[&str]; 4] = [
        &["cp", "-a", &from_dir, &copy_dir],
        &["cp", "-r", "--preserve=all", &from_dir, &copy_dir],
        &["cp", "-r", "--preserve=mode,xattr", &from_dir, &copy_dir],
        &["rsync", "-aX", &from_dir, &copy_dir],
    ];
    for words in carry {
        let finished = run(tool(words[0]).args(&words[1..]));
        assert!(finished.code == Some(0) && finished.stderr.is_empty(), "{finished}");
        assert_eq!(told(&copy.join("vda/dirty.map")), expected, "{words:?}");
        assert_eq!(told(&copy.join("vda/delta.raw")), expected, "{words:?}");
        fs::remove_dir_all(&copy).expect("the copy goes");
    }
    let finished =
        run(tool("tar").args(["--xattrs", "--acls", "--selinux", "-cf"]).arg(&archive).arg("-C").arg(&from).arg("vda"));
    assert_eq!(finished.code, Some(0), "{finished}");
    fs::create_dir(&copy).expect("a directory");
    ok(tool("tar").args(["--xattrs", "-xf"]).arg(&archive).arg("-C").arg(&copy));
    assert_eq!(told(&copy.join("vda/dirty.map")), expected, "tar");
    assert!(mount.unmount().success());
}

on!(a_call_gets_what_it_has_room_for_and_changes_nothing: new = New);
fn a_call_gets_what_it_has_room_for_and_changes_nothing(flavor: Flavor) {
    let machine = machine(flavor);
    // A name is whatever was written into an image.
    let hostile = format!("{}\n\u{1b}[2J\"é", "x".repeat(240));
    machine.add_bitmap("vda", &hostile, 65536);
    let mount = Mount::of(&machine);
    let map = mount.path("checkpoints").join(&hostile).join("vda/dirty.map");
    let name = "user.pullfs.checkpoint";
    let mut room = [0; 4096];
    let length = hostile.len();
    // getfattr(1) asks without any room how much it takes.
    assert_eq!(told(&map)["virtual-size"], "8388608");
    assert_eq!(getxattr(&map, name, &mut room[..length - 1]), Err(Errno::RANGE));
    assert_eq!(getxattr(&map, name, &mut room[..length]), Ok(length));
    assert_eq!(&room[..length], hostile.as_bytes());
    let all = listxattr(&map, &mut room[..]).expect("names");
    assert_eq!(listxattr(&map, &mut room[..all - 1]), Err(Errno::RANGE));
    assert_eq!(listxattr(&map, &mut room[..all]), Ok(all));
    let names: Vec<&[u8]> = room[..all].split_inclusive(|byte| *byte == 0).collect();
    assert!(names.len() == 5 && names.iter().all(|name| name.starts_with(b"user.pullfs.")), "{names:?}");

    for (name, none) in [("user.pullfs.point-in-time", Errno::NODATA), ("user.other", Errno::NODATA)] {
        assert_eq!(getxattr(&map, name, &mut room[..]), Err(none), "{name}");
    }
    for name in ["user.pullfs.checkpoint", "user.other"] {
        assert_eq!(setxattr(&map, name, b"x", XattrFlags::empty()), Err(Errno::PERM), "{name}");
        assert_eq!(removexattr(&map, name), Err(Errno::PERM), "{name}");
    }
    assert_eq!(setxattr(&map, "security.pullfs", b"x", XattrFlags::empty()), Err(Errno::OPNOTSUPP));
    assert!(mount.unmount().success());
}

on!(attributes_are_had_without_the_machine: new = New, old = Old, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn attributes_are_had_without_the_machine(flavor: Flavor) {
    let mut machine = machine(flavor);
    let mount = Mount::of(&machine);
    let open = File::open(mount.path("checkpoints/monday/vda/delta.raw")).expect("a delta");
    machine.server().signal(Signal::STOP);
    let begun = Instant::now();
    let mut room = [0; 300];
    assert_eq!(fgetxattr(&open, "user.pullfs.dirty-bytes", &mut room[..]), Ok(6));
    assert_eq!(&room[..6], b"131072");
    assert_eq!(told(&mount.path("checkpoints/monday/vda"))["dirty-bytes"], "131072");
    // A command has 30 s.
    assert!(begun.elapsed() < Duration::from_secs(10), "it took {:?}", begun.elapsed());
    machine.server().signal(Signal::CONT);
    drop(open);
    assert!(mount.unmount().success());
}
