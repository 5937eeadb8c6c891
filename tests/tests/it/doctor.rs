//! `pullfs doctor` says of each thing that a mount would fail of what to do, in bounded time, and changes nothing.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::leftovers::Leftovers;
use pullfs_tests::libvirt::{Account, Libvirtd};
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::{Mount, MountPoint};
use pullfs_tests::process::{Finished, ok, run_within, signal_pid};
use pullfs_tests::qmp::Qmp;
use pullfs_tests::tmpfs::Tmpfs;
use pullfs_tests::tools::{pullfs, tool};
use rustix::process::Signal;
use serde_json::{Value, json};

/// The system or the machine failed.
const SYSTEM: i32 = 2;

/// Longer than any check may take, with a busy computer's part.
const LIMIT: Duration = Duration::from_secs(60);

/// What need not be as it should on a computer that runs tests, or in a machine without a guest.
const MAY_HINT: [&str; 4] = ["mount-helper", "landlock", "kernel", "agent"];

fn machine(flavor: Flavor) -> Machine {
    Machine::build(flavor).disk(Disk::qcow2("vda", MIB).filled(&[(0, 65536)])).start()
}

#[track_caller]
fn doctor(source: &str, options: &str, further: &[&str]) -> Finished {
    let mut command = Command::new(pullfs());
    command.args(["doctor", source, "-o", options]).args(further).env("PULLFS_CONFIG", "/dev/null");
    run_within(&mut command, LIMIT)
}

/// The findings of a check that must be wrong, and of nothing else that may be: their words.
#[track_caller]
fn wrong(source: &str, options: &str, check: &str) -> String {
    let finished = doctor(source, options, &["--json"]);
    assert_eq!(finished.code, Some(SYSTEM), "{finished}");
    assert_eq!(finished.stderr.lines().count(), 1, "{finished}");
    let report: Value = serde_json::from_str(&finished.stdout).expect("JSON");
    assert_eq!(report["state"], "wrong");
    let findings = report["findings"].as_array().expect("findings");
    let wrong: Vec<&Value> = findings.iter().filter(|finding| finding["state"] == "wrong").collect();
    assert!(wrong.iter().all(|finding| finding["check"] == check && finding["do"].is_string()), "{finished}");
    assert!(!wrong.is_empty(), "{finished}");
    let words: Vec<String> = wrong.iter().map(|finding| format!("{}; {}", finding["what"], finding["do"])).collect();
    words.join("\n")
}

#[track_caller]
fn says(words: &str, all: &[&str]) {
    for word in all {
        assert!(words.contains(word), "no {word:?} in {words:?}");
    }
}

/// A machine's own options, with its scratch files in a directory.
fn options(machine: &Machine, scratch: &Path, more: &str) -> String {
    machine.options(&format!("scratch={}{more}", scratch.display()))
}

#[track_caller]
fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).expect("a directory").next().is_none()
}

