//! Buffers that were used before: a read of a size that many reads have allocates none.

use std::collections::HashMap;

use bytes::{Bytes, BytesMut};

/// Bytes that are kept for later at most; a buffer that is not used is memory that nobody else has.
const KEPT: usize = 4 << 20;

/// Buffers to be filled, by their length.
#[derive(Default)]
pub(super) struct Buffers {
    free: HashMap<usize, Vec<BytesMut>>,
    bytes: usize,
}

impl Buffers {
    /// A buffer of this length; what is in it is no matter.
    pub(super) fn take(&mut self, length: usize) -> BytesMut {
        match self.free.get_mut(&length).and_then(Vec::pop) {
            Some(buffer) => {
                self.bytes -= length;
                buffer
            }
            None => BytesMut::zeroed(length),
        }
    }

    /// Takes a buffer back, unless somebody still reads it.
    pub(super) fn give_back(&mut self, bytes: Bytes) {
        let length = bytes.len();
        // Few lengths are common; others would be kept for nothing.
        if length.is_power_of_two()
            && self.bytes + length <= KEPT
            && let Ok(buffer) = bytes.try_into_mut()
        {
            self.bytes += length;
            self.free.entry(length).or_default().push(buffer);
        }
    }
}
