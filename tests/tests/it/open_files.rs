//! A file that was open when its point in time ended fails from then on: it never shows another instant.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::{Mount, open_direct};
use pullfs_tests::oracle;
use pullfs_tests::process::{ok, wait_until};
use pullfs_tests::relay::Relay;
use pullfs_tests::tools::tool;
use rustix::io::Errno;
use serde_json::json;

fn machine(flavor: Flavor) -> Machine {
    let machine = Machine::build(flavor).disk(Disk::qcow2("vda", 4 * MIB).filled(&[(0, 2 * MIB)])).start();
    machine.add_bitmap("vda", "monday", 65536);
    machine.write("vda", MIB, 65536, 0x51);
    machine
}

/// Reads 512 bytes, or says with which error it did not.
fn read(file: &File, offset: u64) -> Result<[u8; 512], Errno> {
    let mut bytes = [0; 512];
    let done = file.read_exact_at(&mut bytes, offset);
    done.map(|()| bytes).map_err(|e| Errno::from_io_error(&e).unwrap_or_else(|| panic!("{e}")))
}

#[track_caller]
fn stale(file: &File, offset: u64) {
    let read = read(file, offset).map(|bytes| bytes[0]);
    assert!(matches!(read, Err(Errno::STALE | Errno::IO)), "an old file at {offset} says {read:x?}");
}

on!(a_release_makes_open_files_stale: new = New, old = Old, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn a_release_makes_open_files_stale(flavor: Flavor) {
    let machine = machine(flavor);
    let mount = Mount::of(&machine);
    let disk = File::open(mount.disk("vda")).expect("a disk");
    let map = File::open(mount.path("checkpoints/monday/vda/delta.raw")).expect("a delta");
    // Into the kernel's cache.
    let old = read(&disk, 0).expect("a read");
    read(&map, MIB).expect("a read");
    mount.command(&["release"]).success();
    for offset in [0, MIB, 3 * MIB] {
        assert_eq!(read(&disk, offset), Err(Errno::STALE), "released on purpose, at {offset}");
        stale(&map, offset);
    }

    // A new point in time with other bytes, all of them in the kernel's cache.
    machine.write("vda", 0, MIB, 0x99);
    let before = machine.copy("vda", "before");
    oracle::same(&mount.disk("vda"), &before);
    ok(tool("cat").arg(mount.path("checkpoints/monday/vda/delta.raw")));
    let new = File::open(mount.disk("vda")).expect("a disk");
    assert_eq!(read(&new, 0), Ok([0x99; 512]));
    assert_ne!(old, [0x99; 512]);
    for offset in [0, 512, 65536, MIB, 3 * MIB] {
        stale(&disk, offset);
        stale(&map, offset);
    }
    assert_eq!(read(&new, 0), Ok([0x99; 512]), "the old file disturbs no new one");
    drop((disk, map, new));
    assert!(mount.unmount().success());
}

on!(a_new_point_in_time_shows_nothing_of_the_old: new = New, old = Old, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn a_new_point_in_time_shows_nothing_of_the_old(flavor: Flavor) {
    let machine = machine(flavor);
    let mount = Mount::of(&machine);
    for round in 0..4_u8 {
        machine.write("vda", 0, 2 * MIB, 0x60 + round);
        let before = machine.copy("vda", "before");
        let open = File::open(mount.disk("vda")).expect("a disk");
        machine.write("vda", 0, 2 * MIB, 0xee);
        oracle::same(&mount.disk("vda"), &before);
        mapped(&mount.disk("vda"), 0x60 + round);
        drop(open);
        mount.control("release").expect("a release");
    }
    assert!(mount.unmount().success());
}

on!(no_read_mixes_two_instants: new = New, old = Old, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn no_read_mixes_two_instants(flavor: Flavor) {
    let machine = machine(flavor);
    machine.write("vda", 0, MIB, 1);
    let mount = Mount::of(&machine);
    let (path, newest, whole) = (mount.disk("vda"), AtomicU8::new(1), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while newest.load(Ordering::SeqCst) != u8::MAX {
                    whole.fetch_add(usize::from(one_instant(&path, &newest)), Ordering::SeqCst);
                }
            });
        }
        // The readers end with the test, also when it fails.
        let _end = AtEnd(|| newest.store(u8::MAX, Ordering::SeqCst));
        for pattern in 2..30 {
            // One request of the guest: all of it is on the disk at an instant, or nothing.
            newest.store(pattern, Ordering::SeqCst);
            machine.write("vda", 0, MIB, pattern);
            let before = whole.load(Ordering::SeqCst);
            wait_until("a reader to come to an end", Duration::from_secs(10), || whole.load(Ordering::SeqCst) > before);
            // Between two readers: there may be nothing to release.
            match mount.control("release").map_err(|e| Errno::from_io_error(&e)) {
                Ok(()) | Err(Some(Errno::NOENT | Errno::NODATA)) => {}
                other => panic!("a release says {other:?}"),
            }
        }
    });
    assert!(mount.unmount().success());
}

