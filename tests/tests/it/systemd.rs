//! The unit file: what systemd makes of it, and that nothing in it hides the mount from the host.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::{END_LIMIT, MountPoint};
use pullfs_tests::process::{ok, run, wait_for, wait_until};
use pullfs_tests::tools::{pullfs, tool, workspace};
use tempfile::TempDir;

/// Options that give a service a mount namespace, or a user namespace that cannot mount for others. See
/// docs/systemd.md.
const HIDE_THE_MOUNT: &[&str] = &[
    "BindPaths",
    "BindReadOnlyPaths",
    "DynamicUser",
    "ExecPaths",
    "ExtensionDirectories",
    "ExtensionImages",
    "InaccessiblePaths",
    "LogNamespace",
    "MountFlags",
    "MountImages",
    "NoExecPaths",
    "PrivateBPF",
    "PrivateDevices",
    "PrivateIPC",
    "PrivateMounts",
    "PrivateNetwork",
    "PrivatePIDs",
    "PrivateTmp",
    "PrivateUsers",
    "ProcSubset",
    "ProtectControlGroups",
    "ProtectHome",
    "ProtectKernelLogs",
    "ProtectKernelModules",
    "ProtectKernelTunables",
    "ProtectProc",
    "ProtectSystem",
    "ReadOnlyPaths",
    "ReadWritePaths",
    "RootDirectory",
    "RootImage",
    "TemporaryFileSystem",
];

fn unit() -> PathBuf {
    workspace().join("mount-helpers/systemd/pullfs@.service")
}

/// The unit as `make install` leaves it, with the program that was built.
fn installed() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let text = fs::read_to_string(unit()).expect("the unit");
    let program = pullfs().display().to_string();
    assert_eq!(text.matches("/usr/local/bin/pullfs").count(), 2, "what `make install` replaces");
    let path = dir.path().join("pullfs@vm1.service");
    fs::write(&path, text.replace("/usr/local/bin/pullfs", &program)).expect("a unit");
    (dir, path)
}

#[test]
fn systemd_finds_nothing_wrong_with_the_unit() {
    let (_dir, unit) = installed();
    let verified = run(tool("systemd-analyze").arg("verify").arg(&unit));
    assert!(verified.code == Some(0) && verified.stderr.is_empty(), "{verified}");
}

#[test]
fn the_unit_is_exposed_no_more_than_is_documented() {
    let document = fs::read_to_string(workspace().join("docs/systemd.md")).expect("the document");
    let (_, rest) = document.split_once("`systemd-analyze security` says ").expect("the figure");
    let figure: f64 = rest.split(' ').next().and_then(|figure| figure.parse().ok()).expect("a number");
    let (_dir, unit) = installed();
    let said = ok(tool("systemd-analyze").args(["security", "--offline=true", "--no-pager"]).arg(&unit));
    let (_, exposure) = said.rsplit_once("Overall exposure level for ").expect("systemd's figure");
    let exposure: f64 = exposure.split_whitespace().nth(1).and_then(|word| word.parse().ok()).expect("a number");
    assert!(exposure <= figure, "documented: {figure}\n{said}");
}

#[test]
fn nothing_in_the_unit_hides_the_mount() {
    let text = fs::read_to_string(unit()).expect("the unit");
    let options: Vec<&str> = text.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name).collect();
    assert!(options.contains(&"ExecStart"), "{options:?}");
    for option in HIDE_THE_MOUNT {
        assert!(!options.contains(option), "{option}= gives the service a mount namespace of its own");
    }
    let document = fs::read_to_string(workspace().join("docs/systemd.md")).expect("the document");
    let missing: Vec<_> = HIDE_THE_MOUNT.iter().filter(|option| !document.contains(&format!("`{option}=`"))).collect();
    assert!(missing.is_empty(), "docs/systemd.md does not say so of {missing:?}");
}

/// The names in a set of system calls, as systemd knows them.
fn calls(name: &str) -> BTreeSet<String> {
    if !name.starts_with('@') {
        return [name.to_owned()].into();
    }
    let listed = ok(tool("systemd-analyze").args(["--no-pager", "syscall-filter", name]));
    let names = listed.lines().skip(1).map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    names.flat_map(calls).collect()
}

/// What the unit's filter lets through.
fn allowed() -> BTreeSet<String> {
    let text = fs::read_to_string(unit()).expect("the unit");
    let mut allowed = BTreeSet::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("SystemCallFilter=")) {
        let names = line.trim_start_matches('~').split(' ').flat_map(calls);
        if line.starts_with('~') {
            let denied: BTreeSet<String> = names.collect();
            allowed.retain(|name| !denied.contains(name));
        } else {
            allowed.extend(names);
        }
    }
    assert!(allowed.contains("read") && !allowed.contains("bpf"), "{allowed:?}");
    allowed
}

on!(every_system_call_of_a_mounts_life_is_allowed: new = New, old = Old);
fn every_system_call_of_a_mounts_life_is_allowed(flavor: Flavor) {
    let machine = Machine::build(flavor).disk(Disk::qcow2("vda", 8 * MIB).filled(&[(0, MIB)])).start();
    let point = MountPoint::new();
    let counted = machine.dir().join("calls");
    let mut strace = tool("strace");
    strace.args(["-f", "-qqq", "-c", "-U", "name", "-o"]).arg(&counted).arg(pullfs());
    strace.args(["mount", &machine.source()]).arg(point.mnt()).args(["-f", "-o", &point.scratch()]);
    let mut traced = strace.spawn().expect("strace");
    let status = point.mnt().join("status.json");
    wait_until("a mount that answers", Duration::from_secs(60), || status.exists());
    ok(tool("head").args(["-c1"]).arg(point.mnt().join("current/vda/disk.raw")));
    fs::create_dir(point.mnt().join("checkpoints/monday")).expect("a checkpoint");
    fs::remove_dir(point.mnt().join("checkpoints/monday")).expect("it can be deleted");
    let told: serde_json::Value = serde_json::from_slice(&fs::read(&status).expect("status.json")).expect("JSON");
    ok(tool("kill").args(["-TERM", &told["pid"].to_string()]));
    assert!(wait_for(&mut traced, END_LIMIT).is_some_and(|status| status.success()), "an orderly end");

    // A heading, the names between two lines of dashes, and a total.
    let counted = fs::read_to_string(&counted).expect("what strace counted");
    let made: Vec<&str> = counted.lines().map(str::trim).skip(2).take_while(|line| !line.starts_with('-')).collect();
    assert!(made.contains(&"umount2") && made.contains(&"landlock_restrict_self"), "{made:?}");
    let allowed = allowed();
    let denied: Vec<_> = made.into_iter().filter(|name| !allowed.contains(*name)).collect();
    assert!(denied.is_empty(), "system calls that the unit denies: {denied:?}");
}
