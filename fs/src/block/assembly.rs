//! A read of several pieces, until all are there or one failed.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};

use crate::error::Result;

struct Parts<F> {
    buffer: BytesMut,
    missing: usize,
    done: F,
}

/// A buffer that pieces come into, in any order.
pub(crate) struct Assembly<F> {
    /// Held for a moment only, and not while somebody is told; empty once somebody was.
    parts: Mutex<Option<Parts<F>>>,
}

impl<F: FnOnce(Result<Bytes>)> Assembly<F> {
    /// Waits for `missing` pieces, at least one; `done` is told how it ends.
    pub(crate) fn new(buffer: BytesMut, missing: usize, done: F) -> Arc<Self> {
        Arc::new(Self { parts: Mutex::new(Some(Parts { buffer, missing, done })) })
    }

    /// A piece has come, which `place` puts where it belongs; or it failed, and so does all of it.
    pub(crate) fn put(&self, outcome: Result<Bytes>, place: impl FnOnce(&mut [u8], &[u8])) {
        let mut held = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Parts { buffer, missing, .. }) = &mut *held else { return };
        let failure = match outcome {
            Ok(bytes) => {
                place(buffer, &bytes);
                *missing -= 1;
                if *missing > 0 {
                    return;
                }
                None
            }
            Err(error) => Some(error),
        };
        let whole = held.take();
        drop(held);
        if let Some(Parts { buffer, done, .. }) = whole {
            done(failure.map_or_else(|| Ok(buffer.freeze()), Err));
        }
    }
}
