//! Thawing when it does not work at once: tried on, over new connections where need be, until the agent says that the
//! guest is thawed or until there is no machine any more.
//!
//! Only for a guest that was frozen by us: the agent thaws what others froze as well.

use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::Limits;
use super::agent::{Agent, THAW};
use crate::error::{Error, Kind, Result, chain};

/// Between two tries, so that a socket that refuses is not asked thousands of times a second.
const PAUSE: Duration = Duration::from_millis(200);

/// So many times in a row must nobody listen on the socket before the machine counts as gone.
const GONE_TRIES: u32 = 10;

/// Tries that go on until they succeed.
pub(super) struct Thawing {
    tries: Pin<Box<dyn Future<Output = Result<u64>> + Send>>,
    limits: Limits,
    done: bool,
}

impl Thawing {
    /// `agent` is the connection that may still be good, if there is one.
    pub(super) fn new(path: &Path, agent: Option<Agent>, limits: Limits) -> Self {
        let path = path.to_owned();
        let tries = Box::pin(async move { insist(&path, agent, limits).await });
        Self { tries, limits, done: false }
    }

    /// How many file systems it thawed. After twice the limit of an answer the error says that it is not done yet.
    pub(super) async fn soon(&mut self) -> Result<u64> {
        match timeout(2 * self.limits.answer, &mut self.tries).await {
            Ok(outcome) => {
                self.done = true;
                outcome
            }
            Err(_) => Err(Error::new(
                Kind::Timeout,
                "the guest's file systems may still be frozen; thawing them is tried further in the background",
            )),
        }
    }

    /// Goes on with what [`Thawing::soon`] left.
    pub(super) async fn finish(self) {
        if self.done {
            return;
        }
        match self.tries.await {
            Ok(_) => tracing::warn!("the guest's file systems are thawed at last"),
            Err(error) => tracing::error!("the guest's file systems may be frozen: {}", chain(&error)),
        }
    }
}

async fn insist(path: &Path, mut agent: Option<Agent>, limits: Limits) -> Result<u64> {
    let deadline = Instant::now() + limits.patience;
    let mut gone = 0;
    loop {
        let error = match attempt(path, &mut agent, limits.answer).await {
            Ok(thawed) => return Ok(thawed),
            Err(error) => error,
        };
        gone = if error.kind() == Kind::Gone { gone + 1 } else { 0 };
        if gone >= GONE_TRIES {
            return Err(error.context("nobody answers for the machine any more; if it is off, nothing is frozen"));
        }
        if Instant::now() >= deadline {
            return Err(error.context(format!("thawing was given up after {:?}", limits.patience)));
        }
        tracing::debug!("thawing is tried again: {}", chain(&error));
        sleep(PAUSE).await;
    }
}

async fn attempt(path: &Path, agent: &mut Option<Agent>, limit: Duration) -> Result<u64> {
    let mut connection = match agent.take() {
        Some(mut connection) => {
            connection.queue_behind(THAW, limit).await?;
            connection
        }
        None => Agent::open(path, limit).await?,
    };
    let outcome = thaw(&mut connection, limit).await;
    if outcome.as_ref().is_err_and(|error| error.kind() == Kind::Timeout) {
        // A new connection would not help an agent that is busy, and what waits in this one would be lost.
        *agent = Some(connection);
    }
    outcome
}

async fn thaw(agent: &mut Agent, limit: Duration) -> Result<u64> {
    let thawed = agent.thaw(limit).await;
    match &thawed {
        Ok(_) => {}
        // A Windows guest that thawed by itself has nothing to thaw any more.
        Err(error) if matches!(error.kind(), Kind::Io | Kind::Unsupported) => {}
        Err(_) => return thawed,
    }
    if agent.is_frozen(limit).await? {
        let nevertheless = || Error::new(Kind::Io, "the guest agent thawed, and says that the guest is frozen");
        return Err(thawed.err().unwrap_or_else(nevertheless));
    }
    Ok(thawed.unwrap_or(0))
}
