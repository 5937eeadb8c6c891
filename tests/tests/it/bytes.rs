//! Whatever the guest writes after the first open, and whoever reads how: the bytes are those of the point in time.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::thread;

use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::{Mount, open_direct};
use pullfs_tests::oracle::{self, Extent};
use pullfs_tests::process::ok;
use pullfs_tests::tools::tool;
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

const KIB: u64 = 1024;

/// Neither is a multiple of the cluster; `vda` ends with data, `vdb` with a hole.
const SIZES: [(&str, u64); 2] = [("vda", 24 * MIB + 1536), ("vdb", 17 * MIB + 512)];

/// Two disks, whose data begins and ends beside clusters' borders.
fn machine(flavor: Flavor) -> Machine {
    let [(vda, size_a), (vdb, size_b)] = SIZES;
    let machine = Machine::build(flavor)
        .disk(Disk::qcow2(vda, size_a).filled(&[
            (0, 3 * MIB + 4096),
            (5 * MIB + 512, 100 * KIB),
            (12 * MIB, 2 * MIB),
            (size_a - 512, 512),
        ]))
        .disk(Disk::raw(vdb, size_b).filled(&[(60 * KIB, MIB), (4 * MIB, 3 * MIB), (9 * MIB + 1024, 512)]))
        .start();
    for (id, _) in SIZES {
        machine.add_bitmap(id, "since", 65536);
        // Written, but not before the bitmap; changed, but not written before: the two maps differ on purpose.
        machine.write(id, 6 * MIB - 4096, 8192, 0xa1);
        machine.discard(id, MIB, 128 * KIB);
        machine.write_zeroes(id, 2 * MIB + 512, 65536);
    }
    machine
}

/// What a guest can do to a disk, at places that were read before and at places that were not.
fn disturb(machine: &Machine, id: &str, size: u64) {
    // Read before: the first 2 MiB. Across clusters' borders and in the middle of them.
    machine.write(id, 0, 512, 0xe1);
    machine.write(id, 128 * KIB - 512, 1024, 0xe2);
    machine.discard(id, 256 * KIB, 192 * KIB);
    machine.write_zeroes(id, 768 * KIB, 65536);
    // Not read before.
    machine.write(id, 5 * MIB, 300 * KIB, 0xe3);
    machine.discard(id, 12 * MIB + 64 * KIB, MIB);
    machine.write_zeroes(id, 13 * MIB + 512, 100 * KIB);
    machine.discard(id, 4 * MIB + 4096, 256 * KIB);
    // Holes, before the point in time.
    machine.write(id, 15 * MIB + 512, 70 * KIB, 0xe4);
    machine.write_zeroes(id, 10 * MIB, MIB);
    // The end of the disk, and the same place twice.
    machine.write(id, size - 512, 512, 0xe5);
    machine.write(id, 0, 65536, 0xe6);
    machine.discard(id, 0, 65536);
}

fn read_first(path: &Path, length: usize) -> Vec<u8> {
    let mut start = vec![0; length];
    File::open(path).and_then(|mut file| file.read_exact(&mut start)).expect("reading a disk");
    start
}

