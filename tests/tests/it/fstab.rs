//! mount(8), umount(8) and fstab, for real: pullfs is mounted as any other file system is, and looks like one.

use std::fs;
use std::path::PathBuf;

use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::leftovers::Leftovers;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::END_LIMIT;
use pullfs_tests::namespace::Namespace;
use pullfs_tests::process::run;

fn machine(flavor: Flavor) -> Machine {
    Machine::build(flavor)
        .disk(Disk::qcow2("vda", 8 * MIB).filled(&[(0, MIB)]))
        .disk(Disk::raw("vdb", 4 * MIB).filled(&[(0, MIB)]))
        .start()
}

/// A line of fstab.
fn line(machine: &Machine, namespace: &Namespace, options: &str) -> String {
    let (source, mnt) = (machine.source(), namespace.mnt());
    format!("{source} {} pullfs {options} 0 0\n", mnt.display())
}

/// What findmnt says of the mount.
fn shown(namespace: &Namespace, column: &str) -> String {
    let line = format!("findmnt --noheadings --output {column} --mountpoint {}", namespace.mnt().display());
    namespace.ok(&line).trim().to_owned()
}

on!(a_line_of_fstab_is_mounted_and_unmounted: new = New, old = Old);
fn a_line_of_fstab_is_mounted_and_unmounted(flavor: Flavor) {
    let machine = machine(flavor);
    let before = (Leftovers::of(&machine), machine.copy("vda", "before"));
    let namespace = Namespace::new();
    let (mnt, scratch) = (namespace.mnt(), namespace.path("a,b c"));
    fs::create_dir(&scratch).expect("a directory");
    let options = "noauto,_netdev,nofail,defaults,user,x-systemd.automount,x-systemd.idle-timeout=60,comment=nightly,\
                   X-mine=\"a,ro\"";
    // A comma is written with a backslash, or within quotes; a space as fstab has it.
    for scratch in ["scratch=DIR/a\\,b\\040c", "scratch=\"DIR/a,b\\040c\""] {
        let scratch = scratch.replace("DIR", namespace.path("").display().to_string().trim_end_matches('/'));
        namespace.fstab(&line(&machine, &namespace, &format!("{options},{scratch}")));
        namespace.ok(&format!("mount {}", mnt.display()));
        let disk = mnt.join("current/vda/disk.raw");
        namespace.ok(&format!("cmp {} {}", disk.display(), before.1.display()));
        namespace.ok(&format!("umount {}", mnt.display()));
        assert_eq!(namespace.mounts(&mnt), 0);
        before.0.come_back(&machine, END_LIMIT);
    }
    namespace.daemons_end();
}

on!(it_looks_as_a_file_system_does: new = New);
fn it_looks_as_a_file_system_does(flavor: Flavor) {
    let machine = machine(flavor);
    let namespace = Namespace::new();
    let mnt = namespace.mnt().display().to_string();
    namespace.ok(&format!("mount -t pullfs -o ro,disks=vda+vdb {} {mnt}", machine.source()));
    assert_eq!(shown(&namespace, "SOURCE"), machine.source());
    assert_eq!(shown(&namespace, "FSTYPE"), "fuse.pullfs");
    let options = shown(&namespace, "OPTIONS");
    for option in ["nosuid", "nodev", "noatime"] {
        assert!(options.split(',').any(|shown| shown == option), "{option} of {options}");
    }
    assert_eq!(namespace.mounts(&namespace.mnt()), 1, "in /proc/mounts");
    namespace.ok(&format!("mountpoint --quiet {mnt}"));
    // Both disks together, with no room for more.
    let df = namespace.ok(&format!("df --block-size=1 --output=source,fstype,size,used,avail,target {mnt}"));
    let columns: Vec<&str> = df.lines().nth(1).expect("a line").split_whitespace().collect();
    let size = (12 * MIB).to_string();
    assert_eq!(columns, [&machine.source(), "fuse.pullfs", &size, &size, "0", &mnt], "{df}");
    let inodes = namespace.ok(&format!("df --output=itotal,iavail {mnt}"));
    let counts: Vec<&str> = inodes.lines().nth(1).expect("a line").split_whitespace().collect();
    assert_eq!(counts, ["6", "0"], "three files of each disk: {inodes}");
    let status = fs::read_to_string(format!("/proc/{}/mounts", std::process::id())).expect("mounts");
    assert!(!status.contains(&mnt), "the namespace is one");
    namespace.ok(&format!("umount {mnt}"));
    namespace.daemons_end();
}

