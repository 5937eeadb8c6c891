//! Whoever dies when: nobody hangs, and nothing is left.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Instant;

use pullfs_tests::flavor::Flavor;
use pullfs_tests::mount::is_mounted;
use pullfs_tests::oracle;
use pullfs_tests::process::{has_ended, kill_at_once, run_within, signal_pid, wait_until, within};
use rustix::process::Signal;

use super::super::has_backup;
use super::{Host, LIMIT, SOON, libvirtd, machine};

/// `ls`, which a mount that hangs would hold.
fn ls(path: &Path) -> pullfs_tests::process::Finished {
    run_within(Command::new("ls").arg(path), SOON)
}

on!(a_host_that_is_told_to_end_leaves_nothing: libvirt = Libvirt);
fn a_host_that_is_told_to_end_leaves_nothing(flavor: Flavor) {
    let libvirtd = libvirtd(flavor);
    let machine = machine(flavor, &libvirtd);
    let mut host = Host::of(&libvirtd, "");
    let mut file = File::open(host.disk(&machine)).expect("a disk");
    let children = host.children();
    host.daemon.signal(Signal::TERM);
    assert!(host.daemon.wait(LIMIT).success(), "{}", host.daemon.log());
    assert!(children.iter().all(|pid| has_ended(*pid)));
    assert!(!host.is_there() && host.names().is_empty() && !has_backup(&machine));
    file.read_to_end(&mut Vec::new()).expect_err("nobody serves it any more");
}

/// Those who look into a domain's directory, all the time.
#[derive(Default)]
struct Looks {
    /// How often they saw what is in it.
    seen: AtomicUsize,
    ended: AtomicBool,
}

impl Looks {
    /// Looks until the end; how the last one, which comes after it, failed. None of them may see an empty directory.
    fn go_on(&self, path: &Path) -> io::Error {
        let limit = Instant::now() + LIMIT;
        loop {
            let last = self.ended.load(Ordering::Relaxed) || Instant::now() > limit;
            match fs::read_dir(path).and_then(Iterator::collect::<io::Result<Vec<_>>>) {
                Ok(entries) => {
                    assert!(!last && !entries.is_empty(), "{entries:?} in {} at the end: {last}", path.display());
                    self.seen.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) if last => return error,
                Err(_) => {}
            }
        }
    }
}

on!(whoever_looks_while_a_host_ends_sees_a_domain_or_an_error: libvirt = Libvirt);
fn whoever_looks_while_a_host_ends_sees_a_domain_or_an_error(flavor: Flavor) {
    let libvirtd = libvirtd(flavor);
    let machine = machine(flavor, &libvirtd);
    for _ in 0..3 {
        let mut host = Host::of(&libvirtd, "");
        let dir = host.dir(&machine);
        // Whoever has the host open, as `find` does, does not come by its path.
        let held = File::open(host.mnt()).expect("the host");
        let within = PathBuf::from(format!("/proc/self/fd/{}/{}", held.as_raw_fd(), machine.domain().name()));
        let looks = Arc::new(Looks::default());
        let lasts = [dir.clone(), dir, within.clone(), within].map(|path| {
            let (looks, (tell, told)) = (looks.clone(), mpsc::channel());
            thread::spawn(move || tell.send(looks.go_on(&path)));
            told
        });
        wait_until("some looks", LIMIT, || looks.seen.load(Ordering::Relaxed) > 100);
        host.daemon.signal(Signal::TERM);
        assert!(host.daemon.wait(LIMIT).success(), "{}", host.daemon.log());
        looks.ended.store(true, Ordering::Relaxed);
        for last in lasts {
            let last = last.recv_timeout(SOON).expect("looks that end, and never see an empty directory");
            assert_eq!(last.kind(), io::ErrorKind::NotFound, "{last}");
        }
    }
}

on!(a_host_that_is_killed_leaves_nothing: libvirt = Libvirt, libvirt_old = LibvirtOld);
fn a_host_that_is_killed_leaves_nothing(flavor: Flavor) {
    let libvirtd = libvirtd(flavor);
    let (machine, idle) = (machine(flavor, &libvirtd), machine(flavor, &libvirtd));
    let mut host = Host::of(&libvirtd, "");
    let mut file = File::open(host.disk(&machine)).expect("a disk");
    let children = host.children();
    host.daemon.signal(Signal::KILL);
    wait_until("the end of the mount", LIMIT, || !host.is_there());
    for dir in [host.dir(&machine), host.dir(&idle)] {
        assert!(ls(&dir).code == Some(2), "a look is an error");
    }
    wait_until("the end of all processes", LIMIT, || children.iter().all(|pid| has_ended(*pid)));
    wait_until("the end of libvirt's backup", LIMIT, || !has_backup(&machine));
    within("reading", SOON, move || file.read_to_end(&mut Vec::new()).expect_err("nobody serves it any more"));
    host.daemon = Host::start(host.dir.path(), &libvirtd.uri(), "");
    host.answers();
    let right = machine.copy("vda", "right");
    oracle::same(&host.disk(&machine), &right);
}

