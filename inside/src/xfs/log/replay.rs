//! What committed transactions changed, put over the blocks of the disk.

use std::collections::{BTreeMap, BTreeSet};

use crate::{Disk, Result};

use super::super::overlay::Overlay;
use super::super::superblock::{BASIC, Superblock};
use super::intents::Intents;
use super::transactions::{Item, Transaction};
use super::{inodes, unclean};
use crate::numbers::{array, be16, be32, be64, index, le16, le32, le64, slice, slice_mut};

/// Largest buffer that one item may be of, in bytes: four times the largest block, or a chunk of the largest inodes twice.
const MAX_BUFFER: u64 = 256 << 10;

// Items.
const INODE: u16 = 0x123b;
const BUFFER: u16 = 0x123c;
const QUOTA: u16 = 0x123d;
const QUOTA_OFF: u16 = 0x123e;
const INODE_CREATE: u16 = 0x123f;

/// Most buffers that a log can have freed and not be past: more than a log of 2 GiB has, with what else is logged for one.
const MAX_CANCELLED: usize = 1 << 20;

// blf_flags
const OF_INODES: u16 = 1;
const CANCEL: u16 = 2;
const OF_QUOTA: u16 = 4 | 8 | 16;

/// What a bit of a buffer's map stands for, in bytes.
const CHUNK: usize = 128;

/// A buffer: its first basic block and how many it has.
pub(super) type Buffer = (u64, u32);

fn buffer(item: &Item) -> Result<Buffer> {
    let format = &item.regions[0];
    Ok((le64(format, 8)?, le16(format, 6)?.into()))
}

fn flags(item: &Item) -> Result<u16> {
    le16(&item.regions[0], 4)
}

/// Buffers that were freed, and how often: what was logged of one before that must not be written over what is there now.
#[derive(Debug, Default)]
pub(super) struct Cancelled(BTreeMap<Buffer, u32>);

impl Cancelled {
    pub(super) fn note(&mut self, transaction: &Transaction) -> Result<()> {
        for item in transaction.items.iter().filter(|item| item.kind == BUFFER) {
            if flags(item)? & CANCEL != 0 {
                *self.0.entry(buffer(item)?).or_default() += 1;
                if self.0.len() > MAX_CANCELLED {
                    return Err(unclean("it freed more buffers than is possible"));
                }
            }
        }
        Ok(())
    }

    pub(super) fn has(&self, buffer: Buffer) -> bool {
        self.0.contains_key(&buffer)
    }

    fn passed(&mut self, buffer: Buffer) {
        if let Some(left) = self.0.get_mut(&buffer) {
            *left -= 1;
            if *left == 0 {
                self.0.remove(&buffer);
            }
        }
    }
}

pub(super) struct Replay<'a> {
    pub(super) superblock: &'a Superblock,
    pub(super) cancelled: Cancelled,
    /// The transactions that are being applied began there; the kernel writes buffers when it is past them, with that number.
    lsn: u64,
    /// Buffers that were changed by those: their number is not yet compared with.
    fresh: BTreeSet<u64>,
    /// What was to be done.
    pub(super) intents: Intents,
}

impl<'a> Replay<'a> {
    pub(super) fn new(superblock: &'a Superblock, cancelled: Cancelled) -> Self {
        Self { superblock, cancelled, lsn: 0, fresh: BTreeSet::new(), intents: Intents::default() }
    }

    pub(super) fn apply<D: Disk>(&mut self, blocks: &mut Overlay<D>, transaction: &Transaction) -> Result<()> {
        if transaction.lsn != self.lsn {
            self.lsn = transaction.lsn;
            self.fresh.clear();
        }
        // Buffers first, for inodes may lie in them; what is freed last, for the others look whether it is.
        let rank = |item: &Item| match item.kind {
            BUFFER if flags(item).unwrap_or_default() & CANCEL != 0 => 2,
            BUFFER | INODE_CREATE => 0,
            _ => 1,
        };
        let mut items: Vec<&Item> = transaction.items.iter().collect();
        items.sort_by_key(|item| rank(item));
        for item in items {
            match item.kind {
                BUFFER => self.buffer(blocks, item)?,
                INODE => inodes::change(self, blocks, item, transaction.lsn)?,
                INODE_CREATE => inodes::create(self, blocks, item)?,
                QUOTA | QUOTA_OFF => (),
                _ => self.intents.item(item)?,
            }
        }
        Ok(())
    }

    /// Where a buffer lies on the disk, in bytes, and its size.
    pub(super) fn place(&self, (first, count): Buffer) -> Result<(u64, usize)> {
        let size = u64::from(count) * BASIC;
        let place = first.checked_mul(BASIC);
        match place.and_then(|place| place.checked_add(size)) {
            Some(end) if end <= self.superblock.size() && size != 0 && size <= MAX_BUFFER => {
                Ok((end - size, index(size)))
            }
            _ => Err(unclean("a change of what is no block")),
        }
    }

