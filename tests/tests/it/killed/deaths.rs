//! Deaths of other kinds, and of others than the daemon.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use pullfs_tests::flavor::Flavor;
use pullfs_tests::leftovers::Leftovers;
use pullfs_tests::machine::MIB;
use pullfs_tests::mount::open_direct;
use pullfs_tests::process::{has_ended, kill_at_once, signal_pid, wait_for, wait_until};
use pullfs_tests::relay::{MOMENTS, Moment};
use pullfs_tests::tools::pullfs;
use rustix::io::Errno;
use rustix::process::Signal;

use super::scene::{RESCUE_LIMIT, Scene, Traces};
use super::{AT_ONCE, MANY};

/// A daemon that does not move while it holds a point in time is ended after 10 s.
const HANG_LIMIT: Duration = Duration::from_secs(30);

/// Of each disk.
const SIZE: u64 = 16 * MIB;

/// Reads a disk again and again until that fails, on a thread of its own; how it failed comes out.
fn reads_until_it_fails(disk: &Path) -> mpsc::Receiver<Option<Errno>> {
    let direct = open_direct(disk);
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        let mut place = 0;
        let error = loop {
            place = (place + 5 * MIB) % SIZE;
            if let Err(error) = direct.read_exact_at(&mut [0; 4096], place) {
                break error;
            }
        };
        tell.send(Errno::from_io_error(&error))
    });
    told
}

/// Panics unless a reader was told at once that nobody serves the mount any more.
#[track_caller]
fn was_told(reader: &mpsc::Receiver<Option<Errno>>) {
    let errno = reader.recv_timeout(AT_ONCE).expect("a read of a dead mount hangs");
    assert!(matches!(errno, Some(Errno::NOTCONN | Errno::CONNABORTED)), "{errno:?}");
}

