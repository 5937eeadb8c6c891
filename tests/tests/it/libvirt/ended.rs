//! A backup that somebody else ends, or has.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::thread;
use std::time::{Duration, Instant};

use pullfs_tests::flavor::Flavor;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::{Mount, open_direct};
use pullfs_tests::oracle;
use pullfs_tests::process::{ok, wait_until};
use pullfs_tests::random::Random;
use pullfs_tests::stalls::Stalls;
use pullfs_tests::tools::tool;
use rustix::fs::OFlags;
use rustix::io::Errno;
use serde_json::json;

use super::{
    DISKS, LIMIT, SIZE, builder, contents, errno, has_backup, is_empty, last_error, nothing_is_left,
    read_until_it_fails,
};

const ROUNDS: u8 = 12;

// The scratch images show the live disk as soon as their jobs are gone. It is written to all the time.
on!(an_aborted_backup_shows_no_live_data: libvirt = Libvirt, libvirt_old = LibvirtOld);
fn an_aborted_backup_shows_no_live_data(flavor: Flavor) {
    let machine = builder(flavor).start();
    let mount = Mount::of(&machine);
    let mut random = Random::new(5);
    for round in 1..=ROUNDS {
        let right = contents(&machine);
        let files = DISKS.map(|id| open_direct(&mount.disk(id)));
        for id in DISKS {
            machine.write(id, MIB, MIB, round);
        }
        let domain = machine.domain();
        thread::scope(|scope| {
            let readers: Vec<_> = (0..6_u64)
                .map(|seed| {
                    let disk = usize::from(seed % 2 == 1);
                    let (file, right) = (&files[disk], &right[disk]);
                    scope.spawn(move || read_until_it_fails(file, right, seed + 1))
                })
                .collect();
            let pause = Duration::from_millis(random.below(100));
            let abort = scope.spawn(move || {
                thread::sleep(pause);
                domain.virsh("domjobabort", &[]).success();
            });
            let mut pattern = 0x80 | round;
            while !(abort.is_finished() && readers.iter().all(thread::ScopedJoinHandle::is_finished)) {
                for id in DISKS {
                    machine.write(id, 0, SIZE, pattern);
                }
                pattern ^= 0x40;
            }
            for reader in readers {
                let failure = reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                assert!(matches!(failure, Errno::IO | Errno::STALE), "round {round}: {failure}");
            }
        });
        wait_until("the end of the point in time", LIMIT, || mount.state() == "none");
        let end = mount.status()["last_end"].clone();
        assert_eq!(end["kind"], "ended", "{end}");
        assert!(end["reason"].as_str().is_some_and(|reason| reason.contains("libvirt's backup")), "{end}");
        nothing_is_left(&machine, &mount);
    }
    assert_eq!(mount.status()["point"]["number"], ROUNDS, "each round had one");
    assert!(mount.unmount().success());
}

// While a domain is saved libvirt asks its QEMU for no bitmap's size: whoever wants one waits for half a minute, and is refused.
on!(a_checkpoint_of_a_busy_domain_is_not_broken: libvirt = Libvirt, libvirt_old = LibvirtOld);
fn a_checkpoint_of_a_busy_domain_is_not_broken(flavor: Flavor) {
    let machine = builder(flavor).start();
    let mount = Mount::of(&machine);
    for name in ["monday", "tuesday"] {
        mount.checkpoint("create", name).success();
        mount.command(&["release"]).success();
    }
    let pipe = mount.beside("saved");
    ok(tool("mkfifo").arg(&pipe));
    let drain =
        File::options().read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(&pipe).expect("a pipe");
    let domain = machine.domain();
    thread::scope(|scope| {
        let saving = scope.spawn(|| domain.virsh("save", &[&pipe.display().to_string()]));
        wait_until("a domain that is being saved", LIMIT, || has_backup(&machine));
        let asked = Instant::now();
        for name in ["monday", "tuesday"] {
            let disk = mount.status_of_checkpoint(name)["disks"]["vda"].clone();
            assert_eq!(disk["inconsistent"], false, "{disk}");
            assert!(disk["unusable"].as_str().is_some_and(|why| why.contains("virsh domjobinfo")), "{disk}");
        }
        let error = File::open(mount.disk("vda")).expect_err("it is busy");
        assert_eq!(errno(&error), Errno::BUSY);
        assert!(asked.elapsed() < Duration::from_secs(20), "libvirt was not asked in vain: {:?}", asked.elapsed());
        domain.virsh("domjobabort", &[]).success();
        let mut said = Vec::new();
        while !saving.is_finished() {
            // There is nothing to read, or nobody who writes.
            (&drain).read_to_end(&mut said).ok();
            thread::sleep(Duration::from_millis(10));
        }
    });
    drop(mount);
}

// A persistent domain that does not run is known to libvirt, with its checkpoints; a transient one is not.
on!(a_domain_that_has_ended_is_no_missing_file: libvirt = Libvirt, libvirt_old = LibvirtOld);
fn a_domain_that_has_ended_is_no_missing_file(flavor: Flavor) {
    for transient in [false, true] {
        ended_is_not_missing(flavor, transient);
    }
}

