//! Why points in time end, by kind: the words for people are with each end, these are counted.

use std::sync::atomic::{AtomicU64, Ordering};

/// Why a point in time ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Somebody let it go.
    Released,
    /// A new one was begun.
    Replaced,
    /// The mount ended.
    Unmounted,
    /// `idle_timeout=` passed.
    Idle,
    /// `hold_limit=` passed.
    HoldLimit,
    /// Its scratch space was nearly full, or failed.
    Scratch,
    /// The machine is migrated.
    Migration,
    /// The machine shuts down.
    Shutdown,
    /// One of its disks was unplugged.
    Unplugged,
    /// QEMU was silent while the guest may have had to wait.
    Silent,
    /// Its job or its export ended by somebody else's doing, or by a failure.
    Ended,
    /// The connection to the machine did.
    Gone,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Released,
        Self::Replaced,
        Self::Unmounted,
        Self::Idle,
        Self::HoldLimit,
        Self::Scratch,
        Self::Migration,
        Self::Shutdown,
        Self::Unplugged,
        Self::Silent,
        Self::Ended,
        Self::Gone,
    ];

    /// One word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Released => "released",
            Self::Replaced => "replaced",
            Self::Unmounted => "unmounted",
            Self::Idle => "idle",
            Self::HoldLimit => "hold_limit",
            Self::Scratch => "scratch",
            Self::Migration => "migration",
            Self::Shutdown => "shutdown",
            Self::Unplugged => "unplugged",
            Self::Silent => "silent",
            Self::Ended => "ended",
            Self::Gone => "gone",
        }
    }
}

/// What became of the points in time of a mount.
#[derive(Debug, Default)]
pub struct Tally {
    taken: AtomicU64,
    failed: AtomicU64,
    ended: [AtomicU64; Reason::ALL.len()],
}

impl Tally {
    /// One was taken, or could not be.
    pub(super) fn taken(&self, taken: bool) {
        let counter = if taken { &self.taken } else { &self.failed };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// One has ended.
    pub(super) fn ended(&self, reason: Reason) {
        self.ended[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// How many were taken, and how many could not be.
    pub fn attempts(&self) -> (u64, u64) {
        (self.taken.load(Ordering::Relaxed), self.failed.load(Ordering::Relaxed))
    }

    /// How many ended for each reason.
    pub fn ends(&self) -> impl Iterator<Item = (Reason, u64)> + '_ {
        Reason::ALL.into_iter().map(|reason| (reason, self.ended[reason as usize].load(Ordering::Relaxed)))
    }
}
