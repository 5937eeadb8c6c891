//! What a point in time of a domain may leave in libvirt, on its host and on this one, and how that is removed.

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use libvirt::Code;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use super::end::end_backup;
use super::link::{LIMIT, Link, Target};
use super::pool::{Scratch, Store, Volumes};
use super::{place, xml};
use crate::error::{Error, Kind, Result, chain};
use crate::point::plan;

/// How long a backup that was begun, and of which nobody knows what became, may still come: libvirt waits for 30 s for what
/// else goes on in the domain.
const MAY_COME: Duration = Duration::from_secs(40);

/// Between two looks at whether it came.
const LONG_PAUSE: Duration = Duration::from_millis(500);

/// What steps and their undoing work on.
pub(super) struct Context {
    pub(super) link: Link,
    store: Store,
    /// Where scratch images in a storage pool are, in the order of the disks. Held for a moment only.
    images: Mutex<Vec<PathBuf>>,
    /// Which of its descriptions the last backup was begun with.
    begun: AtomicUsize,
    /// Our own descriptors of scratch files, in the order of the disks. Held for a moment only.
    files: Mutex<Vec<File>>,
    /// Whether it is known what became of the last backup that was begun.
    settled: AtomicBool,
    /// Whether libvirt answered that the guest could not be frozen.
    not_frozen: AtomicBool,
}

impl Context {
    /// How many bytes a storage pool has for scratch images.
    ///
    /// # Errors
    /// When it cannot be used for them.
    pub(super) async fn room(&self, pool: &str) -> Result<u64> {
        self.store.room(pool).await
    }

    /// Of a domain, by a link to it.
    pub(super) fn new(link: Link, target: Target) -> Self {
        Self {
            link,
            store: Store::new(target),
            images: Mutex::default(),
            begun: AtomicUsize::new(0),
            files: Mutex::default(),
            settled: AtomicBool::new(false),
            not_frozen: AtomicBool::new(false),
        }
    }

    /// Where the scratch images are that were made in a storage pool last.
    pub(super) fn images(&self) -> Vec<PathBuf> {
        self.images.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Which of its descriptions the last backup was begun with.
    pub(super) fn begun(&self) -> usize {
        self.begun.load(Ordering::Relaxed)
    }

    pub(super) fn files(&self) -> MutexGuard<'_, Vec<File>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn settle(&self, known: bool) {
        self.settled.store(known, Ordering::Relaxed);
    }

    /// As [`end_backup`]; whether there was one.
    async fn end_backup(&self, mark: &str) -> Result<bool> {
        let ended = end_backup(&self.link, mark).await?;
        if ended == Some(true) {
            tracing::warn!("the guest stood still, its writes waiting for scratch space; it goes on");
        }
        Ok(ended.is_some())
    }

    /// Whether libvirt does not know the domain any more, which then can get no backup.
    async fn is_forgotten(&self) -> Result<bool> {
        match self.link.call("tell of the domain", LIMIT, |domain| domain.state().map(drop)).await {
            Ok(()) => Ok(false),
            Err(error) if error.kind() == Kind::NotFound => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Ends a backup that may not have begun yet.
    async fn end_backup_for_good(&self, mark: &str) -> Result<()> {
        let deadline = Instant::now() + MAY_COME;
        loop {
            if self.is_forgotten().await?
                || self.end_backup(mark).await?
                || self.settled.load(Ordering::Relaxed)
                || Instant::now() >= deadline
            {
                self.settle(true);
                return Ok(());
            }
            sleep(LONG_PAUSE).await;
        }
    }
}

/// Something that may exist.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Leftover {
    /// The directory with the scratch images and the socket.
    Place { dir: PathBuf },
    /// Scratch images in a storage pool.
    Volumes(Volumes),
    /// The guest's file systems, frozen for the instant.
    Frozen,
    /// A checkpoint that was made with the backup, until the point in time is held. What is noted with it tells it from another
    /// one of that name.
    Checkpoint { name: String, made: String },
    /// A backup that is known by its NBD server's socket, or its first export: the guest's writes wait for it.
    Backup {
        #[serde(alias = "socket")]
        mark: String,
    },
    /// The backup surely began: it need not be waited for if it is not there.
    Begun {
        #[serde(alias = "socket")]
        mark: String,
    },
}

impl Leftover {
    /// Removes what does not end with the domain.
    pub(super) async fn undo_without_domain(&self, context: &Context) -> Result<()> {
        match self {
            Self::Place { dir } => place::remove(dir),
            Self::Volumes(volumes) => context.store.remove(volumes).await,
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Place { dir } => write!(f, "scratch directory {}", dir.display()),
            Self::Frozen => f.write_str("frozen file systems of the guest"),
            Self::Checkpoint { name, .. } => write!(f, "unfinished checkpoint {name}"),
            Self::Volumes(Volumes { pool, names }) => {
                write!(f, "scratch images {} in storage pool {pool}", names.join(", "))
            }
            Self::Backup { mark } | Self::Begun { mark } => write!(f, "libvirt's backup over {mark}"),
        }
    }
}

#[async_trait]
impl plan::Undo for Leftover {
    type Context = Context;

