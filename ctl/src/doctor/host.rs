//! This computer: FUSE, the kernel, what mounts left.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use pullfs_fs::point::journal::Header;
use pullfs_fs::recovery::state_dir;

use super::finding::Finding;

/// The oldest kernel that mounts are tested with, as far as its features are concerned.
const OLDEST_KERNEL: (u32, u32) = (5, 14);

/// Where mount(8) looks for helpers.
const HELPERS: [&str; 2] = ["/sbin/mount.pullfs", "/usr/sbin/mount.pullfs"];

/// Where the setuid helper takes its configuration from (mount.fuse3(8)).
const FUSE_CONF: &str = "/etc/fuse.conf";

pub(super) fn check(allow_other: bool) -> Vec<Finding> {
    let root = rustix::process::geteuid().is_root();
    let mut findings = vec![device()];
    if !root {
        findings.push(setuid_helper(find("fusermount3").as_deref()));
    }
    if allow_other && !root {
        findings.push(others_allowed(&std::fs::read_to_string(FUSE_CONF).unwrap_or_default()));
    }
    findings.push(if HELPERS.iter().any(|path| Path::new(path).exists()) {
        Finding::ok("mount-helper", "mount -t pullfs and fstab find mount.pullfs")
    } else {
        Finding::hint(
            "mount-helper",
            "/sbin/mount.pullfs is not there",
            "for fstab install the package, or make install",
        )
    });
    findings.push(kernel(&rustix::system::uname().release().to_string_lossy()));
    findings.extend(std::fs::read_to_string("/sys/kernel/security/lsm").ok().map(|modules| landlock(&modules)));
    findings.extend(std::fs::symlink_metadata(state_dir()).ok().map(|found| {
        let ours = found.is_dir() && found.uid() == rustix::process::geteuid().as_raw() && found.mode() & 0o022 == 0;
        let place = state_dir();
        let place = place.display();
        if ours {
            return Finding::ok("runtime-directory", format!("{place} is this user's alone"));
        }
        Finding::wrong("runtime-directory", format!("{place} can be changed by other users"), "remove it")
    }));
    findings
}

fn device() -> Finding {
    let opened = std::fs::File::options().read(true).write(true).open("/dev/fuse");
    match opened {
        Ok(_) => Finding::ok("fuse", "/dev/fuse can be opened"),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            Finding::wrong("fuse", "/dev/fuse may not be opened by this user", "chmod 666 /dev/fuse, as udev has it")
        }
        Err(error) => Finding::wrong("fuse", format!("/dev/fuse cannot be opened: {error}"), "modprobe fuse"),
    }
}

/// A program of the path.
fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|program| program.is_file())
}

fn setuid_helper(program: Option<&Path>) -> Finding {
    const CHECK: &str = "fusermount3";
    let Some(program) = program else {
        return Finding::wrong(CHECK, "fusermount3 is not in the path", "apt install fuse3, or mount as root");
    };
    let shown = program.display();
    match std::fs::metadata(program) {
        Ok(found) if found.permissions().mode() & 0o4000 == 0 || found.uid() != 0 => Finding::wrong(
            CHECK,
            format!("{shown} is not setuid root"),
            "apt install --reinstall fuse3, or mount as root",
        ),
        Ok(_) => Finding::ok(CHECK, format!("{shown} mounts for users")),
        Err(error) => Finding::wrong(CHECK, format!("{shown}: {error}"), "apt install fuse3, or mount as root"),
    }
}

fn others_allowed(conf: &str) -> Finding {
    if conf.lines().any(|line| line.trim() == "user_allow_other") {
        return Finding::ok("allow_other", format!("{FUSE_CONF} has user_allow_other"));
    }
    let cure = format!("add the line user_allow_other to {FUSE_CONF}, mount as root, or leave the option out");
    Finding::wrong("allow_other", format!("{FUSE_CONF} does not have user_allow_other"), cure)
}

fn kernel(release: &str) -> Finding {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let (major, minor) = OLDEST_KERNEL;
    if version >= OLDEST_KERNEL {
        return Finding::ok("kernel", format!("Linux {release}"));
    }
    Finding::hint("kernel", format!("Linux {release} is older than {major}.{minor}"), "update it if a mount fails")
}

fn landlock(modules: &str) -> Finding {
    if modules.trim().split(',').any(|module| module == "landlock") {
        return Finding::ok("landlock", "the kernel confines the daemon to its files");
    }
    let cure = "add landlock to lsm= on the kernel's command line, if it is to be confined as far as can be";
    Finding::hint("landlock", "the kernel does not confine the daemon to its files", cure)
}

/// Mounts whose daemon has ended and that nobody has cleaned up after.
pub(super) fn mounts(source: &str, ended: &[Header]) -> Vec<Finding> {
    let left = |header: &Header| {
        let what = format!("{}, mounted on {}, has died", header.mount, header.mount_point.display());
        Finding::hint("dead-mounts", what, format!("the next mount cleans up, or pullfs recover {source}"))
    };
    if ended.is_empty() {
        return vec![Finding::ok("dead-mounts", "none is left of this machine")];
    }
    ended.iter().map(left).collect()
}

#[cfg(test)]
mod tests {
    use super::super::finding::State;
    use super::*;

    #[test]
    fn what_the_host_lacks_is_told() {
        assert_eq!(kernel("6.1.0-40-amd64").state, State::Ok);
        assert_eq!(kernel("5.14").state, State::Ok);
        assert_eq!((kernel("5.10.0").state, kernel("weird").state), (State::Hint, State::Hint));
        assert_eq!(landlock("lockdown,capability,landlock,yama\n").state, State::Ok);
        assert_eq!(landlock("capability,yama").state, State::Hint);
        assert_eq!(others_allowed("# user_allow_other\n").state, State::Wrong);
        assert_eq!(others_allowed("mount_max = 10\n user_allow_other\n").state, State::Ok);
        assert_eq!(setuid_helper(None).state, State::Wrong);
        let plain = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(setuid_helper(Some(plain.path())).state, State::Wrong);
    }

    #[test]
    fn a_mount_that_died_is_named() {
        let header = Header::new("pullfs-0a1b2c".into(), "qmp:/a".into(), "/mnt/a".into());
        let found = mounts("qmp:/a", &[header]);
        assert!(found[0].state == State::Hint && found[0].what.contains("/mnt/a"), "{found:?}");
        assert_eq!(mounts("qmp:/a", &[])[0].state, State::Ok);
    }
}
