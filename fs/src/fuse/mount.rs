//! Mounting and unmounting.
//!
//! Done here rather than by fuser, whose teardown can unmount another file system at the same path: the mount is
//! recognised by its device number in `/proc/self/mountinfo`, and only that one is ever unmounted. Root mounts with
//! mount(2); other users through the setuid helper fusermount3, which hands over the descriptor.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use crate::error::{Error, Kind, Result};

/// The type that `mount`, `findmnt` and `/proc/mounts` show.
pub const TYPE: &str = "fuse.pullfs";

/// What lets others use a mount, as far as the modes of its files say. Without it the kernel lets nobody in but the user who mounted
/// it, who may read all: also what the guest lets none but its own root read.
const OTHERS: &str = ",allow_other,default_permissions";

/// How long fusermount3 may take.
const HELPER_LIMIT: Duration = Duration::from_secs(10);

/// A mounted file system and what tells it from others at the same place.
#[derive(Debug, Clone)]
pub struct Mount {
    path: PathBuf,
    /// `major:minor` of its device.
    device: String,
}

/// A line of mountinfo (`proc_pid_mountinfo(5)`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    /// `major:minor` of the device.
    pub device: String,
    /// The mount point.
    pub path: PathBuf,
    /// The file system type with its subtype.
    pub kind: String,
    /// What is mounted.
    pub source: PathBuf,
}

/// Looks at the mount point before anything else is done.
///
/// # Errors
/// [`Kind::NotFound`], [`Kind::Invalid`] (not a directory), [`Kind::Busy`] (not empty).
pub fn check_mount_point(path: &Path) -> Result<PathBuf> {
    let shown = path.display();
    let failed = |error: std::io::Error| {
        let kind = if error.kind() == std::io::ErrorKind::NotFound { Kind::NotFound } else { Kind::Denied };
        Error::with_source(kind, format!("cannot use mount point {shown}"), error)
    };
    let path = path.canonicalize().map_err(failed)?;
    if !path.is_dir() {
        return Err(Error::new(Kind::Invalid, format!("mount point {shown} is not a directory")));
    }
    if std::fs::read_dir(&path).map_err(failed)?.next().is_some() {
        return Err(Error::new(Kind::Busy, format!("mount point {shown} is not empty; choose an empty directory")));
    }
    Ok(path)
}

impl Mount {
    /// Mounts; `path` is what [`check_mount_point`] gave. The descriptor is for [`super::serve`].
    ///
    /// # Errors
    /// When the system refuses.
    pub fn new(source: &str, path: &Path, allow_other: bool) -> Result<(Self, OwnedFd)> {
        let device = if rustix::process::geteuid().is_root() {
            mount_directly(source, path, allow_other)?
        } else {
            mount_by_helper(source, path, allow_other)?
        };
        let mounted = find(path)?.ok_or_else(|| {
            Error::new(Kind::Io, format!("{} was mounted but is not in /proc/self/mountinfo", path.display()))
        })?;
        Ok((Self { path: path.to_owned(), device: mounted.device }, device))
    }

    /// One that was made elsewhere.
    pub(crate) fn known(path: PathBuf, device: String) -> Self {
        Self { path, device }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `major:minor` of its device.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// Takes the mount out of the tree; those who have files open on it keep them. Nothing mounted is no error.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn detach(&self) -> Result<()> {
        match find(&self.path)? {
            Some(mounted) if mounted.device == self.device => unmount(&self.path, true),
            _ => Ok(()),
        }
    }
}

/// The topmost pullfs mount at exactly this place, if there is one and nothing lies over it.
///
/// # Errors
/// When mountinfo cannot be read.
pub fn find(path: &Path) -> Result<Option<Mounted>> {
    let last = parse_mountinfo(&mountinfo()?).filter(|mounted| mounted.path == path).last();
    Ok(last.filter(|mounted| mounted.kind == TYPE))
}

