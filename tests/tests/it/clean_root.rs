//! A Debian with next to nothing in it, and the package: the README's quick start, as it is printed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use pullfs_tests::namespace::FORGET_OTHERS;
use pullfs_tests::process::{ok, run_within};
use pullfs_tests::tools::{tool, workspace};
use tempfile::TempDir;

use crate::package;

/// To unpack a root, install a package in it and copy a small disk.
const LIMIT: Duration = Duration::from_secs(300);

/// Enters the root $1 and runs the script $2, as the first process of its own namespaces: with it, everything ends that was
/// started. The computer's own root is below /machine, for QEMU alone.
const ENTER: &str = "mount --bind \"$1\" \"$1\" && cd \"$1\" && mount -t proc proc proc && mount -t tmpfs tmpfs run && \
                     mount --rbind /dev dev && mkdir machine && mount --bind / machine && \
                     mount --rbind /dev machine/dev && mount --bind run machine/run && mount --bind srv machine/srv && \
                     exec chroot . sh -eu -c \"$2\"";

/// QEMU is the machine's, not part of what is installed: it runs in the computer's root, with the same /run and /srv.
const QEMU: &str = "#!/bin/sh\nexec chroot /machine qemu-system-x86_64 \"$@\"\n";

/// What stands for the `…` of the README.
const MACHINE: &str = "-nodefaults -display none -accel tcg -m 64 -S \
                       -blockdev raw,node-name=disk,file.driver=file,file.filename=/srv/disk.raw \
                       -device virtio-blk-pci,id=vda,drive=disk";

/// What is in the README's block below `heading`, as it is.
fn block(heading: &str) -> String {
    let readme = fs::read_to_string(workspace().join("README.md")).expect("the README");
    let section = readme.split_once(&format!("\n## {heading}\n")).expect("the heading").1;
    let lines =
        section.lines().skip_while(|line| !line.starts_with("    ")).take_while(|line| line.starts_with("    "));
    lines.map(|line| &line[4..]).collect::<Vec<_>>().join("\n")
}

/// The root, with the package in `/root` and a disk in `/srv`.
struct Root(TempDir);

impl Root {
    fn new() -> Self {
        let tarball = workspace().join("target/setup/clean-root.tar");
        assert!(tarball.exists(), "there is no {}: run `make setup`", tarball.display());
        let root = Self(tempfile::Builder::new().prefix("pullfs-clean-").tempdir().expect("a temporary directory"));
        let mut tar = tool("tar");
        tar.arg("--extract").arg("--file").arg(tarball).arg("--directory").arg(root.0.path());
        run_within(tar.args(["--exclude=./dev/*", "--exclude=./proc/*"]), LIMIT).success();
        let package = package::package();
        fs::copy(package, root.path("root").join(package.file_name().expect("a name"))).expect("a copy");
        ok(tool("qemu-img").args(["create", "-q", "-f", "raw"]).arg(root.path("srv/disk.raw")).arg("8M"));
        let mut write = tool("qemu-io");
        write.args(["-f", "raw", "-c", "write -q -P 0x5a 1M 2M"]);
        ok(write.arg(root.path("srv/disk.raw")));
        root
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs a script in it; what it printed.
    #[track_caller]
    fn run(&self, script: &str) -> String {
        let mut unshare = Command::new("unshare");
        unshare.args(["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"]);
        unshare.args(["sh", "-eu", "-c", &format!("{FORGET_OTHERS}; {ENTER}"), "sh"]).arg(self.0.path()).arg(script);
        unshare.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        unshare.env("DEBIAN_FRONTEND", "noninteractive");
        run_within(&mut unshare, LIMIT).success()
    }
}

#[test]
fn the_quick_start_works_as_it_is_printed() {
    let root = Root::new();
    fs::create_dir_all(root.path("usr/local/bin")).expect("a directory");
    fs::write(root.path("usr/local/bin/qemu-system-x86_64"), QEMU).expect("a script");
    ok(tool("chmod").arg("755").arg(root.path("usr/local/bin/qemu-system-x86_64")));
    let printed = block("Quick start");
    assert_eq!(printed.lines().count(), 5, "{printed}");
    assert!(printed.starts_with("apt install ./pullfs_*.deb "), "{printed}");
    assert_eq!(printed.matches('…').count(), 1, "{printed}");
    // Whoever types that says yes to apt, and goes on when QEMU is there.
    let typed = printed.replace('…', MACHINE).replace("apt install", "apt install -y");
    let typed = typed.replace(" &     #", " & until [ -S /run/vm1.qmp ]; do :; done     #");
    let right = "cmp vda.raw /srv/disk.raw; cp /proc/mounts /srv/mounts; ls /run/pullfs >/srv/running";
    let purge = "dpkg -L pullfs >/srv/files; dpkg --purge pullfs; rm pullfs_*.deb";
    let said = root.run(&format!("cd /root\n{typed}\n{right}\n{purge}"));
    assert!(said.contains("vda") && said.contains("8.0 MiB"), "status: {said}");
    let read = |name: &str| fs::read_to_string(root.path(name)).expect("what was noted");
    assert!(
        read("srv/mounts").contains("/proc") && !read("srv/mounts").contains("fuse.pullfs"),
        "{}",
        read("srv/mounts")
    );
    assert_eq!(read("srv/running"), "", "no daemon is left");
    // Everything that was packed was there, and nothing with the name of any of it is now.
    let files = read("srv/files");
    assert!(files.contains("/usr/sbin/mount.pullfs\n"), "{files}");
    let left = ok(tool("find").arg(root.path("")).args(["-mindepth", "1", "-name", "*pullfs*"]));
    assert_eq!(left, "", "purged, and still there");
}

/// The package as a later version might be, with other words in its configuration.
fn later(out: &Path) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    ok(tool("dpkg-deb").arg("--raw-extract").arg(package::package()).arg(dir.path()));
    let change =
        "sed -i 's/^Version: .*/Version: 99-1/' DEBIAN/control; echo '# A word more.' >>etc/pullfs/config.toml";
    ok(Command::new("sh").args(["-euc", change]).current_dir(dir.path()));
    // Not compressed, which takes long.
    ok(tool("dpkg-deb").args(["--root-owner-group", "-Znone", "--build"]).arg(dir.path()).arg(out));
}

#[test]
fn a_configuration_that_was_changed_outlives_an_upgrade() {
    let root = Root::new();
    later(&root.path("root/later.deb"));
    let install = "apt install -y ./pullfs_*.deb; echo '# Mine.' >>/etc/pullfs/config.toml";
    // As apt does where nobody can be asked.
    let upgrade = "dpkg -i --force-confdef later.deb </dev/null; cp /etc/pullfs/config.toml /srv; \
                   dpkg-query -W pullfs >/srv/version; pullfs config >/srv/config";
    root.run(&format!("cd /root; {install}; {upgrade}; dpkg --purge pullfs; rm pullfs_*.deb"));
    let read = |name: &str| fs::read_to_string(root.path(name)).expect("what was noted");
    assert!(read("srv/version").contains("99-1"), "{}", read("srv/version"));
    let kept = read("srv/config.toml");
    assert!(kept.ends_with("# Mine.\n") && !kept.contains("A word more"), "{kept}");
    assert!(!read("srv/config").contains("/etc/pullfs"), "it says nothing yet: {}", read("srv/config"));
    assert!(!root.path("etc/pullfs").exists(), "purged, and still there");
}
