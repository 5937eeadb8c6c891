//! What the mount shows and the sockets behind it are for the mounting user alone, unless the options say otherwise.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::Mount;
use pullfs_tests::process::{ok, run};
use pullfs_tests::tools::tool;
use pullfs_tests::user::{self, User, as_nobody, open_to_all};

fn machine(flavor: Flavor) -> Machine {
    Machine::build(flavor).disk(Disk::qcow2("vda", 8 * MIB).filled(&[(0, MIB)])).start()
}

/// Whether `nobody` can read a file.
fn nobody_reads(path: &Path) -> bool {
    run(as_nobody().args(["head", "-c1"]).arg(path)).code == Some(0)
}

/// The same in a group of root's.
fn group_reads(path: &Path, group: u32) -> bool {
    let mut command = tool("setpriv");
    command.args(["--reuid=nobody", &format!("--regid={group}"), "--clear-groups", "head", "-c1"]);
    run(command.arg(path)).code == Some(0)
}

/// A mount in a directory that everybody may look into.
fn mount(machine: &Machine, options: &str) -> Mount {
    let mount = Mount::with(machine, options);
    open_to_all(&mount.beside("."));
    mount
}

#[test]
fn files_are_for_the_mounting_user_alone() {
    if !Flavor::New.available() {
        return;
    }
    let machine = machine(Flavor::New);
    let other = mount(&machine, "");
    for (path, mode) in [
        ("status.json", 0o400),
        ("control", 0o200),
        ("current", 0o500),
        ("current/vda/disk.raw", 0o400),
        ("current/vda/disk.qcow2", 0o400),
        ("current/vda/allocated.map", 0o400),
        ("checkpoints", 0o700),
    ] {
        let metadata = fs::metadata(other.path(path)).expect(path);
        assert_eq!((metadata.uid(), metadata.mode() & 0o7777), (0, mode), "{path}");
        assert!(!nobody_reads(&other.path(path)), "{path}");
    }
    assert!(run(as_nobody().args(["ls"]).arg(other.mnt())).code != Some(0), "the mount point itself");
    assert_eq!(other.state(), "none", "who is refused takes no point in time");
    assert!(other.unmount().success());
}

#[test]
fn allow_other_lets_in_whom_the_modes_do() {
    if !Flavor::New.available() {
        return;
    }
    let machine = machine(Flavor::New);
    let disk = "current/vda/disk.raw";
    for (options, group, others) in [
        ("allow_other", false, false),
        ("allow_other,umask=027,gid=4242", true, false),
        ("allow_other,umask=022,gid=4242", true, true),
        // Nobody is let in by a mode without allow_other.
        ("umask=022,gid=4242", false, false),
    ] {
        let mount = mount(&machine, options);
        assert_eq!(nobody_reads(&mount.path(disk)), others, "{options}");
        assert_eq!(group_reads(&mount.path(disk), 4242), group, "{options}");
        // Writing starts, ends and deletes things: never by a mode for reading.
        let write = run(as_nobody().args(["sh", "-c", "echo release >\"$0\""]).arg(mount.path("control")));
        assert_ne!(write.code, Some(0), "{options}");
        let mkdir = run(as_nobody().arg("mkdir").arg(mount.path("checkpoints/theirs")));
        assert_ne!(mkdir.code, Some(0), "{options}");
        assert!(mount.unmount().success());
    }
    let owned = mount(&machine, &format!("allow_other,uid={}", user::UID));
    assert!(nobody_reads(&owned.path(disk)), "the owner, whoever mounted");
    assert!(owned.unmount().success());
}

on!(nobody_else_connects_to_the_nbd_server: new = New, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn nobody_else_connects_to_the_nbd_server(flavor: Flavor) {
    let machine = machine(flavor);
    let mount = mount(&machine, "");
    mount.command(&["begin"]).success();
    let runtime = Path::new("/run/pullfs").join(mount.id());
    let scratch = mount.scratch().join(format!("{}.libvirt", mount.id()));
    let dir = if flavor.libvirt().is_some() { &scratch } else { &runtime };
    for dir in [dir, &runtime, Path::new("/run/pullfs")] {
        assert_eq!(fs::metadata(dir).expect("a directory").mode() & 0o777, 0o700, "{}", dir.display());
    }
    let socket = dir.join("nbd.sock");
    // Even past the directory, which a descriptor of it that was handed on would be. libvirt makes it QEMU's group's.
    let forbidden = if flavor.libvirt().is_some() { 0o002 } else { 0o077 };
    assert_eq!(fs::metadata(&socket).expect("the socket").mode() & forbidden, 0);
    let list = format!("nbd+unix://?socket={}", socket.display());
    ok(tool("nbdinfo").args(["--list", &list]));
    let refused = run(as_nobody().args(["nbdinfo", "--list", &list]));
    assert!(refused.code != Some(0) && refused.stderr.contains("Permission denied"), "{refused}");
    assert!(mount.unmount().success());
}

#[test]
fn a_runtime_directory_that_others_can_change_is_refused() {
    if !Flavor::New.available() {
        return;
    }
    let machine = machine(Flavor::New);
    let user = User::new();
    user::admit(&machine);
    let base = user.path("run/pullfs");
    let own = user.path("scratch/pullfs");
    fs::create_dir(&own).expect("a directory");
    user::own(&own);
    let refused = |what: &str| {
        let line = user.mount(&machine.source(), "").refused(32);
        assert!(line.contains("sockets are not safe there"), "{what}: {line}");
        assert!(line.contains(base.to_str().expect("UTF-8")), "{what}: {line}");
    };

    fs::create_dir(&base).expect("a directory");
    refused("somebody else's");
    fs::remove_dir(&base).expect("it is empty");
    symlink(&own, &base).expect("a link");
    refused("a link, even to a directory of the user");
    fs::remove_file(&base).expect("the link");
    fs::create_dir(&base).expect("a directory");
    user::own(&base);
    fs::set_permissions(&base, Permissions::from_mode(0o777)).expect("modes");
    refused("one that everybody may write");
    fs::set_permissions(&base, Permissions::from_mode(0o700)).expect("modes");
    user.mount(&machine.source(), "").success();
    ok(user.pullfs().arg("umount").arg(user.path("mnt")));
}
