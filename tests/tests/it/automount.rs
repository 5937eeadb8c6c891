//! Mounts that are made by the first access: under autofs, as systemd's automount units and automount(8) have it.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::leftovers::Leftovers;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::END_LIMIT;
use pullfs_tests::namespace::Namespace;
use pullfs_tests::process::{Running, ok, run, wait_until};
use pullfs_tests::tools::{tool, workspace};

/// For the placeholder.
const LIMIT: Duration = Duration::from_secs(20);

/// Puts autofs over the namespace's mount point; `mount MNT` is what it runs.
fn armed(namespace: &Namespace) -> Running {
    let mut command = namespace.command("python3");
    command.arg(workspace().join("tests/automounter.py")).arg(namespace.mnt()).arg("mount").arg(namespace.mnt());
    let mut automounter = Running::start(&command, &namespace.path("automounter.log"));
    wait_until("a placeholder", LIMIT, || {
        automounter.check();
        automounter.log().contains("armed")
    });
    automounter
}

on!(the_first_access_mounts: new = New, old = Old);
fn the_first_access_mounts(flavor: Flavor) {
    let machine = Machine::build(flavor).disk(Disk::qcow2("vda", 8 * MIB).filled(&[(0, MIB)])).start();
    let before = (Leftovers::of(&machine), machine.copy("vda", "before"));
    let namespace = Namespace::new();
    let mnt = namespace.mnt().display().to_string();
    namespace.fstab(&format!("{} {mnt} pullfs noauto,x-systemd.automount 0 0\n", machine.source()));
    let automounter = armed(&namespace);
    assert_eq!(namespace.mounts(&namespace.mnt()), 0, "nobody was there yet");
    for time in 1..=2 {
        namespace.ok(&format!("cmp {mnt}/current/vda/disk.raw {}", before.1.display()));
        assert_eq!(namespace.mounts(&namespace.mnt()), 1);
        assert_eq!(automounter.log().matches("mounted: 0").count(), time, "{}", automounter.log());
        // As when nobody has been there for a while.
        namespace.ok(&format!("umount {mnt}"));
        assert_eq!(namespace.mounts(&namespace.mnt()), 0);
        before.0.come_back(&machine, END_LIMIT);
        namespace.daemons_end();
    }
    drop(machine);
    // Whoever goes there is told, and does not wait for ever.
    let gone = namespace.run(&format!("ls {mnt}/current"));
    assert!(gone.code == Some(2), "{gone}");
    assert!(automounter.log().contains("mounted: 32"), "{}", automounter.log());
}

#[test]
fn systemd_makes_units_of_the_lines_of_fstab() {
    let document = fs::read_to_string(workspace().join("docs/mount.md")).expect("the document");
    let lines: Vec<&str> = document.lines().filter(|line| line.starts_with("    qmp:")).map(str::trim).collect();
    assert!(lines.iter().any(|line| line.contains("x-systemd.automount")), "{lines:?}");
    for line in lines {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let [fstab, units] = ["fstab", "units"].map(|name| dir.path().join(name));
        fs::write(&fstab, format!("{line}\n")).expect("an fstab");
        fs::create_dir(&units).expect("a directory");
        let generator = PathBuf::from("/lib/systemd/system-generators/systemd-fstab-generator");
        let mut generate = std::process::Command::new(generator);
        ok(generate.args([&units; 3]).env("SYSTEMD_FSTAB", &fstab).env("SYSTEMD_LOG_TARGET", "console"));
        let unit = fs::read_to_string(units.join("mnt-vm1.mount")).expect("a unit for the line");
        assert!(unit.contains("What=qmp:/run/vm1.qmp\n") && unit.contains("Type=pullfs\n"), "{unit}");
        let automount = units.join("mnt-vm1.automount");
        assert_eq!(automount.exists(), line.contains("x-systemd.automount"), "{line}");
        if automount.exists() {
            let text = fs::read_to_string(&automount).expect("a unit");
            assert!(text.contains("Where=/mnt/vm1\n") && text.contains("TimeoutIdleSec="), "{text}");
            let verified = run(tool("systemd-analyze").args(["verify", "--man=no"]).arg(&automount));
            assert!(verified.code == Some(0) && verified.stderr.is_empty(), "{verified}");
        }
    }
}
