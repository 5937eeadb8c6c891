//! The mount of a whole host, as the other commands see it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use pullfs_fs::error::Kind;
use pullfs_fs::fuse::mount::{below, unmount};
use pullfs_fs::recovery::{Dead, dir_of, has_ended, state_dir};
use rustix::fd::OwnedFd;

use pullfs_fs::vm::libvirt::mounted::{HostMount, detach_host, host_at};

use super::shown;
use crate::args::Status;
use crate::failure::{Code, Failure, Outcome};
use crate::status::{print, show};
use crate::umount::{daemon, wait};
use crate::waiting::waiting;

/// How long unmounting goes on when somebody looks into a domain again and again.
const LIMIT: Duration = Duration::from_secs(5);

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(50);

/// A mounted host.
pub(crate) struct Found {
    mount: HostMount,
    /// The directory of the mount; none if it is of another user.
    dir: Option<PathBuf>,
}

impl Found {
    /// The one at `path`, which may be given in any way that leads there.
    pub(crate) fn find(path: &Path) -> Outcome<Option<Self>> {
        let absolute = std::path::absolute(path).with_context(|| path.display().to_string())?;
        for candidate in [Ok(absolute.clone()), absolute.canonicalize()].into_iter().flatten() {
            if let Some(mount) = host_at(&candidate)? {
                let dir = dir_of(&state_dir(), mount.daemon);
                return Ok(Some(Self { mount, dir }));
            }
        }
        Ok(None)
    }

    /// Whether nobody looks after it any more.
    pub(super) fn is_dead(&self) -> bool {
        has_ended(self.mount.daemon)
    }

    /// `pullfs status MNT`.
    pub(crate) fn status(&self, arguments: &Status) -> Outcome {
        if arguments.watch.is_some() {
            return Err(Failure::message(Code::Usage, "--watch is for a domain of the host: MNT/DOMAIN"));
        }
        let place = self.mount.path.display();
        let dir = self.dir.as_ref().with_context(|| format!("{place} is of another user, or its daemon has died"))?;
        let host = shown::read(dir)?;
        if arguments.json {
            return print(&format!("{:#}\n", serde_json::to_value(&host).map_err(anyhow::Error::from)?));
        }
        show(&shown::text(&host, self.is_dead()), arguments.color)
    }

    /// `pullfs umount MNT`: the domains, then the host; waits until nothing is left of either.
    pub(crate) fn unmount(&self) -> Outcome {
        if self.is_dead() {
            return self.bury();
        }
        let path = &self.mount.path;
        let daemon = daemon(self.mount.daemon);
        let end = Instant::now() + LIMIT;
        loop {
            // One that is in use stays, and so does the host.
            for domain in below(path)? {
                unmount(&domain.path, false)?;
            }
            match unmount(path, false) {
                // Somebody has just looked into a domain.
                Err(error) if error.kind() == Kind::Busy && Instant::now() < end => std::thread::sleep(PAUSE),
                other => break other?,
            }
        }
        if let Some(daemon) = &daemon {
            wait_for(daemon)?;
        }
        Ok(())
    }

    /// Takes away what one left whose daemon and guardian died. Its domains' processes end by themselves.
    pub(super) fn bury(&self) -> Outcome {
        detach_host(&self.mount.path, self.mount.daemon)?;
        let Some(dir) = &self.dir else { return Ok(()) };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.context("cannot start the runtime")?;
        runtime.block_on(async {
            match Dead::in_dir(dir)? {
                Some(dead) => dead.bury().await,
                // Its guardian does it.
                None => Ok(()),
            }
        })?;
        Ok(())
    }
}

fn wait_for(daemon: &OwnedFd) -> anyhow::Result<()> {
    waiting("unmounted; waiting until nothing of it is left in the machines", || wait(daemon))
}
