//! `pullfs umount`: unmounts, and waits for the daemon, which lets go of the machine before it ends.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use pullfs_fs::fuse::mount::unmount;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::failure::Outcome;
use crate::mounted::Mounted;
use crate::waiting::waiting;

/// A little longer than the daemon gives itself.
const END_LIMIT: Duration = Duration::from_secs(130);

pub(crate) fn run(mount_point: &Path) -> Outcome {
    #[cfg(feature = "libvirt")]
    if let Some(host) = crate::host::Found::find(mount_point)? {
        return host.unmount();
    }
    let mounted = Mounted::find_as_it_is(mount_point)?;
    // A daemon that is dead or does not answer is not waited for; its mount goes all the same.
    let daemon = mounted.status().ok().and_then(|status| daemon(status.pid));
    unmount(mounted.path(), false)?;
    if let Some(daemon) = daemon {
        waiting("unmounted; waiting until nothing of it is left in the machine", || wait(&daemon))?;
    }
    Ok(())
}

/// A descriptor of the process, so that no other one with the same number can be mistaken for it later.
pub(crate) fn daemon(pid: u32) -> Option<OwnedFd> {
    let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
    pidfd_open(pid, PidfdFlags::empty()).ok()
}

/// Waits for the end of a daemon.
pub(crate) fn wait(daemon: &OwnedFd) -> anyhow::Result<()> {
    let deadline = Instant::now() + END_LIMIT;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match poll(&mut [PollFd::new(daemon, PollFlags::IN)], Some(&left.try_into()?)) {
            Ok(0) => {
                let seconds = END_LIMIT.as_secs();
                return Err(anyhow!("unmounted, but the daemon did not let go of the machine within {seconds} s"));
            }
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for the daemon"),
        }
    }
}
