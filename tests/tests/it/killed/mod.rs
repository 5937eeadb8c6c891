//! Whoever is killed, at whatever step: QEMU is as it was before, and no checkpoint lost a byte.
//!
//! Each test has one machine, and kills at each command with which an operation changes something in it, once before the
//! command and once after it ([`pullfs_tests::relay`]). Nobody counts the commands of libvirt: there it kills at moments that are
//! spread over the time that the operation takes, eight unless `PULLFS_TEST_KILLS` says how many.

mod deaths;
mod others;
mod scene;

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use pullfs_tests::flavor::Flavor;
use pullfs_tests::leftovers::Leftovers;
use pullfs_tests::mount::{Mount, is_mounted};
use pullfs_tests::process::{run, within};
use pullfs_tests::relay::MOMENTS;
use pullfs_tests::tools::tool;
use rustix::io::Errno;

use self::scene::{RESCUE_LIMIT, Scene, Traces, When};

/// How long a request to a mount whose daemon has died may take: the kernel ends it at once.
const AT_ONCE: Duration = Duration::from_secs(10);

/// How long a backup is waited for that libvirt was asked for by who died before it answered (docs/libvirt.md).
const MAY_COME: Duration = Duration::from_secs(40);

/// More commands than any operation has.
const MANY: usize = 100;

/// Moments of an operation of libvirt's at which somebody is killed.
const MOMENTS_OF_LIBVIRT: u32 = 8;

/// What pullfs is about to do when it is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    /// Taking a point in time because a file is read.
    Begin,
    /// Making a checkpoint.
    Mkdir,
    /// Deleting one.
    Rmdir,
    Release,
    Unmount,
}

/// Who is killed, and who cleans up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rescue {
    /// The daemon; the guardian.
    Guardian,
    /// Both; `pullfs recover`.
    Recover,
    /// Both; the next mount.
    NextMount,
}

impl Operation {
    /// What comes before it.
    #[track_caller]
    fn prepare(self, scene: &Scene, mount: &Mount) {
        if matches!(self, Self::Release | Self::Unmount) {
            scene.monday_tells(mount);
        }
        if self == Self::Rmdir && !mount.path("checkpoints/tuesday").exists() {
            mount.checkpoint("create", "tuesday").success();
            mount.command(&["release"]).success();
        }
    }

    /// Does it, however that ends.
    fn act(self, mnt: &Path) -> io::Result<()> {
        let tuesday = mnt.join("checkpoints/tuesday");
        match self {
            Self::Begin => File::open(mnt.join("current/vda/disk.raw"))?.read_exact(&mut [0; 512]),
            Self::Mkdir => fs::create_dir(tuesday),
            Self::Rmdir => fs::remove_dir(tuesday),
            Self::Release => fs::write(mnt.join("control"), "release\n"),
            // The kernel is done before the daemon begins.
            Self::Unmount => {
                let done = run(tool("umount").arg(mnt));
                // Who was killed before that was cleaned up after before it.
                assert!(done.code == Some(0) || !is_mounted(mnt), "{done}");
                Ok(())
            }
        }
    }
}

/// Kills then; whether it came to that, and how long the operation took.
#[track_caller]
fn round(scene: &Scene, operation: Operation, rescue: Rescue, when: When) -> (bool, Duration) {
    let mut mount = scene.mount();
    if operation == Operation::Rmdir {
        operation.prepare(scene, &mount);
    }
    let before = Leftovers::of(&scene.machine);
    if operation != Operation::Rmdir {
        operation.prepare(scene, &mount);
    }
    let traces = Traces::of(&mount);
    scene.guest_writes();
    let both = [mount.pid(), mount.guardian()];
    let victims = if rescue == Rescue::Guardian { &both[..1] } else { &both[..] };
    scene.kill(when, victims);
    let (mnt, began) = (mount.mnt(), Instant::now());
    let outcome = within("an answer of a mount", AT_ONCE, move || operation.act(&mnt));
    if operation == Operation::Unmount {
        mount.ended();
    }
    let took = began.elapsed();
    // libvirt makes the checkpoint before the daemon has said so.
    let may_be_made = operation == Operation::Mkdir && scene.is_libvirts();
    if !scene.has_killed() {
        outcome.unwrap_or_else(|e| panic!("nobody was killed, and {operation:?} says {e}"));
        if !scene.is_libvirts() {
            scene.relay().count();
        }
        if may_be_made {
            mount.command(&["release"]).success();
            mount.checkpoint("delete", "tuesday").success();
        }
        if operation != Operation::Unmount {
            assert!(mount.unmount().success());
        }
        traces.go(RESCUE_LIMIT);
        return (false, took);
    }
    mount.ended();
    if let Err(error) = outcome {
        let errno = Errno::from_io_error(&error);
        assert!(matches!(errno, Some(Errno::NOTCONN | Errno::CONNABORTED)), "{error}");
    } else {
        assert!(operation == Operation::Unmount || scene.is_libvirts(), "it cannot have succeeded");
    }
    let limit = match rescue {
        // libvirt may have been asked, and not have begun.
        Rescue::Guardian if scene.is_libvirts() && matches!(operation, Operation::Begin | Operation::Mkdir) => {
            MAY_COME + RESCUE_LIMIT
        }
        Rescue::Guardian => RESCUE_LIMIT,
        Rescue::Recover => {
            scene.recover().success();
            Duration::ZERO
        }
        Rescue::NextMount => {
            assert!(scene.mount().unmount().success());
            Duration::ZERO
        }
    };
    if operation == Operation::Rmdir {
        whole_or_gone(scene, &before);
        traces.go(limit);
    } else {
        if may_be_made {
            traces.go(limit);
            let changes = before.changes(&Leftovers::of(&scene.machine));
            let only = changes.iter().all(|change| change.contains("tuesday"));
            assert!(only, "more than a checkpoint:\n{}", changes.join("\n"));
            let mount = scene.mount();
            if mount.path("checkpoints/tuesday").exists() {
                mount.checkpoint("delete", "tuesday").success();
            }
            assert!(mount.unmount().success());
        }
        scene.is_as_before(&before, &traces, limit);
    }
    (true, took)
}

