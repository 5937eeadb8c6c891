//! One base: a backup tells the changes since one checkpoint, so a point in time has those of one exactly.

use std::fs::{self, File};

use pullfs_tests::flavor::Flavor;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::Mount;
use pullfs_tests::oracle::{self, Extent};
use pullfs_tests::process::ok;
use pullfs_tests::tools::tool;
use rustix::io::Errno;
use serde_json::{Value, json};

use super::{builder, errno, last_error, nothing_is_left};

const CLUSTER: u64 = 65536;

fn map(mount: &Mount, checkpoint: &str) -> (String, Vec<Extent>) {
    let map = fs::read_to_string(mount.path(&format!("checkpoints/{checkpoint}/vda/dirty.map"))).expect("a map");
    let extents = oracle::read_map(&map, |_| true);
    (map, extents)
}

fn point(mount: &Mount) -> (u64, Value) {
    let point = &mount.status()["point"];
    (point["number"].as_u64().expect("a number"), point["base"].clone())
}

/// A machine with checkpoints a, b and c, after each of which a cluster of its own was written, and copies of vda at the
/// instants.
fn machine(flavor: Flavor) -> (Machine, Mount) {
    let machine = builder(flavor).start();
    let mount = Mount::of(&machine);
    for (at, name) in (1_u8..).zip(["a", "b", "c"]) {
        fs::create_dir(mount.path("checkpoints").join(name)).expect("a checkpoint");
        full(&mount, name);
        mount.command(&["release"]).success();
        machine.write("vda", u64::from(at) * MIB / 2, CLUSTER, 0x30 + at);
    }
    (machine, mount)
}

/// Copies the disk at the checkpoint's instant.
pub(super) fn full(mount: &Mount, name: &str) {
    ok(tool("cp").arg(mount.path("current/vda/disk.qcow2")).arg(mount.beside(&format!("vda.{name}.qcow2"))));
}

on!(an_open_chooses_the_base: libvirt = Libvirt, libvirt_old = LibvirtOld);
fn an_open_chooses_the_base(flavor: Flavor) {
    let (machine, mount) = machine(flavor);
    let (before, _) = point(&mount);
    // b: what was written after b and after c.
    let (text, extents) = map(&mount, "b");
    assert_eq!(extents, [(MIB, CLUSTER), (3 * MIB / 2, CLUSTER)]);
    assert!(!text.contains("note:"), "{text}");
    assert_eq!(point(&mount), (before + 1, json!("b")));

    let open = File::open(mount.disk("vda")).expect("a disk");
    let refused = File::open(mount.path("checkpoints/a/vda/dirty.map")).expect_err("a was made before b");
    assert_eq!(errno(&refused), Errno::BUSY);
    let why = last_error(&mount);
    assert!(why.contains("since checkpoint b") && why.contains("since=a"), "{why}");
    assert_eq!(point(&mount), (before + 1, json!("b")), "what is open stays what it was");

    // c was made after b: all that changed since c changed since b.
    let (text, extents) = map(&mount, "c");
    assert_eq!(extents, [(MIB, CLUSTER), (3 * MIB / 2, CLUSTER)]);
    assert!(text.lines().any(|line| line.starts_with("# note:") && line.contains('b')), "{text}");
    stands_on(&mount, "c");
    drop(open);

    // Nothing is open: another point in time.
    let (_, extents) = map(&mount, "a");
    assert_eq!(extents, [(MIB / 2, CLUSTER), (MIB, CLUSTER), (3 * MIB / 2, CLUSTER)]);
    assert_eq!(point(&mount), (before + 2, json!("a")));
    for name in ["a", "b", "c"] {
        stands_on(&mount, name);
    }
    assert_eq!(point(&mount), (before + 2, json!("a")), "all of them at one instant");
    mount.command(&["release"]).success();
    nothing_is_left(&machine, &mount);
    assert!(mount.unmount().success());
}

/// That the delta since a checkpoint, on the backup of that checkpoint, is the disk.
#[track_caller]
pub(super) fn stands_on(mount: &Mount, name: &str) {
    let (delta, disk) = (mount.beside("delta.qcow2"), mount.beside("disk.raw"));
    ok(tool("cp").arg(mount.path(&format!("checkpoints/{name}/vda/delta.qcow2"))).arg(&delta));
    let base = mount.beside(&format!("vda.{name}.qcow2"));
    ok(tool("qemu-img").args(["rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b"]).arg(base).arg(&delta));
    ok(tool("qemu-img").args(["convert", "-O", "raw"]).arg(&delta).arg(&disk));
    oracle::same(&disk, &mount.disk("vda"));
}

on!(begin_says_which_base: libvirt = Libvirt, libvirt_old = LibvirtOld);
fn begin_says_which_base(flavor: Flavor) {
    let (machine, mount) = machine(flavor);
    let (before, _) = point(&mount);
    mount.command(&["begin", "--since", "a"]).success();
    assert_eq!(point(&mount), (before + 1, json!("a")));
    stands_on(&mount, "b");
    // Somebody chose this instant, and whoever reads an older one does not move it.
    mount.control("begin since=b").expect("nothing is open");
    assert_eq!(point(&mount), (before + 2, json!("b")));
    let refused = File::open(mount.path("checkpoints/a/vda/dirty.map")).expect_err("b was begun");
    assert_eq!(errno(&refused), Errno::BUSY);
    let never = mount.command(&["begin", "--since", "never"]).refused(3);
    assert!(never.contains("there is no checkpoint never"), "{never}");
    assert_eq!(point(&mount), (before + 2, json!("b")), "what is refused ends nothing");
    // One that is made at the instant needs no base.
    let both = mount.command(&["begin", "--since", "a", "--checkpoint", "d"]);
    assert_eq!(both.code, Some(1), "{both}");
    mount.command(&["release"]).success();
    nothing_is_left(&machine, &mount);
    assert!(mount.unmount().success());
}
