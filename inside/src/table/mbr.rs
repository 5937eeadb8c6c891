//! The PC's master boot record, and the chain of records that logical partitions have.
//!
//! Read as Linux reads it (`block/partitions/msdos.c`): an entry with a size is a partition, whatever its type; logical
//! partitions have numbers from 5 on in the order of the chain, which may go back and forth on the disk.

use std::collections::BTreeSet;

use super::{Partition, Table};
use crate::numbers::maybe::{array, byte, le32};
use crate::raw::{has, read};
use crate::{Disk, Result};

/// The type of the entry that keeps a GUID partition table from programs that know none.
const PROTECTIVE: u8 = 0xee;

/// An entry of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    boot: u8,
    kind: u8,
    start: u32,
    sectors: u32,
}

/// A sector with the mark of a boot record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record {
    entries: [Entry; 4],
    signature: u32,
}

impl Record {
    pub(super) fn parse(sector: &[u8]) -> Option<Self> {
        if !has(sector, 510, &[0x55, 0xaa]) {
            return None;
        }
        let entry = |index: usize| {
            let bytes: [u8; 16] = array(sector, 446 + 16 * index)?;
            Some(Entry {
                boot: byte(&bytes, 0)?,
                kind: byte(&bytes, 4)?,
                start: le32(&bytes, 8)?,
                sectors: le32(&bytes, 12)?,
            })
        };
        Some(Self { entries: [entry(0)?, entry(1)?, entry(2)?, entry(3)?], signature: le32(sector, 440)? })
    }

    fn used(&self) -> impl Iterator<Item = (u32, Entry)> {
        (1..).zip(self.entries).filter(|(_, entry)| entry.sectors > 0)
    }

    /// Code, or the text of a boot sector, where a table would be.
    pub(super) fn is_code(&self) -> bool {
        self.entries.iter().any(|entry| entry.boot & 0x7f != 0)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.used().next().is_none()
    }

    /// Whether it says that there is a GUID partition table.
    pub(super) fn is_protective(&self) -> bool {
        self.entries.iter().any(|entry| entry.kind == PROTECTIVE && (entry.start == 1 || !self.is_code()))
    }

    /// Whether it has partitions of its own beside that.
    pub(super) fn is_hybrid(&self) -> bool {
        self.used().any(|(_, entry)| entry.kind != PROTECTIVE && entry.kind != 0)
    }

    /// The signature, in eight hexadecimal digits.
    pub(super) fn id(&self) -> Option<String> {
        (self.signature != 0).then(|| format!("{:08x}", self.signature))
    }

    /// The partitions, and what is wrong with the chain.
    pub(super) fn partitions<D: Disk>(&self, disk: &D, sector_size: u32) -> Result<(Vec<Partition>, Vec<String>)> {
        let mut found = Found { size: disk.size(), sector: u64::from(sector_size), ..Found::default() };
        for (number, entry) in self.used() {
            found.put(number, u64::from(entry.start), entry);
        }
        for (_, entry) in self.used().filter(|(_, entry)| entry.is_extended()) {
            found.follow(disk, entry)?;
        }
        found.partitions.sort_by_key(|partition| partition.number);
        Ok((found.partitions, found.problems))
    }
}

impl Entry {
    fn is_extended(self) -> bool {
        matches!(self.kind, 0x05 | 0x0f | 0x85)
    }
}

/// Whether a type is that of an extended partition.
pub(super) fn is_extended(partition: &Partition) -> bool {
    matches!(partition.type_id.as_deref(), Some("0x05" | "0x0f" | "0x85"))
}

#[derive(Debug, Default)]
struct Found {
    size: u64,
    sector: u64,
    partitions: Vec<Partition>,
    problems: Vec<String>,
    seen: BTreeSet<u64>,
}

impl Found {
    fn put(&mut self, number: u32, first: u64, entry: Entry) {
        // 2³³ sectors of 4096 bytes: no overflow.
        let start = first * self.sector;
        let length = u64::from(entry.sectors) * self.sector;
        let problem = if start + length > self.size {
            Some(super::past_the_end(first, first + u64::from(entry.sectors) - 1, self.size / self.sector))
        } else if entry.is_extended() {
            Some("it is an extended partition: its logical partitions are shown by themselves".to_owned())
        } else {
            None
        };
        self.partitions.push(Partition {
            number,
            offset: start,
            size: length.min(self.size.saturating_sub(start)),
            type_id: Some(format!("{:#04x}", entry.kind)),
            id: None,
            name: None,
            content: None,
            problem,
        });
    }

    /// Follows the chain of an extended partition. What was found before it went wrong is kept.
    fn follow<D: Disk>(&mut self, disk: &D, extended: Entry) -> Result<()> {
        let (first, length) = (u64::from(extended.start), u64::from(extended.sectors));
        let (mut here, mut span) = (first, length);
        loop {
            if !self.seen.insert(here) {
                self.problems.push(format!(
                    "the chain of logical partitions comes back to sector {here}: what follows there is not shown"
                ));
                return Ok(());
            }
            if self.partitions.len() >= Table::MAX_PARTITIONS || self.seen.len() > Table::MAX_PARTITIONS {
                self.problems.push(format!(
                    "the chain of logical partitions is longer than {}: the rest is not shown",
                    Table::MAX_PARTITIONS
                ));
                return Ok(());
            }
            let Some(sector) = read(disk, here * self.sector, 512)? else {
                self.problems
                    .push(format!("the chain of logical partitions leads past the end of the disk, to sector {here}"));
                return Ok(());
            };
            let Some(record) = Record::parse(&sector) else {
                self.problems
                    .push(format!("the chain of logical partitions leads to sector {here}, which is no part of it"));
                return Ok(());
            };
            for (slot, entry) in record.used().filter(|(_, entry)| !entry.is_extended()) {
                let (start, end) = (u64::from(entry.start), u64::from(entry.start) + u64::from(entry.sectors));
                // As Linux: the last two entries often hold garbage.
                let within = end <= span && here + end <= first + length;
                if slot > 2 && !within {
                    continue;
                }
                if self.partitions.len() < Table::MAX_PARTITIONS {
                    let number = 5 + self.logical();
                    self.put(number, here + start, entry);
                    if here + end > first + length {
                        self.outside(number);
                    }
                }
            }
            let Some((_, next)) = record.used().find(|(_, entry)| entry.is_extended()) else { return Ok(()) };
            here = first + u64::from(next.start);
            span = u64::from(next.sectors);
            if u64::from(next.start) >= length {
                self.problems.push(format!(
                    "the chain of logical partitions leads out of the extended partition, to sector {here}: it was not followed"
                ));
                return Ok(());
            }
        }
    }

    fn logical(&self) -> u32 {
        let count = self.partitions.iter().filter(|partition| partition.number > 4).count();
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    fn outside(&mut self, number: u32) {
        if let Some(partition) = self.partitions.last_mut().filter(|last| last.problem.is_none()) {
            partition.problem = Some(format!("logical partition {number} reaches out of the extended partition"));
        }
    }
}
