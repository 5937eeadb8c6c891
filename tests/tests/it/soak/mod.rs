//! Everything at once, for a while: no byte is wrong, no error unexplained, nothing hangs, and nothing is left.
//!
//! ```text
//! 64 readers ([`readers`], [`files`]) ─▶ mount ─▶ [`link`] that breaks ─▶ QEMU ◀─ guest that writes ([`guest`])
//!                                          ▲                            ▲
//!     begin, release, mkdir, rmdir, status ┘ ([`churn`])    stop, reset, … ┘ ([`faults`])
//! ```
//! The guest and whoever begins a point in time take turns ([`load::Load`]): so the content of the disks at that instant is
//! known, and every byte, map and hole that a reader gets is compared with it. A reader knows which point in time its file
//! is of if none began or ended while it opened it; else it lets the file go.
//!
//! `PULLFS_TEST_SOAK=SECONDS,SEED` (`make soak`) makes it longer. A seed repeats what is asked for, not when.

mod churn;
mod faults;
mod figures;
mod files;
mod guest;
mod link;
mod load;
mod readers;

use std::fs;
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::leftovers::Leftovers;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::model::Model;
use pullfs_tests::mount::Mount;
use pullfs_tests::network::Network;
use pullfs_tests::process::{self, wait_until};
use rustix::process::Signal;

use churn::Churn;
use figures::Figures;
use link::Link;
use load::Load;
use readers::Reader;

const READERS: usize = 64;

/// Of the load, unless the environment says otherwise.
const SECONDS: u64 = 12;

/// Size and cluster of each disk: none ends with a cluster.
const DISKS: [(&str, u64, u64); 3] =
    [("vda", 10 * MIB + 1536, 65536), ("vdb", 6 * MIB + 512, 4096), ("vdc", 8 * MIB + 2560, 65536)];

/// Most memory that the daemon may have had (`VmHWM`), in KiB. It is bounded by what may be in flight, 32 MiB for each disk,
/// and far from that on disks as small as these.
const MEMORY: u64 = 64 << 10;

/// For what follows from something that has ended: the kernel tells of a file's close when it likes.
const SETTLED: Duration = Duration::from_secs(10);

on!(whatever_fails_meanwhile_each_byte_is_right: new = New, old = Old);
fn whatever_fails_meanwhile_each_byte_is_right(flavor: Flavor) {
    soak(flavor, None);
}

on!(over_a_network_that_loses_packets: new = New, old = Old);
fn over_a_network_that_loses_packets(flavor: Flavor) {
    soak(flavor, Some(Network::new()));
}

fn soak(flavor: Flavor, network: Option<Network>) {
    let told = std::env::var("PULLFS_TEST_SOAK").unwrap_or_default();
    let mut told = told.split(',').map(|number| number.trim().parse().ok());
    let (seconds, seed) = (told.next().flatten().unwrap_or(SECONDS), told.next().flatten().unwrap_or(1));
    let (machine, model) = machine(flavor, network.as_ref());
    let link = Link::to(&machine, network, seed);
    link.start_server(&machine);
    let nothing = Leftovers::of(&machine);
    let mount = Mount::with(&machine, &format!("start=manual,{}", link.options()));
    let files = descriptors(&mount);

    // The readers, and the one who begins and releases.
    let load = Load::new(&mount, &link, machine, model, READERS + 1);
    thread::scope(|scope| {
        let load = &load;
        let mut threads = vec![
            scope.spawn(|| guest::run(load, seed)),
            scope.spawn(|| faults::run(load, seed + 1)),
            scope.spawn(|| Churn::new(load, READERS, seed + 2).run()),
        ];
        for slot in 0..READERS {
            let seed = seed + 3 + u64::try_from(slot).expect("a number");
            threads.push(scope.spawn(move || Reader::new(load, slot, seed).run()));
        }
        watch(load, Duration::from_secs(seconds), || threads.iter().all(ScopedJoinHandle::is_finished));
    });

    link.calm();
    let (machine, model, figures, faults) = load.into_parts();
    let memory = peak(&mount);
    tell(flavor, seed, seconds, &figures, &link, memory);
    assert!(faults.is_empty(), "seed {seed}:\n{}", faults.join("\n"));
    assert!(memory <= MEMORY, "the daemon had {memory} KiB");
    wait_until("all files to be closed", SETTLED, || descriptors(&mount) <= files);
    assert_eq!(fs::read_dir(mount.scratch()).expect("scratch").count(), 0, "files in scratch");
    for checkpoint in &model.checkpoints {
        fs::remove_dir(mount.path(&format!("checkpoints/{}", checkpoint.name))).expect("deleting a checkpoint");
    }
    assert!(mount.unmount().success());
    assert_eq!(Leftovers::of(&machine), nothing, "seed {seed}");
    for (disk, (id, ..)) in model.disks.iter().zip(DISKS) {
        let now = fs::read(machine.copy(id, "end.raw")).expect("a copy");
        assert!(now == *disk.bytes, "{id}: the disk is what the guest made of it");
    }
}

fn machine(flavor: Flavor, network: Option<&Network>) -> (Machine, Model) {
    let [(vda, size_a, _), (vdb, size_b, cluster), (vdc, size_c, _)] = DISKS;
    let mut machine = Machine::build(flavor);
    if let Some(network) = network {
        machine = machine.behind(network);
    }
    let machine = machine
        .disk(Disk::qcow2(vda, size_a).filled(&[(0, 3 * MIB + 4096), (6 * MIB, 2 * MIB), (size_a - 512, 512)]))
        .disk(Disk::qcow2(vdb, size_b).cluster(cluster).filled(&[(512, MIB), (4 * MIB + 1024, 65536)]))
        .disk(Disk::raw(vdc, size_c).filled(&[(65536, 3 * MIB)]))
        .start();
    let mut model = Model::default();
    for (id, ..) in DISKS {
        let bytes = fs::read(machine.copy(id, "begin.raw")).expect("a copy");
        model.add_disk(id, bytes, machine.format(id) == "qcow2");
    }
    (machine, model)
}

/// Ends the load after its time, or as soon as something is wrong, and waits until it `ended`. A daemon that keeps a reader
/// waiting is killed, which lets go of all of them.
fn watch(load: &Load<'_>, time: Duration, ended: impl Fn() -> bool) {
    let end = Instant::now() + time;
    while !ended() {
        if Instant::now() >= end {
            load.end();
        }
        let hung = load.hung();
        if !hung.is_empty() {
            for what in hung {
                load.fault(what);
            }
            load.mount.send(Signal::KILL);
            return;
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// Descriptors that the daemon has open.
fn descriptors(mount: &Mount) -> usize {
    fs::read_dir(format!("/proc/{}/fd", mount.pid())).expect("the daemon's descriptors").count()
}

/// The most memory that the daemon has had, in KiB.
fn peak(mount: &Mount) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", mount.pid())).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

fn tell(flavor: Flavor, seed: u64, seconds: u64, figures: &Figures, link: &Link, memory: u64) {
    let version = process::ok(flavor.emulator().arg("--version"));
    let version = version.lines().next().unwrap_or_default();
    eprintln!(
        "--- soak: {version}\n\
         load                   {READERS} readers, {seconds} s, seed {seed}\n\
         {figures}\
         {link}\n\
         memory of the daemon   {} MiB at most\n---",
        memory.div_ceil(1024),
    );
}
