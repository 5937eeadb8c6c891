//! CRC-32C (Castagnoli), as XFS has it over its metadata.

/// Eight tables: one for each byte that is taken in at once.
static TABLES: [[u32; 256]; 8] = tables();

const fn tables() -> [[u32; 256]; 8] {
    let mut tables = [[0; 256]; 8];
    let mut at = 0_u32;
    while at < 256 {
        let mut remainder = at;
        let mut bit = 0;
        while bit < 8 {
            remainder = if remainder & 1 == 1 { (remainder >> 1) ^ 0x82f6_3b78 } else { remainder >> 1 };
            bit += 1;
        }
        tables[0][at as usize] = remainder;
        at += 1;
    }
    let mut table = 1;
    while table < 8 {
        let mut at = 0;
        while at < 256 {
            let before = tables[table - 1][at];
            tables[table][at] = (before >> 8) ^ tables[0][(before & 0xff) as usize];
            at += 1;
        }
        table += 1;
    }
    tables
}

/// A sum over several pieces.
#[derive(Debug, Clone, Copy)]
pub(super) struct Crc(u32);

impl Crc {
    pub(super) fn new() -> Self {
        Self(!0)
    }

    pub(super) fn update(mut self, bytes: &[u8]) -> Self {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            let [a, b, c, d] = (self.0 ^ u32::from_le_bytes([word[0], word[1], word[2], word[3]])).to_le_bytes();
            self.0 = look(7, a)
                ^ look(6, b)
                ^ look(5, c)
                ^ look(4, d)
                ^ look(3, word[4])
                ^ look(2, word[5])
                ^ look(1, word[6])
                ^ look(0, word[7]);
        }
        for byte in rest {
            self.0 = look(0, self.0.to_le_bytes()[0] ^ byte) ^ (self.0 >> 8);
        }
        self
    }

    pub(super) fn value(self) -> u32 {
        !self.0
    }
}

fn look(table: usize, byte: u8) -> u32 {
    TABLES[table][usize::from(byte)]
}

/// Whether the sum of a block, which lies in it at `at`, is right: itself it counts as zeroes.
pub(super) fn is_right(block: &[u8], at: usize) -> bool {
    let Some((head, rest)) = block.split_at_checked(at) else { return false };
    let Some((stored, tail)) = rest.split_first_chunk::<4>() else { return false };
    Crc::new().update(head).update(&[0; 4]).update(tail).value() == u32::from_le_bytes(*stored)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_of_the_standard() {
        assert_eq!(Crc::new().update(b"123456789").value(), 0xe306_9283);
        assert_eq!(Crc::new().update(&[0; 32]).value(), 0x8a91_36aa);
        assert_eq!(Crc::new().update(b"1234").update(b"56789").value(), 0xe306_9283);
    }

    #[test]
    fn a_sum_within_its_block() {
        let mut block = vec![7; 100];
        block[20..24].copy_from_slice(&[0; 4]);
        let sum = Crc::new().update(&block).value();
        block[20..24].copy_from_slice(&sum.to_le_bytes());
        assert!(is_right(&block, 20));
        block[99] ^= 1;
        assert!(!is_right(&block, 20));
        assert!(!is_right(&block, 97));
    }
}
