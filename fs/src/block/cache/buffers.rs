//! Buffers that were used before: a read of a size that many reads have allocates none.

use std::collections::HashMap;

use bytes::{Buf, Bytes, BytesMut};

/// Where a buffer begins, in bytes. The kernel takes what is written to `/dev/fuse` page by page: a page of the page cache that
/// is filled from two pages of a buffer costs it twice the work (`fuse_copy_fill` in Linux' fs/fuse/dev.c).
const PAGE: usize = 4096;

/// Buffers of this length on begin on a page, for a page more, which the budget of the cache does not count: a sixteenth at
/// most. A shorter one begins anywhere.
const LARGE: usize = 64 << 10;

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
            None => fresh(length),
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

/// What a buffer of this length takes besides, in bytes, to begin on a page.
fn spare(length: usize) -> usize {
    if length < LARGE { 0 } else { PAGE }
}

fn fresh(length: usize) -> BytesMut {
    let spare = spare(length);
    let mut buffer = BytesMut::zeroed(length + spare);
    buffer.advance(buffer.as_ptr().align_offset(PAGE).min(spare));
    buffer.truncate(length);
    buffer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_buffer_begins_on_a_page_each_time() {
        let mut buffers = Buffers::default();
        for length in [512, 4096, LARGE, 256 << 10, 1 << 20] {
            let mut first = buffers.take(length);
            assert_eq!(first.len(), length);
            assert!(length < LARGE || first.as_ptr().addr() % PAGE == 0);
            assert!(first.capacity() <= length + spare(length));
            // As the pool does, which fetches large buffers in pieces.
            let end = first.split_off(length / 2);
            first.unsplit(end);
            let place = first.as_ptr().addr();
            buffers.give_back(first.freeze());
            let second = buffers.take(length);
            assert_eq!((second.len(), second.as_ptr().addr()), (length, place));
        }
    }
}
