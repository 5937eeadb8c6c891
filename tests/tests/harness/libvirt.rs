//! libvirt as the tests have it: it is the real one, and nothing of it is left.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::guest::Guest;
use pullfs_tests::leftovers::Leftovers;
use pullfs_tests::libvirt::{Account, Libvirtd, Version, node};
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::process::{has_ended, ok, run};
use pullfs_tests::qmp::Qmp;
use pullfs_tests::tools::tool;
use pullfs_tests::{oracle, snapshot};
use rustix::process::Signal;
use tempfile::TempDir;

const FLAVORS: [(Flavor, &str); 2] = [(Flavor::Libvirt, "11."), (Flavor::LibvirtOld, "9.")];

/// A libvirtd, and its only domain.
fn alone(flavor: Flavor, account: Account) -> (Arc<Libvirtd>, Machine) {
    let libvirtd = Arc::new(Libvirtd::start_as(flavor.libvirt().expect("a libvirt"), account));
    let machine = Machine::build(flavor)
        .on(&libvirtd)
        .disk(Disk::qcow2("vda", 4 * MIB).filled(&[(0, 2 * MIB)]))
        .disk(Disk::raw("vdb", 4 * MIB + 512).filled(&[(MIB, MIB)]))
        .start();
    (libvirtd, machine)
}

/// A directory whose files libvirt's account may open.
fn open_dir() -> TempDir {
    let dir = tempfile::Builder::new().prefix("pullfs-test-").tempdir().expect("a temporary directory");
    chown(dir.path(), Some(Account::UID), Some(Account::UID)).expect("its owner");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("modes");
    dir
}

