//! `make install`: what it puts where, and that the programs which read it find no fault.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use pullfs_tests::process::{ok, run, run_within};
use pullfs_tests::tools::{tool, workspace};
use tempfile::TempDir;

/// Building what is installed, on a slow machine.
pub(crate) const BUILD_LIMIT: Duration = Duration::from_secs(900);

/// What `make install PREFIX=/usr` leaves in its `DESTDIR`.
pub(crate) fn root() -> &'static Path {
    static ROOT: OnceLock<TempDir> = OnceLock::new();
    let installed = || {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut make = tool("make");
        make.arg("install").arg(format!("DESTDIR={}", dir.path().display())).arg("PREFIX=/usr");
        make.arg(if cfg!(debug_assertions) { "PROFILE=dev" } else { "PROFILE=release" });
        run_within(make.current_dir(workspace()), BUILD_LIMIT).success();
        dir
    };
    ROOT.get_or_init(installed).path()
}

/// Every file below `dir`, by its name below the root.
fn files(dir: &Path, found: &mut BTreeMap<PathBuf, u32>) {
    for entry in fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("an entry")) {
        let (path, metadata) = (entry.path(), entry.metadata().expect("metadata"));
        if metadata.is_dir() {
            files(&path, found);
        } else {
            let name = path.strip_prefix(root()).expect("below the root").to_owned();
            found.insert(name, metadata.permissions().mode() & 0o7777);
        }
    }
}

pub(crate) fn installed() -> BTreeMap<PathBuf, u32> {
    let mut found = BTreeMap::new();
    files(root(), &mut found);
    found
}

#[test]
fn everything_is_where_it_is_looked_for() {
    let found = installed();
    for (name, mode) in [
        ("usr/bin/pullfs", 0o755),
        ("usr/sbin/mount.pullfs", 0o755),
        ("usr/libexec/pullfs/nightly", 0o755),
        ("usr/libexec/pullfs/prunefs", 0o755),
        ("usr/lib/systemd/system/pullfs@.service", 0o644),
        ("usr/lib/systemd/system/pullfs-nightly@.service", 0o644),
        ("usr/lib/systemd/system/pullfs-nightly@.timer", 0o644),
        ("usr/share/man/man1/pullfs.1", 0o644),
        ("usr/share/man/man1/pullfs-mount.1", 0o644),
        ("usr/share/man/man1/pullfs-checkpoint-create.1", 0o644),
        ("usr/share/man/man5/pullfs-config.5", 0o644),
        ("usr/share/man/man5/pullfs-status.5", 0o644),
        ("usr/share/man/man5/pullfs-tree.5", 0o644),
        ("usr/share/man/man8/mount.pullfs.8", 0o644),
        ("usr/share/bash-completion/completions/pullfs", 0o644),
        ("usr/share/zsh/site-functions/_pullfs", 0o644),
        ("usr/share/fish/vendor_completions.d/pullfs.fish", 0o644),
    ] {
        assert_eq!(found.get(Path::new(name)), Some(&mode), "{name} of {found:#?}");
    }
    // The helper becomes the program that was installed with it.
    ok(tool(root().join("usr/sbin/mount.pullfs").to_str().expect("a path")).args(["qmp:/none", "/none", "-f"]));
}

#[test]
fn manual_pages_have_no_fault() {
    let pages: Vec<PathBuf> = installed().into_keys().filter(|name| name.starts_with("usr/share/man")).collect();
    assert!(pages.len() > 12, "{pages:?}");
    for page in pages {
        // As Debian's lintian looks at them.
        let mut man = tool("man");
        man.args(["--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z"]).arg(root().join(&page));
        let shown = run(man.env("LC_ALL", "C.UTF-8").env("MANROFFSEQ", "").env("MANWIDTH", "80"));
        assert!(shown.code == Some(0) && shown.stderr.is_empty(), "{}: {shown}", page.display());
    }
}

#[test]
fn pages_are_found_and_say_what_they_are_about() {
    let text = |page: &str| ok(tool("man").arg("-M").arg(root().join("usr/share/man")).arg(page).env("MANWIDTH", "80"));
    let tree = text("pullfs-tree");
    let row = tree.lines().position(|line| line.contains("checkpoints/NAME/DISK/delta.raw")).expect("an item");
    assert!(tree.lines().nth(row + 1).is_some_and(|line| line.contains("(0400) the changed extents")), "{tree}");
    let helper = text("mount.pullfs");
    assert!(helper.contains("start=read|manual\n") && helper.contains("IN FSTAB\n"), "{helper}");
    let mount = text("pullfs-mount");
    assert!(mount.contains("scratch_limit=SIZE\n"), "{mount}");
    assert!(text("pullfs").contains("pullfs-mount(1)"));
}

#[test]
fn shells_take_the_completions() {
    let share = root().join("usr/share");
    ok(tool("bash").arg("-n").arg(share.join("bash-completion/completions/pullfs")));
    ok(tool("zsh").arg("-n").arg(share.join("zsh/site-functions/_pullfs")));
    ok(tool("fish").arg("--no-execute").arg(share.join("fish/vendor_completions.d/pullfs.fish")));
    // What bash offers behind `pullfs che`.
    let script = ". usr/share/bash-completion/completions/pullfs; COMP_WORDS=(pullfs che); COMP_CWORD=1; \
                  _pullfs pullfs che pullfs; echo \"${COMPREPLY[@]}\"";
    assert_eq!(ok(tool("bash").args(["-c", script]).current_dir(root())), "checkpoint\n");
}

#[test]
fn systemd_finds_nothing_wrong_with_the_units() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let units = root().join("usr/lib/systemd/system");
    let programs = [("/usr/bin/", "usr/bin/"), ("/usr/libexec/", "usr/libexec/")];
    let mut instances = Vec::new();
    for unit in ["pullfs@.service", "pullfs-nightly@.service", "pullfs-nightly@.timer"] {
        let mut text = fs::read_to_string(units.join(unit)).expect("a unit");
        assert!(!text.contains("/usr/local"), "{unit} is for another PREFIX:\n{text}");
        // systemd looks for the programs, which are below the root here.
        for (installed, below) in programs {
            let here = root().join(below).display().to_string();
            for command in ["ExecStart=", "ExecReload="] {
                text = text.replace(&format!("{command}{installed}"), &format!("{command}{here}/"));
            }
        }
        let instance = dir.path().join(unit.replace('@', "@vm1"));
        fs::write(&instance, text).expect("a unit");
        instances.push(instance);
    }
    let verified = run(tool("systemd-analyze").arg("verify").args(&instances));
    assert!(verified.code == Some(0) && verified.stderr.is_empty(), "{verified}");
}