    async fn relieve(&self, context: &Context) -> Result<()> {
        match self {
            Self::Frozen => thaw(context).await,
            Self::Begun { mark } => context.end_backup(mark).await.map(drop),
            Self::Backup { .. } | Self::Place { .. } | Self::Volumes(_) | Self::Checkpoint { .. } => Ok(()),
        }
    }

    /// A backup is struck from the journal with the word that it surely began: whoever went on from there alone would wait for it
    /// to come.
    fn goes_with(&self, other: &Self) -> bool {
        matches!((self, other), (Self::Backup { mark }, Self::Begun { mark: begun }) if mark == begun)
    }

    async fn undo(these: &[Self], context: &Context) -> Result<()> {
        let Some(last) = these.last() else { return Ok(()) };
        match last {
            Self::Place { dir } => {
                // Old data of the guest takes no room any more, whoever has the files open. Not where a backup may still write
                // there: the guest's writes would fail.
                let ended = context.settled.load(Ordering::Relaxed);
                for file in context.files().drain(..).filter(|_| ended) {
                    file.set_len(0).ok();
                }
                place::remove(dir)
            }
            Self::Volumes(volumes) => context.store.remove(volumes).await,
            Self::Frozen => thaw(context).await,
            Self::Checkpoint { name, made } => unmake(context, name, made).await,
            Self::Begun { mark } => {
                context.end_backup(mark).await?;
                context.settle(true);
                Ok(())
            }
            Self::Backup { mark } => context.end_backup_for_good(mark).await,
        }
    }
}

/// Thaws the guest; one that is not frozen, or not there, is fine.
pub(super) async fn thaw(context: &Context) -> Result<()> {
    let thawed = context.link.call("thaw the guest", LIMIT, |domain| match domain.thaw() {
        Err(error) if matches!(error.code(), Code::NoDomain | Code::Invalid) => Ok(()),
        other => other.map(drop),
    });
    match thawed.await {
        Err(error) if error.kind() == Kind::NotFound => Ok(()),
        // Without an agent there is nobody who could thaw it, nor was there one to freeze it.
        Err(error) if context.not_frozen.load(Ordering::Relaxed) => {
            tracing::debug!("a guest that was not frozen is not thawed: {}", chain(&error));
            Ok(())
        }
        other => other,
    }
}

/// Deletes the checkpoint of this name with which this is noted; none is fine.
async fn unmake(context: &Context, name: &str, made: &str) -> Result<()> {
    fn none<T>(error: Error) -> Result<Option<T>> {
        if error.kind() == Kind::NotFound { Ok(None) } else { Err(error) }
    }
    let (known, wanted) = (name.to_owned(), name.to_owned());
    let link = &context.link;
    let described = link.call("describe the checkpoint", LIMIT, move |domain| domain.checkpoint(&known)?.xml(false));
    let described = described.await.map(Some).or_else(none)?;
    let noted = described.map(|described| xml::checkpoint(&described)).transpose()?.and_then(|found| found.made);
    if noted.is_none_or(|noted| noted.write() != made) {
        return Ok(());
    }
    let deleted = link.call("delete the checkpoint", LIMIT, move |domain| domain.checkpoint(&wanted)?.delete());
    deleted.await.map(Some).or_else(none).map(drop)
}

/// What a step makes.
pub(super) enum Step {
    /// The directory, with a scratch image of each size in bytes, for QEMU's user.
    Place { dir: PathBuf, sizes: Vec<u64>, user: Option<u32> },
    /// The same in a storage pool of libvirt's host, for its QEMU's user and group.
    Reserve { pool: String, volumes: Vec<Scratch>, owner: Option<(u32, u32)> },
    /// Freezes the guest's file systems.
    Freeze,
    /// Begins the backup, as the first of the descriptions says whose port is free, and makes the checkpoint.
    Begin {
        mark: String,
        backups: Vec<String>,
        checkpoint: Option<NewCheckpoint>,
        place: Option<(PathBuf, Option<u32>)>,
    },
    /// It began.
    Begun { mark: String },
}

/// A checkpoint to be made.
#[derive(Clone)]
pub(super) struct NewCheckpoint {
    pub(super) name: String,
    /// What is noted with it.
    pub(super) made: String,
    /// libvirt's description of it.
    pub(super) xml: String,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Place { dir, .. } => write!(f, "making scratch files in {}", dir.display()),
            Self::Reserve { pool, .. } => write!(f, "reserving scratch space in storage pool {pool}"),
            Self::Freeze => f.write_str("freezing the guest's file systems"),
            Self::Begin { .. } | Self::Begun { .. } => f.write_str("beginning libvirt's backup"),
        }
    }
}