on!(whole_disks_stay_as_they_were: new = New, old = Old, daemon = Daemon, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn whole_disks_stay_as_they_were(flavor: Flavor) {
    let machine = machine(flavor);
    let before = SIZES.map(|(id, _)| machine.copy(id, &format!("{id}.before")));
    let mount = Mount::of(&machine);
    for ((id, size), copy) in SIZES.iter().zip(&before) {
        assert_eq!(fs::metadata(mount.disk(id)).expect("a disk").size(), *size, "the virtual size, exactly");
        let start = fs::read(copy).expect("the copy")[..2 << 20].to_vec();
        assert!(read_first(&mount.disk(id), 2 << 20) == start, "{id}: the first 2 MiB");
    }
    for (id, size) in SIZES {
        disturb(&machine, id, size);
        let after = machine.copy(id, &format!("{id}.after"));
        assert!(fs::read(after).expect("a copy") != fs::read(&before[0]).expect("a copy"), "the guest wrote");
    }
    for ((id, size), copy) in SIZES.iter().zip(&before) {
        let (disk, out) = (mount.disk(id), mount.beside("out"));
        // The first time what was read before is in the kernel's cache, then all of it is.
        ok(tool("cmp").arg(&disk).arg(copy));
        ok(tool("cp").arg("--sparse=auto").arg(&disk).arg(&out));
        oracle::same(&out, copy);
        oracle::same_image(&out, copy);
        assert_eq!(fs::metadata(&out).expect("the copy").size(), *size);
        ok(tool("cp").arg("--sparse=never").arg(&disk).arg(&out));
        oracle::same(&out, copy);
        let (input, output) = (format!("if={}", disk.display()), format!("of={}", out.display()));
        ok(tool("dd").args([&input, &output, "iflag=direct", "bs=1M", "status=none"]));
        oracle::same(&out, copy);
        mapped(&disk, copy);
    }
    assert_eq!(mount.status()["point"]["number"], 1, "one point in time served all of this");
    assert!(mount.unmount().success());
}

/// Compares through mmap, from the end to the start.
fn mapped(disk: &Path, copy: &Path) {
    let script = "import mmap, sys\n\
        disk, copy = (open(name, 'rb') for name in sys.argv[1:3])\n\
        view = mmap.mmap(disk.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ)\n\
        right = copy.read()\n\
        assert len(view) == len(right), (len(view), len(right))\n\
        for start in reversed(range(0, len(right), 65536)):\n\
        \x20   assert view[start:start + 65536] == right[start:start + 65536], start\n";
    ok(tool("python3").args(["-c", script]).arg(disk).arg(copy));
}

on!(eight_threads_read_at_random_while_the_guest_writes: new = New, old = Old, daemon = Daemon, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn eight_threads_read_at_random_while_the_guest_writes(flavor: Flavor) {
    let machine = machine(flavor);
    let before = SIZES.map(|(id, _)| fs::read(machine.copy(id, &format!("{id}.before"))).expect("a copy"));
    let mount = Mount::of(&machine);
    let cached = SIZES.map(|(id, _)| File::open(mount.disk(id)).expect("a disk"));
    // Past the kernel's cache: each read asks the daemon anew.
    let direct = SIZES.map(|(id, _)| open_direct(&mount.disk(id)));
    thread::scope(|scope| {
        for seed in 1..=8_u64 {
            let before = &before;
            let files = if seed % 2 == 0 { &cached } else { &direct };
            scope.spawn(move || {
                let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                let mut next = |below: u64| {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    random % below
                };
                for _ in 0..250 {
                    let disk = usize::from(next(2) == 1);
                    let size = SIZES[disk].1;
                    let (offset, length) = (next(size), 1 + next(300 * KIB));
                    let start = usize::try_from(offset).expect("an offset");
                    let mut read = vec![0; usize::try_from(length).expect("a length")];
                    let right = &before[disk][start..];
                    let expected = right.len().min(read.len());
                    let mut done = 0;
                    while done < expected {
                        let at = offset + u64::try_from(done).expect("an offset");
                        let more = files[disk].read_at(&mut read[done..], at).expect("a read");
                        assert!(more > 0, "the disk ends at {at}");
                        done += more;
                    }
                    assert!(read[..expected] == right[..expected], "disk {disk}, {length} bytes at {offset}");
                }
            });
        }
        for _ in 0..3 {
            for (id, size) in SIZES {
                disturb(&machine, id, size);
            }
        }
    });
    drop((cached, direct));
    assert!(mount.unmount().success());
}

on!(holes_are_those_of_the_disk: new = New, old = Old, daemon = Daemon, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn holes_are_those_of_the_disk(flavor: Flavor) {
    let machine = machine(flavor);
    let allocation = SIZES.map(|(id, _)| oracle::allocation(&machine, id));
    let before = SIZES.map(|(id, _)| machine.copy(id, &format!("{id}.before")));
    let mount = Mount::of(&machine);
    for ((id, size), allocation) in SIZES.iter().zip(&allocation) {
        let disk = mount.disk(id);
        let data = allocation.data();
        assert_eq!(oracle::seek_walk(&disk), data, "{id}: lseek");
        let map = fs::read_to_string(mount.path(&format!("current/{id}/allocated.map"))).expect("a map");
        assert!(map.starts_with('#'), "{map}");
        assert_eq!(oracle::read_map(&map, |kind| kind == 0), data, "{id}: allocated.map");
        assert_eq!(fs::metadata(&disk).expect("a disk").blocks(), total(&data).div_ceil(512), "{id}: st_blocks");
        seeks_past_the_end(&disk, *size, &data);
    }
    for ((id, size), (allocation, copy)) in SIZES.iter().zip(allocation.iter().zip(&before)) {
        disturb(&machine, id, *size);
        // What was copied for us may count as data; what was data may not become a hole.
        let walk = oracle::seek_walk(&mount.disk(id));
        for extent in allocation.data() {
            let covered = walk.iter().any(|found| found.0 <= extent.0 && extent.0 + extent.1 <= found.0 + found.1);
            assert!(covered, "{id}: {extent:?} is not in {walk:?}");
        }
        let out = mount.beside("out");
        ok(tool("cp").arg("--sparse=auto").arg(mount.disk(id)).arg(&out));
        oracle::same(&out, copy);
    }
    assert!(mount.unmount().success());
}

fn total(extents: &[Extent]) -> u64 {
    extents.iter().map(|extent| extent.1).sum()
}

fn seeks_past_the_end(disk: &Path, size: u64, data: &[Extent]) {
    let file = File::open(disk).expect("a disk");
    let end = data.last().map_or(0, |last| last.0 + last.1);
    for offset in [end, size - 1, size, size + 1] {
        let expected = if offset < end { Ok(offset) } else { Err(Errno::NXIO) };
        assert_eq!(seek(&file, SeekFrom::Data(offset)), expected, "SEEK_DATA from {offset}, data ends at {end}");
    }
    assert_eq!(seek(&file, SeekFrom::Hole(size - 1)), Ok(if end == size { size } else { size - 1 }));
    assert_eq!(seek(&file, SeekFrom::Hole(size)), Err(Errno::NXIO));
    // The other kinds of lseek are the kernel's.
    assert_eq!(seek(&file, SeekFrom::End(0)), Ok(size));
}

// Read-ahead fetches what will be read, once, and what is on its way for one reader is on its way for all.
on!(no_byte_is_fetched_twice: new = New, old = Old, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn no_byte_is_fetched_twice(flavor: Flavor) {
    const SIZE: u64 = 24 * MIB;
    let machine = Machine::build(flavor).disk(Disk::raw("vda", SIZE).filled(&[(0, SIZE)])).start();
    let before = machine.copy("vda", "before");
    let mount = Mount::of(&machine);
    let fetched = || mount.status()["point"]["nbd"]["bytes"].as_u64().expect("a count");
    let held = File::open(mount.disk("vda")).expect("a disk");
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut bytes = Vec::new();
                open_direct(&mount.disk("vda")).read_to_end(&mut bytes).expect("the disk");
                assert!(bytes == fs::read(&before).expect("the copy"), "wrong bytes");
            });
        }
    });
    oracle::same(&mount.disk("vda"), &before);
    assert_eq!(fetched(), SIZE);
    // The same blocks by another name are at hand.
    ok(tool("cat").arg(mount.path("current/vda/disk.qcow2")));
    assert_eq!(fetched(), SIZE);
    drop(held);
    assert!(mount.unmount().success());
}

on!(what_is_scattered_is_fetched_alone: new = New, old = Old, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn what_is_scattered_is_fetched_alone(flavor: Flavor) {
    const CLUSTER: u64 = 65536;
    let machine = Machine::build(flavor).disk(Disk::qcow2("vda", 256 * MIB).filled(&[(0, MIB)])).start();
    machine.add_bitmap("vda", "since", CLUSTER);
    for at in (0..256 * MIB).step_by(2 << 20) {
        machine.write("vda", at, 4096, 0x5a);
    }
    let dirty = 128 * CLUSTER;
    let mount = Mount::of(&machine);
    for file in ["delta.qcow2", "delta.raw"] {
        ok(tool("cp")
            .arg("--sparse=always")
            .arg(mount.path(&format!("checkpoints/since/vda/{file}")))
            .arg(mount.beside(file)));
        let fetched = mount.status()["point"]["nbd"]["bytes"].as_u64().expect("a count");
        assert!(fetched >= dirty && fetched <= dirty / 50 * 51, "{fetched} bytes for {dirty} of {file}");
        mount.command(&["release"]).success();
    }
    assert!(mount.unmount().success());
}