#[track_caller]
fn ended_is_not_missing(flavor: Flavor, transient: bool) {
    let machine = builder(flavor).start();
    if transient {
        machine.domain().make_transient();
    }
    let mount = Mount::of(&machine);
    mount.checkpoint("create", "monday").success();
    let open = File::open(mount.disk("vda")).expect("a disk");
    machine.domain().virsh("destroy", &[]).success();
    wait_until("the end of the point in time", LIMIT, || mount.state() == "none");
    drop(open);
    let error = File::open(mount.disk("vda")).expect_err("its machine is gone");
    assert_eq!(errno(&error), Errno::NOTCONN);
    let listed = || fs::read_dir(mount.path("current")).and_then(|mut listed| listed.next().transpose());
    wait_until("an error where nobody knows any more", LIMIT, || {
        listed().is_err_and(|error| errno(&error) == Errno::NOTCONN)
    });
    assert!(mount.unmount().success());
}

on!(a_domain_that_powers_off_ends_it: libvirt = Libvirt, libvirt_old = LibvirtOld);
fn a_domain_that_powers_off_ends_it(flavor: Flavor) {
    let guest = Stalls::boot_with(flavor, 32, "pullfs.passes=12", &[]);
    let machine = guest.machine();
    // It is not to be done before it is looked at.
    machine.qmp().must("stop", json!({}));
    let mount = Mount::of(machine);
    let open = open_direct(&mount.disk("vda"));
    machine.qmp().must("cont", json!({}));
    wait_until("a domain that is off", LIMIT, || !machine.domain().is_running());
    wait_until("the end of the point in time", LIMIT, || mount.state() == "none");
    let end = mount.status()["last_end"].clone();
    assert_eq!(end["kind"], "shutdown", "{end}");
    drop(open);
    // libvirt goes on telling of its disks; there is no machine, all the same.
    wait_until("a domain that is off to be told of", LIMIT, || mount.status()["unreachable"].is_string());
    let status = mount.status();
    assert!(status["unreachable"].as_str().is_some_and(|why| why.contains("does not run")), "{status}");
    assert_eq!(status["disks"], json!([]), "{status}");
    assert_eq!(errno(&File::open(mount.disk("vda")).expect_err("a disk of no machine")), Errno::NOTCONN);
    wait_until("an empty scratch directory", LIMIT, || is_empty(&mount.scratch()));
    guest.untroubled();
    assert!(mount.unmount().success());
}

on!(one_backup_at_a_time_and_theirs_is_left_alone: libvirt = Libvirt, libvirt_old = LibvirtOld);
fn one_backup_at_a_time_and_theirs_is_left_alone(flavor: Flavor) {
    let machine = builder(flavor).start();
    let right = machine.copy("vda", "right");
    let mount = Mount::of(&machine);
    let socket = machine.dir().join("theirs.nbd");
    begin_theirs(&machine).success();
    machine.write("vda", 0, MIB, 0x71);

    let began = Instant::now();
    let refused = File::open(mount.disk("vda")).expect_err("a backup of somebody else runs");
    assert_eq!(errno(&refused), Errno::BUSY);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    let why = last_error(&mount);
    assert!(why.contains("another backup of the domain runs"), "{why}");
    assert!(has_backup(&machine), "theirs goes on");
    let export = format!("nbd+unix:///vda?socket={}", socket.display());
    ok(tool("qemu-img").args(["compare", "-q", "-f", "raw", "-F", "raw", &export]).arg(&right));
    assert_eq!(fs::read_dir(mount.scratch()).expect("a directory").count(), 0);

    machine.domain().virsh("domjobabort", &[]).success();
    wait_until("the end of their backup", LIMIT, || !has_backup(&machine));
    let right = machine.copy("vda", "right");
    // A walk that fails is not tried again for each file, for a second.
    let mut open = None;
    wait_until("a point in time", LIMIT, || {
        open = File::open(mount.disk("vda")).ok();
        open.is_some()
    });
    machine.write("vda", 0, MIB, 0x72);
    let theirs = begin_theirs(&machine);
    assert_ne!(theirs.code, Some(0), "{theirs}");
    oracle::same(&mount.disk("vda"), &right);
    drop(open);
    mount.command(&["release"]).success();
    nothing_is_left(&machine, &mount);
    assert!(mount.unmount().success());
}

/// A backup by virsh.
#[track_caller]
fn begin_theirs(machine: &Machine) -> pullfs_tests::process::Finished {
    let xml = machine.dir().join("theirs.xml");
    let (socket, scratch) = (machine.dir().join("theirs.nbd"), machine.dir().join("theirs.qcow2"));
    let description = format!(
        "<domainbackup mode='pull'><server transport='unix' socket='{}'/><disks>
           <disk name='vda' backup='yes' type='file'><scratch file='{}'/></disk><disk name='vdb' backup='no'/>
         </disks></domainbackup>",
        socket.display(),
        scratch.display(),
    );
    fs::write(&xml, description).expect("a description");
    machine.domain().virsh("backup-begin", &[&xml.display().to_string()])
}
