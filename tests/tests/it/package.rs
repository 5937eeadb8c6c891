//! `make deb`: what is in the package, and that Debian's own checks find no fault with it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use pullfs_tests::process::{ok, run, run_within};
use pullfs_tests::tools::{tool, workspace};
use tempfile::TempDir;

use crate::install::{self, BUILD_LIMIT};

/// The version of all that is built.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Makes a package into the directory `out`.
#[track_caller]
fn make(out: &Path) -> PathBuf {
    // Both write to one target directory.
    install::root();
    let mut make = tool("make");
    make.arg("deb").arg(format!("OUT={}", out.display()));
    make.arg(if cfg!(debug_assertions) { "PROFILE=dev" } else { "PROFILE=release" });
    run_within(make.current_dir(workspace()), BUILD_LIMIT).success();
    let files = fs::read_dir(out).expect("a directory").map(|entry| entry.expect("an entry").path());
    let packages: Vec<PathBuf> = files.collect();
    assert_eq!(packages.len(), 1, "{packages:?}");
    packages[0].clone()
}

/// The package, as `apt install` takes it.
pub(crate) fn package() -> &'static Path {
    static MADE: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let made = || {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let package = make(dir.path());
        (dir, package)
    };
    &MADE.get_or_init(made).1
}

/// A field of its control file.
fn field(name: &str) -> String {
    ok(tool("dpkg-deb").arg("--field").arg(package()).arg(name)).trim_end().to_owned()
}

/// A file in it.
fn file(name: &str) -> String {
    let script = "dpkg-deb --fsys-tarfile \"$1\" | tar --extract --to-stdout \"./$2\" | gzip --decompress --force";
    ok(Command::new("sh").args(["-e", "-c", script, "sh"]).arg(package()).arg(name))
}

#[test]
fn lintian_finds_nothing() {
    let checked = run(tool("lintian").args(["--allow-root", "--fail-on", "error,warning"]).arg(package()));
    assert!(checked.code == Some(0) && checked.stdout.is_empty(), "{checked}");
}

#[test]
fn it_has_what_is_installed_and_the_documents() {
    let listed = ok(tool("dpkg-deb").arg("--contents").arg(package()));
    let files = listed.lines().filter(|line| !line.starts_with('d'));
    let modes: BTreeSet<(String, bool)> = files
        .map(|line| {
            let name = line.rsplit("./").next().expect("a name").to_owned();
            assert!(line.contains(" 0/0 ") || line.contains(" root/root "), "{line}");
            (name.strip_suffix(".gz").unwrap_or(&name).to_owned(), line.starts_with("-rwxr-xr-x"))
        })
        .collect();
    let documents = |name: &str| name.starts_with("usr/share/doc/pullfs/");
    let installed: BTreeSet<(String, bool)> = install::installed()
        .into_iter()
        .map(|(name, mode)| (name.to_str().expect("a name").to_owned(), mode == 0o755))
        .collect();
    let more: Vec<_> = modes.difference(&installed).map(|(name, _)| name).filter(|name| !documents(name)).collect();
    assert_eq!(more, ["etc/pullfs/config.toml", "usr/share/lintian/overrides/pullfs"]);
    let missing: Vec<_> = installed.difference(&modes).collect();
    assert!(missing.is_empty(), "{missing:?} of {listed}");
    for document in fs::read_dir(workspace().join("docs")).expect("docs") {
        let document = document.expect("an entry").path();
        let name = document.file_name().and_then(|name| name.to_str()).expect("a name");
        let packed = modes.contains(&(format!("usr/share/doc/pullfs/{name}"), false));
        assert_eq!(packed, document.is_file(), "{name}");
    }
    for document in ["README.md", "changelog", "changelog.Debian", "copyright"] {
        assert!(modes.contains(&(format!("usr/share/doc/pullfs/{document}"), false)), "{document} of {listed}");
    }
    assert!(file("usr/share/doc/pullfs/changelog.gz").starts_with("# Changelog\n"));
    // Units with the paths of the package, and nothing that runs when it is installed.
    assert!(file("usr/lib/systemd/system/pullfs@.service").contains("ExecStart=/usr/bin/pullfs mount"));
    let control =
        ok(Command::new("sh").args(["-c", "dpkg-deb --ctrl-tarfile \"$1\" | tar --list", "sh"]).arg(package()));
    let control: BTreeSet<&str> = control.lines().collect();
    assert_eq!(control, BTreeSet::from(["./conffiles", "./control"]), "no maintainer scripts");
}

#[test]
fn its_configuration_says_nothing_until_somebody_does() {
    let packed = file("etc/pullfs/config.toml");
    assert!(packed.lines().all(|line| line.is_empty() || line.starts_with('#')), "{packed}");
    // Without the one character before it, a line is that of the document.
    let document = fs::read_to_string(workspace().join("docs/config.toml")).expect("the document");
    let settings =
        packed.lines().map(|line| line.strip_prefix('#').filter(|line| !line.starts_with(' ')).unwrap_or(line));
    assert!(settings.eq(document.lines()), "{packed}");
}

#[test]
fn it_has_the_notices_of_all_that_is_linked() {
    let copyright = file("usr/share/doc/pullfs/copyright");
    // Where a crate was when it was built is in what was built of it.
    let program = fs::read(install::root().join("usr/bin/pullfs")).expect("the program");
    let text = String::from_utf8_lossy(&program);
    let name = |path: &'_ str| {
        path.split(|c: char| !c.is_ascii_alphanumeric() && !"_.+-".contains(c)).nth(1).map(str::to_owned)
    };
    let linked: BTreeSet<String> = text.split("/registry/src/").skip(1).filter_map(name).collect();
    assert!(linked.len() > 30, "{linked:?}");
    let missing: Vec<_> = linked.iter().filter(|name| !copyright.contains(&format!("crates/{name}/*\n"))).collect();
    assert!(missing.is_empty(), "{missing:?}");
    for notice in ["Copyright: Copyright (c) Tokio Contributors", "Copyright: The Rust Project contributors"] {
        assert!(copyright.contains(notice), "{notice}");
    }
}

#[test]
fn it_says_what_it_needs_and_which_version_it_is() {
    assert_eq!(field("Package"), "pullfs");
    assert_eq!(field("Version"), format!("{VERSION}-1"));
    let changelog = file("usr/share/doc/pullfs/changelog.Debian.gz");
    assert!(changelog.starts_with(&format!("pullfs ({VERSION}-1) ")), "{changelog}");
    let depends = field("Depends");
    assert!(depends.starts_with("libc6 (>= ") && depends.ends_with("), libgcc-s1"), "{depends}");
    // What the program is linked with, and nothing else.
    let linked = ok(tool("ldd").arg(install::root().join("usr/bin/pullfs")));
    for library in linked.lines().filter_map(|line| line.trim().split(' ').next()) {
        let known = ["linux-vdso", "libc.so", "libm.so", "libgcc_s.so", "/lib64/ld-linux", "/lib/ld-linux"];
        assert!(known.iter().any(|known| library.starts_with(known)), "{linked}");
    }
    // libvirt's library is loaded when a domain is mounted, and not linked with.
    assert_eq!(field("Recommends"), "fuse3, libvirt0");
}

#[test]
fn it_is_the_same_whenever_it_is_made() {
    let first = package();
    let dir = tempfile::tempdir().expect("a temporary directory");
    ok(tool("cmp").arg(first).arg(make(dir.path())));
}
