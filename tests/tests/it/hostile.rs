//! A monitor that is not to be trusted: the mount fails in one line and leaves nothing, or says what happened and can be
//! unmounted, within bounds of time and memory, and never with a wrong byte.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use pullfs_tests::disk::Disk;
use pullfs_tests::fake_qmp::{FakeQmp, Script};
use pullfs_tests::flavor::Flavor;
use pullfs_tests::leftovers::Leftovers;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::{Mount, MountPoint, is_mounted, open_direct};
use pullfs_tests::process::{run_within, wait_until};
use pullfs_tests::tools::{pullfs, tool};
use pullfs_tests::turncoat::{Hostility, Turncoat};
use rustix::process::{Pid, Signal, kill_process};

/// A command's limit (30 s), and one after the other those of what is then undone in vain.
const PATIENCE: Duration = Duration::from_secs(180);

/// Most memory that the daemon may ever have had, in KiB: a line of 64 MiB while it grows, and itself.
const MOST: u64 = 300 << 10;

#[test]
fn a_mount_of_a_hostile_monitor_fails_in_one_line_and_leaves_nothing() {
    for script in [Script::EndlessLine, Script::Events, Script::Numbers, Script::NotQmp, Script::HangsUp] {
        let (server, point) = (FakeQmp::start(script), MountPoint::new());
        // In a mount namespace of its own, /run is this mount's alone.
        let mut command = tool("unshare");
        command.args(["--mount", "sh", "-c"]);
        command.arg("mount -t tmpfs none /run && \"$0\" mount \"$1\" \"$2\"; code=$?; ls -A /run/pullfs; exit $code");
        let finished = run_within(command.arg(pullfs()).arg(server.source()).arg(point.mnt()), PATIENCE);
        assert_eq!(finished.stdout, "", "{script:?} left something in /run/pullfs");
        let line = finished.refused(32);
        assert!(line.len() < 2000 && (line.contains("QMP") || line.contains("QEMU")), "{script:?}: {line}");
        assert!(!is_mounted(&point.mnt()));
    }
}

fn peak(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the daemon lives");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

on!(a_monitor_that_turns_hostile: daemon = Daemon);
fn a_monitor_that_turns_hostile(flavor: Flavor) {
    // At the same time: to wait is most of it.
    thread::scope(|scope| {
        for how in [Hostility::Garbage, Hostility::EndlessLine, Hostility::Events, Hostility::Silence] {
            scope.spawn(move || turns(flavor, how));
        }
    });
}

fn turns(flavor: Flavor, how: Hostility) {
    let machine = Machine::build(flavor).disk(Disk::qcow2("vda", MIB).filled(&[(0, MIB)])).start();
    let before = fs::read(machine.copy("vda", "before")).expect("a copy");
    let nothing = Leftovers::of(&machine);
    let relay = Turncoat::before(&machine.dir().join("pull.qmp"));
    let mount = Mount::source(&relay.source(), "");
    let run_dir = Path::new("/run/pullfs").join(mount.id());
    let open = open_direct(&mount.disk("vda"));
    machine.write("vda", 0, MIB, 0x5a);
    relay.turn(how);
    let mut buffer = vec![0; 65536];
    for offset in (0..MIB).step_by(65536) {
        let place = usize::try_from(offset).expect("small");
        // What is read is right, or there is an error.
        if open.read_at(&mut buffer, offset).is_ok() {
            assert!(buffer == before[place..place + 65536], "{how:?}: wrong bytes at {offset}");
        }
    }
    let began = Instant::now();
    wait_until("status.json to say what happened", PATIENCE, || {
        let status = mount.status();
        status["unreachable"].is_string() || status["last_end"]["reason"].is_string()
    });
    drop(open);
    let (mnt, pid) = (mount.mnt(), mount.pid());
    assert!(peak(pid) < MOST, "{how:?}: {} KiB", peak(pid));
    println!("{how:?}: {} KiB, status.json in {:?}", peak(pid), began.elapsed());
    let daemon = Pid::from_raw(i32::try_from(pid).expect("a process id")).expect("a process");
    kill_process(daemon, Signal::TERM).expect("our own child");
    let ended = || fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "));
    wait_until("the daemon's end", PATIENCE, ended);
    assert!(!is_mounted(&mnt), "{how:?}: still mounted");
    // What could not be undone is not forgotten: the guardian tries on.
    relay.relent();
    wait_until("the guardian", PATIENCE, || !run_dir.exists());
    assert_eq!(Leftovers::of(&machine), nothing, "{how:?}");
}