on!(a_crash_leaves_nothing_and_ends_all_reads: new = New, old = Old, daemon = Daemon, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn a_crash_leaves_nothing_and_ends_all_reads(flavor: Flavor) {
    let scene = Scene::new(flavor);
    let before = Leftovers::of(&scene.machine);
    for signal in [Signal::KILL, Signal::ABORT, Signal::SEGV] {
        let (mut mount, traces) = scene.holding();
        let readers = [(); 8].map(|()| reads_until_it_fails(&mount.disk("vda")));
        scene.guest_writes();
        // Rust takes the first SIGSEGV for an overflow of a stack, and waits for it to come again.
        wait_until("the daemon's end", AT_ONCE, || {
            signal_pid(mount.pid(), signal);
            mount.has_ended()
        });
        assert_eq!(mount.ended().signal(), Some(signal.as_raw()));
        readers.iter().for_each(was_told);
        scene.is_as_before(&before, &traces, RESCUE_LIMIT);
    }
}

on!(a_read_in_flight_ends_with_the_daemon: new = New, libvirt = Libvirt, libvirt_old = LibvirtOld);
/// QEMU stands still, so a read waits for it, when the daemon dies.
fn a_read_in_flight_ends_with_the_daemon(flavor: Flavor) {
    let mut scene = Scene::new(flavor);
    let before = Leftovers::of(&scene.machine);
    let mut mount = scene.mount();
    let traces = Traces::of(&mount);
    let readers = [(); 8].map(|()| reads_until_it_fails(&mount.disk("vda")));
    scene.machine.server().signal(Signal::STOP);
    signal_pid(mount.pid(), Signal::KILL);
    mount.ended();
    readers.iter().for_each(was_told);
    traces.mount_goes(RESCUE_LIMIT);
    scene.machine.server().signal(Signal::CONT);
    scene.is_as_before(&before, &traces, RESCUE_LIMIT);
}

on!(a_daemon_that_hangs_is_ended: new = New, old = Old, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn a_daemon_that_hangs_is_ended(flavor: Flavor) {
    let scene = Scene::new(flavor);
    let before = Leftovers::of(&scene.machine);
    let mut mount = scene.mount();
    let traces = Traces::of(&mount);
    let open = File::open(mount.disk("vda")).expect("a disk");
    signal_pid(mount.pid(), Signal::STOP);
    // The guest goes on meanwhile, and afterwards.
    scene.guest_writes();
    scene.machine.write("vda", 0, 4096, 0x22);
    let reader = thread::spawn(move || open.read_exact_at(&mut [0; 4096], SIZE - MIB));
    wait_until("the end of a daemon that hangs", HANG_LIMIT, || mount.has_ended());
    assert!(reader.join().expect("a reader").is_err(), "nobody served it");
    scene.is_as_before(&before, &traces, RESCUE_LIMIT);
    scene.guest_writes();
    let again = scene.mount();
    scene.monday_tells(&again);
    assert!(again.unmount().success());
}

on!(a_guardian_that_is_killed_is_replaced: new = New, old = Old, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn a_guardian_that_is_killed_is_replaced(flavor: Flavor) {
    let scene = Scene::new(flavor);
    let before = Leftovers::of(&scene.machine);
    let (mut mount, traces) = scene.holding();
    let first = mount.guardian();
    signal_pid(first, Signal::KILL);
    wait_until("a new guardian", RESCUE_LIMIT, || {
        mount.status()["guard"]["pid"].as_u64().is_some_and(|pid| pid != 0 && pid != u64::from(first))
    });
    let status = mount.status();
    if status["point"]["state"] == "none" {
        let why = status["last_end"]["reason"].as_str().unwrap_or_default();
        assert!(why.contains("guard"), "it says why the point in time ended: {status}");
    }
    // The new one does as much for the machine; a mount it may not take away, for it is as confined as the daemon.
    let open = File::open(mount.disk("vda")).expect("a disk");
    signal_pid(mount.pid(), Signal::KILL);
    mount.ended();
    drop(open);
    before.come_back(&scene.machine, RESCUE_LIMIT);
    scene.recover().success();
    scene.is_as_before(&before, &traces, Duration::ZERO);
}

on!(a_mount_that_nobody_may_take_away_is_left_to_recover: new = New, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn a_mount_that_nobody_may_take_away_is_left_to_recover(flavor: Flavor) {
    let scene = Scene::new(flavor);
    let before = Leftovers::of(&scene.machine);
    let (mut mount, traces) = scene.holding();
    let first = u64::from(mount.guardian());
    signal_pid(mount.guardian(), Signal::KILL);
    wait_until("a new guardian", RESCUE_LIMIT, || {
        mount.status()["guard"]["pid"].as_u64().is_some_and(|pid| pid != 0 && pid != first)
    });
    // In good order; but neither the daemon nor its new guardian has the privileges to unmount.
    signal_pid(mount.pid(), Signal::TERM);
    mount.ended();
    before.come_back(&scene.machine, RESCUE_LIMIT);
    scene.recover().success();
    scene.is_as_before(&before, &traces, Duration::ZERO);
}

on!(a_checkpoint_that_was_made_survives: new = New, old = Old, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn a_checkpoint_that_was_made_survives(flavor: Flavor) {
    let scene = Scene::new(flavor);
    let mut mount = scene.mount();
    scene.guest_writes();
    mount.checkpoint("create", "tuesday").success();
    mount.command(&["release"]).success();
    let before = Leftovers::of(&scene.machine);
    mount.checkpoint("delete", "tuesday").success();
    mount.checkpoint("create", "tuesday").success();
    let traces = Traces::of(&mount);
    kill_at_once(&[mount.guardian(), mount.pid()]);
    mount.ended();
    scene.recover().success();
    traces.go(Duration::ZERO);
    let after = Leftovers::of(&scene.machine);
    // But for the time in the notes.
    let changes = before.changes(&after);
    assert!(changes.iter().all(|change| change.contains("pullfs-checkpoint:")), "{changes:?}");
    let mount = scene.mount();
    let map = fs::read_to_string(mount.path("checkpoints/tuesday/vda/dirty.map")).expect("a map");
    assert!(map.lines().all(|line| line.starts_with('#')), "nothing changed since:\n{map}");
    scene.monday_tells(&mount);
    assert!(mount.unmount().success());
}

on!(a_guardian_may_be_killed_while_it_cleans_up: new = New, old = Old);
/// Both are killed while a point in time is held, with the guardian at each command of its clean-up.
fn a_guardian_may_be_killed_while_it_cleans_up(flavor: Flavor) {
    let scene = Scene::new(flavor);
    let before = Leftovers::of(&scene.machine);
    let round = |nth: usize, moment: Moment| {
        let (mut mount, traces) = scene.holding();
        let guardian = mount.guardian();
        scene.relay().kill_at(nth, moment, &[guardian]);
        signal_pid(mount.pid(), Signal::KILL);
        mount.ended();
        wait_until("the guardian's end", RESCUE_LIMIT, || has_ended(guardian));
        if scene.relay().has_killed() {
            scene.recover().success();
        }
        scene.is_as_before(&before, &traces, Duration::ZERO);
        scene.relay().has_killed()
    };
    let all = (1..MANY).flat_map(|nth| MOMENTS.map(|moment| (nth, moment)));
    let kills = all.take_while(|&(nth, moment)| round(nth, moment)).count();
    assert!(kills > 4, "{kills} kills");
}

on!(recover_may_be_killed_too: new = New, old = Old);
/// `pullfs recover` is killed at each of its commands, and called again.
fn recover_may_be_killed_too(flavor: Flavor) {
    let scene = Scene::new(flavor);
    let before = Leftovers::of(&scene.machine);
    let round = |nth: usize, moment: Moment| {
        let (mut mount, traces) = scene.holding();
        scene.relay().count();
        kill_at_once(&[mount.guardian(), mount.pid()]);
        mount.ended();
        // It waits for a line, so that its process is known before it begins.
        let mut recover = Command::new("sh");
        recover.args(["-c", r#"read -r go; exec "$0" recover "$1""#]).arg(pullfs()).arg(scene.relay().source());
        let mut recover = recover.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("sh");
        scene.relay().kill_at(nth, moment, &[recover.id()]);
        drop(recover.stdin.take());
        let status = wait_for(&mut recover, RESCUE_LIMIT).expect("the end of recover");
        let killed = scene.relay().has_killed();
        assert_eq!(status.signal() == Some(Signal::KILL.as_raw()), killed, "{status}");
        if killed {
            scene.recover().success();
        }
        scene.is_as_before(&before, &traces, Duration::ZERO);
        killed
    };
    let all = (1..MANY).flat_map(|nth| MOMENTS.map(|moment| (nth, moment)));
    let kills = all.take_while(|&(nth, moment)| round(nth, moment)).count();
    assert!(kills > 4, "{kills} kills");
}