/// All pullfs mounts that nothing lies over, by their place.
///
/// # Errors
/// When mountinfo cannot be read.
pub fn all() -> Result<Vec<Mounted>> {
    let topmost: BTreeMap<PathBuf, Mounted> =
        parse_mountinfo(&mountinfo()?).map(|mounted| (mounted.path.clone(), mounted)).collect();
    Ok(topmost.into_values().filter(|mounted| mounted.kind == TYPE).collect())
}

/// Whether the mount of this device is at this place, whatever lies over it.
///
/// # Errors
/// When mountinfo cannot be read.
pub fn is_there(path: &Path, device: &str) -> Result<bool> {
    Ok(parse_mountinfo(&mountinfo()?).any(|mounted| mounted.path == path && mounted.device == device))
}

/// The pullfs mounts directly below a directory that nothing lies over, by their place.
///
/// # Errors
/// When mountinfo cannot be read.
pub fn below(dir: &Path) -> Result<Vec<Mounted>> {
    Ok(all()?.into_iter().filter(|mounted| mounted.path.parent() == Some(dir)).collect())
}

pub(crate) fn mountinfo() -> Result<Vec<u8>> {
    std::fs::read("/proc/self/mountinfo")
        .map_err(|error| Error::with_source(Kind::Io, "cannot read /proc/self/mountinfo", error))
}

/// Takes away the mount of `source` at `path` if nobody answers for it any more. None is no error.
///
/// # Errors
/// When the system refuses.
pub fn detach_dead(path: &Path, source: &str) -> Result<()> {
    match find(path)? {
        Some(mounted) if mounted.source == Path::new(source) && is_dead(path) => unmount(path, true),
        _ => Ok(()),
    }
}

/// Whether a FUSE mount that nobody serves any more lies at `path`.
pub fn is_dead(path: &Path) -> bool {
    // The kernel says so once the last descriptor of the connection is closed; other questions it may answer by itself.
    matches!(rustix::fs::statfs(path), Err(rustix::io::Errno::NOTCONN))
}

pub(crate) fn parse_mountinfo(text: &[u8]) -> impl Iterator<Item = Mounted> + '_ {
    text.split(|byte| *byte == b'\n').filter_map(|line| {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let after = fields.iter().position(|field| *field == b"-")?;
        Some(Mounted {
            device: String::from_utf8_lossy(fields.get(2)?).into_owned(),
            path: unescape(fields.get(4)?),
            kind: String::from_utf8_lossy(fields.get(after + 1)?).into_owned(),
            source: unescape(fields.get(after + 2)?),
        })
    })
}

/// mountinfo writes white space and backslashes as three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let code = tail.get(..3).filter(|_| *first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        if let Some(byte) = code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            bytes.push(byte);
            rest = &tail[3..];
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

fn mount_directly(source: &str, path: &Path, allow_other: bool) -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let device = rustix::fs::open("/dev/fuse", flags, Mode::empty()).map_err(|error| {
        Error::with_source(Kind::Unsupported, "cannot open /dev/fuse; is the kernel module fuse loaded?", error)
    })?;
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let mut data = format!("fd={},rootmode=40000,user_id={uid},group_id={gid}", device.as_raw_fd());
    if allow_other {
        data.push_str(OTHERS);
    }
    let data = std::ffi::CString::new(data)
        .map_err(|error| Error::with_source(Kind::Invalid, format!("cannot mount on {}", path.display()), error))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
    rustix::mount::mount(source, path, TYPE, flags, Some(data.as_c_str()))
        .map_err(|error| Error::with_source(Kind::Denied, format!("cannot mount on {}", path.display()), error))?;
    Ok(device)
}

fn no_helper(error: std::io::Error) -> Error {
    Error::with_source(Kind::Unsupported, "cannot run fusermount3; is the package fuse3 installed?", error)
}

