//! How many reads may be under way when a busy guest is to be left alone: the rules, as plain code.
//!
//! ```text
//!  window    8 ┤ reads at once ▲ one more after each round that was as quick as the disk can be
//!            1 ┤───────────────┤
//!          1/8 ┤ one, with     ▼ in proportion, by half at most, after a round that was slow
//!         1/64 ┤ pauses          and for a round each half minute, to learn how quick the disk can be
//! ```
//! Reads that take longer than they could wait for somebody: for each other, or for the guest. Either way fewer of them are
//! better. The measure is the median of a round of reads of like size, against the lowest such median of the last minute;
//! a single read that was quick (a hole, a page cache) or slow changes nothing.

use std::time::Duration;

use tokio::time::Instant;

/// One read all the time, in the unit of the window.
const ONE: u32 = 1024;

/// More at once gain nothing even on disks that are many.
const MOST: u32 = 16 * ONE;

/// The least: one read, and then a pause of 63 times as long, but see [`LONGEST_PAUSE`].
const LEAST: u32 = ONE / 64;

/// A backup goes on: nine reads or so a second, a quarter of a MiB each, on the slowest of disks.
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// Reads of which the median counts.
const ROUND: usize = 8;

/// A median that is longer than the lowest one by a quarter and [`SLACK`] is slow.
const TOLERANCE: u32 = 4;

/// What threads, sockets and a busy processor add to a read; a disk that takes less is not worth sparing.
const SLACK: Duration = Duration::from_micros(500);

/// How long a lowest median stands, and once more as long while the next one is looked for: the guest's load changes, and so
/// does what the host has in its page cache.
const MEMORY: Duration = Duration::from_secs(30);

/// Reads of like size have the same number of binary digits; a request's length has 32 at most.
const SIZES: usize = 33;

/// What is known of reads of like size.
#[derive(Debug, Default)]
struct Size {
    round: Vec<Duration>,
    lowest: Option<Duration>,
    /// Of the time before that.
    earlier: Option<Duration>,
}

impl Size {
    /// A read took so long; the median of the round and the lowest one there is, if it is complete.
    fn note(&mut self, latency: Duration) -> Option<(Duration, Duration)> {
        self.round.push(latency);
        if self.round.len() < ROUND {
            return None;
        }
        self.round.sort_unstable();
        let median = self.round[ROUND / 2];
        self.round.clear();
        let lowest = self.lowest.map_or(median, |lowest| lowest.min(median));
        self.lowest = Some(lowest);
        Some((median, self.earlier.map_or(lowest, |earlier| earlier.min(lowest))))
    }

    fn age(&mut self) {
        self.round.clear();
        self.earlier = self.lowest.take();
    }
}

/// The window, and what it is made from.
#[derive(Debug)]
pub(super) struct Polite {
    /// In 1/[`ONE`] of a read that is always under way.
    window: u32,
    /// What the window becomes again after the round that learns how quick the disk can be.
    resume: Option<u32>,
    sizes: [Size; SIZES],
    /// When what is known last aged.
    aged: Instant,
    /// No read is sent before.
    pause: Instant,
}

impl Polite {
    /// Knows nothing, and so begins with the least.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            window: LEAST,
            resume: Some(ONE),
            sizes: std::array::from_fn(|_| Size::default()),
            aged: now,
            pause: now,
        }
    }

    /// How many may be under way at once.
    pub(super) fn at_once(&self) -> usize {
        usize::try_from(self.window / ONE).unwrap_or(usize::MAX).max(1)
    }

    /// When the next read may be sent: at once, or then.
    pub(super) fn ready(&self, now: Instant) -> Instant {
        self.pause.max(now)
    }

    /// The window, in reads: a half is one read half of the time.
    pub(super) fn window(&self) -> f64 {
        f64::from(self.window) / f64::from(ONE)
    }

    /// A read of so many bytes was answered after so long.
    pub(super) fn answered(&mut self, now: Instant, bytes: usize, latency: Duration) {
        if now.saturating_duration_since(self.aged) >= MEMORY {
            self.aged = now;
            self.sizes.iter_mut().for_each(Size::age);
            self.resume.get_or_insert(self.window);
            self.window = LEAST;
        }
        let digits = usize::BITS - bytes.leading_zeros();
        let size = usize::try_from(digits).unwrap_or(usize::MAX).min(SIZES - 1);
        if let Some((median, lowest)) = self.sizes[size].note(latency) {
            self.window = match self.resume.take() {
                Some(resume) => resume,
                None => adjusted(self.window, median, lowest),
            };
        }
        let idle = ONE.saturating_sub(self.window);
        self.pause = now + (latency * idle / self.window).min(LONGEST_PAUSE);
    }
}

