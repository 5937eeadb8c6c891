//! The checksums that several formats have. None is inverted at its end: each goes on where the last piece ended.

/// Eight bytes at a time: the table `n` is of a byte that `n` others follow.
type Tables = [[u32; 256]; 8];

static IEEE: Tables = tables(0xedb8_8320);
static CASTAGNOLI: Tables = tables(0x82f6_3b78);

/// Those of a polynomial, its lowest bit first.
const fn tables(polynomial: u32) -> Tables {
    let mut tables = [[0; 256]; 8];
    let (mut index, mut byte) = (0, 0u32);
    while index < 256 {
        let (mut value, mut bit) = (byte, 0);
        while bit < 8 {
            value = if value & 1 == 1 { value >> 1 ^ polynomial } else { value >> 1 };
            bit += 1;
        }
        tables[0][index] = value;
        index += 1;
        byte += 1;
    }
    let mut table = 1;
    while table < 8 {
        index = 0;
        while index < 256 {
            let before = tables[table - 1][index];
            let low = before.to_le_bytes()[0] as usize;
            tables[table][index] = before >> 8 ^ tables[0][low];
            index += 1;
        }
        table += 1;
    }
    tables
}

fn over(tables: &Tables, mut state: u32, bytes: &[u8]) -> u32 {
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        let mut word = *word;
        for (byte, old) in word.iter_mut().zip(state.to_le_bytes()) {
            *byte ^= old;
        }
        state = word.iter().zip(tables.iter().rev()).fold(0, |sum, (byte, table)| sum ^ table[usize::from(*byte)]);
    }
    for byte in rest {
        state = state >> 8 ^ tables[0][usize::from(state.to_le_bytes()[0] ^ byte)];
    }
    state
}

/// CRC-32 of what `state` is the checksum of, and `bytes`.
pub(crate) fn crc32(state: u32, bytes: &[u8]) -> u32 {
    over(&IEEE, state, bytes)
}

/// CRC-32C of what `state` is the checksum of, and `bytes`.
pub(crate) fn crc32c(state: u32, bytes: &[u8]) -> u32 {
    over(&CASTAGNOLI, state, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        let text = b"123456789";
        assert_eq!((!crc32(!0, text), !crc32c(!0, text)), (0xcbf4_3926, 0xe306_9283));
        assert_eq!(!crc32c(!0, &[0; 32]), 0x8a91_36aa);
        for sum in [crc32, crc32c] {
            assert_eq!(sum(sum(!0, &text[..3]), &text[3..]), sum(!0, text), "in pieces");
        }
    }
}
