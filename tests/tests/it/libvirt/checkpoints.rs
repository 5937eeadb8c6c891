//! Checkpoints are libvirt's own: others see ours, and we see theirs.

use std::fs;
use std::path::Path;

use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::Mount;
use pullfs_tests::oracle::{self, Extent};
use pullfs_tests::process::{ok, wait_until};
use pullfs_tests::tools::tool;
use rustix::io::Errno;

use super::{LIMIT, builder, errno, last_error, nothing_is_left};

pub(super) const CLUSTER: u64 = 65536;

pub(super) fn made(mount: &Mount, name: &str) -> Result<(), Errno> {
    fs::create_dir(mount.path("checkpoints").join(name)).map_err(|error| errno(&error))
}

fn removed(mount: &Mount, name: &str) -> Result<(), Errno> {
    fs::remove_dir(mount.path("checkpoints").join(name)).map_err(|error| errno(&error))
}

/// virsh's tree, without its lines.
pub(super) fn tree(machine: &Machine) -> Vec<String> {
    let tree = machine.domain().virsh("checkpoint-list", &["--tree"]).success();
    let names = tree.lines().map(|line| line.trim_matches([' ', '|', '+', '-']).to_owned());
    names.filter(|name| !name.is_empty()).collect()
}

pub(super) fn shown(mount: &Mount) -> Vec<String> {
    ok(tool("ls").arg(mount.path("checkpoints"))).lines().map(str::to_owned).collect()
}

pub(super) fn dirty(mount: &Mount, checkpoint: &str) -> Vec<Extent> {
    let map = fs::read_to_string(mount.path(&format!("checkpoints/{checkpoint}/vda/dirty.map"))).expect("a map");
    oracle::read_map(&map, |_| true)
}

on!(ours_and_theirs_are_in_one_line: libvirt = Libvirt, libvirt_old = LibvirtOld);
fn ours_and_theirs_are_in_one_line(flavor: Flavor) {
    let machine = builder(flavor).start();
    let mount = Mount::of(&machine);
    assert_eq!(made(&mount, "monday"), Ok(()));
    mount.command(&["release"]).success();
    machine.write("vda", 0, CLUSTER, 0x31);
    machine.domain().virsh("checkpoint-create-as", &["theirs", "--diskspec", "vda,checkpoint=bitmap"]).success();
    machine.write("vda", MIB, CLUSTER, 0x32);
    wait_until("their checkpoint", LIMIT, || shown(&mount) == ["monday", "theirs"]);
    assert_eq!(made(&mount, "tuesday"), Ok(()));
    assert_eq!(tree(&machine), ["monday", "theirs", "tuesday"]);
    let parent = |name: &str| machine.domain().virsh("checkpoint-parent", &[name]).success().trim().to_owned();
    assert_eq!((parent("tuesday"), parent("theirs")), ("theirs".to_owned(), "monday".to_owned()));
    assert_eq!(
        (&mount.status_of_checkpoint("monday")["foreign"], &mount.status_of_checkpoint("theirs")["foreign"]),
        (&false.into(), &true.into())
    );
    let whole = &mount.status_of_checkpoint("monday")["disks"]["vdb"]["whole"];
    assert!(whole.is_string(), "libvirt makes none of raw disks, so all of them counts as changed: {whole}");
    mount.command(&["release"]).success();
    machine.write("vda", 2 * MIB, CLUSTER, 0x33);
    // Each as if it were alone.
    for (name, extents) in [
        ("theirs", vec![(MIB, CLUSTER), (2 * MIB, CLUSTER)]),
        ("monday", vec![(0, CLUSTER), (MIB, CLUSTER), (2 * MIB, CLUSTER)]),
        ("tuesday", vec![(2 * MIB, CLUSTER)]),
    ] {
        mount.command(&["begin", "--since", name]).success();
        assert_eq!(dirty(&mount, name), extents, "{name}");
        mount.command(&["release"]).success();
    }
    // What one deletes, the older one has.
    assert_eq!(removed(&mount, "theirs"), Err(Errno::PERM));
    let why = last_error(&mount);
    assert!(why.contains("foreign=rw"), "{why}");
    machine.domain().virsh("checkpoint-delete", &["tuesday"]).success();
    wait_until("ours to be gone", LIMIT, || shown(&mount) == ["monday", "theirs"]);
    assert!(mount.unmount().success());
    let mount = Mount::with(&machine, "foreign=rw");
    assert_eq!(removed(&mount, "theirs"), Ok(()));
    assert_eq!(tree(&machine), ["monday"]);
    assert_eq!(dirty(&mount, "monday"), [(0, CLUSTER), (MIB, CLUSTER), (2 * MIB, CLUSTER)]);
    mount.command(&["release"]).success();
    assert_eq!(removed(&mount, "monday"), Ok(()));
    assert!(tree(&machine).is_empty());
    nothing_is_left(&machine, &mount);
    assert!(mount.unmount().success());
}