/// The window after a round.
fn adjusted(window: u32, median: Duration, lowest: Duration) -> u32 {
    let allowed = lowest + lowest / TOLERANCE + SLACK;
    let next = if median > allowed {
        let scaled = u128::from(window) * allowed.as_nanos() / median.as_nanos();
        u32::try_from(scaled).unwrap_or(window).max(window / 2)
    } else if window < ONE {
        (window + window.div_ceil(2)).min(ONE)
    } else {
        window + ONE
    };
    next.clamp(LEAST, MOST)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BYTES: usize = 256 << 10;

    /// Rounds of reads that take so long each, one after the other, with the pauses; how long that takes in all.
    fn rounds(polite: &mut Polite, now: &mut Instant, count: usize, latency: Duration) -> Duration {
        let begin = *now;
        for _ in 0..count * ROUND {
            *now = polite.ready(*now) + latency;
            polite.answered(*now, BYTES, latency);
        }
        *now - begin
    }

    const QUICK: Duration = Duration::from_millis(2);

    #[test]
    fn a_quick_disk_is_read_faster_and_faster_and_a_slow_one_hardly() {
        let mut now = Instant::now();
        let mut polite = Polite::new(now);
        assert_eq!(polite.at_once(), 1);
        rounds(&mut polite, &mut now, 8, QUICK);
        assert_eq!(polite.at_once(), 8, "one more each round");
        rounds(&mut polite, &mut now, 1, QUICK * 4);
        assert_eq!(polite.at_once(), 4, "half of it at most");
        rounds(&mut polite, &mut now, 1, QUICK * 4);
        rounds(&mut polite, &mut now, 1, QUICK * 4);
        assert_eq!(polite.at_once(), 1);
        let took = rounds(&mut polite, &mut now, 10, QUICK * 4);
        assert!(took > QUICK * 4 * 10 * 8 * 4, "with pauses: {took:?}");
        rounds(&mut polite, &mut now, 15, QUICK);
        assert!(polite.at_once() > 1, "it recovers: {}", polite.window());
    }

    #[test]
    fn a_few_that_are_quick_or_slow_change_nothing() {
        let mut now = Instant::now();
        let mut polite = Polite::new(now);
        for index in 0..10 * ROUND {
            let latency = match index % ROUND {
                0 | 1 => Duration::from_micros(20),
                2 | 3 => QUICK * 50,
                _ => QUICK,
            };
            now = polite.ready(now) + latency;
            polite.answered(now, BYTES, latency);
        }
        assert_eq!(polite.at_once(), 10);
    }

    #[test]
    fn a_disk_that_stays_slow_is_taken_for_what_it_is() {
        let mut now = Instant::now();
        let mut polite = Polite::new(now);
        rounds(&mut polite, &mut now, 3, QUICK);
        let begin = now;
        while now - begin < MEMORY * 3 {
            rounds(&mut polite, &mut now, 1, QUICK * 10);
        }
        assert!(polite.at_once() > 1, "{}", polite.window());
    }

    proptest! {
        #[test]
        fn it_always_goes_on(
            reads in proptest::collection::vec((0_u64..200_000, 0_usize..1 << 20, 0_u64..20_000_000), 0..400),
        ) {
            let mut now = Instant::now();
            let mut polite = Polite::new(now);
            for (latency, bytes, idle) in reads {
                now += Duration::from_micros(latency + idle);
                polite.answered(now, bytes, Duration::from_micros(latency));
                prop_assert!(polite.ready(now) - now <= LONGEST_PAUSE);
                prop_assert!((1..=16).contains(&polite.at_once()));
                prop_assert!(polite.at_once() == 1 || polite.ready(now) == now, "no pause while several may be under way");
            }
        }
    }
}
