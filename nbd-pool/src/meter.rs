//! What was asked of servers, counted for whoever shows it: atomics alone, since it is counted where every request passes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the classes of [`Latency`], in nanoseconds: 10 µs to 10 s, three to each power of ten.
const BOUNDS: [u64; 19] = [
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
];

/// How long something took, how often. Adding to it takes no lock and no memory.
#[derive(Debug, Default)]
pub struct Latency {
    /// By class; the last one has no bound.
    counts: [AtomicU64; BOUNDS.len() + 1],
    /// All of it together, in nanoseconds: enough for 584 years.
    sum: AtomicU64,
}

/// A [`Latency`] at one moment. What is added meanwhile may be in one number and not yet in another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Latencies {
    counts: [u64; BOUNDS.len() + 1],
    /// All of it together.
    pub sum: Duration,
}

impl Latency {
    /// It took so long once more.
    pub fn add(&self, took: Duration) {
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let class = BOUNDS.partition_point(|bound| *bound < took);
        self.counts[class].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(took, Ordering::Relaxed);
    }

    /// What there is now.
    pub fn now(&self) -> Latencies {
        Latencies {
            counts: std::array::from_fn(|class| self.counts[class].load(Ordering::Relaxed)),
            sum: Duration::from_nanos(self.sum.load(Ordering::Relaxed)),
        }
    }
}

impl Latencies {
    /// How often.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// For each bound, ascending, how often it took no longer than that.
    pub fn cumulative(&self) -> impl Iterator<Item = (Duration, u64)> + '_ {
        BOUNDS.iter().zip(&self.counts).scan(0, |sum, (bound, count)| {
            *sum += count;
            Some((Duration::from_nanos(*bound), *sum))
        })
    }
}

/// Counters of all pools whose [`Config`](crate::Config) has it.
#[derive(Debug, Default)]
pub struct Meter {
    pub(crate) requests: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) reconnects: AtomicU64,
    pub(crate) faults: AtomicU64,
    /// Requests that ended with their connection.
    pub(crate) lost: AtomicU64,
    pub(crate) latency: Latency,
}

/// A [`Meter`] at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metered {
    /// Requests sent, re-issued ones included.
    pub requests: u64,
    /// Bytes read from servers and released.
    pub bytes: u64,
    /// Connections made to replace lost ones.
    pub reconnects: u64,
    /// Connections killed for breaking the protocol or a time limit.
    pub faults: u64,
    /// Requests under way.
    pub in_flight: u64,
    /// How long answers took, from the sending of a request to the end of its reply.
    pub latency: Latencies,
}

impl Meter {
    /// What there is now.
    pub fn now(&self) -> Metered {
        // Those that ended first: a request that comes and ends in between makes it one more, never less than none.
        let latency = self.latency.now();
        let ended = latency.count() + self.lost.load(Ordering::Relaxed);
        let requests = self.requests.load(Ordering::Relaxed);
        Metered {
            requests,
            bytes: self.bytes.load(Ordering::Relaxed),
            reconnects: self.reconnects.load(Ordering::Relaxed),
            faults: self.faults.load(Ordering::Relaxed),
            in_flight: requests.saturating_sub(ended),
            latency,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_is_in_the_class_of_its_bound() {
        let latency = Latency::default();
        for micros in [1, 10, 11, 1000, 20_000_000] {
            latency.add(Duration::from_micros(micros));
        }
        let now = latency.now();
        let within = |micros| {
            let bound = Duration::from_micros(micros);
            now.cumulative().find(|(at, _)| *at == bound).map(|(_, count)| count)
        };
        assert_eq!([10, 25, 500, 1000, 10_000_000].map(within), [2, 3, 3, 4, 4].map(Some));
        assert_eq!((now.count(), now.sum), (5, Duration::from_micros(20_001_022)));
    }
}