#[async_trait]
impl plan::Step for Step {
    type Undo = Leftover;

    fn leaves(&self) -> Vec<Leftover> {
        let last = match self {
            Self::Place { dir, .. } => Leftover::Place { dir: dir.clone() },
            Self::Freeze => Leftover::Frozen,
            Self::Reserve { pool, volumes, .. } => Leftover::Volumes(Volumes {
                pool: pool.clone(),
                names: volumes.iter().map(|volume| volume.name.clone()).collect(),
            }),
            Self::Begin { mark, .. } => Leftover::Backup { mark: mark.clone() },
            Self::Begun { mark } => Leftover::Begun { mark: mark.clone() },
        };
        let new = if let Self::Begin { checkpoint, .. } = self { checkpoint.as_ref() } else { None };
        let new = new.map(|new| Leftover::Checkpoint { name: new.name.clone(), made: new.made.clone() });
        // The backup ends before the checkpoint goes.
        new.into_iter().chain([last]).collect()
    }

    async fn apply(&self, context: &Context) -> Result<()> {
        match self {
            Self::Place { dir, sizes, user } => {
                let made = place::make(dir, sizes, *user)?;
                *context.files() = made;
                Ok(())
            }
            Self::Reserve { pool, volumes, owner } => {
                let images = context.store.reserve(pool, volumes.clone(), *owner).await?;
                *context.images.lock().unwrap_or_else(PoisonError::into_inner) = images;
                Ok(())
            }
            Self::Freeze => {
                let frozen =
                    context.link.call("freeze the guest's file systems", FREEZE_LIMIT, libvirt::Domain::freeze);
                let outcome = frozen.await;
                let refused = outcome.as_ref().is_err_and(|error| !matches!(error.kind(), Kind::Timeout | Kind::Gone));
                context.not_frozen.store(refused, Ordering::Relaxed);
                outcome.map(drop)
            }
            Self::Begin { backups, checkpoint, place, .. } => {
                // A port that was free is so again, as a rule.
                let first = context.begun();
                let order = (0..backups.len()).map(|index| (first + index) % backups.len());
                let mut outcome = Ok(());
                for index in order {
                    outcome = begin(context, backups[index].clone(), checkpoint.clone()).await;
                    context.begun.store(index, Ordering::Relaxed);
                    if !outcome.as_ref().is_err_and(|error| chain(error).contains(TAKEN)) {
                        break;
                    }
                }
                outcome.map_err(|error| match place {
                    Some((dir, user)) => in_use(kept_out(error, dir, *user)),
                    None => in_use(unreachable(error, backups.len())),
                })
            }
            Self::Begun { .. } => Ok(()),
        }
    }
}

/// What QEMU says of a port that somebody else has (`strerror(EADDRINUSE)`).
const TAKEN: &str = "Address already in use";

