//! What changed and reads as zeroes costs no data: a disk that was trimmed as a whole is a delta of metadata.

use std::fs;

use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::Mount;
use pullfs_tests::oracle;
use pullfs_tests::process::ok;
use pullfs_tests::tools::tool;

const SIZE: u64 = 10 << 30;
/// What a guest's device takes at once.
const TRIM: u64 = 1 << 30;
/// Of a qcow2 image with clusters of 64 KiB: 8 bytes for each cluster, and some clusters for the tables above.
const METADATA: u64 = SIZE / 65536 * 8 + 8 * 65536;

on!(a_trimmed_disk_is_a_delta_of_metadata: new = New, old = Old, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn a_trimmed_disk_is_a_delta_of_metadata(flavor: Flavor) {
    let data = [(0, 4 * MIB), (3 * TRIM - MIB, 2 * MIB), (SIZE - MIB, MIB)];
    let machine = Machine::build(flavor).disk(Disk::qcow2("vda", SIZE).filled(&data)).start();
    let mount = Mount::of(&machine);
    fs::create_dir(mount.path("checkpoints/monday")).expect("a checkpoint");
    let full = mount.beside("vda.monday.qcow2");
    ok(tool("cp").arg(mount.path("current/vda/disk.qcow2")).arg(&full));
    mount.command(&["release"]).success();
    for part in 0..SIZE / TRIM {
        machine.discard("vda", part * TRIM, TRIM);
    }

    let since = mount.path("checkpoints/monday/vda");
    let map = fs::read_to_string(since.join("dirty.map")).expect("a map");
    assert_eq!(oracle::read_map(&map, |kind| kind == 3), [(0, SIZE)], "all of it changed, and is zeroes\n{map}");
    let delta = mount.beside("vda.now.qcow2");
    ok(tool("cp").arg(since.join("delta.qcow2")).arg(&delta));
    let size = fs::metadata(&delta).expect("a copy").len();
    assert!(size <= METADATA, "delta.qcow2 has {size} bytes, more than {METADATA}");
    // Without a look at its backing file's data, which is there.
    let map = ok(tool("qemu-img").args(["map", "--output=json", "-f", "qcow2"]).arg(&delta));
    assert!(!map.contains("\"data\": true"), "{map}");
    let empty = mount.beside("empty.raw");
    ok(tool("truncate").args(["-s", &SIZE.to_string()]).arg(&empty));
    ok(tool("qemu-img").args(["check", "-q", "-f", "qcow2"]).arg(&delta));
    ok(tool("qemu-img").args(["compare", "-q", "-f", "qcow2", "-F", "raw"]).arg(&delta).arg(&empty));

    let raw = mount.beside("delta.raw");
    assert_eq!(oracle::seek_walk(&since.join("delta.raw")), [], "no data");
    assert_eq!(oracle::allocated(&since.join("delta.raw")), 0);
    ok(tool("cp").arg(since.join("delta.raw")).arg(&raw));
    assert_eq!(fs::metadata(&raw).expect("a copy").len(), SIZE);
    assert!(oracle::allocated(&raw) <= 65536, "the copy takes {} bytes", oracle::allocated(&raw));
    assert!(mount.unmount().success());
}
