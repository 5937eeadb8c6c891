//! Records in a ring of basic blocks: where it begins and ends.
//!
//! Each basic block says in which pass over the ring it was written, its *cycle*; at the head the cycle steps back. The last header
//! before the head tells where the tail is. Up to eight writes are under way at once, in any order.

use crate::{Disk, Result};

use super::super::superblock::{BASIC, Superblock};
use super::unclean;
use crate::checksum::crc32c;
use crate::numbers::{array, be32, be64, index, length, slice};

const BLOCK: usize = 512;
const MAGIC: u32 = 0xfeed_babe;
/// Most that a record holds, in bytes.
const MAX_RECORD: u32 = 256 << 10;
/// Of how many bytes a header has the first words of the blocks.
const CYCLES_COVER: u32 = 32 << 10;
const CYCLES: usize = 64;
/// Most blocks of a record, headers too.
const MAX_RECORD_BLOCKS: u64 = 512 + 8;
/// Most records that are being written at once.
const IN_FLIGHT: u64 = 8;

/// Lengths of a header that its checksum may be over: those of 64-bit and of 32-bit machines.
const HEADER_LENGTHS: [usize; 2] = [328, 324];
/// That of each further one.
const FURTHER_LENGTH: usize = 260;

const LITTLE_ENDIAN: u32 = 1;
const VERSION_2: u32 = 2;
const UNMOUNT: u8 = 0x20;

/// From one basic block of the ring to another, which is not in it any more.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    pub(super) tail: u64,
    pub(super) head: u64,
}

/// A record, its bytes as they were before each block got its cycle.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) lsn: u64,
    pub(super) operations: u32,
    pub(super) body: Vec<u8>,
    /// The block after it.
    pub(super) next: u64,
}

/// A record's first block.
#[derive(Debug)]
struct Header {
    at: u64,
    bytes: [u8; BLOCK],
}

impl Header {
    fn number(&self, at: usize) -> u32 {
        be32(&self.bytes, at).unwrap_or_default()
    }

    fn data(&self) -> u32 {
        self.number(12)
    }

    fn size(&self) -> u32 {
        self.number(320)
    }

    fn tail(&self) -> u64 {
        be64(&self.bytes, 24).unwrap_or_default() & u64::from(u32::MAX)
    }

    fn blocks(&self) -> u64 {
        u64::from(self.data()).div_ceil(BASIC)
    }
}

pub(super) struct Ring<'a, D> {
    disk: &'a D,
    superblock: &'a Superblock,
    /// Where it is on the disk, in bytes.
    start: u64,
    blocks: u64,
    checked: bool,
}

impl<'a, D: Disk> Ring<'a, D> {
    pub(super) fn new(disk: &'a D, superblock: &'a Superblock, checked: bool) -> Result<Self> {
        let start = superblock.place(superblock.log_start, superblock.log_blocks.into())?;
        let blocks = u64::from(superblock.log_blocks) * (u64::from(superblock.block_size) / BASIC);
        Ok(Self { disk, superblock, start, blocks, checked })
    }

    /// How far it is from one block to a later one.
    fn distance(&self, from: u64, to: u64) -> u64 {
        (to + self.blocks - from) % self.blocks
    }

    fn after(&self, at: u64, blocks: u64) -> u64 {
        (at + blocks) % self.blocks
    }

