//! Transactions, whose parts lie in several records, among those of others.

use std::collections::HashMap;

use crate::Result;

use super::ring::Record;
use super::unclean;
use crate::numbers::{be32, byte, index, le16, le32, slice};

/// Most that uncommitted transactions may have at once, in bytes: more than twice what the kernel lets one grow to.
const MAX_OPEN: usize = 96 << 20;
/// What a region costs beside its bytes.
const REGION_COSTS: usize = 64;
/// Most regions of one item.
const MAX_REGIONS: usize = 257;

const OPERATION: usize = 12;
const TRANSACTION_HEADER: usize = 16;
const TRANSACTION_MAGIC: u32 = 0x5452_414e;

// oh_clientid
const CLIENT_TRANSACTION: u8 = 0x69;
const CLIENT_LOG: u8 = 0xaa;
// oh_flags
const START: u8 = 0x01;
const COMMIT: u8 = 0x02;
const CONTINUES: u8 = 0x04;
const CONTINUED: u8 = 0x08;
const END: u8 = 0x10;
const UNMOUNT: u8 = 0x20;

/// What changed one thing.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) kind: u16,
    /// How many regions it has when it is whole.
    pub(super) total: usize,
    /// The first one says what it is of.
    pub(super) regions: Vec<Vec<u8>>,
}

/// What was committed as one.
#[derive(Debug)]
pub(super) struct Transaction {
    /// That of the record in which it began.
    pub(super) lsn: u64,
    header: Vec<u8>,
    pub(super) items: Vec<Item>,
    size: usize,
}

impl Transaction {
    fn new(lsn: u64) -> Self {
        Self { lsn, header: Vec::new(), items: Vec::new(), size: REGION_COSTS }
    }

    #[cfg(test)]
    pub(super) fn of(lsn: u64, items: Vec<Item>) -> Self {
        Self { items, ..Self::new(lsn) }
    }

    fn is_whole(&self) -> bool {
        self.items.iter().all(|item| item.regions.len() == item.total)
    }

    fn add(&mut self, region: &[u8]) -> Result<()> {
        if region.is_empty() {
            return Ok(());
        }
        if self.header.is_empty() {
            if region.len() > TRANSACTION_HEADER || le32(region, 0)? != TRANSACTION_MAGIC {
                return Err(unclean("a transaction begins with no header"));
            }
            self.header.extend_from_slice(region);
            return Ok(());
        }
        if let Some(item) = self.items.last_mut().filter(|item| item.regions.len() < item.total) {
            item.regions.push(region.to_vec());
            return Ok(());
        }
        let (kind, total) = (le16(region, 0)?, usize::from(le16(region, 2)?));
        if !(1..=MAX_REGIONS).contains(&total) {
            return Err(unclean("an item has too many regions"));
        }
        self.items.push(Item { kind, total, regions: vec![region.to_vec()] });
        Ok(())
    }

    /// The rest of the region before, which began in another record.
    fn add_rest(&mut self, rest: &[u8]) -> Result<()> {
        let before = self.items.last_mut().and_then(|item| item.regions.last_mut());
        match before {
            Some(region) => region.extend_from_slice(rest),
            None if self.header.len() + rest.len() <= TRANSACTION_HEADER => self.header.extend_from_slice(rest),
            None => return Err(unclean("a transaction goes on and did not begin")),
        }
        Ok(())
    }
}

/// Puts transactions together.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    open: HashMap<u32, Transaction>,
    size: usize,
}

impl Assembler {
    /// Takes what is in a record; `committed` gets each transaction that it completes.
    pub(super) fn record(
        &mut self,
        record: &Record,
        committed: &mut dyn FnMut(Transaction) -> Result<()>,
    ) -> Result<()> {
        let mut at = 0;
        for _ in 0..record.operations {
            if at >= record.body.len() {
                break;
            }
            let header = slice(&record.body, at, OPERATION).map_err(|_| unclean("an operation is cut off"))?;
            let (transaction, size) = (be32(header, 0)?, index(be32(header, 4)?));
            let (client, flags) = (byte(header, 8)?, byte(header, 9)?);
            let data = slice(&record.body, at + OPERATION, size).map_err(|_| unclean("an operation is cut off"))?;
            at += OPERATION + size;
            if client != CLIENT_TRANSACTION && client != CLIENT_LOG {
                return Err(unclean("an operation of nobody"));
            }
            self.operation(record.lsn, transaction, flags, data, committed)?;
        }
        Ok(())
    }

