//! What a mount that died has left, in the machine and on this host, and its removal.
//!
//! Every mount has a directory of its own below [`state_dir`], with its sockets and its journal. A directory whose journal
//! nobody keeps locked is of a dead mount. Its guardian removes it within moments; where that died too, the next mount of
//! the same source does, or `pullfs recover`. Whoever does has the journal locked meanwhile, so two do not meet. A directory
//! without a journal is of a mount that is just beginning or ending, whose daemon has the directory locked, or else of nobody:
//! then whoever comes next removes it.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use tokio::time::{Instant, sleep, timeout};

use crate::error::{Error, Kind, Result, chain};
use crate::fuse::mount::detach_dead;
use crate::metrics::textfile::Textfile;
use crate::point::journal::{self, Header, Journal, has_notes};
#[cfg(feature = "libvirt")]
use crate::vm::libvirt::{self, elsewhere::Way, mounted::detach_host};
use crate::vm::qmp;
use crate::vm::qmp::monitor::Monitor;
use crate::vm::qmp::transport::{self, Qmp};
#[cfg(feature = "libvirt")]
use crate::vm::source::HOST;
use crate::vm::source::{Reach, Source};

/// How long a guardian that is cleaning up is waited for: as a rule it needs a fraction of a second, and 40 s for a backup that
/// libvirt may have been asked for.
const CLEANING_LIMIT: Duration = Duration::from_secs(60);

/// Between two looks at it.
const CLEANING_PAUSE: Duration = Duration::from_millis(20);

/// How long taking a dead mount away, or its file of metrics, may take. It takes no time, unless another one that hangs lies there.
const DETACH_LIMIT: Duration = Duration::from_secs(10);

/// Where the mounts of this user have their directories: root's are in /run; a user's in the session's runtime
/// directory, or in /tmp where there is no session.
pub fn state_dir() -> PathBuf {
    let uid = rustix::process::geteuid();
    if uid.is_root() {
        return PathBuf::from("/run/pullfs");
    }
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(dir) if Path::new(&dir).is_absolute() => PathBuf::from(dir).join("pullfs"),
        _ => PathBuf::from(format!("/tmp/pullfs-{}", uid.as_raw())),
    }
}

/// What a mount left in its machine.
enum Remains {
    Qmp(qmp::recover::Remains),
    #[cfg(feature = "libvirt")]
    Libvirt(libvirt::recover::Remains),
    /// A whole host's mount makes nothing in a machine; those of its domains are mounts of their own. The journal stays
    /// locked meanwhile.
    #[cfg(feature = "libvirt")]
    Host(#[expect(dead_code, reason = "its lock is what it is for")] Journal),
}

/// A mount that died.
pub struct Dead {
    dir: PathBuf,
    header: Header,
    remains: Remains,
}

impl Dead {
    /// The mount that has this directory, if it is dead and left something to do.
    ///
    /// # Errors
    /// When its journal cannot be read or is not understood: then nothing is touched.
    pub fn in_dir(dir: &Path) -> Result<Option<Self>> {
        let Some(journal) = Journal::of_dead(dir)? else { return Ok(None) };
        let header = journal.header().clone();
        let remains = match header.source.parse::<Source>()? {
            Source::Qmp(_) => Remains::Qmp(qmp::recover::Remains::of(journal)?),
            #[cfg(feature = "libvirt")]
            Source::Libvirt(_) => Remains::Libvirt(libvirt::recover::Remains::of(journal)?),
            #[cfg(feature = "libvirt")]
            Source::Host => Remains::Host(journal),
        };
        Ok(Some(Self { dir: dir.to_owned(), header, remains }))
    }

    /// What is known of the mount.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// What may be left of it in the machine, by names.
    pub fn names(&self) -> Vec<String> {
        match &self.remains {
            Remains::Qmp(remains) => remains.names(),
            #[cfg(feature = "libvirt")]
            Remains::Libvirt(remains) => remains.names(),
            #[cfg(feature = "libvirt")]
            Remains::Host(_) => Vec::new(),
        }
    }

    /// Undoes what it left in the machine, which may have ended, and on this host. Safe to be tried again.
    ///
    /// # Errors
    /// When something may be left; the journal stays then.
    pub async fn bury(&self) -> Result<()> {
        // Readers of the dead mount get errors already; the place is free again from here on.
        let header = self.header.clone();
        let detached = tokio::task::spawn_blocking(move || {
            let Header { mount_point, source, .. } = header;
            #[cfg(feature = "libvirt")]
            if source == HOST {
                return detach_host(&mount_point, header.pid);
            }
            detach_dead(&mount_point, &source)
        });
        let (undone, detached) = tokio::join!(self.undo(), timeout(DETACH_LIMIT, detached));
        undone?;
        let unable = |why: String| Error::new(Kind::Io, format!("cannot take the dead mount away: {why}"));
        detached.map_err(|_| unable("it hangs".to_owned()))?.map_err(|error| unable(error.to_string()))??;
        if let Some(path) = &self.header.textfile {
            let removed = timeout(DETACH_LIMIT, Textfile::of(path, &self.header.mount).remove()).await;
            let slow = || Error::new(Kind::Timeout, format!("removing {} takes too long", path.display()));
            removed.map_err(|_| slow())??;
        }
        remove_dir(&self.dir)
    }