async fn begin(context: &Context, backup: String, checkpoint: Option<NewCheckpoint>) -> Result<()> {
    context.settle(false);
    let begun = context.link.call("begin a backup", LIMIT, move |domain| {
        domain.backup_begin(&backup, checkpoint.as_ref().map(|new| &*new.xml))
    });
    let outcome = begun.await;
    // Whoever answers knows; a call that nobody waits for any more may still do it.
    let known = outcome.as_ref().map_or_else(|error| !matches!(error.kind(), Kind::Timeout | Kind::Gone), |()| true);
    context.settle(known);
    outcome
}

/// Where the NBD server cannot listen for clients of other hosts, that is said, with what to do.
fn unreachable(error: Error, ports: usize) -> Error {
    if matches!(error.kind(), Kind::Timeout | Kind::Gone) {
        return error;
    }
    let said = chain(&error);
    let (kind, message) = if said.contains(TAKEN) {
        (
            Kind::Busy,
            format!(
                "all {ports} ports that an NBD server may have there are in use: name a free one with nbd=HOST:PORT"
            ),
        )
    } else if said.contains("Cannot assign requested address") {
        let why = "the address that libvirt's host is reached by is none of its own: name one with nbd=HOST:PORT";
        (Kind::Io, why.to_owned())
    } else if said.contains("backup TLS directory not configured") || said.contains("x509") || said.contains("TLS") {
        let why = "QEMU over there cannot use TLS for backups: see backup_tls_x509_cert_dir and its certificates in qemu.conf";
        (Kind::Unsupported, why.to_owned())
    } else {
        return error;
    };
    Error::with_source(kind, message, error)
}

/// QEMU's words, for which libvirt has no code.
fn in_use(error: Error) -> Error {
    if !chain(&error).contains("NBD server already running") {
        return error;
    }
    let message = "this machine's only NBD server is in use, by another backup as a rule; let that finish";
    Error::with_source(Kind::Busy, message, error)
}

/// Where the system kept QEMU out, that is said, with what to do: libvirt passes on QEMU's words, which do not say who it is.
fn kept_out(error: Error, dir: &Path, user: Option<u32>) -> Error {
    if !chain(&error).contains("Permission denied") {
        return error;
    }
    let (dir, who) = (dir.display(), user.map_or_else(String::new, |user| format!(", user {user},")));
    let message = format!(
        "QEMU{who} cannot use {dir}: choose with scratch= a directory that it can reach (each one above it needs `chmod o+x`, \
         and AppArmor or SELinux must allow it)"
    );
    Error::with_source(Kind::Denied, message, error)
}

/// How long the guest's agent may take to freeze its file systems, of which libvirt's own limit knows nothing.
const FREEZE_LIMIT: Duration = Duration::from_secs(15);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::point::plan::Undo;

    #[tokio::test]
    async fn a_backup_that_surely_began_is_undone_and_struck_as_one() {
        let target = Target::new("none", "test:///default");
        let context = Context::new(Link::start(target.clone(), Box::new(|_| {})), target);
        let backup = |mark: &str| Leftover::Backup { mark: mark.to_owned() };
        let begun = |mark: &str| Leftover::Begun { mark: mark.to_owned() };
        assert!(backup("a").goes_with(&begun("a")));
        assert!(!backup("a").goes_with(&begun("b")) && !begun("a").goes_with(&backup("a")));
        assert!(!backup("a").goes_with(&backup("a")));
        Leftover::undo(&[backup("a"), begun("a")], &context).await.unwrap();
        assert!(context.settled.load(Ordering::Relaxed));
    }

    #[tokio::test]
    async fn scratch_images_are_emptied_only_when_the_backup_has_surely_ended() {
        let base = tempfile::tempdir().unwrap();
        let target = Target::new("vm", "test:///default");
        let context = Context::new(Link::start(target.clone(), Box::new(|_| {})), target);
        let dir = place::dir(base.path(), "pullfs-0a1b2c");
        for (ended, left) in [(false, 100), (true, 0)] {
            std::fs::create_dir(&dir).unwrap();
            let file = tempfile::tempfile().unwrap();
            file.set_len(100).unwrap();
            context.files().push(file.try_clone().unwrap());
            context.settle(ended);
            Leftover::undo(&[Leftover::Place { dir: dir.clone() }], &context).await.unwrap();
            assert_eq!(file.metadata().unwrap().len(), left, "the backup has ended: {ended}");
            assert!(!dir.exists());
        }
    }
}
