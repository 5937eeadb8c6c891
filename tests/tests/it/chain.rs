//! A week of backups made with nothing but `mkdir` and `cp`, of a guest that writes all the time: each day's image is the
//! disk of that day, for another guest that is booted with it.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use pullfs_tests::flavor::Flavor;
use pullfs_tests::guest::{self, Guest};
use pullfs_tests::mount::Mount;
use pullfs_tests::oracle;
use pullfs_tests::process::ok;
use pullfs_tests::tools::tool;

const WEEK: [&str; 5] = ["monday", "tuesday", "wednesday", "thursday", "friday"];

on!(each_day_boots_with_that_days_files: new = New, old = Old, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn each_day_boots_with_that_days_files(flavor: Flavor) {
    let guest = Guest::daily(flavor);
    let mount = Mount::of(guest.machine());
    let dir = tempfile::tempdir().expect("a temporary directory");
    let backups = dir.path();
    // For each day the newest number before its checkpoint, and the newest after it.
    let mut known = Vec::new();
    for (index, day) in WEEK.iter().enumerate() {
        guest.wait_past(guest.counter() + 4);
        let before = guest.counter();
        fs::create_dir(mount.path(&format!("checkpoints/{day}"))).expect("a checkpoint");
        known.push((before, guest.counter()));
        // The guest writes on while it is copied.
        back_up(&mount, backups, index.checked_sub(1).map(|yesterday| WEEK[yesterday]), day);
        mount.command(&["release"]).success();
    }
    guest.wait_past(guest.counter());
    assert!(mount.unmount().success());
    drop(guest);

    let mut disks = Vec::new();
    for day in WEEK {
        // Over each image another one, because a guest that mounts a disk writes to it.
        for id in ["vda", "vdb"] {
            let image = backups.join(format!("{id}.{day}.qcow2"));
            ok(tool("qemu-img").args(["check", "-q", "-f", "qcow2"]).arg(&image));
            let over = backups.join(format!("{id}.{day}.over.qcow2"));
            ok(tool("qemu-img").args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"]).arg(&image).arg(&over));
            let raw = backups.join(format!("{id}.{day}.raw"));
            let mut compare = tool("qemu-img");
            ok(compare.args(["compare", "-q", "-f", "qcow2", "-F", "raw"]).arg(&image).arg(&raw));
            disks.push(over);
        }
    }
    let listed = guest::days(flavor, &disks);
    for (index, (before, after)) in known.iter().enumerate() {
        for (id, files) in ["vda", "vdb"].iter().zip(&listed[index * 2..]) {
            let told = format!("{id} of {}, between {before} and {after}, has {files:?}", WEEK[index]);
            assert!((1..=*before).all(|number| files.contains(&number)), "all up to that day: {told}");
            // The number after the last one on the console may be on the disk already; the next day's is later.
            assert!(files.iter().all(|number| *number <= after + 1), "none of the next day: {told}");
        }
    }
}

/// Copies a day as a chain of qcow2 images, and as raw images that are brought up to date by hand.
fn back_up(mount: &Mount, backups: &Path, yesterday: Option<&str>, day: &str) {
    for id in ["vda", "vdb"] {
        let [image, raw] = ["qcow2", "raw"].map(|format| backups.join(format!("{id}.{day}.{format}")));
        match yesterday {
            None => {
                ok(tool("cp").arg(mount.path(&format!("current/{id}/disk.qcow2"))).arg(&image));
                ok(tool("cp").arg(mount.disk(id)).arg(&raw));
            }
            Some(yesterday) => {
                let since = mount.path(&format!("checkpoints/{yesterday}/{id}"));
                ok(tool("cp").arg(since.join("delta.qcow2")).arg(&image));
                let (delta, map) = (backups.join("delta.raw"), backups.join("dirty.map"));
                ok(tool("cp").arg(since.join("delta.raw")).arg(&delta));
                ok(tool("cp").arg(since.join("dirty.map")).arg(&map));
                ok(tool("cp").arg(backups.join(format!("{id}.{yesterday}.raw"))).arg(&raw));
                overwrite(&raw, &delta, &map);
            }
        }
    }
}

/// Puts the changed extents of a delta into an older full copy.
fn overwrite(raw: &Path, delta: &Path, map: &Path) {
    let copy = File::options().write(true).open(raw).expect("a copy");
    let delta = File::open(delta).expect("a delta");
    let map = fs::read_to_string(map).expect("a map");
    for (offset, length) in oracle::read_map(&map, |_| true) {
        let mut bytes = vec![0; usize::try_from(length).expect("a length")];
        delta.read_exact_at(&mut bytes, offset).expect("reading the delta");
        copy.write_all_at(&bytes, offset).expect("writing the copy");
    }
}