    async fn undo(&self) -> Result<()> {
        let Header { source, tls, insecure, uri, .. } = &self.header;
        #[cfg(feature = "libvirt")]
        if let Remains::Host(_) = self.remains {
            return Ok(());
        }
        match (&self.remains, Reach::new(&source.parse()?, tls.as_deref(), *insecure, uri.as_deref())?) {
            (Remains::Qmp(remains), _) if remains.is_empty() => Ok(()),
            (Remains::Qmp(remains), Reach::Qmp(monitor)) => match connect_to(&monitor).await? {
                Some(qmp) => remains.undo(&qmp).await,
                None => remains.undo_without_machine(),
            },
            #[cfg(feature = "libvirt")]
            (Remains::Libvirt(remains), Reach::Libvirt(target)) => remains.undo(target, &self.dir).await,
            #[cfg(feature = "libvirt")]
            _ => Err(Error::new(Kind::Invalid, format!("the journal of {source} is of another kind of source"))),
        }
    }
}

/// A connection to the machine of a mount; none if it does not run any more.
async fn connect_to(monitor: &Monitor) -> Result<Option<Qmp>> {
    match qmp::recover::connect(monitor).await {
        Ok(qmp) => Ok(Some(qmp)),
        Err(error) if transport::has_ended(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The mounts of a source, through the libvirt at `uri` if it is said which: those that died, and the headers of those that
/// live. A guardian that is just cleaning up is waited for: it is neither.
///
/// # Errors
/// When the directory of mounts cannot be read. A journal that cannot be understood is passed over, with a warning.
pub async fn of_source(base: &Path, source: &str, uri: Option<&str>) -> Result<(Vec<Dead>, Vec<Header>)> {
    let deadline = Instant::now() + CLEANING_LIMIT;
    loop {
        let (dead, living) = look(base, |header| is_of(header, source, uri))?;
        // Whoever has the journal of a daemon that has ended is its guardian.
        let cleaned = living.iter().any(|header| has_ended(header.pid));
        if !cleaned || Instant::now() >= deadline {
            return Ok((dead, living));
        }
        drop(dead);
        sleep(CLEANING_PAUSE).await;
    }
}

/// The headers of the mounts of a source, as for [`of_source`]: of those whose daemon has ended and that nobody has cleaned up
/// after, and of those that live. Touches nothing.
///
/// # Errors
/// When the directory of mounts cannot be read.
pub fn headers(base: &Path, source: &str, uri: Option<&str>) -> Result<(Vec<Header>, Vec<Header>)> {
    let failed = |error| Error::with_source(Kind::Io, format!("cannot read {}", base.display()), error);
    let entries = match std::fs::read_dir(base) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((Vec::new(), Vec::new())),
        other => other.map_err(failed)?,
    };
    let headers = entries.filter_map(|entry| Journal::header_in(&entry.ok()?.path()));
    Ok(headers.filter(|header| is_of(header, source, uri)).partition(|header| has_ended(header.pid)))
}

/// What is known of all mounts in `base`, whether they live or died. What cannot be read is passed over.
pub fn all_headers(base: &Path) -> Vec<Header> {
    let entries = std::fs::read_dir(base).into_iter().flatten().flatten();
    entries.filter_map(|entry| Journal::header_in(&entry.path())).collect()
}

/// Whether a mount is of this source: where that is a libvirt's, through this one, if it is said which. Another one may have a
/// machine of the same name.
#[cfg_attr(not(feature = "libvirt"), expect(unused_variables, reason = "no source goes through a libvirt"))]
fn is_of(header: &Header, source: &str, uri: Option<&str>) -> bool {
    #[cfg(feature = "libvirt")]
    if header.uri.as_deref().zip(uri).is_some_and(|(its, uri)| !Way::is_to_one(its, uri)) {
        return false;
    }
    header.source == source
}

fn look(base: &Path, wanted: impl Fn(&Header) -> bool) -> Result<(Vec<Dead>, Vec<Header>)> {
    let (mut dead, mut living) = (Vec::new(), Vec::new());
    for dir in dirs(base)? {
        match Dead::in_dir(&dir) {
            Ok(Some(found)) if wanted(&found.header) => dead.push(found),
            Ok(Some(_)) => {}
            Ok(None) => living.extend(Journal::header_in(&dir).filter(&wanted)),
            Err(error) => tracing::warn!("{}", chain(&error)),
        }
    }
    Ok((dead, living))
}

/// The directory of the mount that this daemon keeps the journal of.
pub fn dir_of(base: &Path, daemon: u32) -> Option<PathBuf> {
    let mut dirs = std::fs::read_dir(base).ok()?.flatten().map(|entry| entry.path());
    dirs.find(|dir| Journal::header_in(dir).is_some_and(|header| header.pid == daemon))
}

/// Whether the mount of this daemon has made anything in its machine that it has not undone; `false` without such a mount.
pub fn holds(base: &Path, daemon: u32) -> bool {
    dir_of(base, daemon).is_some_and(|dir| has_notes(&dir))
}

/// Whether a process has ended: it is gone, or nobody has looked yet how it ended (proc(5), state `Z`).
pub fn has_ended(pid: u32) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with(['Z', 'X'])),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// Locks the directory of a mount until what is returned is dropped: none if another process has, or has removed it.
///
/// # Errors
/// When it cannot be opened or locked.
pub fn claim(dir: &Path) -> io::Result<Option<File>> {
    let opened = match File::open(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    match flock(&opened, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => return Ok(None),
        other => other?,
    }
    let ours = opened.metadata()?.ino();
    Ok(std::fs::symlink_metadata(dir).is_ok_and(|found| found.ino() == ours).then_some(opened))
}

/// Directories of mounts. Those of nobody are removed.
fn dirs(base: &Path) -> Result<Vec<PathBuf>> {
    let failed = |error| Error::with_source(Kind::Io, format!("cannot read {}", base.display()), error);
    let entries = match std::fs::read_dir(base) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut dirs = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let has_journal = || path.join(journal::NAME).exists();
        if has_journal() {
            dirs.push(path);
        } else if path.is_dir()
            && let Some(_claim) = claim(&path).map_err(failed)?
            && !has_journal()
        {
            tracing::info!("{} is of a mount that died as it began or ended", path.display());
            remove_dir(&path)?;
        }
    }
    dirs.sort();
    Ok(dirs)
}

/// Removes the directory of a mount that has left nothing else; another one may do so at once.
///
/// # Errors
/// When something in it cannot be removed.
pub(crate) fn remove_dir(dir: &Path) -> Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::with_source(Kind::Io, format!("cannot remove {}", dir.display()), error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(base: &Path, mount: &str, source: &str) -> Journal {
        let dir = base.join(mount);
        std::fs::create_dir(&dir).unwrap();
        Journal::create(&dir, Header::new(mount.into(), source.into(), base.join("mnt"))).unwrap()
    }

    #[cfg(feature = "libvirt")]
    #[test]
    fn a_domain_of_another_libvirt_is_another_machine() {
        let by =
            |uri: &str| Header::new("pullfs-1".into(), "libvirt:vm".into(), "/mnt".into()).through(Some(uri.into()));
        let remote = by("qemu+ssh://root@host/system");
        assert!(is_of(&remote, "libvirt:vm", Some("qemu+tls://host/system?pkipath=/x")), "another way there");
        assert!(is_of(&remote, "libvirt:vm", None) && !is_of(&remote, "libvirt:vm2", None));
        for other in ["qemu:///system", "qemu+ssh://host/session", "qemu+ssh://host2/system", "ch+ssh://host/system"] {
            assert!(!is_of(&remote, "libvirt:vm", Some(other)), "{other}");
        }
        let monitor = Header::new("pullfs-1".into(), "qmp:/vm".into(), "/mnt".into());
        assert!(is_of(&monitor, "qmp:/vm", None));
    }

    #[tokio::test]
    async fn the_dead_are_told_from_the_living_and_from_others() {
        let base = tempfile::tempdir().unwrap();
        let none = base.path().join("none");
        assert!(of_source(&none, "qmp:/a", None).await.unwrap().0.is_empty(), "no directory, no mounts");
        let living = begin(base.path(), "pullfs-1", "qmp:/a");
        drop(begin(base.path(), "pullfs-2", "qmp:/a"));
        drop(begin(base.path(), "pullfs-3", "qmp:/b"));
        for dead in ["pullfs-2", "pullfs-3"] {
            drop(Journal::of_dead_here(&base.path().join(dead)).unwrap());
        }
        let [beginning, nobodys] = ["pullfs-4", "pullfs-5"].map(|name| base.path().join(name));
        for dir in [&beginning, &nobodys] {
            std::fs::create_dir(dir).unwrap();
        }
        std::fs::write(nobodys.join("ssh-1"), "").unwrap();
        let claimed = claim(&beginning).unwrap();
        assert!(claimed.is_some() && claim(&beginning).unwrap().is_none(), "one at a time");
        let (dead, alive) = of_source(base.path(), "qmp:/a", None).await.unwrap();
        assert_eq!(dead.iter().map(|dead| &*dead.header().mount).collect::<Vec<_>>(), ["pullfs-2"]);
        assert_eq!(alive, [living.header().clone()]);
        let (ended, alive) = headers(base.path(), "qmp:/a", None).unwrap();
        assert_eq!((ended.len(), alive.len()), (0, 2), "their daemon is this process");
        assert_eq!((all_headers(base.path()).len(), all_headers(&none).len()), (3, 0), "all that have a journal");
        for dead in dead {
            dead.bury().await.unwrap();
        }
        let left: Vec<bool> = (1..=5).map(|n| base.path().join(format!("pullfs-{n}")).exists()).collect();
        assert_eq!(left, [true, false, true, true, false], "the living, others', and one that is just beginning stay");
        drop(claimed);
        std::fs::remove_dir(&beginning).unwrap();
        assert!(claim(&beginning).unwrap().is_none(), "it is gone");
    }
}
