//! Landlock: which files the daemon may touch, and which TCP ports it may connect to.

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, NetPort, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, RulesetStatus, Scope,
};

use super::Needs;

/// The newest version whose rights are handled: what no test has seen enforced is not asked for. An older kernel enforces
/// those that it knows.
const TESTED: ABI = ABI::V6;

/// Asked for the address of a host whose port is connected to; over TCP where an answer is long.
const DNS: u16 = 53;

/// What the C library reads to find a host's address.
const RESOLVER: [&str; 6] =
    ["/etc/hosts", "/etc/host.conf", "/etc/resolv.conf", "/etc/nsswitch.conf", "/etc/gai.conf", "/run/systemd/resolve"];

/// What libvirt's library reads when it connects: its configuration, that of TLS, and who the user is.
const LIBVIRT: [&str; 5] = ["/etc/libvirt", "/etc/gnutls", "/etc/nsswitch.conf", "/etc/passwd", "/etc/group"];

/// Restricts this thread and those that it starts; what was enforced.
pub(super) fn restrict(needs: &Needs<'_>) -> anyhow::Result<String> {
    let mut ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(TESTED))?
        .handle_access(AccessNet::from_all(TESTED))?
        // Signals stay: a guardian that hangs, and is not confined, has to be killed.
        .scope(Scope::AbstractUnixSocket)?
        .create()?;
    for (path, rights) in places(needs) {
        ruleset = allow(ruleset, &path, rights)?;
    }
    let dns = (!needs.ports.is_empty()).then_some(&DNS);
    for port in needs.ports.iter().chain(dns) {
        ruleset = ruleset.add_rule(NetPort::new(*port, AccessNet::ConnectTcp))?;
    }
    let status = ruleset.restrict_self()?;
    match (status.ruleset, status.landlock) {
        (RulesetStatus::FullyEnforced, _) => Ok("all".to_owned()),
        (RulesetStatus::PartiallyEnforced, LandlockStatus::Available { effective_abi, .. }) => {
            Ok(format!("what version {} of it has", effective_abi as i32))
        }
        (_, LandlockStatus::NotEnabled) => bail!("this kernel has it turned off (lsm= on its command line)"),
        _ => bail!("this kernel does not have it (Linux 5.13 and later can)"),
    }
}

/// Everything that is opened, made or removed by path after the mount.
fn places(needs: &Needs<'_>) -> Vec<(PathBuf, BitFlags<AccessFs>)> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let replace = read | AccessFs::WriteFile | AccessFs::Truncate | AccessFs::MakeReg | AccessFs::RemoveFile;
    let keep = replace | AccessFs::MakeDir | AccessFs::RemoveDir;
    let mut places = vec![
        (needs.runtime.to_owned(), keep | AccessFs::MakeSock),
        (needs.scratch.to_owned(), keep),
        // All of it: the inode of one process's directory does not last, and a rule is tied to the inode.
        (PathBuf::from("/proc"), read),
        (PathBuf::from("/dev/null"), AccessFs::ReadFile | AccessFs::WriteFile),
        // Each thread that serves the mount opens its own.
        (PathBuf::from("/dev/fuse"), AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev),
    ];
    places.extend(needs.textfiles.map(|dir| (dir.to_owned(), replace)));
    // It starts itself again, as the guard of a frozen guest and to replace a guardian that died.
    places.extend(program().into_iter().map(|path| (path, read | AccessFs::Execute)));
    places.push((PathBuf::from("/etc/ld.so.cache"), AccessFs::ReadFile.into()));
    // Files of theirs may be links to elsewhere.
    let within = |dir: &PathBuf| std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let files = needs.certificates.iter().flat_map(within).filter(|path| path.is_file());
    places.extend(needs.certificates.iter().cloned().chain(files).map(|path| (path, AccessFs::ReadFile.into())));
    if needs.libvirt {
        places.extend(LIBVIRT.map(|path| (PathBuf::from(path), read)));
    }
    if !needs.ports.is_empty() {
        places.extend(RESOLVER.map(|path| (PathBuf::from(path), read)));
    }
    places
}

/// The program's file, even if it was replaced, and the directories of the libraries that it has loaded: those, because
/// an upgrade gives a library a new inode.
fn program() -> BTreeSet<PathBuf> {
    let maps = std::fs::read("/proc/self/maps").unwrap_or_default();
    let libraries = maps.split(|byte| *byte == b'\n').filter_map(|line| {
        let at = line.iter().position(|byte| *byte == b'/')?;
        let path = Path::new(std::ffi::OsStr::from_bytes(&line[at..]));
        let name = path.file_name()?.as_bytes();
        name.windows(3).any(|part| part == b".so").then(|| path.parent().map(Path::to_owned))?
    });
    libraries.chain([PathBuf::from("/proc/self/exe")]).collect()
}

/// A place that is not there needs no rule.
fn allow(ruleset: RulesetCreated, path: &Path, rights: BitFlags<AccessFs>) -> anyhow::Result<RulesetCreated> {
    let Ok(place) = PathFd::new(path) else { return Ok(ruleset) };
    let metadata = std::fs::metadata(path).with_context(|| format!("cannot look at {}", path.display()))?;
    let rights = if metadata.is_dir() { rights } else { rights & AccessFs::from_file(TESTED) };
    Ok(ruleset.add_rule(PathBeneath::new(place, rights))?)
}
