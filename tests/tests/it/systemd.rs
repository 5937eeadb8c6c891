//! The unit file: what systemd makes of it, and that nothing in it hides the mount from the host.

use std::fs;
use std::path::PathBuf;

use pullfs_tests::process::{ok, run};
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
    assert_eq!(text.matches("/usr/local/bin/pullfs").count(), 1, "what `make install` replaces");
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
