//! How many bytes may be asked for as time goes by: a bucket that fills at the rate and holds a burst, as plain code.

use std::time::Duration;

use tokio::time::Instant;

/// The bucket holds what passes in this part of a second; more would be felt by the guest as a stall.
const BURST_PARTS: u64 = 4;

const NANOS_PER_SECOND: u128 = 1_000_000_000;

/// The bucket.
#[derive(Debug)]
pub(super) struct Rate {
    bytes_per_second: u64,
    /// What it holds at most, in bytes.
    burst: u64,
    /// When it is full again if nothing more is taken.
    full_at: Instant,
}

impl Rate {
    /// Full from the beginning; holds at least one request of `largest` bytes.
    pub(super) fn new(bytes_per_second: u64, largest: u64, now: Instant) -> Self {
        let burst = (bytes_per_second / BURST_PARTS).max(largest);
        Self { bytes_per_second, burst, full_at: now }
    }

    /// The same bucket at another rate from now on: what was taken stays taken, as far as the new bucket can miss it.
    pub(super) fn changed(&self, bytes_per_second: u64, largest: u64, now: Instant) -> Self {
        let missing = self.full_at.saturating_duration_since(now).as_nanos() * u128::from(self.bytes_per_second);
        let missing = u64::try_from(missing.div_ceil(NANOS_PER_SECOND)).unwrap_or(u64::MAX);
        let mut changed = Self::new(bytes_per_second, largest, now);
        changed.full_at = now + changed.time(missing.min(changed.burst));
        changed
    }

    /// How long it takes to fill by so many bytes; rounded up, so that the rate is never passed.
    fn time(&self, bytes: u64) -> Duration {
        let nanos = (u128::from(bytes) * NANOS_PER_SECOND).div_ceil(u128::from(self.bytes_per_second.max(1)));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// When so many bytes may be asked for: at once, or then.
    pub(super) fn ready(&self, now: Instant, bytes: u64) -> Instant {
        let missing = self.full_at.saturating_duration_since(now);
        // What is larger than the bucket passes when that is full.
        let spare = self.time(self.burst).saturating_sub(self.time(bytes.min(self.burst)));
        now + missing.saturating_sub(spare)
    }

    /// So many bytes are asked for.
    pub(super) fn take(&mut self, now: Instant, bytes: u64) {
        self.full_at = self.full_at.max(now) + self.time(bytes);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LARGEST: u64 = 256 << 10;

    proptest! {
        #[test]
        fn no_stretch_of_time_has_more_than_its_share(
            rate in 65_536_u64..1 << 32,
            requests in proptest::collection::vec((1..=LARGEST, 0_u64..50), 1..60),
        ) {
            let begin = Instant::now();
            let mut bucket = Rate::new(rate, LARGEST, begin);
            let (mut now, mut sent) = (begin, Vec::new());
            for (bytes, later) in requests {
                now += Duration::from_millis(later);
                let ready = bucket.ready(now, bytes);
                prop_assert!(ready - now <= bucket.time(bytes), "nobody waits for longer than it takes to fill");
                now = ready;
                bucket.take(now, bytes);
                sent.push((now, bytes));
            }
            for (index, (from, _)) in sent.iter().enumerate() {
                let mut bytes = 0;
                for (to, more) in &sent[index..] {
                    bytes += more;
                    // A nanosecond for the rounding of the burst.
                    let least = bucket.time(bytes).saturating_sub(bucket.time(bucket.burst));
                    prop_assert!(*to - *from + Duration::from_nanos(1) >= least, "{bytes} bytes in {:?}", *to - *from);
                }
            }
        }

        #[test]
        fn a_rate_that_changes_gives_nothing_away_and_starves_nobody(
            rates in proptest::collection::vec(65_536_u64..1 << 32, 2..10), bytes in 1_u64..=LARGEST,
        ) {
            let begin = Instant::now();
            let mut bucket = Rate::new(rates[0], LARGEST, begin);
            let mut now = begin;
            for rate in rates {
                bucket = bucket.changed(rate, LARGEST, now);
                let ready = bucket.ready(now, bytes);
                prop_assert!(ready - now <= bucket.time(bytes), "nobody waits for longer than it takes to fill");
                now = ready;
                bucket.take(now, bytes);
            }
            // What one rate let pass, the same again does not let pass once more.
            now = bucket.ready(now, bucket.burst);
            bucket.take(now, bucket.burst);
            let (once, again) = (bucket.ready(now, bytes), bucket.changed(bucket.bytes_per_second, LARGEST, now));
            let early = once.saturating_duration_since(again.ready(now, bytes));
            prop_assert!(early <= Duration::from_nanos(1), "{early:?} early");
        }

        #[test]
        fn who_always_asks_gets_all_of_the_rate(rate in 65_536_u64..1 << 32, bytes in 1_u64..4 * LARGEST) {
            let begin = Instant::now();
            let mut bucket = Rate::new(rate, LARGEST, begin);
            let mut now = begin;
            for _ in 0..100 {
                now = bucket.ready(now, bytes);
                bucket.take(now, bytes);
            }
            prop_assert!(now - begin <= bucket.time(bytes) * 100);
        }
    }
}