on!(a_checkpoint_of_a_backup_by_virsh_is_read_rightly: libvirt = Libvirt, libvirt_old = LibvirtOld);
fn a_checkpoint_of_a_backup_by_virsh_is_read_rightly(flavor: Flavor) {
    let machine = builder(flavor).start();
    let write = |name: &str, text: String| {
        let path = machine.dir().join(name);
        fs::write(&path, text).expect("a description");
        path.display().to_string()
    };
    let dir = machine.dir().display();
    let backup = write(
        "backup.xml",
        format!(
            "<domainbackup mode='pull'><server transport='unix' socket='{dir}/theirs.nbd'/><disks>
               <disk name='vda' backup='yes' type='file'><scratch file='{dir}/theirs.qcow2'/></disk>
               <disk name='vdb' backup='no'/></disks></domainbackup>"
        ),
    );
    let checkpoint = "<domaincheckpoint><name>by-virsh</name><disks><disk name='vda' checkpoint='bitmap'/>\
                      <disk name='vdb' checkpoint='no'/></disks></domaincheckpoint>";
    let checkpoint = write("checkpoint.xml", checkpoint.to_owned());
    machine.domain().virsh("backup-begin", &[&backup, &checkpoint]).success();
    machine.write("vda", MIB, CLUSTER, 0x41);
    machine.domain().virsh("domjobabort", &[]).success();
    wait_until("the end of their backup", LIMIT, || !super::has_backup(&machine));
    machine.write("vda", 2 * MIB, CLUSTER, 0x42);
    let mount = Mount::of(&machine);
    assert_eq!(dirty(&mount, "by-virsh"), [(MIB, CLUSTER), (2 * MIB, CLUSTER)]);
    assert_eq!(mount.status_of_checkpoint("by-virsh")["foreign"], true);
    assert!(mount.unmount().success());
}

on!(a_machine_of_raw_disks_makes_no_checkpoints: libvirt = Libvirt, libvirt_old = LibvirtOld);
fn a_machine_of_raw_disks_makes_no_checkpoints(flavor: Flavor) {
    let machine = Machine::build(flavor).disk(Disk::raw("vda", 2 * MIB).filled(&[(0, MIB)])).start();
    let mount = Mount::of(&machine);
    assert!(made(&mount, "monday").is_err());
    let why = last_error(&mount);
    assert!(why.contains("qcow2 disks alone"), "{why}");
    let right = machine.copy("vda", "right");
    oracle::same(&mount.disk("vda"), &right);
    assert!(mount.unmount().success());
}

/// The libvirtd in words that virtnbdbackup takes for no other host's, which it would want a password for.
fn uri(machine: &Machine) -> String {
    machine.domain().libvirtd().uri().replacen("qemu+unix:", "qemu:", 1)
}