on!(mount_all_mounts_once: new = New);
fn mount_all_mounts_once(flavor: Flavor) {
    let machine = machine(flavor);
    let namespace = Namespace::new();
    let mnt = namespace.mnt();
    let noauto = line(&machine, &namespace, "noauto");
    namespace.fstab(&noauto);
    namespace.ok("mount -a");
    assert_eq!(namespace.mounts(&mnt), 0, "noauto");
    namespace.fstab(&line(&machine, &namespace, "nofail,_netdev"));
    namespace.ok("mount -a");
    assert_eq!(namespace.mounts(&mnt), 1);
    let id = || namespace.ok(&format!("grep mount_id {}", mnt.join("status.json").display()));
    let first = id();
    let said = namespace.ok("mount -a -v");
    assert!(said.contains("already mounted"), "{said}");
    assert_eq!((namespace.mounts(&mnt), id()), (1, first));
    // Those of the type alone.
    namespace.ok("umount --all --types fuse.pullfs");
    assert_eq!(namespace.mounts(&mnt), 0);
    namespace.daemons_end();
}

on!(flags_and_exit_codes_are_those_of_mount: new = New);
fn flags_and_exit_codes_are_those_of_mount(flavor: Flavor) {
    let machine = machine(flavor);
    let namespace = Namespace::new();
    let mnt = namespace.mnt();
    namespace.fstab(&line(&machine, &namespace, "noauto"));
    let call = |flags: &str| namespace.run(&format!("mount {flags} {}", mnt.display()));
    call("-f").success();
    assert_eq!(namespace.mounts(&mnt), 0, "-f only pretends");
    for flags in ["-n", "-s", "-v", "-r", "-w"] {
        call(flags).success();
        assert_eq!(namespace.mounts(&mnt), 1, "{flags}");
        namespace.ok(&format!("umount {}", mnt.display()));
        namespace.daemons_end();
    }
    let refused = |flags: &str, code: i32, said: &str| {
        let done = call(flags);
        assert!(done.code == Some(code) && done.stderr.contains(said), "{done}");
    };
    refused("-o colour=red", 1, "there is no mount option colour");
    call("").success();
    // Nothing is changed, and nothing lost.
    refused("-o remount,polite", 1, "unmount it, and mount it with other options");
    assert_eq!(namespace.mounts(&mnt), 1);
    // A second one over the first would hide it.
    refused(&format!("-t pullfs {}", machine.source()), 32, "is not empty");
    namespace.ok(&format!("umount {}", mnt.display()));
    namespace.daemons_end();
    drop(machine);
    refused("", 32, "qmp:");
    assert_eq!(namespace.run(&format!("umount {}", mnt.display())).code, Some(32), "there is nothing to unmount");
}

on!(every_way_to_unmount_lets_go_of_the_machine: new = New);
fn every_way_to_unmount_lets_go_of_the_machine(flavor: Flavor) {
    let machine = machine(flavor);
    let before = Leftovers::of(&machine);
    let namespace = Namespace::new();
    let mnt = namespace.mnt();
    namespace.fstab(&line(&machine, &namespace, "noauto"));
    let source = machine.source();
    for way in ["umount MNT", "umount SOURCE", "umount --lazy MNT", "fusermount3 -u MNT", "pullfs umount MNT"] {
        namespace.ok(&format!("mount {}", mnt.display()));
        namespace.ok(&format!("head -c 1 {}", mnt.join("current/vda/disk.raw").display()));
        let line = way.replace("MNT", &mnt.display().to_string()).replace("SOURCE", &source);
        namespace.ok(&line.replace("pullfs umount", "/usr/sbin/pullfs umount"));
        assert_eq!(namespace.mounts(&mnt), 0, "{way}");
        before.come_back(&machine, END_LIMIT);
        namespace.daemons_end();
    }
    let place: PathBuf = namespace.path("a dir");
    let escaped = place.display().to_string().replace(' ', "\\040");
    namespace.fstab(&format!("{source} {escaped} pullfs noauto 0 0\n"));
    run(namespace.command("mount").arg(&place)).success();
    assert_eq!(namespace.mounts(&place), 1);
    run(namespace.command("umount").arg(&place)).success();
    assert_eq!(namespace.mounts(&place), 0);
    namespace.daemons_end();
}
