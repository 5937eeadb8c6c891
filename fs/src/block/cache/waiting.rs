//! A read that waits for some of its parts.

use std::sync::{Mutex, PoisonError};

use bytes::{Bytes, BytesMut};

use crate::error::{Error, Result};

/// Is told how a read ended, on whatever thread finds out: it must not wait.
pub type Done = Box<dyn FnOnce(Result<Bytes>) + Send>;

/// The parts that are there, until all are or one failed.
pub(super) struct Waiting {
    /// Held for a moment only, and not while somebody is told.
    state: Mutex<State>,
}

struct State {
    parts: Vec<Option<Bytes>>,
    missing: usize,
    /// Gone when it was told.
    done: Option<Done>,
}

impl Waiting {
    /// A read of these parts, in order; those that are not there yet are to be put.
    pub(super) fn new(parts: Vec<Option<Bytes>>, done: Done) -> Self {
        let missing = parts.iter().filter(|part| part.is_none()).count();
        Self { state: Mutex::new(State { parts, missing, done: Some(done) }) }
    }

    pub(super) fn put(&self, index: usize, outcome: Result<Bytes>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let outcome = match outcome {
            Ok(part) => {
                state.parts[index] = Some(part);
                state.missing -= 1;
                if state.missing > 0 {
                    return;
                }
                Ok(std::mem::take(&mut state.parts))
            }
            Err(error) => Err(error),
        };
        let done = state.done.take();
        drop(state);
        if let Some(done) = done {
            done(outcome.map(|parts| joined(parts.into_iter().flatten())));
        }
    }
}

/// The parts in one piece; only where there are several is anything copied.
pub(super) fn joined(parts: impl IntoIterator<Item = Bytes>) -> Bytes {
    let mut parts = parts.into_iter();
    let (first, second) = (parts.next().unwrap_or_default(), parts.next());
    let Some(second) = second else { return first };
    let rest: Vec<Bytes> = parts.collect();
    let length = first.len() + second.len() + rest.iter().map(Bytes::len).sum::<usize>();
    let mut whole = BytesMut::with_capacity(length);
    [first, second].iter().chain(&rest).for_each(|part| whole.extend_from_slice(part));
    whole.freeze()
}

/// The same error for one more who waits.
pub(super) fn also(error: &Error) -> Error {
    Error::new(error.kind(), crate::error::chain(error))
}