    fn buffer<D: Disk>(&mut self, blocks: &mut Overlay<D>, item: &Item) -> Result<()> {
        let key = buffer(item)?;
        let flags = flags(item)?;
        if flags & CANCEL != 0 {
            self.cancelled.passed(key);
            return Ok(());
        }
        // Buffers of inodes are logged for the lists of what is not linked any more, which nobody sees.
        if self.cancelled.has(key) || flags & (OF_INODES | OF_QUOTA) != 0 {
            return Ok(());
        }
        let (place, size) = self.place(key)?;
        let mut bytes = vec![0; size];
        blocks.read(place, &mut bytes)?;
        if !self.fresh.contains(&key.0) && self.number(&bytes).is_some_and(|number| number >= self.lsn) {
            return Ok(());
        }
        let changed = copy(item, &mut bytes)?;
        if is_allocation(&bytes) {
            return Ok(());
        }
        self.fresh.insert(key.0);
        for (start, end) in changed {
            blocks.keep(place, &bytes, start..end)?;
        }
        if let Some((at, _)) = number_place(&bytes) {
            slice_mut(&mut bytes, at, 8)?.copy_from_slice(&self.lsn.to_be_bytes());
            blocks.keep(place, &bytes, at..at + 8)?;
        }
        Ok(())
    }

    /// The log's number that a block was last written with, if it is one of this file system.
    fn number(&self, bytes: &[u8]) -> Option<u64> {
        let (at, uuid) = number_place(bytes)?;
        let ours = array(bytes, uuid).ok()? == self.superblock.meta_uuid;
        be64(bytes, at).ok().filter(|number| ours && *number != 0 && *number != u64::MAX)
    }
}

/// Copies what was logged of a buffer into it; where.
fn copy(item: &Item, bytes: &mut [u8]) -> Result<Vec<(usize, usize)>> {
    let format = &item.regions[0];
    let map = slice(format, 20, index(le32(format, 16)?).saturating_mul(4))?;
    let is_set = |bit: usize| map.get(bit / 8).is_some_and(|byte| byte >> (bit % 8) & 1 == 1);
    let bits = map.len() * 8;
    let mut changed = Vec::new();
    let mut bit = 0;
    // A row of chunks may lie in several regions, but a region has no more than a row.
    for region in &item.regions[1..] {
        bit = (bit..bits).find(|bit| is_set(*bit)).ok_or_else(|| unclean("a buffer's map does not fit it"))?;
        let row = (bit..bits).take_while(|bit| is_set(*bit)).count();
        let chunks = row.min(region.len() / CHUNK);
        if chunks == 0 {
            return Err(unclean("a buffer's map does not fit it"));
        }
        let (at, size) = (bit * CHUNK, chunks * CHUNK);
        let target = slice_mut(bytes, at, size).map_err(|_| unclean("a buffer's map does not fit it"))?;
        target.copy_from_slice(&region[..size]);
        changed.push((at, at + size));
        bit += chunks;
    }
    Ok(changed)
}

/// Blocks that tell what is free, whose, and how often: none is looked at here.
fn is_allocation(bytes: &[u8]) -> bool {
    let kinds = [b"AB3B", b"AB3C", b"IAB3", b"FIB3", b"RMB3", b"R3FC", b"XAFL"];
    kinds.iter().any(|kind| bytes.starts_with(*kind))
}

