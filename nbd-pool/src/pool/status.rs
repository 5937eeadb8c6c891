//! Requests without a buffer: one round of block status, one trim.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::Inner;
use super::read::again;
use crate::connection::Outcome;
use crate::error::{Error, ErrorKind};
use crate::extent::Extent;

/// The largest range that one request without extended headers asks about, rounded up.
const REQUEST: u64 = 1 << 32;

impl Inner {
    /// How long all rounds of a range may take together.
    pub(super) fn status_limit(&self, range: &Range<u64>) -> Duration {
        let requests = (range.end - range.start).div_ceil(REQUEST) + 1;
        // More than 2^32 requests there are not in 2^64 bytes.
        self.dialer.config.request_timeout.saturating_mul(u32::try_from(requests).unwrap_or(u32::MAX))
    }

    /// Asks once for the status of `range`, which is not empty, in the context with this index.
    ///
    /// The extents begin at or before `range.start` and may end before or after `range.end`.
    pub(super) async fn status_round(
        self: &Arc<Self>,
        context: usize,
        range: Range<u64>,
    ) -> Result<Vec<Extent>, Error> {
        let _round = self.status_rounds.acquire().await.expect("this semaphore is never closed");
        let minimum = u64::from(self.info.block_size.minimum);
        let start = range.start - range.start % minimum;
        let end = range.end.next_multiple_of(minimum).min(self.info.size).max(range.end);
        let mut faults = 0;
        loop {
            let mut permits = self.permits(0).await?;
            let outcome = loop {
                let connection = self.connection().await?;
                match connection.block_status(context, start, end - start, permits) {
                    Ok(outcome) => break outcome,
                    Err(returned) => permits = returned,
                }
            };
            match outcome.await {
                Ok(Outcome::Done(extents)) => return Ok(extents),
                Ok(Outcome::Server(error)) => return Err(error),
                Ok(Outcome::Lost((), cause)) => again(&mut faults, cause)?,
                Err(_) => return Err(Error::new(ErrorKind::Disconnected, "runtime ending")),
            }
        }
    }

    /// Says once that a range is not needed any more.
    pub(super) async fn trim_piece(self: &Arc<Self>, range: Range<u64>) -> Result<(), Error> {
        let mut faults = 0;
        loop {
            let mut permits = self.permits(0).await?;
            let outcome = loop {
                let connection = self.connection().await?;
                match connection.trim(range.start, range.end - range.start, permits) {
                    Ok(outcome) => break outcome,
                    Err(returned) => permits = returned,
                }
            };
            match outcome.await {
                Ok(Outcome::Done(())) => return Ok(()),
                Ok(Outcome::Server(error)) => return Err(error),
                Ok(Outcome::Lost((), cause)) => again(&mut faults, cause)?,
                Err(_) => return Err(Error::new(ErrorKind::Disconnected, "runtime ending")),
            }
        }
    }
}
