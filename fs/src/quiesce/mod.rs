//! Quiescing: the guest's file systems are frozen, through qemu-guest-agent, for the moment of the transaction.
//!
//! ```text
//! daemon ── socketpair ──▶ guard process ── agent's socket ──▶ QEMU ── virtio-serial ──▶ qemu-ga in the guest
//! freeze() ─────────────▶ starts; freezes
//! …the transaction…
//! thaw() ───────────────▶ thaws; ends
//! ```
//! The agent in a Linux guest never thaws by itself, so that somebody must outlive whatever happens to the daemon: a
//! guest that stays frozen hangs. See docs/adr/013-quiesce-guard.md.
//!
//! Invariants: what was frozen is thawed when the daemon asks, when the daemon ends in any way, when the guard ends in
//! any way, and when [`Limits::hold`] passed; what somebody else froze is not touched; a point in time counts as quiesced
//! only if every file system was frozen until the daemon asked to thaw.

mod agent;
pub mod guard;
mod keeper;
mod report;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod thaw;

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::oneshot;

use self::keeper::{Keeper, Since};
use crate::error::{Error, Kind, Result};

/// The subcommand of the program that is [`guard::run`].
pub const SUBCOMMAND: &str = "thaw-guard";

/// How long things may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// For the agent to answer a question that is quick to answer.
    pub(crate) answer: Duration,
    /// For the agent to freeze: the guest writes out what it has not written yet, and waits with everything else
    /// meanwhile. A guest that takes longer is better not frozen.
    pub(crate) freeze: Duration,
    /// How long the guest may be kept frozen. A transaction takes milliseconds; Windows thaws by itself after 10 s.
    pub(crate) hold: Duration,
    /// How long thawing is tried on. A guest that was paused or hung meanwhile is thawed when it runs again.
    pub(crate) patience: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            answer: Duration::from_secs(5),
            freeze: Duration::from_secs(10),
            hold: Duration::from_secs(5),
            patience: Duration::from_secs(600),
        }
    }
}

/// Whether the guest could be frozen now through its agent at this socket. Asks it, and changes nothing.
///
/// # Errors
/// As [`Quiesce::freeze`], as far as that can be known before.
pub async fn examine(agent: &Path) -> Result<()> {
    guard::prepare(agent, Limits::default()).await.map(drop)
}

/// How a machine's guest is quiesced.
#[derive(Debug, Clone)]
pub struct Quiesce {
    agent: PathBuf,
    program: PathBuf,
    limits: Limits,
}

/// A frozen guest. Dropping it thaws the guest.
#[derive(Debug)]
pub struct Frozen {
    ask: oneshot::Sender<()>,
    thawed: oneshot::Receiver<Result<Duration>>,
    since: Since,
    guard: u32,
}

impl Quiesce {
    /// `agent` is the host's socket of the guest agent; `program` has [`SUBCOMMAND`]. A pullfs passes `/proc/self/exe`,
    /// which is itself even after its file was replaced.
    pub fn new(agent: impl Into<PathBuf>, program: impl Into<PathBuf>) -> Self {
        Self { agent: agent.into(), program: program.into(), limits: Limits::default() }
    }

    /// Freezes the guest's file systems. Giving up on it leaves them thawed.
    ///
    /// # Errors
    /// When the agent cannot be reached ([`Kind::Gone`], [`Kind::Denied`]), does not answer ([`Kind::Timeout`]), does not
    /// allow it ([`Kind::Unsupported`]), has them frozen for somebody else ([`Kind::Busy`]), or fails. Nothing stays
    /// frozen then; if that is not certain yet, the error says so.
    pub async fn freeze(&self) -> Result<Frozen> {
        let unable = |error: Error| error.context("cannot quiesce the guest");
        let keeper = Keeper::start(self).map_err(unable)?;
        let guard = keeper.guard();
        let (tell_frozen, frozen) = oneshot::channel();
        let (ask, asked) = oneshot::channel();
        let (tell_thawed, thawed) = oneshot::channel();
        tokio::spawn(keeper.keep(tell_frozen, asked, tell_thawed));
        let since = frozen.await.map_err(|_| ending())?.map_err(unable)?;
        tracing::info!(filesystems = since.filesystems, took = ?since.took, "the guest is frozen");
        Ok(Frozen { ask, thawed, since, guard })
    }
}

impl Frozen {
    /// Thaws the guest; how long it was frozen, from before its first file system was to after its last one.
    ///
    /// # Errors
    /// When not every file system was frozen until now, or when they cannot be thawed. In the second case thawing is
    /// tried on in the background.
    pub async fn thaw(self) -> Result<Duration> {
        // If the task does not listen any more, it has told why.
        self.ask.send(()).ok();
        let outcome = self.thawed.await.map_err(|_| ending())?;
        let frozen = outcome.map_err(|error| error.context("the point in time is not quiesced"))?;
        tracing::info!(?frozen, "the guest is thawed");
        Ok(frozen)
    }

    /// How many file systems are frozen.
    pub fn filesystems(&self) -> u64 {
        self.since.filesystems
    }

    /// How long freezing took; part of what [`Frozen::thaw`] tells. The guest wrote out its data meanwhile.
    pub fn freezing(&self) -> Duration {
        self.since.took
    }

    /// The process id of the guard.
    pub fn guard(&self) -> u32 {
        self.guard
    }
}

fn ending() -> Error {
    Error::new(Kind::Gone, "the daemon is ending")
}