    fn operation(
        &mut self,
        lsn: u64,
        number: u32,
        flags: u8,
        data: &[u8],
        committed: &mut dyn FnMut(Transaction) -> Result<()>,
    ) -> Result<()> {
        let Some(transaction) = self.open.get_mut(&number) else {
            // What began before the tail is in its place.
            if flags & START != 0 {
                self.size += REGION_COSTS;
                self.open.insert(number, Transaction::new(lsn));
            }
            return Ok(());
        };
        let flags = flags & !END;
        match if flags & CONTINUED != 0 { flags & !CONTINUES } else { flags } {
            0 | CONTINUES => transaction.add(data)?,
            CONTINUED => transaction.add_rest(data)?,
            COMMIT | UNMOUNT => {
                let Some(transaction) = self.open.remove(&number) else { return Ok(()) };
                self.size -= transaction.size;
                if flags & UNMOUNT != 0 {
                    return Ok(());
                }
                if !transaction.is_whole() {
                    return Err(unclean("a transaction was committed and is not whole"));
                }
                return committed(transaction);
            }
            _ => return Err(unclean("an operation of an unknown kind")),
        }
        transaction.size += data.len() + REGION_COSTS;
        self.size += data.len() + REGION_COSTS;
        if self.size > MAX_OPEN {
            return Err(unclean(&format!("its transactions are larger than {} MiB", MAX_OPEN >> 20)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(number: u32, flags: u8, data: &[u8]) -> Vec<u8> {
        let size = u32::try_from(data.len()).unwrap();
        [&number.to_be_bytes()[..], &size.to_be_bytes(), &[CLIENT_TRANSACTION, flags, 0, 0], data].concat()
    }

    fn record(lsn: u64, operations: &[Vec<u8>]) -> Record {
        let count = u32::try_from(operations.len()).unwrap();
        Record { lsn, operations: count, body: operations.concat(), next: 0 }
    }

    fn committed(records: &[Record]) -> Result<Vec<Transaction>> {
        let mut assembler = Assembler::default();
        let mut all = Vec::new();
        for record in records {
            assembler.record(record, &mut |transaction| {
                all.push(transaction);
                Ok(())
            })?;
        }
        Ok(all)
    }

    fn header() -> Vec<u8> {
        [&TRANSACTION_MAGIC.to_le_bytes()[..], &[0; 12]].concat()
    }

    #[test]
    fn transactions_are_committed_in_their_order_and_whole() {
        let records = [
            record(1, &[operation(7, START, &[]), operation(7, 0, &header()), operation(8, START, &[])]),
            record(
                2,
                &[
                    operation(8, CONTINUES, &header()[..5]),
                    operation(7, CONTINUES, &[0x3c, 0x12, 2, 0, 1]),
                    operation(9, COMMIT, &[]),
                ],
            ),
            record(
                3,
                &[
                    operation(8, CONTINUED, &header()[5..]),
                    operation(7, CONTINUED | CONTINUES, &[2]),
                    operation(8, 0, &[0x3b, 0x12, 1, 0]),
                    operation(8, COMMIT, &[]),
                ],
            ),
            record(4, &[operation(7, CONTINUED | END, &[3]), operation(7, 0, &[9]), operation(7, COMMIT, &[])]),
            record(5, &[operation(7, START, &[]), operation(7, 0, &header())]),
        ];
        let all = committed(&records).unwrap();
        assert_eq!(all.iter().map(|transaction| transaction.lsn).collect::<Vec<_>>(), [1, 1]);
        assert_eq!(all[0].items[0].kind, 0x123b);
        assert_eq!(all[1].items[0].regions, [vec![0x3c, 0x12, 2, 0, 1, 2, 3], vec![9]]);
    }

    #[test]
    fn what_is_no_transaction_is_refused() {
        let start = operation(7, START, &[]);
        for operations in [
            vec![start.clone(), operation(7, 0, &[1; 16])],
            vec![start.clone(), operation(7, 0, &header()), operation(7, 0, &[0x3c, 0x12, 0, 0])],
            vec![
                start.clone(),
                operation(7, 0, &header()),
                operation(7, 0, &[0x3c, 0x12, 2, 0]),
                operation(7, COMMIT, &[]),
            ],
            vec![start.clone(), operation(7, 0x40, &[])],
            vec![start.clone(), operation(7, START, &[])],
            vec![operation(7, 0, &[1; 9])[..15].to_vec()],
        ] {
            assert!(committed(&[record(1, &operations)]).is_err(), "{operations:?}");
        }
    }
}
