//! A read that is begun and not waited for: whoever receives its last byte tells the one who asked.
//!
//! As long as the bounds allow it and a connection is there, its requests go out on the thread that asks. What would have to
//! wait, and what a lost connection owes, is left to a task that does as [`super::Pool::read`] does.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::BytesMut;

use super::read::{Piece, again};
use super::{Begun, Inner};
use crate::connection::{Outcome, Permits, ReadDone, ReadOutcome};
use crate::error::{Error, ErrorKind};
use crate::wide;

/// The pieces of a read, until all are there or one failed.
struct Join {
    /// Held for a moment only, and not while somebody is told.
    state: Mutex<State>,
}

struct State {
    filled: Vec<Option<BytesMut>>,
    missing: usize,
    /// Gone when it was told.
    begun: Option<Begun>,
}

impl Join {
    fn put(&self, index: usize, outcome: Result<BytesMut, Error>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let whole = match outcome {
            Ok(buf) => {
                state.filled[index] = Some(buf);
                state.missing -= 1;
                if state.missing > 0 {
                    return;
                }
                let mut whole = BytesMut::new();
                for buf in state.filled.drain(..) {
                    whole.unsplit(buf.expect("none is missing"));
                }
                Ok(whole)
            }
            Err(error) => Err(error),
        };
        let begun = state.begun.take();
        drop(state);
        if let Some(begun) = begun {
            begun(whole);
        }
    }
}

impl Inner {
    pub(super) fn begin(self: &Arc<Self>, offset: u64, buf: BytesMut, begun: Begun) {
        let end = offset.checked_add(wide(buf.len()));
        if let Err(error) = self.check_range(offset, end) {
            return begun(Err(error));
        }
        let pieces = self.cut(offset, buf);
        if pieces.is_empty() {
            return begun(Ok(BytesMut::new()));
        }
        let state = State { filled: pieces.iter().map(|_| None).collect(), missing: pieces.len(), begun: Some(begun) };
        let join = Arc::new(Join { state: Mutex::new(state) });
        for piece in pieces {
            self.begin_piece(piece, Arc::clone(&join));
        }
    }

    fn begin_piece(self: &Arc<Self>, mut piece: Piece, join: Arc<Join>) {
        let ready = self.permits_now(wide(piece.buf.len())).zip(self.pick().ok().flatten());
        let Some((permits, connection)) = ready else { return self.finish_later(piece, join) };
        let (offset, buf) = (piece.offset, std::mem::take(&mut piece.buf));
        let inner = Arc::clone(self);
        let done = ReadDone::new(move |outcome| inner.piece_ended(piece, outcome, join));
        if let Err((buf, _, done)) = connection.begin_read(offset, buf, permits, done) {
            let cause = Error::new(ErrorKind::Disconnected, "the connection ended just now");
            done.tell(Outcome::Lost(buf, Arc::new(cause)));
        }
    }

    fn piece_ended(self: &Arc<Self>, mut piece: Piece, outcome: ReadOutcome, join: Arc<Join>) {
        match outcome {
            Outcome::Done(buf) => join.put(piece.index, Ok(piece.complete(buf))),
            Outcome::Server(error) => join.put(piece.index, Err(error)),
            Outcome::Lost(buf, cause) => {
                piece.buf = buf;
                match again(&mut piece.faults, cause) {
                    Ok(()) => self.finish_later(piece, join),
                    Err(error) => join.put(piece.index, Err(error)),
                }
            }
        }
    }

    fn finish_later(self: &Arc<Self>, piece: Piece, join: Arc<Join>) {
        let inner = Arc::clone(self);
        self.runtime.spawn(async move {
            let (index, offset, length) = (piece.index, piece.offset, piece.buf.len());
            let what = || format!("read of {length} bytes at {offset}");
            join.put(index, inner.limited(what, inner.finish(piece)).await);
        });
    }

    /// Sends the request of a piece until it is answered.
    async fn finish(self: &Arc<Self>, mut piece: Piece) -> Result<BytesMut, Error> {
        loop {
            let (mut sent, outcome) = self.send(piece).await?;
            match outcome.await {
                Ok(Outcome::Done(buf)) => return Ok(sent.complete(buf)),
                Ok(Outcome::Server(error)) => return Err(error),
                Ok(Outcome::Lost(buf, cause)) => {
                    sent.buf = buf;
                    again(&mut sent.faults, cause)?;
                    piece = sent;
                }
                Err(_) => return Err(Error::new(ErrorKind::Disconnected, "runtime ending")),
            }
        }
    }

    /// The right to have a request of `bytes` in flight, if there is one without waiting.
    fn permits_now(&self, bytes: u64) -> Option<Permits> {
        let request = Arc::clone(&self.requests).try_acquire_owned().ok()?;
        let bytes = u32::try_from(bytes).ok()?;
        let bytes = Arc::clone(&self.bytes).try_acquire_many_owned(bytes).ok()?;
        Some(Permits { _request: request, _bytes: Some(bytes) })
    }
}
