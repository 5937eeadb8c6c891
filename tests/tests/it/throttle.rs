//! `max_rate=`, `max_inflight=` and `polite` leave the guest's disk alone, and change no byte.

use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::leftovers::Leftovers;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::{Mount, open_direct};
use pullfs_tests::oracle;
use pullfs_tests::process::wait_until;
use pullfs_tests::stalls::Stalls;
use rustix::io::Errno;

/// For what is to happen at once, on a busy machine.
const LIMIT: Duration = Duration::from_secs(20);

fn machine(flavor: Flavor, size: u64) -> Machine {
    Machine::build(flavor)
        .disk(Disk::qcow2("vda", size).filled(&[(0, size)]))
        .disk(Disk::raw("vdb", size).filled(&[(0, size)]))
        .start()
}

on!(all_disks_together_are_read_within_the_rate: new = New, old = Old, daemon = Daemon);
fn all_disks_together_are_read_within_the_rate(flavor: Flavor) {
    let machine = machine(flavor, 8 * MIB);
    let before = ["vda", "vdb"].map(|id| machine.copy(id, id));
    let mount = Mount::with(&machine, "max_rate=8M,max_inflight=1");
    mount.control("begin").expect("a point in time");
    let begun = Instant::now();
    thread::scope(|scope| {
        for (id, before) in ["vda", "vdb"].into_iter().zip(&before) {
            let disk = mount.disk(id);
            scope.spawn(move || oracle::same(&disk, before));
        }
    });
    // 16 MiB, of which 2 MiB pass at once.
    assert!(begun.elapsed() >= Duration::from_millis(1750), "it took {:?} only", begun.elapsed());
    let throttle = &mount.status()["throttle"];
    assert_eq!((throttle["max_rate"].as_u64(), throttle["max_inflight"].as_u64()), (Some(8 << 20), Some(1)));
    assert!(mount.unmount().success());
}

on!(a_read_that_waits_for_its_turn_ends_with_its_point_in_time: new = New, old = Old, daemon = Daemon);
fn a_read_that_waits_for_its_turn_ends_with_its_point_in_time(flavor: Flavor) {
    let machine = machine(flavor, 8 * MIB);
    let nothing = Leftovers::of(&machine);
    let mount = Mount::with(&machine, "max_rate=64K");
    let disk = open_direct(&mount.disk("vda"));
    // What the bucket holds; 1 MiB more takes 16 s.
    disk.read_exact_at(&mut vec![0; 256 << 10], 0).expect("a read");
    thread::scope(|scope| {
        let waits =
            scope.spawn(|| disk.read_at(&mut vec![0; 1 << 20], MIB).map_err(|error| Errno::from_io_error(&error)));
        // Its first request was sent, and the others wait, for 12 s.
        let served = || mount.status()["point"]["nbd"]["bytes"].as_u64();
        wait_until("the first request", LIMIT, || served() >= Some(512 << 10));
        let begun = Instant::now();
        mount.command(&["release"]).success();
        let read = waits.join().expect("a reader");
        assert!(matches!(read, Err(Some(Errno::STALE | Errno::IO))), "{read:?}");
        assert!(begun.elapsed() < Duration::from_secs(8), "it waited for {:?}", begun.elapsed());
    });
    drop(disk);
    assert!(mount.unmount().success());
    assert_eq!(Leftovers::of(&machine), nothing);
}

/// MiB of the guest's disk.
const SIZE: u64 = 64;

/// Requests a second that it does, for all who use it.
const SPEED: u64 = 200;

/// How long the guest's requests are counted.
const COUNTED: Duration = Duration::from_secs(10);

/// The guest's requests while eight readers read its disk.
#[track_caller]
fn beside_readers(guest: &Stalls, options: &str) -> u64 {
    let mount = Mount::with(guest.machine(), options);
    let disk = open_direct(&mount.disk("vda"));
    let enough = AtomicBool::new(false);
    let count = thread::scope(|scope| {
        for reader in 0..8 {
            let (disk, enough) = (&disk, &enough);
            scope.spawn(move || {
                let mut buffer = vec![0; 256 << 10];
                for at in (0..SIZE * 4).cycle().skip(reader * 32) {
                    if enough.load(Ordering::Relaxed) {
                        break;
                    }
                    disk.read_exact_at(&mut buffer, at * (256 << 10)).expect("a read");
                }
            });
        }
        // From when both are under way.
        wait_until("readers", LIMIT, || mount.status()["reads"]["count"].as_u64() >= Some(32));
        let before = guest.requests();
        thread::sleep(COUNTED);
        let count = guest.requests() - before;
        enough.store(true, Ordering::Relaxed);
        count
    });
    drop(disk);
    assert!(mount.unmount().success());
    count
}

on!(polite_leaves_a_slow_disk_to_the_guest: new = New, old = Old);
fn polite_leaves_a_slow_disk_to_the_guest(flavor: Flavor) {
    let guest = Stalls::boot_slowed(flavor, SIZE, SPEED);
    let rude = beside_readers(&guest, "");
    let polite = beside_readers(&guest, "polite");
    eprintln!("the guest's requests in {COUNTED:?}, {flavor:?}: {polite} with polite, {rude} without");
    // About five times as many.
    assert!(polite > rude * 2, "{polite} with polite, {rude} without");
    guest.untroubled();
}
