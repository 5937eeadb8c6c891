//! The mount of a whole host, as the kernel tells of it.

use std::path::{Path, PathBuf};

use crate::error::{Error, Kind, Result};
use crate::fuse::mount::{mountinfo, parse_mountinfo, unmount};
use crate::vm::source::HOST;

/// The mount of a whole host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostMount {
    /// The mount point.
    pub path: PathBuf,
    /// `major:minor` of the device.
    pub device: String,
    /// The process that looks after it, or did.
    pub daemon: u32,
}

/// The mount of a whole host at exactly this place, unless something lies over it.
///
/// # Errors
/// When mountinfo cannot be read.
pub fn host_at(path: &Path) -> Result<Option<HostMount>> {
    Ok(host_in(&mountinfo()?, path))
}

fn host_in(mountinfo: &[u8], path: &Path) -> Option<HostMount> {
    let at = |line| {
        let found = parse_mountinfo(line).next()?;
        (found.path == path).then_some((line, found))
    };
    let (line, found) = mountinfo.split(|byte| *byte == b'\n').rev().find_map(at)?;
    if found.kind != autofs::TYPE || found.source != Path::new(HOST) {
        return None;
    }
    // Its process group is the one that looks after it, and has the number of its first process.
    let options = line.rsplit(|byte| *byte == b' ').next()?.split(|byte| *byte == b',');
    let group = options.into_iter().find_map(|option| option.strip_prefix(b"pgrp="))?;
    Some(HostMount { path: found.path, device: found.device, daemon: std::str::from_utf8(group).ok()?.parse().ok()? })
}

/// Takes away the mount of a whole host that this process looked after, with all that is mounted in it. Nobody waits in it any
/// more. None is no error.
///
/// # Errors
/// When the system refuses.
pub fn detach_host(path: &Path, daemon: u32) -> Result<()> {
    match host_at(path)? {
        Some(mounted) if mounted.daemon == daemon => {
            let failed = |error| {
                Error::with_source(Kind::Io, format!("cannot let go of those who wait for {}", path.display()), error)
            };
            let remains = autofs::Remains::at(path).map_err(failed)?;
            unmount(path, true)?;
            remains.abandon().map_err(failed)
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_told_from_other_automounters() {
        let line = |source: &str, kind: &str| {
            format!("40 35 0:51 / /mnt rw,nosuid - {kind} {source} rw,fd=7,pgrp=4711,timeout=0,indirect,pipe_ino=9\n")
        };
        let of = |text: &str| host_in(text.as_bytes(), Path::new("/mnt"));
        let host = HostMount { path: "/mnt".into(), device: "0:51".to_owned(), daemon: 4711 };
        assert_eq!(of(&line("libvirt:", "autofs")), Some(host));
        for other in [line("systemd-1", "autofs"), line("libvirt:", "tmpfs"), String::new()] {
            assert_eq!(
                of(&(line("libvirt:", "autofs") + &other)).is_some(),
                other.is_empty(),
                "it lies over it: {other}"
            );
            assert_eq!(of(&other), None);
        }
    }
}