/// fusermount3 mounts, and sends the descriptor over the socket that it is given as its standard input.
fn mount_by_helper(source: &str, path: &Path, allow_other: bool) -> Result<OwnedFd> {
    let (ours, theirs) = UnixStream::pair().map_err(no_helper)?;
    ours.set_read_timeout(Some(HELPER_LIMIT)).map_err(no_helper)?;
    // Commas and backslashes in a value are escaped for libfuse's option parser.
    let name = source.replace('\\', "\\\\").replace(',', "\\,");
    let mut options = format!("fsname={name},subtype=pullfs,nosuid,nodev,noatime");
    if allow_other {
        options.push_str(OTHERS);
    }
    let mut child = Command::new("fusermount3")
        .args(["-o", &options, "--"])
        .arg(path)
        .env("_FUSE_COMMFD", "0")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(no_helper)?;
    let device = receive_descriptor(&ours);
    if device.is_err() {
        // It has said why, or it hangs.
        child.kill().ok();
    }
    let output = child.wait_with_output().map_err(no_helper)?;
    device.map_err(|error| {
        let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Error::with_source(Kind::Denied, format!("cannot mount on {}: {words}", path.display()), error)
    })
}

fn receive_descriptor(socket: &UnixStream) -> std::io::Result<OwnedFd> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut into = [IoSliceMut::new(&mut byte)];
    rustix::net::recvmsg(socket.as_fd(), &mut into, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let descriptor = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    descriptor.ok_or_else(|| std::io::Error::other("fusermount3 sent no descriptor"))
}

/// Unmounts what is at `path`; `detach` also when it is in use.
///
/// # Errors
/// [`Kind::Busy`] when it is in use; [`Kind::Denied`] otherwise.
pub fn unmount(path: &Path, detach: bool) -> Result<()> {
    if rustix::process::geteuid().is_root() {
        let flags = if detach { UnmountFlags::DETACH } else { UnmountFlags::empty() };
        return rustix::mount::unmount(path, flags | UnmountFlags::NOFOLLOW).map_err(|error| {
            let kind = if error == rustix::io::Errno::BUSY { Kind::Busy } else { Kind::Denied };
            Error::with_source(kind, format!("cannot unmount {}", path.display()), error)
        });
    }
    let mut arguments: Vec<&OsStr> = vec![OsStr::new("-u")];
    if detach {
        arguments.push(OsStr::new("-z"));
    }
    let output = Command::new("fusermount3")
        .args(arguments)
        .arg("--")
        .arg(path)
        .stdin(Stdio::null())
        .output()
        .map_err(no_helper)?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let kind = if words.contains("busy") { Kind::Busy } else { Kind::Denied };
    Err(Error::new(kind, format!("cannot unmount {}: {words}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_mountinfo() {
        let text = b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n\
                     40 35 0:51 / /mnt/a\\040b\\134 rw,nosuid shared:7 master:2 - fuse.pullfs qmp:/x rw,user_id=0\n\
                     broken line\n";
        let all: Vec<Mounted> = parse_mountinfo(text).collect();
        assert_eq!(all.len(), 2);
        assert_eq!(all[1].path, PathBuf::from("/mnt/a b\\"));
        assert_eq!((all[1].device.as_str(), all[1].kind.as_str()), ("0:51", "fuse.pullfs"));
    }

    #[test]
    fn a_mount_point_is_an_empty_directory() {
        let dir = tempfile::tempdir().unwrap();
        assert!(check_mount_point(dir.path()).is_ok());
        assert_eq!(check_mount_point(&dir.path().join("no")).unwrap_err().kind(), Kind::NotFound);
        let file = dir.path().join("file");
        std::fs::write(&file, "x").unwrap();
        assert_eq!(check_mount_point(&file).unwrap_err().kind(), Kind::Invalid);
        assert_eq!(check_mount_point(dir.path()).unwrap_err().kind(), Kind::Busy);
    }
}
