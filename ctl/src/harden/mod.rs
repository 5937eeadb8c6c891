//! What the daemon gives up before it speaks to the machine or to any reader.
//!
//! Capabilities, `no_new_privs`, Landlock and system call filters belong to a thread, and a thread inherits them from the
//! one that starts it. So they are given up in the first thread while there is no other that will live on, and every
//! thread and process that is started later is born without them: none has to be found and told. Two are started before:
//! [`crate::mounter`], which ends with the mount, and the guardian, a process of its own, which unmounts.
//!
//! What this kernel cannot enforce is said in the log and in `status.json`, and the mount goes on.

mod paths;
pub(crate) mod reader;
mod system_calls;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use anyhow::Context;
use pullfs_fs::fs::Sandbox;
use rustix::fs::Mode;
use rustix::process::{DumpableBehavior, Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};

/// All that is kept: root's daemon connects to sockets, and writes scratch in directories, that belong to the machine's
/// user. An ordinary user's daemon has no capability to begin with.
const KEPT: CapabilitySet = CapabilitySet::DAC_OVERRIDE;

/// How much of the memory's thousandths the daemon counts as more than it uses when the kernel looks for a process to
/// kill: a backup may be lost, a guest may not. The guardian and QEMU stay where they are.
const FIRST_TO_GO: i32 = 300;

/// What the daemon still has to do.
#[derive(Debug)]
pub(crate) struct Needs<'a> {
    /// Where this user's mounts have their runtime directories.
    pub(crate) runtime: &'a Path,
    /// Where scratch files are made.
    pub(crate) scratch: &'a Path,
    /// Where it writes a file of metrics.
    pub(crate) textfiles: Option<&'a Path>,
    /// TCP ports it connects to.
    pub(crate) ports: Vec<u16>,
    /// What it is known by there: a guardian that replaces a dead one reads them again.
    pub(crate) certificates: Vec<PathBuf>,
    /// Whether it speaks to libvirt, whose library reads files of its own.
    pub(crate) libvirt: bool,
    /// Whether it may leave core dumps, which hold data of the guest.
    pub(crate) core_dumps: bool,
    /// Whether privileges are given up at all.
    pub(crate) sandbox: bool,
}

/// Gives up what `needs` does not name, for this thread and for those that it starts.
///
/// # Errors
/// When something that every kernel has is refused.
pub(crate) fn apply(needs: &Needs<'_>) -> anyhow::Result<Sandbox> {
    // Whatever it makes is for its user alone.
    rustix::process::umask(Mode::from_raw_mode(0o077));
    first_to_go();
    if !needs.core_dumps {
        no_core_dumps().context("cannot turn core dumps off")?;
    }
    let mut sandbox = Sandbox { core_dumps: needs.core_dumps, ..Sandbox::default() };
    if needs.sandbox {
        drop_capabilities().context("cannot drop capabilities")?;
        rustix::thread::set_no_new_privs(true).context("cannot set no_new_privs")?;
        sandbox.no_new_privileges = true;
        match paths::restrict(needs) {
            Ok(level) => sandbox.landlock = Some(level),
            Err(error) => sandbox.missing.push(format!("landlock: {error:#}")),
        }
        // Last, because it is told what the others still ask.
        match system_calls::restrict() {
            Ok(()) => sandbox.system_calls = true,
            Err(error) => sandbox.missing.push(format!("system calls: {error:#}")),
        }
    } else {
        sandbox.missing.push("all of it: mounted with sandbox=off".to_owned());
    }
    sandbox.capabilities = held()?;
    for missing in &sandbox.missing {
        tracing::warn!("the sandbox lacks {missing}");
    }
    tracing::info!("{sandbox:?}");
    Ok(sandbox)
}

/// Whoever has the same user id can then neither trace the daemon nor read its memory, and a crash is not handed to
/// systemd-coredump, which a limit of 0 does not keep from it.
fn no_core_dumps() -> rustix::io::Result<()> {
    rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
}

fn first_to_go() {
    let path = "/proc/self/oom_score_adj";
    let now = std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<i32>().ok());
    // Only ever upwards, which needs no privilege. Where there is none of it, nobody is killed by it either.
    if now.is_some_and(|now| now < FIRST_TO_GO) {
        std::fs::write(path, FIRST_TO_GO.to_string()).ok();
    }
}

fn drop_capabilities() -> rustix::io::Result<()> {
    let kept = rustix::thread::capabilities(None)?.permitted & KEPT;
    for capability in CapabilitySet::all().difference(KEPT) {
        // Needs CAP_SETPCAP, and a kernel that knows the capability. Without it no_new_privs alone keeps a program that
        // is started from gaining what the bounding set still has.
        rustix::thread::remove_capability_from_bounding_set(capability).ok();
    }
    rustix::thread::clear_ambient_capability_set()?;
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets)
}

/// The names of the capabilities that this thread has.
fn held() -> rustix::io::Result<Vec<String>> {
    let permitted = rustix::thread::capabilities(None)?.permitted;
    Ok(permitted.iter_names().map(|(name, _)| name.to_ascii_lowercase()).collect())
}
