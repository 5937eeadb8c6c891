//! The life of a connection: what runs, what ends it, and what happens then.
//!
//! ```text
//! run ─┬─ reader::receive ── fault, loss, NBD_ESHUTDOWN ─┐
//!      ├─ watch ── the oldest request is too old ────────┤
//!      ├─ stuck ── hung up, and the writer does not end ─┼─▶ bury ─▶ (soft: wait for the writer)
//!      └─ write (a task of its own) ── done, or an error ┘
//! ```

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::{sleep, sleep_until, timeout};

use super::{Body, Shared, reader};
use crate::error::{Error, ErrorKind};
use crate::proto::{Command, Headers, Request};

/// How long an end may take to say goodbye to a server that does not listen.
const GOODBYE: Duration = Duration::from_secs(1);

/// Requests that the writer takes from its queue and sends at once.
const WRITE_BATCH: usize = 32;

/// Why the tasks of a connection end.
pub(super) enum Ending {
    /// The pool hung up, or the server asked to: it is to hear `NBD_CMD_DISC`.
    Soft(Error),
    /// The connection is lost or broke a rule.
    Hard(Error),
}

pub(super) async fn run<R>(reader: R, mut writer: JoinHandle<io::Result<()>>, shared: Arc<Shared>)
where
    R: AsyncRead + Unpin,
{
    let _abort = AbortOnDrop(writer.abort_handle());
    let mut current = None;
    let mut written = false;
    let ending = tokio::select! {
        ending = reader::receive(reader, &mut current, &shared) => ending,
        error = watch(&shared) => Ending::Hard(error),
        error = stuck(&shared) => Ending::Hard(error),
        result = &mut writer => {
            written = true;
            match result {
                Ok(Ok(())) => Ending::Soft(Error::new(ErrorKind::Closed, "hung up")),
                Ok(Err(error)) => Ending::Hard(
                    Error::new(ErrorKind::Disconnected, "sending a request").with_source(error),
                ),
                Err(_) => Ending::Hard(Error::new(ErrorKind::Disconnected, "writer task ended")),
            }
        }
    };
    let (soft, cause) = match ending {
        Ending::Soft(cause) => (true, cause),
        Ending::Hard(cause) => (false, cause),
    };
    end(&shared, current, cause, soft);
    if soft && !written {
        let _ = timeout(GOODBYE, &mut writer).await;
    }
}

/// What follows the end of a connection, for `cause`.
pub(super) fn end(shared: &Shared, current: Option<Box<Body>>, cause: Error, soft: bool) {
    // What still comes on a connection that was given up before is in answer to nothing that is known any more.
    let given_up = shared.table().death.is_some();
    if !given_up && matches!(cause.kind(), ErrorKind::Protocol | ErrorKind::Timeout) {
        shared.counters.faults.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(error = %cause, "NBD connection killed");
    } else {
        tracing::debug!(reason = %cause, "NBD connection ended");
    }
    shared.bury(current, &Arc::new(cause), soft);
}

/// Ends the writer task with the reader task, however that one ends.
struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Ends when the connection was given up and the writer had its time to take leave.
async fn stuck(shared: &Shared) -> Error {
    shared.hung_up.notified().await;
    sleep(GOODBYE).await;
    Error::new(ErrorKind::Closed, "hung up on a server that does not listen")
}

/// Ends when the oldest request is older than it may be.
async fn watch(shared: &Shared) -> Error {
    loop {
        if let Some(error) = shared.overdue() {
            return error;
        }
        let oldest = shared.table().entries.first_key_value().map(|(_, entry)| entry.deadline);
        match oldest {
            Some(deadline) => sleep_until(deadline).await,
            // A request that comes now cannot be too old before this.
            None => sleep(shared.limits.request_timeout).await,
        }
    }
}

/// Sends what is queued; when no sender is left, takes leave.
pub(super) async fn write<W>(mut writer: W, mut requests: mpsc::Receiver<Request>, headers: Headers) -> io::Result<()>
where
    W: AsyncWrite + Unpin,
{
    let mut batch = Vec::with_capacity(WRITE_BATCH);
    let mut bytes = BytesMut::new();
    while requests.recv_many(&mut batch, WRITE_BATCH).await > 0 {
        bytes.clear();
        for request in batch.drain(..) {
            request.encode(headers, &mut bytes);
        }
        writer.write_all(&bytes).await?;
        writer.flush().await?;
    }
    bytes.clear();
    let goodbye = Request { command: Command::Disconnect, cookie: 0, offset: 0, length: 0 };
    goodbye.encode(headers, &mut bytes);
    // A server that does not listen must not keep the task; it is gone either way.
    let _ = timeout(GOODBYE, async {
        writer.write_all(&bytes).await?;
        writer.shutdown().await
    })
    .await;
    Ok(())
}
