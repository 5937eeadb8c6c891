//! How long somebody may be silent while this process runs.
//!
//! A host that is itself a virtual machine may be paused, or get no processor for many seconds; so then is the one that is waited
//! for. Its clock goes on meanwhile. A limit of time would be over at the first look afterwards, before anybody could answer.

use std::time::Duration;

use tokio::time::Instant;

/// What is left of the time that somebody may take, by looks that follow each other closely.
#[derive(Debug)]
pub(crate) struct Patience {
    left: Duration,
    longest: Duration,
    looked: Instant,
}

impl Patience {
    /// From now on. The time between two looks counts for `longest` at most.
    pub(crate) fn new(limit: Duration, longest: Duration) -> Self {
        Self { left: limit, longest, looked: Instant::now() }
    }

    /// Whether it is over at this look.
    pub(crate) fn is_over(&mut self) -> bool {
        let now = Instant::now();
        self.left = self.left.saturating_sub(now.duration_since(self.looked).min(self.longest));
        self.looked = now;
        self.left.is_zero()
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_was_slept_through_does_not_count() {
        let mut patience = Patience::new(Duration::from_secs(10), Duration::from_millis(500));
        advance(Duration::from_secs(3600)).await;
        assert!(!patience.is_over(), "nobody could answer");
        let began = Instant::now();
        while !patience.is_over() {
            advance(Duration::from_millis(20)).await;
        }
        let waited = began.elapsed();
        assert!(waited > Duration::from_secs(9) && waited <= Duration::from_secs(10), "{waited:?}");
    }
}
