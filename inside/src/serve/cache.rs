//! Blocks of a disk that were read lately.

use std::collections::HashMap;
use std::io;

use crate::wire::MAX_BLOCKS;

/// A block, in bytes: a miss costs a message to another process, so it is worth more than what was asked for.
const BLOCK: u64 = 64 << 10;

/// How many blocks are kept: 16 MiB.
const KEPT: usize = 256;

/// Most blocks that are asked for at once.
const MOST: u64 = MAX_BLOCKS / BLOCK;

/// The least recently used goes first. Misses that follow each other ask for more and more.
pub(super) struct Cache {
    size: u64,
    blocks: HashMap<u64, Kept>,
    /// Counts uses.
    clock: u64,
    /// The block after the last that was fetched.
    next: u64,
    /// How many blocks a miss there asks for.
    ahead: u64,
}

struct Kept {
    bytes: Vec<u8>,
    used: u64,
}

impl Cache {
    /// For a disk of `size` bytes.
    pub(super) fn new(size: u64) -> Self {
        Self { size, blocks: HashMap::new(), clock: 0, next: 0, ahead: 1 }
    }

    /// Fills `buffer` from `offset` on, within the disk. `fetch` gets offset and length, at most [`MAX_BLOCKS`], and gives as
    /// many bytes.
    pub(super) fn read(
        &mut self,
        offset: u64,
        buffer: &mut [u8],
        mut fetch: impl FnMut(u64, u64) -> io::Result<Vec<u8>>,
    ) -> io::Result<()> {
        let (mut at, mut rest) = (offset, buffer);
        while !rest.is_empty() {
            let (number, within) = (at / BLOCK, usize::try_from(at % BLOCK).unwrap_or(0));
            self.clock += 1;
            if !self.blocks.contains_key(&number) {
                let last = at.saturating_add(u64::try_from(rest.len()).unwrap_or(u64::MAX)).div_ceil(BLOCK);
                self.fetch(number, last - number, &mut fetch)?;
            }
            let kept = self.blocks.get_mut(&number).ok_or(io::ErrorKind::InvalidData)?;
            kept.used = self.clock;
            let bytes = kept.bytes.get(within..).unwrap_or_default();
            let length = bytes.len().min(rest.len());
            if length == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let (filled, left) = rest.split_at_mut(length);
            filled.copy_from_slice(&bytes[..length]);
            rest = left;
            at = at.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
        }
        Ok(())
    }

    /// Gets the block `first`, of which and of those after it `wanted` are needed.
    fn fetch(
        &mut self,
        first: u64,
        wanted: u64,
        fetch: &mut impl FnMut(u64, u64) -> io::Result<Vec<u8>>,
    ) -> io::Result<()> {
        self.ahead = if first == self.next { (self.ahead * 2).min(MOST) } else { 1 };
        let most = wanted.max(self.ahead).min(MOST);
        // What is there already is not asked for again.
        let count = (1..most).find(|more| self.blocks.contains_key(&(first + more))).unwrap_or(most);
        let offset = first * BLOCK;
        let length = (count * BLOCK).min(self.size.saturating_sub(offset));
        let bytes = fetch(offset, length)?;
        self.next = first + count;
        let block = usize::try_from(BLOCK).unwrap_or(usize::MAX);
        for (number, bytes) in (first..).zip(bytes.chunks(block)) {
            self.make_room();
            self.blocks.insert(number, Kept { bytes: bytes.to_vec(), used: self.clock });
        }
        Ok(())
    }

    fn make_room(&mut self) {
        while self.blocks.len() >= KEPT {
            let Some(oldest) = self.blocks.iter().min_by_key(|(_, kept)| kept.used).map(|(number, _)| *number) else {
                return;
            };
            self.blocks.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads `length` bytes at `offset` of a disk whose bytes are known; what had to be asked for.
    fn read(cache: &mut Cache, offset: u64, length: usize) -> Vec<(u64, u64)> {
        let byte = |at: u64| at.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[0];
        let mut asked = Vec::new();
        let mut buffer = vec![0; length];
        let fetch = |offset: u64, length: u64| {
            asked.push((offset / BLOCK, length));
            Ok((offset..offset + length).map(byte).collect())
        };
        cache.read(offset, &mut buffer, fetch).unwrap();
        assert!(buffer.iter().zip(offset..).all(|(read, at)| *read == byte(at)), "{offset} {length}");
        asked
    }

    #[test]
    fn what_was_read_is_not_asked_for_again() {
        let mut cache = Cache::new(100 * BLOCK + 10);
        assert_eq!(read(&mut cache, 50 * BLOCK + 7, 100), [(50, BLOCK)]);
        assert_eq!(read(&mut cache, 50 * BLOCK, 65536), []);
        assert_eq!(read(&mut cache, 49 * BLOCK, 3 * 65536), [(49, BLOCK), (51, BLOCK)], "what is next to it");
        assert_eq!(read(&mut cache, 100 * BLOCK, 10), [(100, 10)], "the last is shorter");
        assert_eq!(read(&mut cache, 100 * BLOCK + 10, 0), []);
    }

    #[test]
    fn a_row_of_misses_asks_for_more_and_more() {
        let mut cache = Cache::new(1000 * BLOCK);
        let asked: Vec<_> = (100..200).flat_map(|block| read(&mut cache, block * BLOCK, 100)).collect();
        let lengths: Vec<_> = asked.iter().map(|(_, length)| length / BLOCK).collect();
        assert_eq!(lengths[..6], [1, 2, 4, 8, 16, 16]);
        assert_eq!(read(&mut cache, 700 * BLOCK, 1), [(700, BLOCK)], "it is over elsewhere");
    }

    #[test]
    fn it_does_not_grow() {
        let mut cache = Cache::new(1 << 40);
        for block in (0..600).step_by(2) {
            read(&mut cache, block * BLOCK, 1);
            read(&mut cache, 4 * BLOCK, 1);
        }
        assert!(cache.blocks.len() <= KEPT);
        assert_eq!(read(&mut cache, 4 * BLOCK, 1), [], "what is used stays");
        assert!(read(&mut cache, 0, 20 << 20).len() < 25, "a read larger than all of it");
        assert!(cache.blocks.len() <= KEPT);
    }
}
