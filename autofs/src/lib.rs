//! The part of the kernel's autofs that an automounter of one directory of directories needs (an *indirect* map, protocol 5;
//! the kernel's `Documentation/filesystems/autofs.rst`).
//!
//! ```text
//! somebody looks into MNT/NAME ─▶ kernel ─▶ pipe: Request { Missing, NAME, token } ─▶ the automounter mounts there
//! the look goes on, in the mount ◀── kernel ◀── ready(token)
//! expire(): the kernel looks for a mount that nobody uses ─▶ pipe: Request { Expire, … } ─▶ the automounter unmounts it
//! ```
//! Processes of the automounter's own process group never wait: they see what lies below, make its directories, and mount.
//! When the automounter is gone, nobody waits any more either: looks give an error, or what lies below.
//!
//! All unsafe code is in [`mod@control`]: the calls that have no safe form, which are ioctl(2)s.

mod control;
mod request;

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::mount::{MountFlags, OpenTreeFlags, UnmountFlags};
use rustix::pipe::PipeFlags;

pub use request::{Kind, Request};

/// The type that `/proc/self/mountinfo` shows.
pub const TYPE: &str = "autofs";

/// By which an answer may say why; without it, it cannot.
pub const DEVICE: &str = "/dev/autofs";

/// Who may look into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// The owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Permission bits of the directory.
    pub mode: u16,
}

/// A mounted autofs. It is not unmounted when this is dropped: as long as the mount is there, and this is not, nobody waits.
#[derive(Debug)]
pub struct Autofs {
    /// Its root, in a mount of its own that is nowhere in the tree. So the mount in the tree is in use by others only, and
    /// whoever waits in it is answered even after it was taken out of the tree.
    root: OwnedFd,
    path: PathBuf,
    device: u64,
    control: Option<OwnedFd>,
}

impl Autofs {
    /// Mounts one at `path`, for the process group whose number is this process's: it must be, or become, the leader of one
    /// before it does anything with it. The requests of the kernel, one for each read(2), come out of the pipe.
    ///
    /// # Errors
    /// [`Errno::PERM`] for others than root, [`Errno::NODEV`] if the kernel has no autofs.
    pub fn mount(source: &str, path: &Path, access: Access) -> io::Result<(Self, OwnedFd)> {
        let (requests, kernels) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&requests, true)?;
        let Access { uid, gid, mode } = access;
        let (fd, group) = (kernels.as_raw_fd(), std::process::id());
        let data = format!("fd={fd},pgrp={group},uid={uid},gid={gid},minproto=5,maxproto=5,indirect");
        let data = CString::new(data)?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        rustix::mount::mount(source, path, TYPE, flags, Some(data.as_c_str()))?;
        let mounted = Self::of(path).and_then(|autofs| {
            rustix::fs::fchmod(&autofs.root, Mode::from_raw_mode(mode.into()))?;
            Ok(autofs)
        });
        if mounted.is_err() {
            rustix::mount::unmount(path, UnmountFlags::DETACH).ok();
        }
        Ok((mounted?, requests))
    }

    fn of(path: &Path) -> io::Result<Self> {
        let tree = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = rustix::mount::open_tree(CWD, path, tree)?;
        let root = rustix::fs::openat(tree, ".", DIRECTORY, Mode::empty())?;
        let device = rustix::fs::fstat(&root)?.st_dev;
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let control = rustix::fs::open(DEVICE, flags, Mode::empty()).ok();
        Ok(Self { root, path: path.to_owned(), device, control })
    }

    /// Where it was mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `major:minor` of its device, as `/proc/self/mountinfo` has it.
    pub fn device(&self) -> String {
        format!("{}:{}", rustix::fs::major(self.device), rustix::fs::minor(self.device))
    }

    /// Makes a directory, for a mount.
    ///
    /// # Errors
    /// When there is one; [`Errno::ACCESS`] in another process group.
    pub fn make(&self, name: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::mkdirat(&self.root, name, Mode::from_raw_mode(0o555))?)
    }

    /// Removes a directory.
    ///
    /// # Errors
    /// [`Errno::BUSY`] when something is mounted there.
    pub fn remove(&self, name: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.root, name, AtFlags::REMOVEDIR)?)
    }

    /// Answers a request: it was done. Whoever waits looks for the mount, or for its absence.
    ///
    /// # Errors
    /// When nobody waits for such a token.
    pub fn ready(&self, token: u32) -> io::Result<()> {
        Ok(control::ready(self.root.as_fd(), token)?)
    }

    /// Answers a request: it was not done. Whoever waits gets this error; [`Errno::NOENT`] where the kernel cannot be told.
    /// What is not to expire is [`Errno::BUSY`].
    ///
    /// # Errors
    /// As [`Autofs::ready`].
    pub fn fail(&self, token: u32, why: Errno) -> io::Result<()> {
        match &self.control {
            Some(device) => Ok(control::fail_with(device.as_fd(), self.root.as_fd(), token, why)?),
            None => Ok(control::fail(self.root.as_fd(), token)?),
        }
    }

    /// Has nobody wait any more: whoever does gets [`Errno::NOENT`], and nobody is asked for anything from now on.
    ///
    /// # Errors
    /// Practically none.
    pub fn abandon(&self) -> io::Result<()> {
        Ok(control::catatonic(self.root.as_fd())?)
    }

    /// For how long nobody must have used a mount before it expires, in whole seconds, at least one.
    ///
    /// # Errors
    /// Practically none.
    pub fn expire_after(&self, unused: Duration) -> io::Result<()> {
        Ok(control::set_timeout(self.root.as_fd(), unused.as_secs().max(1))?)
    }

    /// Has the kernel look for one mount that nobody uses, and ask for its end in a [`Kind::Expire`]; whether there was one
    /// and it ended. Blocks until the answer.
    ///
    /// # Errors
    /// [`Errno::NOENT`] when it is not mounted at its place any more.
    pub fn expire(&self) -> io::Result<bool> {
        // The kernel looks at what is mounted on the mount that it is asked of, so that must be the one in the tree.
        let root = rustix::fs::open(&self.path, DIRECTORY, Mode::empty())?;
        let Stat { st_dev, .. } = rustix::fs::fstat(&root)?;
        if st_dev != self.device {
            return Err(Errno::NOENT.into());
        }
        match control::expire(root.as_fd()) {
            Ok(()) => Ok(true),
            // There is none; or the answer was that it is still needed.
            Err(Errno::AGAIN | Errno::BUSY | Errno::NOENT) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// One whose automounter died. Some may wait for an answer to what it had not read, or not done, when it did.
#[derive(Debug)]
pub struct Remains(OwnedFd);

impl Remains {
    /// What is at `path`. It is in use as long as this lives.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn at(path: &Path) -> io::Result<Self> {
        Ok(Self(rustix::fs::open(path, DIRECTORY, Mode::empty())?))
    }

    /// As [`Autofs::abandon`], also after it was taken out of the tree: who looks in between finds nothing, and no empty
    /// directory.
    ///
    /// # Errors
    /// [`Errno::NOTTY`] if it is no autofs.
    pub fn abandon(self) -> io::Result<()> {
        Ok(control::catatonic(self.0.as_fd())?)
    }
}

/// To open a directory by.
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
