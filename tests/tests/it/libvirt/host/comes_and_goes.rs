//! Domains that start and stop, mounts that nobody uses any more, and a libvirtd that is away.

use std::fs::{self, File};
use std::thread;
use std::time::Duration;

use pullfs_tests::flavor::Flavor;
use pullfs_tests::mount::is_mounted;
use pullfs_tests::oracle;
use pullfs_tests::process::{has_ended, wait_until};

use super::super::has_backup;
use super::{Host, LIMIT, libvirtd, machine};

on!(what_nobody_uses_is_unmounted: libvirt = Libvirt, libvirt_old = LibvirtOld);
fn what_nobody_uses_is_unmounted(flavor: Flavor) {
    const EXPIRE: Duration = Duration::from_secs(1);
    let libvirtd = libvirtd(flavor);
    let machine = machine(flavor, &libvirtd);
    let host = Host::of(&libvirtd, ",expire=1s");
    let dir = host.dir(&machine);
    let stays = || {
        thread::sleep(5 * EXPIRE);
        assert_eq!((host.starts(), host.children().len()), (1, 2), "{}", host.told(&machine));
    };
    let open = File::open(dir.join("status.json")).expect("a file");
    stays();
    // A point in time that somebody began is used, whether a file is open or not.
    host.command(&["begin"], machine.domain().name()).success();
    drop(open);
    stays();
    host.command(&["release"], machine.domain().name()).success();
    wait_until("an unused mount's end", LIMIT, || host.children().len() == 1);
    assert!(host.told(&machine)["state"] == "idle" && !has_backup(&machine), "{}", host.told(&machine));
    assert_eq!(host.names(), [machine.domain().name()], "it can be looked into");
    let right = machine.copy("vda", "right");
    oracle::same(&host.disk(&machine), &right);
    assert_eq!(host.starts(), 2);
}

on!(directories_are_the_domains_that_run: libvirt = Libvirt, libvirt_old = LibvirtOld);
fn directories_are_the_domains_that_run(flavor: Flavor) {
    let libvirtd = libvirtd(flavor);
    let (one, mut other) = (machine(flavor, &libvirtd), machine(flavor, &libvirtd));
    let host = Host::of(&libvirtd, "");
    let mut file = File::open(host.disk(&other)).expect("a disk");
    assert!(is_mounted(&host.dir(&other)) && host.names().len() == 2);
    // It is in use, and goes all the same.
    other.domain().virsh("destroy", &[]).success();
    wait_until("one directory", LIMIT, || host.names() == [one.domain().name()]);
    std::io::copy(&mut file, &mut std::io::sink()).expect_err("its machine is gone");
    wait_until("the end of its process", LIMIT, || host.children().len() == 1);
    drop(file);
    other.restart();
    wait_until("two directories", LIMIT, || host.names().len() == 2);
    let right = other.copy("vda", "right");
    oracle::same(&host.disk(&other), &right);
    let third = machine(flavor, &libvirtd);
    wait_until("three directories", LIMIT, || host.names().len() == 3);
    assert!(fs::read_dir(host.dir(&third)).is_ok());
}

on!(a_libvirtd_that_is_away_changes_nothing: libvirt = Libvirt, libvirt_old = LibvirtOld);
fn a_libvirtd_that_is_away_changes_nothing(flavor: Flavor) {
    let libvirtd = libvirtd(flavor);
    let (one, idle) = (machine(flavor, &libvirtd), machine(flavor, &libvirtd));
    let host = Host::of(&libvirtd, "");
    let right = one.copy("vda", "right");
    oracle::same(&host.disk(&one), &right);
    libvirtd.kill();
    wait_until("the news", LIMIT, || host.status()["unreachable"].is_string());
    assert_eq!(host.names().len(), 2, "they run on");
    fs::read_dir(host.dir(&idle)).expect_err("it cannot be mounted now");
    assert_eq!(host.told(&one)["state"], "mounted");
    libvirtd.start_again();
    wait_until("libvirt's answer", LIMIT, || host.status()["unreachable"].is_null());
    oracle::same(&host.disk(&one), &right);
    let right = idle.copy("vda", "right");
    oracle::same(&host.disk(&idle), &right);
    let another = machine(flavor, &libvirtd);
    wait_until("another directory", LIMIT, || host.names().len() == 3);
    another.domain().virsh("destroy", &[]).success();
    wait_until("its end", LIMIT, || host.names().len() == 2);
}

on!(unmounting_takes_the_domains_first_and_waits_for_them: libvirt = Libvirt, libvirt_old = LibvirtOld);
fn unmounting_takes_the_domains_first_and_waits_for_them(flavor: Flavor) {
    let libvirtd = libvirtd(flavor);
    let machine = machine(flavor, &libvirtd);
    let mut host = Host::of(&libvirtd, "");
    let file = File::open(host.disk(&machine)).expect("a disk");
    let children = host.children();
    let refused = host.command(&["umount"], "").refused(4);
    assert!(refused.contains(machine.domain().name()), "{refused}");
    assert!(host.is_there() && is_mounted(&host.dir(&machine)));
    drop(file);
    // A program that another test starts has, until it runs, copies of this process' descriptors.
    wait_until("unmounting", LIMIT, || host.command(&["umount"], "").code == Some(0));
    assert!(children.iter().all(|pid| has_ended(*pid)), "it waited for them");
    assert!(!host.is_there() && host.names().is_empty() && !has_backup(&machine));
    assert!(host.daemon.wait(LIMIT).success());
}