on!(whoever_waits_for_a_host_that_is_killed_is_let_go: libvirt = Libvirt);
fn whoever_waits_for_a_host_that_is_killed_is_let_go(flavor: Flavor) {
    let libvirtd = libvirtd(flavor);
    let machine = machine(flavor, &libvirtd);
    let host = Host::of(&libvirtd, "");
    let daemon = libvirtd.pid();
    signal_pid(daemon, Signal::STOP);
    let dir = host.dir(&machine);
    thread::scope(|scope| {
        let looks: Vec<_> = (0..3).map(|_| scope.spawn(|| ls(&dir))).collect();
        host.comes_to(&machine, "starting");
        host.daemon.signal(Signal::KILL);
        for look in looks {
            assert_eq!(look.join().expect("a thread").code, Some(2), "an error");
        }
    });
    signal_pid(daemon, Signal::CONT);
    wait_until("the end of the mount", LIMIT, || !host.is_there());
}

on!(a_host_whose_guardian_is_killed_as_well_is_unmounted_or_mounted_again: libvirt = Libvirt);
fn a_host_whose_guardian_is_killed_as_well_is_unmounted_or_mounted_again(flavor: Flavor) {
    let libvirtd = libvirtd(flavor);
    let (machine, idle) = (machine(flavor, &libvirtd), machine(flavor, &libvirtd));
    let mut host = Host::of(&libvirtd, "");
    for again in [true, false] {
        let guardian = host.children();
        assert_eq!(guardian.len(), 1);
        fs::read_dir(host.dir(&machine)).expect("a mount");
        let children = host.children();
        kill_at_once(&[guardian[0], host.daemon.pid()]);
        // All of its threads, of which each keeps its files open.
        host.daemon.wait(LIMIT);
        wait_until("the guardian's end", LIMIT, || has_ended(guardian[0]));
        // The kernel tells the first one who comes; afterwards there is nothing to be seen.
        assert!(ls(&host.dir(&idle)).code != Some(0));
        wait_until("the end of all processes", LIMIT, || children.iter().all(|pid| has_ended(*pid)));
        assert!(host.is_there() && !is_mounted(&host.dir(&machine)), "the automounter stays, with nobody behind it");
        assert_eq!(ls(&host.dir(&machine).join("current")).code, Some(2));
        let told = host.command(&["status"], "").success();
        assert!(told.contains("its daemon has died: pullfs umount"), "{told}");
        if again {
            host.daemon = Host::start(host.dir.path(), &libvirtd.uri(), "");
            wait_until("a mount that knows its domains", LIMIT, || {
                host.daemon.check();
                host.is_there() && fs::read_dir(host.dir(&machine)).is_ok_and(|mut entries| entries.next().is_some())
            });
            host.command(&["umount"], machine.domain().name()).success();
        } else {
            host.command(&["umount"], "").success();
            assert!(!host.is_there() && host.names().is_empty());
        }
    }
    assert!(!has_backup(&machine));
}

on!(a_domain_whose_process_is_killed_is_mounted_by_the_next_look: libvirt = Libvirt, libvirt_old = LibvirtOld);
fn a_domain_whose_process_is_killed_is_mounted_by_the_next_look(flavor: Flavor) {
    let libvirtd = libvirtd(flavor);
    let machine = machine(flavor, &libvirtd);
    let host = Host::of(&libvirtd, "");
    drop(File::open(host.disk(&machine)).expect("a disk"));
    let pid = host.told(&machine)["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).expect("a process");
    signal_pid(pid, Signal::KILL);
    host.comes_to(&machine, "failed");
    assert_eq!(host.told(&machine)["reason"], "its daemon was ended by signal 9");
    let right = machine.copy("vda", "right");
    oracle::same(&host.disk(&machine), &right);
    assert_eq!(host.starts(), 2);
    // Somebody unmounts one of them by hand.
    host.command(&["umount"], machine.domain().name()).success();
    host.comes_to(&machine, "idle");
    assert!(!has_backup(&machine));
    oracle::same(&host.disk(&machine), &right);
}