/// A run of virtnbdbackup, whose checkpoints are named by itself.
#[track_caller]
pub(super) fn virtnbdbackup(machine: &Machine, level: &str, dir: &Path) {
    let socket = machine.dir().join("virtnbd.sock");
    let mut command = tool("virtnbdbackup");
    command.args(["--noprogress", "-d", machine.domain().name(), "-l", level]);
    command.args(["-U", &uri(machine), "-S"]).arg(machine.dir()).arg("-f").arg(socket);
    ok(command.arg("-o").arg(dir));
}

/// The image of vda that virtnbdrestore makes of a directory.
#[track_caller]
pub(super) fn restored(machine: &Machine, dir: &Path) -> std::path::PathBuf {
    let target = dir.join("restored");
    let mut command = tool("virtnbdrestore");
    command.args(["--noprogress", "-a", "restore", "-U", &uri(machine), "-i"]).arg(dir);
    command.arg("--socketfile").arg(machine.dir().join("restore.sock")).arg("-o").arg(&target);
    ok(command.arg("-L").arg(dir.join("restore.log")));
    target.join("vda.qcow2")
}

fn copied(mount: &Mount, file: &str, name: &str) {
    ok(tool("cp").arg(mount.path(file)).arg(mount.beside(name)));
}

// It takes every checkpoint for its own that has its name in it, and refuses a domain that has others.
on!(virtnbdbackup_and_pullfs_take_turns: libvirt = Libvirt, libvirt_old = LibvirtOld);
fn virtnbdbackup_and_pullfs_take_turns(flavor: Flavor) {
    let machine = Machine::build(flavor).disk(Disk::qcow2("vda", 8 * MIB).filled(&[(0, 3 * MIB)])).start();
    let mount = Mount::of(&machine);
    let theirs = mount.beside("theirs");
    let (monday, tuesday) = ("pull-virtnbdbackup-monday", "pull-virtnbdbackup-tuesday");

    virtnbdbackup(&machine, "full", &theirs);
    machine.write("vda", 0, CLUSTER, 0x51);
    assert_eq!(made(&mount, monday), Ok(()));
    copied(&mount, "current/vda/disk.qcow2", "vda.monday.qcow2");
    mount.command(&["release"]).success();
    machine.write("vda", MIB, CLUSTER, 0x52);
    virtnbdbackup(&machine, "inc", &theirs);
    let right_theirs = machine.copy("vda", "theirs.raw");
    machine.write("vda", 4 * MIB, 2 * CLUSTER, 0x53);
    assert_eq!(made(&mount, tuesday), Ok(()));
    mount.command(&["release"]).success();
    machine.write("vda", 6 * MIB, CLUSTER, 0x54);
    let right = machine.copy("vda", "right.raw");
    // The increment from Monday, over one checkpoint of theirs.
    copied(&mount, &format!("checkpoints/{monday}/vda/delta.qcow2"), "delta.qcow2");
    assert_eq!(dirty(&mount, monday), [(MIB, CLUSTER), (4 * MIB, 2 * CLUSTER), (6 * MIB, CLUSTER)]);
    mount.command(&["release"]).success();
    assert_eq!(tree(&machine), ["virtnbdbackup.0", monday, "virtnbdbackup.1", tuesday]);

    let delta = mount.beside("delta.qcow2");
    let base = mount.beside("vda.monday.qcow2");
    ok(tool("qemu-img").args(["rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b"]).arg(base).arg(&delta));
    let same = |image: &Path, raw: &Path| {
        ok(tool("qemu-img").args(["compare", "-q", "-f", "qcow2", "-F", "raw"]).arg(image).arg(raw));
    };
    same(&delta, &right);
    same(&restored(&machine, &theirs), &right_theirs);
    // And the other way round: theirs over ours, with what was written since.
    virtnbdbackup(&machine, "inc", &theirs);
    fs::remove_dir_all(theirs.join("restored")).expect("what was restored");
    same(&restored(&machine, &theirs), &right);
    nothing_is_left(&machine, &mount);
    assert!(mount.unmount().success());
}
