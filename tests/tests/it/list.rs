//! `pullfs list`: the machines of libvirt that can be mounted.

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::libvirt::Libvirtd;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::Mount;
use pullfs_tests::process::{Finished, has_ended, run, signal_pid, wait_until};
use pullfs_tests::tools::pullfs;
use rustix::process::Signal;
use serde_json::{Value, json};

/// For libvirt to see what a machine does.
const LIMIT: Duration = Duration::from_secs(30);

fn list(libvirtd: &Libvirtd, arguments: &[&str]) -> Finished {
    let mut command = Command::new(pullfs());
    command.args(["list", "-o", &format!("uri={}", libvirtd.uri())]).args(arguments);
    run(command.env("PULLFS_CONFIG", "/dev/null"))
}

fn listed(libvirtd: &Libvirtd) -> Vec<Value> {
    let told = list(libvirtd, &["--json"]).success();
    serde_json::from_str(&told).unwrap_or_else(|error| panic!("{error}: {told}"))
}

on!(running_domains_are_listed: libvirt = Libvirt, libvirt_old = LibvirtOld);
fn running_domains_are_listed(flavor: Flavor) {
    let libvirtd = Arc::new(Libvirtd::start(flavor.libvirt().expect("a libvirt")));
    assert_eq!((list(&libvirtd, &[]).success(), listed(&libvirtd).len()), (String::new(), 0));

    let empty = "<disk type='file' device='cdrom'><target dev='sda'/><readonly/></disk>";
    let machine = || Machine::build(flavor).on(&libvirtd);
    let one = machine().disk(Disk::qcow2("vda", 8 * MIB)).disk(Disk::raw("vdb", MIB)).devices(empty).start();
    let mut other = machine().disk(Disk::raw("vda", 2 * MIB)).start();
    one.domain()
        .virsh("checkpoint-create-as", &["monday", "--diskspec", "vda", "--diskspec", "vdb,checkpoint=no"])
        .success();
    let mount = Mount::of(&one);
    let find = |name: &str| listed(&libvirtd).into_iter().find(|domain| domain["name"] == name);

    let name = one.domain().name();
    let uuid = one.domain().virsh("domuuid", &[]).success();
    let told = json!({
        "source": one.source(), "name": name, "uuid": uuid.trim(), "checkpoints": 1, "backup": false,
        "disks": [{ "name": "vda", "size": 8 * MIB }, { "name": "vdb", "size": MIB }], "mounts": [mount.mnt()],
    });
    assert_eq!(find(name), Some(told));
    let text = list(&libvirtd, &[]).success();
    let line = text.lines().find(|line| line.starts_with(&one.source())).expect("its line");
    let place = format!("on {}", mount.mnt().display());
    assert!(line.contains("2 disks, 9.0 MiB") && line.contains("1 checkpoint ") && line.ends_with(&place), "{text}");

    mount.command(&["begin"]).success();
    assert_eq!(find(name).expect("it runs")["backup"], true);
    mount.command(&["release"]).success();

    // A machine whose QEMU hangs holds nobody up.
    let hanging = other.domain().name().to_owned();
    let pid = other.server().pid();
    signal_pid(pid, Signal::STOP);
    let begun = Instant::now();
    let told = find(&hanging).expect("it is listed");
    let took = begun.elapsed();
    signal_pid(pid, Signal::CONT);
    assert_eq!((&told["disks"], &told["mounts"]), (&Value::Null, &json!([])));
    assert!(took < Duration::from_secs(10), "{took:?}");
    wait_until("an answer of all", LIMIT, || find(&hanging).is_some_and(|told| told["disks"][0]["size"] == 2 * MIB));

    other.domain().virsh("destroy", &[]).success();
    assert!(has_ended(pid) && find(&hanging).is_none(), "a domain that does not run cannot be mounted");
}

on!(a_libvirt_that_does_not_answer_is_said: libvirt = Libvirt);
fn a_libvirt_that_does_not_answer_is_said(flavor: Flavor) {
    let libvirtd = Libvirtd::start(flavor.libvirt().expect("a libvirt"));
    assert!(listed(&libvirtd).is_empty());
    let pid = libvirtd.pid();
    signal_pid(pid, Signal::STOP);
    let begun = Instant::now();
    let told = list(&libvirtd, &[]);
    let took = begun.elapsed();
    signal_pid(pid, Signal::CONT);
    assert!(took < LIMIT && told.code == Some(2), "{took:?} {told:?}");
    assert!(told.stderr.contains("cannot list the domains of libvirt at qemu+unix:"), "{told:?}");
}