on!(a_job_that_somebody_cancels_shows_no_live_data: new = New, old = Old, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn a_job_that_somebody_cancels_shows_no_live_data(flavor: Flavor) {
    const SIZE: u64 = 64 * MIB;
    let machine = Machine::build(flavor).disk(Disk::qcow2("vda", SIZE).filled(&[(0, SIZE)])).start();
    let before = fs::read(machine.copy("vda", "before")).expect("a copy");
    let mount = Mount::of(&machine);
    let (direct, good, end) = (open_direct(&mount.disk("vda")), AtomicUsize::new(0), AtomicU8::new(0));
    thread::scope(|scope| {
        for seed in 1..=8_u64 {
            let (direct, good, before, end) = (&direct, &good, &before, &end);
            scope.spawn(move || {
                let mut place = seed;
                while end.load(Ordering::SeqCst) == 0 {
                    place = (place * 7919 + 1) % (SIZE / 4096);
                    let mut bytes = vec![0; 4096];
                    if direct.read_exact_at(&mut bytes, place * 4096).is_ok() {
                        let start = usize::try_from(place * 4096).expect("an offset");
                        assert!(bytes == before[start..start + 4096], "live data at {}", place * 4096);
                        good.fetch_add(1, Ordering::SeqCst);
                    }
                }
            });
        }
        let _end = AtEnd(|| end.store(1, Ordering::SeqCst));
        let read = |more: usize| {
            let now = good.load(Ordering::SeqCst);
            wait_until("reads", Duration::from_secs(20), || good.load(Ordering::SeqCst) > now + more);
        };
        read(50);
        machine.cancel_backup();
        machine.write("vda", 0, SIZE, 0x99);
        wait_until("the loss to be noticed", Duration::from_secs(20), || mount.state() == "none");
        thread::sleep(Duration::from_millis(200));
        let counted = mount.status()["reads"]["failed"].as_u64().expect("a count");
        let lost = direct.read_exact_at(&mut [0; 4096], 0).expect_err("it is lost for good");
        assert_eq!(Errno::from_io_error(&lost), Some(Errno::IO), "{lost}");
        let status = mount.status();
        assert!(status["reads"]["failed"].as_u64() > Some(counted), "a read that fails is counted: {status}");
        assert!(
            status["last_end"]["reason"]
                .as_str()
                .is_some_and(|why| ["cancelled", "backup that kept it"].iter().any(|word| why.contains(word))),
            "{status}"
        );
    });
    // A new point in time is possible, and has the new bytes.
    let new = File::open(mount.disk("vda")).expect("a disk");
    assert_eq!(read(&new, 0), Ok([0x99; 512]));
    drop((new, direct));
    assert!(mount.unmount().success());
}

/// Events may come late or not at all, and a scratch image over the live disk stays readable without its job.
#[test]
fn a_scratch_image_without_its_job_shows_nothing_even_when_no_event_tells() {
    if !Flavor::Daemon.available() {
        return;
    }
    let machine = Machine::build(Flavor::Daemon).disk(Disk::raw("vda", 4 * MIB).filled(&[(0, 4 * MIB)])).start();
    let relay = Relay::deaf(&machine.dir().join("pull.qmp"));
    let mount = Mount::source(&relay.source(), "fleece=backing");
    assert_eq!(mount.status()["machine"]["fleece"], "backing");
    let direct = open_direct(&mount.disk("vda"));
    let before = read(&direct, 0).expect("a read");
    let jobs = machine.qmp().must("query-jobs", json!({}));
    machine.qmp().must("job-cancel", json!({"id": jobs[0]["id"]}));
    machine.qmp().wait_event("JOB_STATUS_CHANGE", Duration::from_secs(20), |data| data["status"] == "concluded");
    machine.write("vda", 0, 4 * MIB, 0x99);
    assert_ne!(before, [0x99; 512]);
    assert_eq!(mount.state(), "held", "pullfs has not heard of it");
    for offset in [512, MIB, 4 * MIB - 512] {
        assert_eq!(read(&direct, offset), Err(Errno::IO), "at {offset}");
    }
    // What came and was confirmed before the loss is right, and may be had again.
    assert_eq!(read(&direct, 0), Ok(before));
    drop(direct);
    assert!(mount.unmount().success());
}

/// Does something when it is dropped.
struct AtEnd<F: Fn()>(F);

impl<F: Fn()> Drop for AtEnd<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// Reads what the guest writes at once; whether the point in time lasted as long.
fn one_instant(path: &Path, newest: &AtomicU8) -> bool {
    let mut bytes = vec![0; 1 << 20];
    let read = File::open(path).and_then(|file| file.read_exact_at(&mut bytes, 0));
    match read.map_err(|e| Errno::from_io_error(&e)) {
        Ok(()) => {
            let first = bytes[0];
            assert!(bytes.iter().all(|&byte| byte == first), "two instants in one file");
            assert!(first <= newest.load(Ordering::SeqCst), "{first:#x} was never written");
            true
        }
        Err(Some(Errno::STALE | Errno::IO)) => false,
        Err(other) => panic!("a read says {other:?}"),
    }
}

/// The first byte, through a mapping.
fn mapped(disk: &Path, expected: u8) {
    let script = "import mmap, sys\n\
        disk = open(sys.argv[1], 'rb')\n\
        view = mmap.mmap(disk.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ)\n\
        assert view[0] == int(sys.argv[2]), view[0]\n";
    ok(tool("python3").args(["-c", script]).arg(disk).arg(expected.to_string()));
}
