//! The directory of a point in time: scratch images, and the socket of the NBD server, where QEMU's user can reach them.
//!
//! It is in the scratch directory and belongs to the mount alone. Where QEMU runs as another user than pullfs, that user
//! gets in by an access control list (acl(5)): to give it the directory would take privileges that the daemon gave up.

use std::fs::File;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{XattrFlags, setxattr};

use crate::block::extents::Extents;
use crate::error::{Error, Kind, Result};
use crate::image::qcow2::{ClusterSize, Qcow2};
use crate::vm::qmp::scratch;

/// The end of the directory's name; the mount's id comes before it.
pub(super) const SUFFIX: &str = ".libvirt";

/// Where the directory of a mount is.
pub(super) fn dir(scratch: &Path, mount: &str) -> PathBuf {
    scratch.join(format!("{mount}{SUFFIX}"))
}

/// Longest path of a socket, in bytes (unix(7), `sun_path`, which ends in a zero).
const MAX_PATH: usize = 107;

/// Refuses a directory whose path is too long for the socket in it.
///
/// # Errors
/// [`Kind::Invalid`].
pub(super) fn check(dir: &Path) -> Result<()> {
    let longer = socket(dir).as_os_str().len().saturating_sub(MAX_PATH);
    if longer == 0 {
        return Ok(());
    }
    let dir = dir.parent().unwrap_or(dir).display();
    let why =
        format!("the path of {dir} (option scratch=) is {longer} bytes too long for the NBD server's socket in it");
    Err(Error::new(Kind::Invalid, why))
}

/// The socket of the NBD server.
pub(super) fn socket(dir: &Path) -> PathBuf {
    dir.join("nbd.sock")
}

/// The scratch image of a disk, by its number.
pub(super) fn image(dir: &Path, index: usize) -> PathBuf {
    dir.join(format!("{index}.qcow2"))
}

/// Makes the directory, and an empty scratch image for a disk of each size in bytes; QEMU's user may use both.
pub(super) fn make(dir: &Path, sizes: &[u64], user: Option<u32>) -> Result<Vec<File>> {
    let failed = |error: io::Error| {
        let message = format!("cannot make scratch files in {} (option scratch=)", dir.display());
        Error::with_source(Kind::Io, message, error)
    };
    std::fs::DirBuilder::new().mode(0o700).create(dir).map_err(failed)?;
    let other = user.filter(|user| *user != rustix::process::geteuid().as_raw());
    let let_in = |path: &Path, rights: u16| match other {
        Some(user) => setxattr(path, ACL, &acl(user, rights), XattrFlags::empty()).map_err(|error| {
            let message = format!(
                "cannot let QEMU's user {user} into {}: choose with scratch= a directory whose file system has access \
                 control lists (acl(5))",
                path.display()
            );
            Error::with_source(Kind::Unsupported, message, io::Error::from(error))
        }),
        None => Ok(()),
    };
    let_in(dir, ALL)?;
    let make = |(index, size): (usize, &u64)| {
        let path = image(dir, index);
        let empty = Qcow2::new(*size, ClusterSize::default(), &Extents::default(), &Extents::default(), None)?;
        let file = File::options().read(true).write(true).create_new(true).open(&path).map_err(failed)?;
        scratch::write(&empty, &file).map_err(failed)?;
        let_in(&path, READ | WRITE)?;
        Ok(file)
    };
    sizes.iter().enumerate().map(make).collect()
}

/// Takes the names of the scratch images away, once QEMU has opened them: whoever dies, they go with QEMU.
pub(super) fn unlink_images(dir: &Path, count: usize) {
    for index in 0..count {
        if let Err(error) = std::fs::remove_file(image(dir, index)) {
            tracing::debug!("{} is not removed yet: {error}", image(dir, index).display());
        }
    }
}

/// Removes the directory, if it looks like ours: whoever cleans up after a daemon has privileges which that had given up.
pub(super) fn remove(dir: &Path) -> Result<()> {
    let ours = dir.file_name().and_then(|name| name.to_str()).is_some_and(|name| {
        name.strip_prefix("pullfs-")
            .and_then(|rest| rest.strip_suffix(SUFFIX))
            .is_some_and(|id| id.len() == 6 && id.bytes().all(|byte| byte.is_ascii_hexdigit()))
    });
    let metadata = match std::fs::symlink_metadata(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other,
    };
    if !ours || !metadata.is_ok_and(|found| found.is_dir()) {
        return Err(Error::new(Kind::NotOurs, format!("{} is no scratch directory of pullfs", dir.display())));
    }
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::with_source(Kind::Io, format!("cannot remove {}", dir.display()), error))
        }
        _ => Ok(()),
    }
}

const ACL: &str = "system.posix_acl_access";
const READ: u16 = 4;
const WRITE: u16 = 2;
const ALL: u16 = 7;

/// An access control list that gives its owner all rights and `user` these, and nobody else any
/// (`include/uapi/linux/posix_acl_xattr.h`, version 2).
fn acl(user: u32, rights: u16) -> Vec<u8> {
    const ANYBODY: u32 = u32::MAX;
    let entries: [(u16, u16, u32); 5] =
        [(0x01, ALL, ANYBODY), (0x02, rights, user), (0x04, 0, ANYBODY), (0x10, rights, ANYBODY), (0x20, 0, ANYBODY)];
    let mut list = 2_u32.to_le_bytes().to_vec();
    for (tag, rights, id) in entries {
        list.extend(tag.to_le_bytes());
        list.extend(rights.to_le_bytes());
        list.extend(id.to_le_bytes());
    }
    list
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn only_what_looks_like_ours_is_removed() {
        let base = tempfile::tempdir().unwrap();
        let ours = dir(base.path(), "pullfs-0a1b2c");
        let files = make(&ours, &[1 << 20, 512], None).unwrap();
        assert_eq!(files.len(), 2);
        assert_eq!(ours.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        unlink_images(&ours, 2);
        assert_eq!(std::fs::read_dir(&ours).unwrap().count(), 0);
        assert!(make(&ours, &[], None).is_err(), "another one's is left alone");
        remove(&ours).unwrap();
        remove(&ours).unwrap();
        for name in ["pullfs-0a1b2c", "pullfs-.libvirt", "pullfs-0a1b2c.libvirt.d", "x"] {
            let other = base.path().join(name);
            std::fs::create_dir(&other).unwrap();
            assert_eq!(remove(&other).unwrap_err().kind(), Kind::NotOurs, "{name}");
        }
        std::os::unix::fs::symlink(base.path(), &ours).unwrap();
        assert_eq!(remove(&ours).unwrap_err().kind(), Kind::NotOurs, "nor where a link leads");
    }

    #[test]
    fn another_user_is_let_in_and_nobody_else() {
        // Where temporary files are may have no such lists.
        let base = tempfile::tempdir_in("/var/tmp").unwrap();
        let ours = dir(base.path(), "pullfs-0a1b2c");
        make(&ours, &[512], Some(64_055)).unwrap();
        let told = |path: &Path| {
            let output = std::process::Command::new("getfacl").args(["-cpn"]).arg(path).output();
            output
                .map(|output| String::from_utf8_lossy(&output.stdout).split_whitespace().collect::<Vec<_>>().join(" "))
        };
        if let Ok(told) = told(&ours) {
            assert_eq!(told, "user::rwx user:64055:rwx group::--- mask::rwx other::---");
        }
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&ours), 0o770, "the group's bits are the mask's");
        assert_eq!(mode(&image(&ours, 0)), 0o760);
    }
}
