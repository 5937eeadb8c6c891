//! Scratch space that runs out: the point in time is given up, and the guest does not notice.

use std::fs::File;
use std::os::unix::fs::FileExt;

use pullfs_tests::flavor::Flavor;
use pullfs_tests::leftovers::Leftovers;
use pullfs_tests::mount::Mount;
use pullfs_tests::oracle;
use pullfs_tests::process::{signal_pid, wait_until};
use pullfs_tests::stalls::Stalls;
use pullfs_tests::tmpfs::Tmpfs;
use rustix::io::Errno;
use rustix::process::Signal;
use serde_json::json;

use super::{NOTICE_LIMIT, goes_on, why_it_ended};

/// What the guest overwrites while a point in time is held in little scratch space, in MiB.
const MUCH: u64 = 256;

on!(with_too_little_scratch_the_guest_notices_nothing: new = New, old = Old, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn with_too_little_scratch_the_guest_notices_nothing(flavor: Flavor) {
    given_up_in_time(flavor, flavor.fleece());
}

on!(with_too_little_scratch_the_guest_notices_nothing_with_a_filter: new = New);
fn with_too_little_scratch_the_guest_notices_nothing_with_a_filter(flavor: Flavor) {
    given_up_in_time(flavor, "filter");
}

fn given_up_in_time(flavor: Flavor, fleece: &str) {
    let guest = Stalls::boot(flavor, MUCH);
    let nothing = Leftovers::of(guest.machine());
    // A quarter is for the guest, the rest for the time until it is let go: through libvirt, and on a busy machine, that is
    // longer. It has one way alone.
    let (size, how) = match flavor.libvirt() {
        Some(_) => ("32m", String::new()),
        None => ("8m", format!(",fleece={fleece}")),
    };
    let small = Tmpfs::seen_by(guest.machine(), size);
    let mount = Mount::with(guest.machine(), &format!("{}{how}", small.scratch()));
    assert_eq!(mount.status()["machine"]["fleece"], fleece);
    for round in 1..=2 {
        let mut opened = File::open(mount.disk("vda"));
        // Right after one that was given up before it was there, an open fails for the same reason.
        wait_until("another point in time", NOTICE_LIMIT, || {
            let taken = mount.status()["point"]["number"] == round;
            if !taken {
                opened = File::open(mount.disk("vda"));
            }
            taken
        });
        // A guest that is quick may end it before the file is open, or before it was there at all.
        wait_until("the end of the point in time", NOTICE_LIMIT, || mount.state() == "none");
        let status = mount.status();
        let why = format!("{} {}", status["last_end"]["reason"], status["last_error"]["message"]);
        assert!(why.contains("scratch"), "{why}");
        let read = opened.and_then(|open| open.read_at(&mut [0; 4096], 0)).map_err(|e| Errno::from_io_error(&e));
        assert_eq!(read, Err(Some(Errno::IO)), "it is lost, which a reader must know");
        nothing.come_back(guest.machine(), NOTICE_LIMIT);
    }
    guest.wait_more(MUCH);
    goes_on(&guest, &format!("{size} of scratch, {fleece}"));
    let mut stops = guest.stops();
    // A filter is put in, and taken out, while the machine stands still for a moment.
    stops.retain(|event| fleece != "filter" || event["event"] != "STOP");
    assert!(stops.is_empty(), "it stood still, or failed: {stops:?}");
    assert!(mount.unmount().success());
    assert!(small.is_empty());
    assert_eq!(Leftovers::of(guest.machine()), nothing);
}

on!(no_more_scratch_than_its_limit: new = New, old = Old, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn no_more_scratch_than_its_limit(flavor: Flavor) {
    let guest = Stalls::boot(flavor, MUCH);
    // On a busy machine the limit is noticed late: there is room for all that the guest can overwrite.
    let room = Tmpfs::seen_by(guest.machine(), "1g");
    let mount = Mount::with(guest.machine(), &format!("{},scratch_limit=8M", room.scratch()));
    let mut least = room.free();
    // Only a guest that stands still leaves the time to look at it.
    guest.machine().qmp().must("stop", json!({}));
    let open = File::open(mount.disk("vda")).expect("a disk");
    assert_eq!(mount.status()["point"]["scratch"]["limit"], 8 << 20, "{}", mount.status());
    guest.machine().qmp().must("cont", json!({}));
    guest.stops();
    wait_until("the end of the point in time", NOTICE_LIMIT, || {
        least = least.min(room.free());
        mount.state() == "none"
    });
    let why = why_it_ended(&mount);
    assert!(why.contains("scratch_limit"), "{why}");
    let most = (1 << 30) - least;
    eprintln!("a limit of 8 MiB: {} MiB of scratch at most", most >> 20);
    assert!(most < 64 << 20, "{} MiB of scratch", most >> 20);
    drop(open);
    goes_on(&guest, "a limit of 8 MiB");
    assert_eq!(guest.stops(), [json!(null); 0]);
    assert!(mount.unmount().success());
}

/// Takes a point in time and stops the daemon, before the guest overwrites so much that it is given up.
#[track_caller]
fn open_and_stop(guest: &Stalls, mount: &Mount) -> File {
    guest.machine().qmp().must("stop", json!({}));
    let open = File::open(mount.disk("vda")).expect("a disk");
    signal_pid(mount.pid(), Signal::STOP);
    guest.machine().qmp().must("cont", json!({}));
    open
}

// A daemon that does not run gives nothing up, so the machine stops; what was missed is made good as soon as it runs.
on!(a_guest_that_was_stopped_by_full_scratch_goes_on: new = New, old = Old, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn a_guest_that_was_stopped_by_full_scratch_goes_on(flavor: Flavor) {
    let guest = Stalls::boot(flavor, 64);
    let nothing = Leftovers::of(guest.machine());
    let small = Tmpfs::seen_by(guest.machine(), "8m");
    let mount = Mount::with(guest.machine(), &small.scratch());
    let open = open_and_stop(&guest, &mount);
    wait_until("a machine that stands still", NOTICE_LIMIT, || guest.status() == "io-error");
    signal_pid(mount.pid(), Signal::CONT);
    wait_until("a machine that runs", NOTICE_LIMIT, || guest.status() == "running");
    let why = why_it_ended(&mount);
    assert!(why.contains("scratch"), "{why}");
    drop(open);
    goes_on(&guest, "stopped by full scratch");
    nothing.come_back(guest.machine(), NOTICE_LIMIT);
    assert!(mount.unmount().success());
}

// The same, and the daemon never runs again: its guardian ends it and lets the guest go on.
on!(a_guest_that_was_stopped_goes_on_even_if_the_daemon_does_not: new = New, old = Old, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn a_guest_that_was_stopped_goes_on_even_if_the_daemon_does_not(flavor: Flavor) {
    let guest = Stalls::boot(flavor, 64);
    let nothing = Leftovers::of(guest.machine());
    for signal in [Signal::STOP, Signal::KILL] {
        let small = Tmpfs::seen_by(guest.machine(), "8m");
        let mut mount = Mount::with(guest.machine(), &small.scratch());
        let open = open_and_stop(&guest, &mount);
        wait_until("a machine that stands still", NOTICE_LIMIT, || guest.status() == "io-error");
        signal_pid(mount.pid(), signal);
        wait_until("a machine that runs", NOTICE_LIMIT, || guest.status() == "running");
        mount.ended();
        drop(open);
        nothing.come_back(guest.machine(), NOTICE_LIMIT);
        goes_on(&guest, &format!("stopped by full scratch, and the daemon by {signal:?}"));
    }
}

on!(another_program_may_fill_the_scratch_directory: new = New, old = Old, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn another_program_may_fill_the_scratch_directory(flavor: Flavor) {
    let guest = Stalls::boot(flavor, 64);
    let nothing = Leftovers::of(guest.machine());
    // A quarter, the rest being the reserve, is enough for all that the guest can overwrite.
    let room = Tmpfs::seen_by(guest.machine(), "320m");
    let mount = Mount::with(guest.machine(), &room.scratch());
    let open = File::open(mount.disk("vda")).expect("a disk");
    guest.wait_more(16);
    assert_eq!(mount.state(), "held");
    room.fill();
    let why = why_it_ended(&mount);
    assert!(why.contains("scratch"), "{why}");
    drop(open);
    wait_until("a machine that runs", NOTICE_LIMIT, || guest.status() == "running");
    goes_on(&guest, "a full scratch directory");
    nothing.come_back(guest.machine(), NOTICE_LIMIT);
    assert!(mount.unmount().success());
}

// A machine that somebody paused is theirs to let go on, whatever becomes of the point in time.
on!(a_machine_that_somebody_paused_stays_paused: new = New, old = Old, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn a_machine_that_somebody_paused_stays_paused(flavor: Flavor) {
    let guest = Stalls::boot(flavor, 64);
    let room = Tmpfs::seen_by(guest.machine(), "128m");
    let mount = Mount::with(guest.machine(), &room.scratch());
    let open = File::open(mount.disk("vda")).expect("a disk");
    guest.machine().qmp().must("stop", json!({}));
    room.fill();
    let why = why_it_ended(&mount);
    assert!(why.contains("scratch"), "{why}");
    drop(open);
    let mut qmp = guest.machine().qmp();
    let resumed = qmp.events().iter().any(|event| event["event"] == "RESUME");
    assert!(!resumed, "somebody else let it go on");
    assert_eq!(qmp.must("query-status", json!({}))["status"], "paused");
    qmp.must("cont", json!({}));
    drop(qmp);
    goes_on(&guest, "paused by somebody");
    assert!(mount.unmount().success());
    // Also when pullfs is killed while it is paused.
    let small = Tmpfs::seen_by(guest.machine(), "64m");
    let mut mount = Mount::with(guest.machine(), &small.scratch());
    let open = File::open(mount.disk("vda")).expect("a disk");
    guest.machine().qmp().must("stop", json!({}));
    signal_pid(mount.pid(), Signal::KILL);
    mount.ended();
    drop(open);
    wait_until("what was held to be gone", NOTICE_LIMIT, || !Leftovers::of(guest.machine()).any_job());
    assert_eq!(guest.status(), "paused");
    guest.machine().qmp().must("cont", json!({}));
    goes_on(&guest, "paused by somebody, and pullfs killed");
}

// A filter is put in while the machine stands still, which is not to let a paused one go on.
on!(a_paused_machine_gets_a_filter_and_stays_paused: new = New);
fn a_paused_machine_gets_a_filter_and_stays_paused(flavor: Flavor) {
    let guest = Stalls::boot(flavor, 64);
    let nothing = Leftovers::of(guest.machine());
    let mount = Mount::with(guest.machine(), "fleece=filter");
    guest.machine().qmp().must("stop", json!({}));
    mount.command(&["begin"]).success();
    assert_eq!(guest.status(), "paused");
    let before = guest.machine().copy("vda", "before");
    guest.machine().qmp().must("cont", json!({}));
    guest.wait_more(64);
    oracle::same(&mount.disk("vda"), &before);
    guest.machine().qmp().must("stop", json!({}));
    mount.command(&["release"]).success();
    assert_eq!(guest.status(), "paused");
    guest.machine().qmp().must("cont", json!({}));
    goes_on(&guest, "paused with a filter");
    assert!(mount.unmount().success());
    nothing.come_back(guest.machine(), NOTICE_LIMIT);
}
