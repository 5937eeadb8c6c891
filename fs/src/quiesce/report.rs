//! What the guard tells the daemon, a line each. In the other direction there is [`THAW`], and the end of the stream.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result, chain};
use crate::lines::Lines;

/// The daemon's word.
pub(super) const THAW: &[u8] = b"thaw";

/// Longest line between the two, in bytes: an error has a path of at most 4096 and a few sentences in it.
const MAX_LINE: usize = 32 << 10;

/// What the guard tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Report {
    /// From now on something may be frozen.
    Freezing,
    /// Everything is frozen.
    Frozen {
        /// How many file systems.
        filesystems: u64,
        /// How long that took.
        #[serde(default)]
        took: Duration,
    },
    /// It begins to thaw. The agent may take its time for that; a guard that hangs does not tell this.
    Thawing,
    /// Everything is thawed.
    Thawed {
        /// How many file systems were still frozen then.
        filesystems: u64,
        /// Why before it was asked for, if it was not.
        early: Option<String>,
        /// How long anything was frozen. Only the guard can tell: it may take a while until the daemon hears of it.
        #[serde(default)]
        frozen: Duration,
    },
    /// It did not work; what may be frozen is thawed by the guard as far as that is possible.
    Failed {
        /// What the error's kind is.
        cause: Cause,
        /// Its chain.
        why: String,
    },
}

/// The kinds of error that the guard has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Cause {
    Busy,
    Denied,
    Gone,
    Timeout,
    Unsupported,
    Other,
}

impl Report {
    pub(super) fn failed(error: &Error) -> Self {
        let cause = match error.kind() {
            Kind::Busy => Cause::Busy,
            Kind::Denied => Cause::Denied,
            Kind::Gone => Cause::Gone,
            Kind::Timeout => Cause::Timeout,
            Kind::Unsupported => Cause::Unsupported,
            Kind::NotFound
            | Kind::Stale
            | Kind::Io
            | Kind::Broken
            | Kind::NothingHeld
            | Kind::NotOurs
            | Kind::Exists
            | Kind::Invalid
            | Kind::NoSuchData
            | Kind::TooLarge
            | Kind::NoSpace => Cause::Other,
        };
        Self::Failed { cause, why: chain(error) }
    }

    pub(super) async fn send(&self, lines: &mut Lines) -> Result<()> {
        let gone = |error| Error::with_source(Kind::Gone, "pullfs does not listen any more", error);
        let mut line = serde_json::to_vec(self).map_err(|error| gone(error.into()))?;
        line.push(b'\n');
        lines.write(&line).await.map_err(gone)
    }

    /// The next one; an error if there is none, or none that makes sense.
    pub(super) async fn receive(lines: &mut Lines) -> Result<Self> {
        let ended = "the guard process ended before its time";
        let line = lines.next(MAX_LINE).await.map_err(|error| Error::with_source(Kind::Gone, ended, error))?;
        let line = line.ok_or_else(|| Error::new(Kind::Gone, ended))?;
        serde_json::from_slice(&line)
            .map_err(|error| Error::with_source(Kind::Invalid, "the guard process is not of this version", error))
    }
}

impl Cause {
    pub(super) fn kind(self) -> Kind {
        match self {
            Self::Busy => Kind::Busy,
            Self::Denied => Kind::Denied,
            Self::Gone => Kind::Gone,
            Self::Timeout => Kind::Timeout,
            Self::Unsupported => Kind::Unsupported,
            Self::Other => Kind::Io,
        }
    }
}

/// What the daemon says: whether it is [`THAW`]. The end of the stream, or anything else, is not.
pub(super) async fn is_asked(lines: &mut Lines) -> bool {
    matches!(lines.next(MAX_LINE).await, Ok(Some(line)) if line == THAW)
}
