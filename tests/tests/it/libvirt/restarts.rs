//! A libvirtd that dies, or hangs, while a point in time is held.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use pullfs_tests::flavor::Flavor;
use pullfs_tests::libvirt::Libvirtd;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::{Mount, open_direct};
use pullfs_tests::oracle;
use pullfs_tests::process::{signal_pid, wait_until};
use pullfs_tests::random::Random;
use rustix::io::Errno;
use rustix::process::Signal;

use super::{DISKS, LIMIT, SIZE, builder, contents, errno, nothing_is_left, read_once};

/// A machine of a libvirtd that the test may end.
fn machine(flavor: Flavor) -> (Machine, Arc<Libvirtd>) {
    let libvirtd = Arc::new(Libvirtd::start(flavor.libvirt().expect("a flavor of libvirt's")));
    (builder(flavor).on(&libvirtd).start(), libvirtd)
}

/// Reads until told to stop, or until the file is stale; how often it read, and the longest that a read took.
fn keep_reading(file: &File, right: &[u8], seed: u64, stop: &AtomicBool) -> (u32, Duration) {
    let mut random = Random::new(seed);
    let (mut done, mut longest) = (0, Duration::ZERO);
    while !stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        let read = read_once(file, right, &mut random);
        longest = longest.max(began.elapsed());
        match read.as_ref().map_err(errno) {
            Ok(()) => done += 1,
            Err(Errno::STALE) => break,
            Err(error) => {
                assert_eq!(error, Errno::IO, "{read:?}");
                thread::sleep(Duration::from_millis(50));
            }
        }
    }
    (done, longest)
}

/// Readers of both disks, while `happens`; how long the longest read took.
fn with_readers(machine: &Machine, mount: &Mount, happens: impl FnOnce()) -> Duration {
    let right = contents(machine);
    let files = DISKS.map(|id| open_direct(&mount.disk(id)));
    for id in DISKS {
        machine.write(id, 0, SIZE, 0x61);
    }
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let readers: Vec<_> = (0..4_u64)
            .map(|seed| {
                let disk = usize::from(seed % 2 == 1);
                let (file, right, stop) = (&files[disk], &right[disk], &stop);
                scope.spawn(move || keep_reading(file, right, seed + 1, stop))
            })
            .collect();
        thread::sleep(Duration::from_millis(300));
        happens();
        stop.store(true, Ordering::Relaxed);
        let read: Vec<_> = readers.into_iter().map(|reader| reader.join().expect("a reader")).collect();
        assert!(read.iter().all(|(done, _)| *done > 0), "{read:?}");
        read.into_iter().map(|(_, longest)| longest).max().unwrap_or_default()
    })
}

/// Releases what is held, if it still is, and takes another one.
#[track_caller]
fn goes_on(machine: &Machine, mount: &Mount) {
    if mount.state() == "held" {
        mount.command(&["release"]).success();
    }
    nothing_is_left(machine, mount);
    machine.write("vda", MIB, MIB, 0x62);
    let right = machine.copy("vda", "later");
    let number = mount.status()["point"]["number"].as_u64().expect("a number");
    wait_until("another point in time", LIMIT, || File::open(mount.disk("vda")).is_ok());
    machine.write("vda", MIB, MIB, 0x63);
    oracle::same(&mount.disk("vda"), &right);
    assert!(mount.status()["point"]["number"].as_u64() > Some(number));
}

on!(a_libvirtd_that_is_killed_leaves_the_bytes_right: libvirt = Libvirt, libvirt_old = LibvirtOld);
fn a_libvirtd_that_is_killed_leaves_the_bytes_right(flavor: Flavor) {
    let (machine, libvirtd) = machine(flavor);
    let mount = Mount::of(&machine);
    for _ in 0..2 {
        with_readers(&machine, &mount, || {
            libvirtd.kill();
            for id in DISKS {
                machine.write(id, MIB, MIB, 0x64);
            }
            thread::sleep(Duration::from_millis(500));
            libvirtd.start_again();
            thread::sleep(Duration::from_secs(2));
        });
        goes_on(&machine, &mount);
        mount.command(&["release"]).success();
    }
    nothing_is_left(&machine, &mount);
    assert!(mount.unmount().success());
}

on!(a_libvirtd_that_hangs_keeps_nobody_waiting_for_long: libvirt = Libvirt, libvirt_old = LibvirtOld);
fn a_libvirtd_that_hangs_keeps_nobody_waiting_for_long(flavor: Flavor) {
    const HANGS: Duration = Duration::from_secs(20);
    let (machine, libvirtd) = machine(flavor);
    let mount = Mount::of(&machine);
    let longest = with_readers(&machine, &mount, || {
        let pid = libvirtd.pid();
        signal_pid(pid, Signal::STOP);
        let end = Instant::now() + HANGS;
        while Instant::now() < end {
            let began = Instant::now();
            // What is copied for a point in time that nobody can end yet is no reason to wait.
            machine.write("vdb", 2 * MIB, MIB, 0x65);
            assert!(began.elapsed() < Duration::from_secs(5), "the guest waited for {:?}", began.elapsed());
            thread::sleep(Duration::from_millis(500));
        }
        signal_pid(pid, Signal::CONT);
        thread::sleep(Duration::from_secs(3));
    });
    assert!(longest < HANGS + Duration::from_secs(20), "a read took {longest:?}");
    goes_on(&machine, &mount);
    mount.command(&["release"]).success();
    nothing_is_left(&machine, &mount);
    assert!(mount.unmount().success());
}