/// Both versions and several at once, and virsh of either version speaks with them.
#[test]
fn a_domain_is_listed() {
    for (flavor, version) in FLAVORS {
        if !flavor.available() {
            continue;
        }
        let (libvirtd, machine) = alone(flavor, Account::Root);
        let (_, other) = alone(flavor, Account::Root);
        let name = machine.domain().name();
        assert_ne!(name, other.domain().name());
        for client in [Version::Old, Version::New] {
            let virsh = || {
                let mut virsh = client.virsh();
                virsh.args(["-q", "-c", &libvirtd.uri()]);
                virsh
            };
            assert_eq!(ok(virsh().args(["list", "--name"])).trim(), name, "its own, and no other");
            let said = ok(virsh().args(["version", "--daemon"]));
            assert!(said.contains(&format!("Running against daemon: {version}")), "{said}");
        }
        let qemu = machine.domain().virsh("qemu-monitor-command", &[r#"{"execute":"query-version"}"#]).success();
        assert_eq!(qemu.contains(r#""major":7"#), flavor.is_old(), "{qemu}");
        let status = fs::read_to_string(format!("/proc/{}/status", other.domain().libvirtd().pid())).expect("libvirtd");
        assert!(status.starts_with("Name:\tlibvirtd\n"), "{status}");
    }
}

/// What a domain can have beside disks.
#[test]
fn a_domain_has_further_devices() {
    for (flavor, _) in FLAVORS {
        if !flavor.available() {
            continue;
        }
        let images = open_dir();
        let mut transient = Disk::qcow2("vdc", MIB).filled(&[(0, 65536)]);
        transient.create_in(images.path());
        let machine = Machine::build(flavor)
            .disk(Disk::qcow2("vda", MIB))
            .devices("<disk type='file' device='cdrom'><target dev='hda' bus='ide'/><readonly/></disk>")
            .devices(&format!(
                "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{}'/>\
                 <target dev='vdc' bus='virtio'/><transient/></disk>",
                transient.image().display()
            ))
            .start();
        let listed = machine.domain().virsh("domblklist", &[]).success();
        let targets: Vec<&str> = listed.lines().filter_map(|line| line.split_whitespace().next()).collect();
        assert_eq!(targets, ["vda", "vdc", "hda"], "{listed}");
    }
}

/// libvirt's own pull backup, of all that its QEMU must be able to open, is the disk as it was.
#[test]
fn a_pull_backup_is_the_disk() {
    for (flavor, _) in FLAVORS {
        for account in [Account::Root, Account::LibvirtQemu] {
            if flavor.available() {
                pull(flavor, account);
            }
        }
    }
}

fn pull(flavor: Flavor, account: Account) {
    let (_libvirtd, machine) = alone(flavor, account);
    let uid = fs::metadata(format!("/proc/{}", qemu(&machine))).expect("QEMU").uid();
    assert_eq!(uid, if account == Account::Root { 0 } else { Account::UID });
    machine.add_bitmap("vda", "monday", 65536);
    machine.write("vda", MIB, 65536, 0x21);
    let before = ["vda", "vdb"].map(|id| machine.copy(id, &format!("{id}.before")));
    let nothing = Leftovers::of(&machine);
    let dir = open_dir();
    let file = |name: &str| dir.path().join(name).display().to_string();
    let description = format!(
        "<domainbackup mode='pull'><incremental>monday</incremental><server transport='unix' socket='{}'/><disks>\
         <disk name='vda' backup='yes' type='file' exportbitmap='since'><scratch file='{}'/></disk>\
         <disk name='vdb' backup='yes' type='file' backupmode='full'><scratch file='{}'/></disk></disks></domainbackup>",
        file("nbd"),
        file("vda.scratch"),
        file("vdb.scratch")
    );
    fs::write(file("backup.xml"), description).expect("a backup's description");
    machine.domain().virsh("backup-begin", &[&file("backup.xml")]).success();
    for (id, before) in ["vda", "vdb"].iter().zip(&before) {
        machine.write(id, 0, 65536, 0x31);
        let (uri, copy) = (format!("nbd+unix:///{id}?socket={}", file("nbd")), dir.path().join(id));
        ok(tool("nbdcopy").arg(&uri).arg(&copy));
        oracle::same(&copy, before);
        oracle::same_image(&copy, before);
        assert!(run(tool("cmp").arg(&copy).arg(machine.copy(id, "after"))).code == Some(1), "the guest wrote");
    }
    let map =
        ok(tool("nbdinfo").args(["--map=qemu:dirty-bitmap:since", &format!("nbd+unix:///vda?socket={}", file("nbd"))]));
    assert_eq!(oracle::read_map(&map, |kind| kind & 1 == 1), [(MIB, 65536)]);
    machine.domain().virsh("domjobabort", &[]).success();
    nothing.come_back(&machine, Duration::from_secs(10));
    assert!(!Path::new(&file("nbd")).exists() && !Path::new(&file("vda.scratch")).exists(), "libvirt's files");
}

/// The process id of a domain's QEMU.
fn qemu(machine: &Machine) -> u32 {
    machine.qmp().peer().expect("QEMU")
}

/// Whether it is killed or stopped, the guest does not notice, and libvirt finds everything again.
#[test]
fn a_domain_outlives_its_libvirtd() {
    for (flavor, _) in FLAVORS {
        if !flavor.available() {
            continue;
        }
        let (libvirtd, machine) = alone(flavor, Account::Root);
        machine.add_bitmap("vda", "monday", 65536);
        let running = qemu(&machine);
        for end in [Libvirtd::kill, Libvirtd::stop] {
            let before = libvirtd.pid();
            end(&libvirtd);
            assert!(has_ended(before) && libvirtd.virsh(&["list"]).code != Some(0), "it is gone");
            machine.write("vda", 2 * MIB, 512, 0x41);
            libvirtd.start_again();
            assert_ne!(libvirtd.pid(), before);
            assert!(machine.domain().is_running());
            assert_eq!(machine.domain().virsh("checkpoint-list", &["--name"]).success().trim(), "monday");
            assert!(qemu(&machine) == running && !has_ended(running), "the same QEMU");
        }
    }
}

/// A domain that ended is started again, as its last snapshot left it, and one that was killed is not mistaken for one that
/// runs.
#[test]
fn libvirt_sees_a_domains_end() {
    for (flavor, _) in FLAVORS {
        if !flavor.available() {
            continue;
        }
        let (_libvirtd, mut machine) = alone(flavor, Account::Root);
        let first = machine.server().pid();
        let other = (machine.node("vdb"), machine.image("vdb").to_owned());
        snapshot::external(&mut machine, &["vda"], "s1", 65536);
        assert!(machine.image("vda").ends_with("vda-s1.qcow2"));
        assert_eq!(node(&mut machine.qmp(), "vdb"), other.0, "no snapshot of this one");
        assert_eq!(machine.image("vdb"), other.1);
        machine.write("vda", 0, 512, 0x50);
        let copy = machine.copy("vda", "before");
        machine.kill();
        assert!(has_ended(first));
        machine.restart();
        assert_ne!(machine.server().pid(), first);
        oracle::same(&machine.copy("vda", "after"), &copy);
        machine.quit();
        machine.restart();
        assert!(machine.domain().is_running());
    }
}

#[test]
fn libvirt_reaches_the_guests_agent() {
    for (flavor, _) in FLAVORS {
        if !flavor.available() {
            continue;
        }
        let guest = Guest::boot_with_agent(flavor);
        let domain = guest.machine().domain();
        domain.virsh("domfsfreeze", &[]).success();
        assert_eq!(guest.ask_agent("guest-fsfreeze-status"), "frozen");
        let seen = guest.counter();
        thread::sleep(Duration::from_secs(1));
        assert!(guest.counter() <= seen + 1, "a frozen guest writes nothing");
        domain.virsh("domfsthaw", &[]).success();
        assert_eq!(guest.ask_agent("guest-fsfreeze-status"), "thawed");
        guest.wait_past(seen + 1);
    }
}

/// Processes, mounts and files go with the value: a QEMU that does not listen, one that nobody has, and libvirtd itself.
#[test]
fn nothing_of_libvirt_is_left() {
    for (flavor, _) in FLAVORS {
        if !flavor.available() {
            continue;
        }
        let libvirtd = Arc::new(Libvirtd::start_as(flavor.libvirt().expect("a libvirt"), Account::LibvirtQemu));
        let mut machine = Machine::build(flavor).on(&libvirtd).start();
        let dirs = [libvirtd.path("."), machine.dir().to_owned()].map(|dir| dir.components().collect::<PathBuf>());
        let seen = || {
            let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
            let points: Vec<PathBuf> =
                mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from).collect();
            points.into_iter().filter(|point| dirs.iter().any(|dir| point.starts_with(dir))).collect::<Vec<_>>()
        };
        assert_eq!(
            seen(),
            [dirs[0].join("mounts")],
            "the one that goes on into its namespaces, and none of those in them"
        );
        let description = fs::read_to_string(machine.dir().join("domain.xml")).expect("the domain's description");
        let name = format!("<name>{}</name>", machine.domain().name());
        assert!(description.contains(&name) && description.contains("ctl.qmp"), "{description}");
        let orphan = machine.dir().join("orphan.xml");
        let description = description.replace(&name, "<name>orphan</name>").replace("ctl.qmp", "orphan.qmp");
        fs::write(&orphan, description).expect("a description");
        libvirtd.virsh(&["create", &orphan.display().to_string()]).success();
        let qmp = Qmp::connect(&machine.dir().join("orphan.qmp"), Duration::from_secs(5)).expect("a monitor");
        let pids = [libvirtd.pid(), machine.server().pid(), qmp.peer().expect("QEMU")];
        drop(qmp);
        machine.server().signal(Signal::STOP);
        drop(machine);
        assert!(!has_ended(pids[0]) && has_ended(pids[1]) && !has_ended(pids[2]), "{pids:?}");
        drop(libvirtd);
        assert!(pids.iter().all(|&pid| has_ended(pid)), "{pids:?}");
        assert!(dirs.iter().all(|dir| !dir.exists()), "{dirs:?}");
        assert!(seen().is_empty(), "{:?}", seen());
    }
}
