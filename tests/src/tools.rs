//! Where the programs under test and the machines are. The programs are built; the rest may be said:
//!
//! | variable | meaning | without it |
//! |---|---|---|
//! | `PULLFS_TEST_GUEST` | directory with the guest's kernel and initramfs | `target/setup/guest` |
//! | `PULLFS_TEST_QEMU_OLD` | root directory of QEMU 7.2, or `none` | `target/setup/qemu-old` |
//! | `PULLFS_TEST_QEMU_NEW` | `none` when the installed QEMU is older than 9 | `installed` |
//! | `PULLFS_TEST_LIBVIRT_OLD` | root directory of libvirt 9.0, or `none` | `target/setup/libvirt-9` |
//! | `PULLFS_TEST_LIBVIRT_NEW` | root directory of libvirt 11.3, or `none` | `target/setup/libvirt-11` |
//!
//! `none` is for `make test`, which says so at its end; without it a machine that is missing is a failure.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::Value;

use crate::process;

/// Building the two programs on a slow machine, from nothing.
const BUILD_LIMIT: Duration = Duration::from_secs(900);

/// Panics unless `tool` can be run.
#[track_caller]
pub fn require(tool: &str) {
    let _ = path(tool);
}

/// Where `tool`, which must be installed, is.
#[track_caller]
pub fn path(tool: &str) -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).map(|dir| dir.join(tool)).find(|program| program.is_file());
    found.unwrap_or_else(|| panic!("`{tool}` is missing: run `make setup`"))
}

/// A command of `tool`, which must be installed.
#[track_caller]
pub fn tool(tool: &str) -> Command {
    require(tool);
    Command::new(tool)
}

/// The workspace's directory.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is in a workspace")
}

/// The guest's kernel and initramfs.
#[track_caller]
pub fn guest() -> (PathBuf, PathBuf) {
    let dir = env::var_os("PULLFS_TEST_GUEST").map_or_else(|| workspace().join("target/setup/guest"), PathBuf::from);
    let complete = dir.join(".complete").is_file();
    assert!(complete, "there is no guest in {}: run `make setup`", dir.display());
    (dir.join("vmlinuz"), dir.join("initramfs.gz"))
}

/// The root directory of QEMU 7.2; `None` when it was declared that there is none.
#[track_caller]
pub fn qemu_old() -> Option<PathBuf> {
    declared("QEMU 7.2", "PULLFS_TEST_QEMU_OLD", "qemu-old")
}

/// The root directory of libvirt 9.0; `None` when it was declared that there is none.
#[track_caller]
pub fn libvirt_old() -> Option<PathBuf> {
    declared("libvirt 9.0", "PULLFS_TEST_LIBVIRT_OLD", "libvirt-9")
}

/// The root directory of libvirt 11.3; `None` when it was declared that there is none.
#[track_caller]
pub fn libvirt_new() -> Option<PathBuf> {
    declared("libvirt 11.3", "PULLFS_TEST_LIBVIRT_NEW", "libvirt-11")
}

/// Where `what` was unpacked.
#[track_caller]
fn declared(what: &str, variable: &str, default: &str) -> Option<PathBuf> {
    let dir = match env::var_os(variable) {
        Some(none) if none == "none" => return None,
        Some(dir) => PathBuf::from(dir),
        None => workspace().join("target/setup").join(default),
    };
    let complete = dir.join(".complete").is_file();
    assert!(complete, "there is no {what} in {}: run `make setup`", dir.display());
    Some(dir)
}

/// Whether the installed QEMU counts as a new one; `false` when it was declared that there is none.
pub fn qemu_new() -> bool {
    env::var_os("PULLFS_TEST_QEMU_NEW").is_none_or(|value| value != "none")
}

/// Prometheus' own judge of metrics and rules.
#[track_caller]
pub fn promtool() -> Command {
    let dir = workspace().join("target/setup/prometheus");
    assert!(dir.join(".complete").is_file(), "there is no promtool in {}: run `make setup`", dir.display());
    Command::new(dir.join("usr/bin/promtool"))
}

/// Where a package is that tests/setup/unpacked.sh unpacked.
#[track_caller]
pub fn unpacked(package: &str) -> PathBuf {
    let dir = workspace().join("target/setup").join(package);
    assert!(dir.join(".complete").is_file(), "{package} is not in {}: run `make setup`", dir.display());
    dir
}

/// The `pullfs` binary.
#[track_caller]
pub fn pullfs() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| program("pullfs")).clone()
}

/// The mount helper, which `make install` installs as `mount.pullfs`: Cargo allows no such name.
#[track_caller]
pub fn mount_helper() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| program("pullfs-mount-helpers")).clone()
}

/// Builds a package's only program as this crate was built, and asks Cargo where it is.
#[track_caller]
fn program(package: &str) -> PathBuf {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--message-format=json-render-diagnostics", "-p", package]);
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    let built = process::run_within(command.current_dir(workspace()), BUILD_LIMIT);
    // Without standard output, which is for programs.
    assert!(built.code == Some(0), "{package} cannot be built:\n{}", built.stderr);
    let messages = built.stdout.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut found = messages.filter_map(|message| Some(PathBuf::from(message["executable"].as_str()?)));
    found.next().expect("the package's program")
}