on!(a_healthy_machine: new = New, old = Old, daemon = Daemon, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn a_healthy_machine(flavor: Flavor) {
    let machine = Machine::of_two_disks(flavor);
    let scratch = machine.dir().join("scratch");
    fs::create_dir(&scratch).expect("a directory");
    let nothing = Leftovers::of(&machine);
    let options = options(&machine, &scratch, "");
    let report: Value =
        serde_json::from_str(&doctor(&machine.source(), &options, &["--json"]).success()).expect("JSON");
    assert_eq!(report["source"], machine.source());
    for finding in report["findings"].as_array().expect("findings") {
        let may = MAY_HINT.iter().any(|check| finding["check"] == *check) && finding["state"] == "hint";
        assert!(finding["state"] == "ok" || may, "{finding}");
    }
    let text = doctor(&machine.source(), &options, &[]).success();
    says(&text, &["vda (qcow2, 8.0 MiB), vdb (", ", 4.0 MiB)", "checkpoints", flavor.fleece()]);
    assert!(!text.contains('\x1b'), "colours are for terminals");
    assert_eq!(Leftovers::of(&machine), nothing);
    assert!(is_empty(&scratch));
    let mount = Mount::of(&machine);
    mount.command(&["begin"]).success();
    assert!(mount.unmount().success());
}

on!(a_monitor_that_is_in_use: new = New, old = Old);
fn a_monitor_that_is_in_use(flavor: Flavor) {
    let machine = machine(flavor);
    let other = Qmp::connect(&machine.dir().join("pull.qmp"), Duration::from_secs(10)).expect("the socket is free");
    says(&wrong(&machine.source(), "", "socket"), &["pull.qmp", "one client", "for pullfs alone"]);
    drop(other);
    let mount = Mount::of(&machine);
    let mnt = mount.mnt().display().to_string();
    says(&wrong(&machine.source(), "", "socket"), &["pull.qmp", "pullfs umount", &mnt]);
    assert!(mount.unmount().success());
    doctor(&machine.source(), "", &[]).success();
}

#[test]
fn no_machine_and_no_sense() {
    says(&wrong("qmp:/nonexistent/vm.qmp", "", "socket"), &["/nonexistent/vm.qmp", "see that the machine runs"]);
    says(&wrong("qmp:/nonexistent/vm.qmp", "cache=much", "options"), &["cache=much", "pullfs config"]);
    let finished = doctor("vmware:x", "", &[]);
    assert_eq!(finished.code, Some(1), "{finished}");
}

on!(a_machine_that_hangs: new = New);
fn a_machine_that_hangs(flavor: Flavor) {
    let mut machine = machine(flavor);
    machine.server().signal(Signal::STOP);
    let words = wrong(&machine.source(), "", "socket");
    machine.server().signal(Signal::CONT);
    says(&words, &["QEMU hangs"]);
}

on!(an_unsafe_iothread: old = Old);
fn an_unsafe_iothread(flavor: Flavor) {
    let machine = Machine::build(flavor).disk(Disk::qcow2("vda", MIB)).iothread().start();
    let nothing = Leftovers::of(&machine);
    let point = MountPoint::new();
    says(&wrong(&machine.source(), &point.scratch(), "disks"), &["iothread", "QEMU 7.2", "8.2.3"]);
    assert_eq!(Leftovers::of(&machine), nothing);
}

on!(an_iothread_of_a_domain: libvirt_old = LibvirtOld);
fn an_iothread_of_a_domain(flavor: Flavor) {
    let machine = Machine::build(flavor).disk(Disk::qcow2("vda", MIB)).iothread().start();
    says(&wrong(&machine.source(), &machine.options(""), "disks"), &["iothread", "8.2.3", "machine type"]);
}

on!(others_in_the_machine: new = New, old = Old);
fn others_in_the_machine(flavor: Flavor) {
    let machine = machine(flavor);
    let (socket, node) = (machine.dir().join("other.nbd"), machine.node("vda"));
    machine.qmp().must("nbd-server-start", json!({"addr": {"type": "unix", "data": {"path": socket}}}));
    machine.qmp().must("block-export-add", json!({"type": "nbd", "id": "other", "node-name": node}));
    let taken = Leftovers::of(&machine);
    says(&wrong(&machine.source(), "", "others"), &["NBD server", "exports other", "nbd=unix:PATH"]);
    doctor(&machine.source(), &format!("nbd=unix:{}", socket.display()), &[]).success();
    assert_eq!(Leftovers::of(&machine), taken);
}

on!(scratch_that_is_of_no_use: new = New, libvirt = Libvirt);
fn scratch_that_is_of_no_use(flavor: Flavor) {
    let machine = machine(flavor);
    let missing = machine.dir().join("missing");
    says(&wrong(&machine.source(), &options(&machine, &missing, ""), "scratch"), &["missing", "scratch=DIR"]);
    let readonly = Tmpfs::new("8m");
    ok(tool("mount").args(["-o", "remount,ro"]).arg(readonly.path()));
    let place = readonly.path().display().to_string();
    says(&wrong(&machine.source(), &options(&machine, readonly.path(), ""), "scratch"), &[&place, "scratch=DIR"]);
    let small = Tmpfs::new("8m");
    let options = options(&machine, small.path(), ",scratch_limit=64K");
    says(&wrong(&machine.source(), &options, "scratch-space"), &["too little room", "scratch_limit="]);
    assert!(is_empty(small.path()));
}

on!(an_agent_that_does_not_answer: new = New);
fn an_agent_that_does_not_answer(flavor: Flavor) {
    let base = MountPoint::new();
    let socket = base.mnt().with_file_name("agent");
    let machine = Machine::build(flavor).disk(Disk::qcow2("vda", MIB)).agent(&socket).start();
    let words = wrong(&machine.source(), &format!("agent={}", socket.display()), "agent");
    says(&words, &["does not answer", "start qemu-guest-agent"]);
}

on!(a_domain_that_is_not_there: libvirt = Libvirt, libvirt_old = LibvirtOld);
fn a_domain_that_is_not_there(flavor: Flavor) {
    let mut machine = machine(flavor);
    let options = machine.options("");
    says(&wrong("libvirt:no-such-domain", &options, "domain"), &["no-such-domain", "list --all"]);
    let mount = Mount::of(&machine);
    mount.command(&["begin"]).success();
    let mnt = mount.mnt().display().to_string();
    says(&wrong(&machine.source(), &options, "others"), &["a mount of pullfs", "pullfs umount", &mnt]);
    assert!(mount.unmount().success());
    machine.kill();
    says(&wrong(&machine.source(), &options, "domain"), &["does not run", "virsh start"]);
    says(
        &wrong(&machine.source(), "uri=qemu+unix:///system?socket=/nonexistent", "libvirt"),
        &["/nonexistent", "uri="],
    );
}

on!(scratch_that_qemu_does_not_reach: libvirt = Libvirt);
fn scratch_that_qemu_does_not_reach(flavor: Flavor) {
    let version = flavor.libvirt().expect("a flavor of libvirt's");
    let libvirtd = Arc::new(Libvirtd::start_as(version, Account::LibvirtQemu));
    let machine = Machine::build(flavor).disk(Disk::qcow2("vda", MIB)).on(&libvirtd).start();
    let closed = tempfile::Builder::new().prefix("pullfs-doctor-").tempdir().expect("a temporary directory");
    let scratch = closed.path().join("scratch");
    fs::create_dir(&scratch).expect("a directory");
    let open = |mode| {
        for dir in [closed.path(), &scratch] {
            fs::set_permissions(dir, Permissions::from_mode(mode)).expect("modes");
        }
    };
    open(0o700);
    let options = options(&machine, &scratch, "");
    let place = closed.path().display().to_string();
    let words = wrong(&machine.source(), &options, "scratch-reach");
    says(&words, &["64055", &place, "setfacl -m u:64055:x"]);
    assert!(is_empty(&scratch));
    open(0o711);
    doctor(&machine.source(), &options, &[]).success();
    // It is so.
    let mount = Mount::source(&machine.source(), &options);
    mount.command(&["begin"]).success();
    assert!(mount.unmount().success());
}

on!(a_libvirtd_that_hangs: libvirt = Libvirt);
fn a_libvirtd_that_hangs(flavor: Flavor) {
    let libvirtd = Arc::new(Libvirtd::start(flavor.libvirt().expect("a flavor of libvirt's")));
    let machine = Machine::build(flavor).disk(Disk::qcow2("vda", MIB)).on(&libvirtd).start();
    let pid = libvirtd.pid();
    signal_pid(pid, Signal::STOP);
    let words = wrong(&machine.source(), &machine.options(""), "libvirt");
    signal_pid(pid, Signal::CONT);
    says(&words, &["no answer within", "restart it"]);
}