/// Panics unless either nothing or all of the checkpoint `tuesday` is gone. A call of libvirt's goes on when its caller is killed,
/// and may end between one question to the machine and the next.
#[track_caller]
fn whole_or_gone(scene: &Scene, before: &Leftovers) {
    let gone = |change: &String| change.starts_with("- bitmap ") && change.contains(":tuesday ");
    // A bitmap and a note on each disk; with libvirt, a bitmap on each disk and the checkpoint itself.
    let checkpoint = |change: &String| change.starts_with("- checkpoint tuesday ");
    let end = Instant::now() + RESCUE_LIMIT;
    loop {
        let changes = before.changes(&Leftovers::of(&scene.machine));
        let all = if scene.is_libvirts() {
            changes.len() == 3 && changes.iter().all(|change| gone(change) || checkpoint(change))
        } else {
            changes.len() == 4 && changes.iter().all(gone)
        };
        if changes.is_empty() || all {
            return;
        }
        let may_go_on = scene.is_libvirts() && Instant::now() < end;
        assert!(may_go_on, "half of a checkpoint:\n{}", changes.join("\n"));
        thread::sleep(Duration::from_millis(10));
    }
}

/// Kills at every command of an operation, or with libvirt at moments all over it.
#[track_caller]
fn at_every_command(flavor: Flavor, operation: Operation, rescue: Rescue) {
    let scene = Scene::new(flavor);
    let killed = |when: &When| round(&scene, operation, rescue, *when).0;
    let kills = if scene.is_libvirts() {
        let moments = std::env::var("PULLFS_TEST_KILLS").ok().and_then(|told| told.parse().ok());
        let moments: u32 = moments.unwrap_or(MOMENTS_OF_LIBVIRT);
        let (_, whole) = round(&scene, operation, rescue, When::Never);
        let spread = (0..moments).map(|nth| When::After(whole * (2 * nth + 1) / (2 * moments)));
        spread.filter(killed).count()
    } else {
        let all = (1..MANY).flat_map(|nth| MOMENTS.map(|moment| When::At(nth, moment)));
        let kills = all.take_while(killed).count();
        assert!(kills < MANY, "{kills} kills");
        kills
    };
    // Deleting a checkpoint is one call of libvirt's, which may be done in less time than it took before.
    assert!(kills > 0 || operation == Operation::Rmdir && scene.is_libvirts(), "nobody was killed");
    let last = scene.mount();
    scene.monday_tells(&last);
    assert!(last.unmount().success());
    eprintln!("{flavor:?}: {operation:?} was killed at {kills} places, and {rescue:?} cleaned up");
}

/// Tests of one operation: for each flavor, one for each who cleans up.
macro_rules! killed_in {
    ($name:ident, $operation:ident) => {
        mod $name {
            use super::{Operation, Rescue, at_every_command};
            on!(the_guardian_cleans_up: new = New, old = Old, daemon = Daemon, libvirt = Libvirt);
            fn the_guardian_cleans_up(flavor: pullfs_tests::flavor::Flavor) {
                at_every_command(flavor, Operation::$operation, Rescue::Guardian);
            }
            on!(recover_cleans_up: new = New, old = Old, daemon = Daemon, libvirt_old = LibvirtOld);
            fn recover_cleans_up(flavor: pullfs_tests::flavor::Flavor) {
                at_every_command(flavor, Operation::$operation, Rescue::Recover);
            }
            on!(the_next_mount_cleans_up: new = New);
            fn the_next_mount_cleans_up(flavor: pullfs_tests::flavor::Flavor) {
                at_every_command(flavor, Operation::$operation, Rescue::NextMount);
            }
        }
    };
}

killed_in!(in_begin, Begin);
killed_in!(in_mkdir, Mkdir);
killed_in!(in_rmdir, Rmdir);
killed_in!(in_release, Release);
killed_in!(in_unmount, Unmount);
