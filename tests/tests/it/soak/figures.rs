//! What a soak counts, and how it is told.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A number that goes up.
#[derive(Debug, Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    pub(super) fn add(&self, more: usize) {
        self.0.fetch_add(u64::try_from(more).expect("a count"), Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

/// The longest of many times.
#[derive(Debug, Default)]
pub(super) struct Longest(AtomicU64);

impl Longest {
    pub(super) fn note(&self, time: Duration) {
        self.0.fetch_max(u64::try_from(time.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

impl fmt::Display for Longest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = Duration::from_micros(self.0.load(Ordering::Relaxed));
        if time.as_secs() > 0 { write!(f, "{time:.1?}") } else { write!(f, "{time:.0?}") }
    }
}

/// What happened.
#[derive(Debug, Default)]
pub(super) struct Figures {
    /// Reads and seeks whose answer was right.
    pub(super) reads: Count,
    pub(super) bytes: Count,
    /// Whole files of each kind that were compared.
    pub(super) mappings: Count,
    pub(super) walks: Count,
    pub(super) maps: Count,
    pub(super) deltas: Count,
    pub(super) images: Count,
    /// Opens that were refused as they had to be, and of which nobody can tell what they got.
    pub(super) refused: Count,
    pub(super) unsettled: Count,
    /// Answers that the point in time of a file has ended.
    pub(super) stale: Count,
    /// Wrong bytes, maps or holes.
    pub(super) wrong: Count,
    /// Errors that nothing explains.
    pub(super) unexpected: Count,
    pub(super) points: Count,
    pub(super) made: Count,
    pub(super) deleted: Count,
    pub(super) busy: Count,
    pub(super) pauses: Count,
    pub(super) resets: Count,
    pub(super) cancelled: Count,
    pub(super) stopped: Count,
    pub(super) guest_requests: Count,
    pub(super) guest_alone: Longest,
    pub(super) guest_held: Longest,
    pub(super) longest_monitor: Longest,
    pub(super) longest_begin: Longest,
    pub(super) longest_release: Longest,
    pub(super) longest_operation: Longest,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = self.bytes.get() >> 20;
        writeln!(f, "reads and seeks        {} with {mib} MiB, all compared", self.reads)?;
        let (maps, deltas, images) = (&self.maps, &self.deltas, &self.images);
        let (mappings, walks) = (&self.mappings, &self.walks);
        writeln!(
            f,
            "  among them           {mappings} mmap, {walks} walks along holes, {maps} maps, {deltas} delta.raw,"
        )?;
        writeln!(f, "                       {images} qcow2 files read back by qemu-img")?;
        writeln!(f, "wrong bytes            {}", self.wrong)?;
        writeln!(f, "unexpected errors      {}", self.unexpected)?;
        writeln!(f, "answers that it ended  {} (ESTALE, or EIO after a loss)", self.stale)?;
        writeln!(
            f,
            "opens                  {} refused with nothing held, {} amid a change",
            self.refused, self.unsettled
        )?;
        let (made, deleted) = (&self.made, &self.deleted);
        writeln!(f, "points in time         {}; checkpoints made {made}, deleted {deleted}", self.points)?;
        writeln!(f, "EBUSY                  {} (files were open)", self.busy)?;
        let (pauses, resets) = (&self.pauses, &self.resets);
        writeln!(
            f,
            "QEMU                   paused {pauses} times, reset {resets}; at most {} for it",
            self.longest_monitor
        )?;
        writeln!(f, "points in time lost    {} jobs cancelled, {} servers stopped", self.cancelled, self.stopped)?;
        writeln!(f, "guest                  {} requests", self.guest_requests)?;
        let (alone, held) = (&self.guest_alone, &self.guest_held);
        writeln!(f, "longest guest request  {alone} with nothing held, {held} with a point in time held and read")?;
        let (begin, release) = (&self.longest_begin, &self.longest_release);
        writeln!(f, "longest command        begin {begin}, release {release}")?;
        writeln!(f, "longest operation      {} of a reader", self.longest_operation)
    }
}