/// Where a block has its log's number and its UUID.
fn number_place(bytes: &[u8]) -> Option<(usize, usize)> {
    let place = match &be32(bytes, 0).ok()?.to_be_bytes() {
        b"XFSB" => {
            // The UUID of metadata, if it is another one than that of the file system.
            let own = be32(bytes, 216).ok()? & 4 != 0;
            (240, if own { 248 } else { 32 })
        }
        b"XAGF" => (208, 64),
        b"XAGI" => (320, 296),
        b"XAFL" => (24, 8),
        b"AB3B" | b"AB3C" | b"IAB3" | b"FIB3" | b"RMB3" | b"R3FC" => (24, 32),
        b"BMA3" => (32, 40),
        b"XDB3" | b"XDD3" | b"XDF3" => (16, 24),
        b"XSLM" => (48, 16),
        _ => match be16(bytes, 8).ok()? {
            0x3df1 | 0x3dff | 0x3ebe | 0x3bee => (24, 32),
            _ => return None,
        },
    };
    (bytes.len() >= place.0 + 8 && bytes.len() >= place.1 + 16).then_some(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(map: u32, regions: &[Vec<u8>]) -> Item {
        let format = [&[0; 16][..], &1_u32.to_le_bytes(), &map.to_le_bytes()].concat();
        let regions = [vec![format], regions.to_vec()].concat();
        Item { kind: BUFFER, total: regions.len(), regions }
    }

    #[test]
    fn regions_go_where_the_map_says() {
        let mut bytes = vec![0; 1024];
        let changed = copy(&item(0b1_0111, &[vec![1; 128], vec![2; 256], vec![3; 128]]), &mut bytes).unwrap();
        assert_eq!(changed, [(0, 128), (128, 384), (512, 640)]);
        assert_eq!((bytes[127], bytes[128], bytes[383], bytes[384], bytes[512]), (1, 2, 2, 0, 3));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for (map, regions) in
            [(0b1, vec![vec![1; 128], vec![1; 128]]), (0b1, vec![vec![1; 127]]), (0b1_0000_0000, vec![vec![1; 128]])]
        {
            copy(&item(map, &regions), &mut [0; 1024]).unwrap_err();
        }
        let mut item = item(1, &[vec![1; 128]]);
        item.regions[0].truncate(22);
        copy(&item, &mut [0; 1024]).unwrap_err();
    }

    #[test]
    fn a_buffer_is_cancelled_as_often_as_it_was_freed() {
        let mut cancelled = Cancelled(BTreeMap::from([((8, 8), 2)]));
        assert!(cancelled.has((8, 8)) && !cancelled.has((8, 16)));
        cancelled.passed((8, 8));
        assert!(cancelled.has((8, 8)));
        cancelled.passed((8, 8));
        cancelled.passed((8, 8));
        assert!(!cancelled.has((8, 8)));
    }

    /// One of 1,000 blocks of 4 KiB.
    fn superblock() -> Superblock {
        let mut sector = vec![0; 512];
        sector[..4].copy_from_slice(b"XFSB");
        for (at, number) in [(4, 4096_u32), (12, 1000), (52, 8), (84, 1000), (88, 1), (96, 100)] {
            sector[at..at + 4].copy_from_slice(&number.to_be_bytes());
        }
        // Version 5, sectors and inodes of 512 bytes.
        sector[100..106].copy_from_slice(&[0, 5, 2, 0, 2, 0]);
        sector[120..125].copy_from_slice(&[12, 9, 9, 3, 10]);
        Superblock::parse(&sector, false).unwrap()
    }

    /// A change of the first 128 bytes of a block, or that it is free.
    fn change(block: u64, flags: u16, fill: u8) -> Item {
        let regions = if flags & CANCEL == 0 { vec![vec![fill; 128]] } else { Vec::new() };
        let mut item = item(1, &regions);
        item.regions[0][4..6].copy_from_slice(&flags.to_le_bytes());
        item.regions[0][6..8].copy_from_slice(&8_u16.to_le_bytes());
        item.regions[0][8..16].copy_from_slice(&(block * 8).to_le_bytes());
        item
    }

    fn first_bytes(transactions: &[Transaction], blocks: &[u64]) -> Vec<u8> {
        let (superblock, disk) = (superblock(), vec![0_u8; 4_096_000]);
        let mut cancelled = Cancelled::default();
        for transaction in transactions {
            cancelled.note(transaction).unwrap();
        }
        let mut overlay = Overlay::new(&disk, BTreeMap::new());
        let mut replay = Replay::new(&superblock, cancelled);
        for transaction in transactions {
            replay.apply(&mut overlay, transaction).unwrap();
        }
        let byte = |block: &u64| {
            let mut byte = [0];
            overlay.read(block * 4096, &mut byte).unwrap();
            byte[0]
        };
        blocks.iter().map(byte).collect()
    }

    #[test]
    fn what_was_freed_is_not_written_over() {
        let transactions = [
            Transaction::of(1, vec![change(20, 0, 7), change(21, 0, 7), change(22, OF_QUOTA, 7)]),
            Transaction::of(2, vec![change(20, CANCEL, 0), change(21, 0, 8)]),
            Transaction::of(3, vec![change(23, CANCEL, 0), change(23, 0, 9)]),
            Transaction::of(4, vec![change(23, 0, 5)]),
        ];
        assert_eq!(first_bytes(&transactions, &[20, 21, 22, 23]), [0, 8, 0, 5]);
        assert_eq!(first_bytes(&transactions[..1], &[20]), [7]);
    }

    #[test]
    fn newer_blocks_are_left_as_they_are() {
        // A block of a directory, as it was written with that number of the log.
        let block = |lsn: u64| {
            let mut item = change(20, 0, 0);
            item.regions[1][..4].copy_from_slice(b"XDB3");
            item.regions[1][16..24].copy_from_slice(&lsn.to_be_bytes());
            item.regions[1][127] = u8::try_from(lsn).unwrap();
            item
        };
        let last = |transactions: &[Transaction]| {
            let (superblock, disk) = (superblock(), vec![0_u8; 4_096_000]);
            let mut overlay = Overlay::new(&disk, BTreeMap::new());
            let mut replay = Replay::new(&superblock, Cancelled::default());
            for transaction in transactions {
                replay.apply(&mut overlay, transaction).unwrap();
            }
            let mut bytes = [0; 128];
            overlay.read(20 * 4096, &mut bytes).unwrap();
            (bytes[127], be64(&bytes, 16).unwrap())
        };
        let at = |lsn, content| Transaction::of(lsn, vec![block(content)]);
        assert_eq!(last(&[at(5, 1), at(4, 2)]), (1, 5), "an older one");
        assert_eq!(last(&[at(5, 1), at(5, 2)]), (2, 5), "two that began together");
        assert_eq!(last(&[at(5, 1), at(6, 2), at(5, 3)]), (2, 6));
    }
}
