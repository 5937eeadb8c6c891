//! Several things at once, but not too many.

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use crate::error::{Error, Kind, Result, chain};

/// How many are under way at once. QEMU does a monitor's commands one after another and answers in order, so they need only
/// never wait for us; and a command that lets go of the guest has no more than these before it. QEMU itself holds as
/// many (`QMP_REQ_QUEUE_LEN_MAX` of monitor/qmp.c).
pub const AT_ONCE: usize = 8;

/// Does these, begun in their order, until one fails; those that were begun by then are waited for.
///
/// # Errors
/// The first failure.
pub async fn until_one_fails<F>(each: Vec<F>) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    overlap(each, |_| false).await
}

/// Does all of these, begun in their order, whichever fails, as long as somebody answers.
///
/// # Errors
/// The first failure.
pub async fn all<F>(each: Vec<F>) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    overlap(each, |error| !is_silence(error)).await
}

/// Whether nobody answers, so that other requests are in vain as well.
pub fn is_silence(error: &Error) -> bool {
    matches!(error.kind(), Kind::Gone | Kind::Busy | Kind::Timeout)
}

async fn overlap<F>(each: Vec<F>, goes_on: impl Fn(&Error) -> bool) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    let mut waiting = each.into_iter();
    let mut under_way = FuturesUnordered::new();
    let (mut outcome, mut ends) = (Ok(()), false);
    loop {
        while !ends && under_way.len() < AT_ONCE {
            match waiting.next() {
                Some(next) => under_way.push(next),
                None => break,
            }
        }
        match under_way.next().await {
            None => return outcome,
            Some(Ok(())) => {}
            Some(Err(error)) => {
                ends |= !goes_on(&error);
                if outcome.is_ok() {
                    outcome = Err(error);
                } else {
                    tracing::debug!("another failure: {}", chain(&error));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use tokio::task::yield_now;

    use super::*;

    /// What 30 things did, of which the one of this number fails; and how many were under way at most.
    async fn thirty(fails: usize, kind: Kind, all_of_them: bool) -> (Vec<usize>, usize, Result<()>) {
        let (begun, done, most) = (RefCell::new(Vec::new()), RefCell::new(0), RefCell::new(0));
        let each: Vec<_> = (0..30)
            .map(|number| {
                let (begun, done, most) = (&begun, &done, &most);
                async move {
                    begun.borrow_mut().push(number);
                    let under_way = begun.borrow().len() - *done.borrow();
                    most.replace_with(|most| under_way.max(*most));
                    yield_now().await;
                    done.replace_with(|done| *done + 1);
                    if number == fails { Err(Error::new(kind, "told to fail")) } else { Ok(()) }
                }
            })
            .collect();
        let outcome = if all_of_them { all(each).await } else { until_one_fails(each).await };
        assert_eq!(begun.borrow().len(), *done.borrow(), "what was begun is waited for");
        (begun.take(), most.take(), outcome)
    }

    #[tokio::test]
    async fn so_many_at_once_in_their_order_and_no_more() {
        let (begun, most, outcome) = thirty(usize::MAX, Kind::Io, false).await;
        assert_eq!((begun, most), ((0..30).collect(), AT_ONCE));
        outcome.unwrap();
    }

    #[tokio::test]
    async fn a_failure_ends_it_or_does_not() {
        let (begun, _, outcome) = thirty(3, Kind::Io, false).await;
        assert!(outcome.is_err() && (4..30).contains(&begun.len()), "{begun:?}");
        let (begun, _, outcome) = thirty(3, Kind::Io, true).await;
        assert!(outcome.is_err() && begun.len() == 30, "the others are done");
        let (begun, _, outcome) = thirty(3, Kind::Gone, true).await;
        assert!(outcome.is_err() && begun.len() < 30, "nobody answers them");
    }
}