    /// Blocks from `at` on, around the end.
    fn read(&self, at: u64, count: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; index(count * BASIC)];
        let before_end = count.min(self.blocks - at);
        let (first, second) = bytes.split_at_mut(index(before_end * BASIC));
        self.disk.read_at(self.start + at * BASIC, first)?;
        if !second.is_empty() {
            self.disk.read_at(self.start, second)?;
        }
        Ok(bytes)
    }

    fn block(&self, at: u64) -> Result<[u8; BLOCK]> {
        array(&self.read(at, 1)?, 0)
    }

    fn cycle(&self, at: u64) -> Result<u32> {
        Ok(cycle(&self.block(at)?))
    }

    fn header(&self, at: u64) -> Result<Option<Header>> {
        let bytes = self.block(at)?;
        Ok(is_header(&bytes).then_some(Header { at, bytes }))
    }

    /// Blocks of headers of a record.
    fn headers(&self, header: &Header) -> u64 {
        let large = self.superblock.log_v2 && header.number(8) & VERSION_2 != 0 && header.size() > CYCLES_COVER;
        if large { header.size().div_ceil(CYCLES_COVER).into() } else { 1 }
    }

    /// The records that may have to be replayed; none if there are none.
    pub(super) fn live(&self) -> Result<Option<Span>> {
        let Some(head) = self.head()? else { return Ok(None) };
        let Some(last) = self.headers_before(head, head, 1)? else { return Err(unclean("it has no record")) };
        if self.is_unmount(&last, head)? {
            return Ok(None);
        }
        let Some(span) = self.without_torn(Span { tail: last.tail(), head }, &last)? else { return Ok(None) };
        if span.tail == span.head {
            return Ok(None);
        }
        // What was there before a restart may have been cleared: the tail is the next record that is there.
        let tail = if self.header(span.tail)?.is_some() { span.tail } else { self.next_header(span.tail, span.head)? };
        Ok(Some(Span { tail, head: span.head }))
    }

    /// Ends the span before the first of the last records that were not written to their end.
    fn without_torn(&self, span: Span, last: &Header) -> Result<Option<Span>> {
        if span.tail >= self.blocks {
            return Err(unclean("its tail is past its end"));
        }
        let first = self.headers_before(span.head, span.tail, IN_FLIGHT)?.map_or(last.at, |header| header.at);
        let Some(bad) = self.walk(Span { tail: first, head: span.head }, &mut |_| Ok(()))? else {
            return Ok(Some(span));
        };
        let Some(last) = self.headers_before(bad, span.tail, 1)? else {
            return Err(unclean("none of its last records is whole"));
        };
        if self.is_unmount(&last, bad)? {
            return Ok(None);
        }
        if last.tail() >= self.blocks {
            return Err(unclean("its tail is past its end"));
        }
        Ok(Some(Span { tail: last.tail(), head: bad }))
    }

    /// Whether a record is the last one of an orderly unmount, and ends at the head.
    fn is_unmount(&self, header: &Header, head: u64) -> Result<bool> {
        let headers = self.headers(header);
        let end = self.after(header.at, headers.saturating_add(header.blocks()) % self.blocks);
        if end != head || header.number(40) != 1 {
            return Ok(false);
        }
        // Flags of its only operation.
        Ok(self.block(self.after(header.at, headers % self.blocks))?[9] & UNMOUNT != 0)
    }

    /// The `count`-th header before `from`, or the farthest one at or after `limit`.
    fn headers_before(&self, from: u64, limit: u64, count: u64) -> Result<Option<Header>> {
        let around = match self.distance(limit, from) {
            0 => self.blocks,
            distance => distance,
        };
        let mut found = None;
        let mut left = count;
        for back in 1..=around.min(count * MAX_RECORD_BLOCKS) {
            if let Some(header) = self.header(self.after(from, self.blocks - back))? {
                found = Some(header);
                left -= 1;
                if left == 0 {
                    break;
                }
            }
        }
        Ok(found)
    }

    /// The first header after `at` and before the head.
    pub(super) fn next_header(&self, at: u64, head: u64) -> Result<u64> {
        for ahead in 1..self.distance(at, head).min(IN_FLIGHT * MAX_RECORD_BLOCKS) {
            let at = self.after(at, ahead);
            if self.header(at)?.is_some() {
                return Ok(at);
            }
        }
        Err(unclean("no record follows a damaged one"))
    }

    /// Whether writes that were under way at the head can have reached that block.
    pub(super) fn may_be_overwritten(&self, at: u64, head: u64) -> bool {
        self.distance(head, at) <= IN_FLIGHT * MAX_RECORD_BLOCKS
    }

    /// All records of a span in their order; where one is damaged it ends, and this is that one's block.
    pub(super) fn walk(&self, span: Span, each: &mut dyn FnMut(&Record) -> Result<()>) -> Result<Option<u64>> {
        let mut at = span.tail;
        while at != span.head {
            let Some(record) = self.within(at, span)? else { return Ok(Some(at)) };
            each(&record)?;
            at = record.next;
        }
        Ok(None)
    }

    /// The record at a block of a span; none if it is damaged.
    fn within(&self, at: u64, span: Span) -> Result<Option<Record>> {
        let Some(header) = self.header(at)? else { return Ok(None) };
        let (version, data) = (header.number(8), header.data());
        let (headers, blocks) = (self.headers(&header), header.blocks());
        let fits = (1..=VERSION_2).contains(&version)
            && (1..=MAX_RECORD).contains(&data)
            && header.size() <= MAX_RECORD
            && blocks <= headers * length(CYCLES)
            && headers + blocks <= self.distance(at, span.head);
        if !fits {
            return Ok(None);
        }
        let mut bytes = self.read(at, headers + blocks)?;
        let body = bytes.split_off(index(headers) * BLOCK);
        self.record(&header, &bytes, body)
    }

    fn record(&self, header: &Header, headers: &[u8], mut body: Vec<u8>) -> Result<Option<Record>> {
        body.truncate(index(header.data()));
        let stored = u32::from_le_bytes(array(headers, 32)?);
        let further = index(header.data().div_ceil(CYCLES_COVER));
        let sum = |length| -> Result<u32> {
            let first = crc32c(crc32c(!0, slice(headers, 0, 32)?), &[0; 4]);
            let first = crc32c(first, slice(headers, 36, length - 36)?);
            let all = (1..further).try_fold(first, |sum, further| {
                Ok::<_, crate::Error>(crc32c(sum, slice(headers, further * BLOCK, FURTHER_LENGTH)?))
            })?;
            Ok(!crc32c(all, &body))
        };
        // What mkfs.xfs wrote has no checksum.
        if stored != 0 && self.checked && stored != sum(HEADER_LENGTHS[0])? && stored != sum(HEADER_LENGTHS[1])? {
            return Ok(None);
        }
        if header.number(300) != LITTLE_ENDIAN {
            return Err(unclean("it was written by a machine of the other byte order: freeze it first (--quiesce)"));
        }
        if slice(headers, 304, 16)? != self.superblock.uuid {
            return Err(unclean("it is another file system's"));
        }
        for (number, block) in body.chunks_mut(BLOCK).enumerate() {
            let words = if number < CYCLES { 44 } else { number / CYCLES * BLOCK + 4 };
            let word = slice(headers, words + number % CYCLES * 4, 4)?;
            let kept = block.len().min(4);
            block[..kept].copy_from_slice(&word[..kept]);
        }
        let blocks = length(headers.len() / BLOCK) + header.blocks();
        Ok(Some(Record {
            lsn: be64(headers, 16)?,
            operations: be32(headers, 40)?,
            body,
            next: self.after(header.at, blocks),
        }))
    }

    /// Where the next record would go; none if nothing was ever written.
    fn head(&self) -> Result<Option<u64>> {
        let end = self.blocks - 1;
        let (first, last) = (self.cycle(0)?, self.cycle(end)?);
        if first == 0 {
            return Ok(None);
        }
        if last == 0 {
            // The first pass: all after the head is zeroes.
            if first != 1 {
                return Err(unclean("its first and its last block are not of one log"));
            }
            let head = self.first_of_cycle(end, 0)?;
            let from = head.saturating_sub(IN_FLIGHT * 512);
            let head = self.find_cycle(from, head, 0)?.unwrap_or(head);
            return Ok(Some(self.at_a_record(head)?));
        }
        // Where the binary search ends need not be where the cycle first steps back: the writes that were under way may have left
        // holes before it.
        let (head, holes) =
            if first == last { (self.blocks, last.wrapping_sub(1)) } else { (self.first_of_cycle(end, last)?, last) };
        let window = (IN_FLIGHT * 512).min(self.blocks);
        let head = if head >= window {
            self.find_cycle(head - window, head, holes)?.unwrap_or(head)
        } else if let Some(hole) = self.find_cycle(self.blocks - (window - head), self.blocks, holes.wrapping_sub(1))? {
            hole
        } else {
            self.find_cycle(0, head, holes)?.unwrap_or(head)
        };
        Ok(Some(self.at_a_record(head)?))
    }

    /// The first block of a cycle that the block at `end` is of, and the one at 0 is not.
    fn first_of_cycle(&self, end: u64, wanted: u32) -> Result<u64> {
        let (mut before, mut of) = (0, end);
        while of - before > 1 {
            let middle = before + (of - before) / 2;
            if self.cycle(middle)? == wanted {
                of = middle;
            } else {
                before = middle;
            }
        }
        Ok(of)
    }

    /// The first block of a cycle from `from` to before `to`.
    fn find_cycle(&self, from: u64, to: u64, wanted: u32) -> Result<Option<u64>> {
        let mut at = from;
        while at < to {
            let count = (to - at).min(512);
            let bytes = self.read(at, count)?;
            if let Some(found) = bytes.as_chunks::<BLOCK>().0.iter().position(|block| cycle(block) == wanted) {
                return Ok(Some(at + length(found)));
            }
            at += count;
        }
        Ok(None)
    }

    /// The head, or where the record begins that it is in the middle of.
    fn at_a_record(&self, head: u64) -> Result<u64> {
        let back = MAX_RECORD_BLOCKS.min(self.blocks);
        for back in 1..=back {
            // Before the first block there is what was written a pass ago, or nothing.
            let at = self.after(head, self.blocks - back);
            let Some(header) = self.header(at)? else { continue };
            let uuid = slice(&header.bytes, 304, 16)?;
            if uuid != self.superblock.uuid && uuid != [0; 16] {
                return Err(unclean("it is another file system's"));
            }
            let whole = back == self.headers(&header) + header.blocks();
            return Ok(if whole { head % self.blocks } else { at });
        }
        Err(unclean("no record is before its end"))
    }
}

fn is_header(block: &[u8; BLOCK]) -> bool {
    block.starts_with(&MAGIC.to_be_bytes())
}

/// Which pass over the ring a block was written in.
fn cycle(block: &[u8; BLOCK]) -> u32 {
    be32(block, if is_header(block) { 4 } else { 0 }).unwrap_or_default()
}
