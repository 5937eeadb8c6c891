//! The checksums of ext4 and its journal. None is inverted at its end: each goes on where the last piece ended.

/// Polynomial of CRC-32C, its lowest bit first.
const CASTAGNOLI: u32 = 0x82f6_3b78;

/// Eight bytes at a time: the table `n` is of a byte that `n` others follow.
static TABLES: [[u32; 256]; 8] = tables();

const fn tables() -> [[u32; 256]; 8] {
    let mut tables = [[0; 256]; 8];
    let (mut index, mut byte) = (0, 0u32);
    while index < 256 {
        let (mut value, mut bit) = (byte, 0);
        while bit < 8 {
            value = if value & 1 == 1 { value >> 1 ^ CASTAGNOLI } else { value >> 1 };
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

/// CRC-32C of what `state` is the checksum of, and `bytes`.
pub(super) fn crc32c(state: u32, bytes: &[u8]) -> u32 {
    let (words, rest) = bytes.as_chunks::<8>();
    let mut state = state;
    for word in words {
        let mut word = *word;
        for (byte, old) in word.iter_mut().zip(state.to_le_bytes()) {
            *byte ^= old;
        }
        state = word.iter().zip(TABLES.iter().rev()).fold(0, |sum, (byte, table)| sum ^ table[usize::from(*byte)]);
    }
    for byte in rest {
        state = state >> 8 ^ TABLES[0][usize::from(state.to_le_bytes()[0] ^ byte)];
    }
    state
}

/// CRC-16 of group descriptors before checksums of all metadata.
pub(super) fn crc16(state: u16, bytes: &[u8]) -> u16 {
    bytes.iter().fold(state, |state, byte| {
        (0..8).fold(state ^ u16::from(*byte), |state, _| if state & 1 == 1 { state >> 1 ^ 0xa001 } else { state >> 1 })
    })
}

/// CRC-32, its highest bit first, of the journal's first kind of checksum.
pub(super) fn crc32_be(state: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(state, |state, byte| {
        (0..8).fold(state ^ u32::from(*byte) << 24, |state, _| {
            if state >> 31 == 1 { state << 1 ^ 0x04c1_1db7 } else { state << 1 }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        let text = b"123456789";
        assert_eq!(!crc32c(!0, text), 0xe306_9283);
        assert_eq!(crc32c(crc32c(!0, &text[..3]), &text[3..]), crc32c(!0, text), "in pieces");
        assert_eq!(crc16(!0, text), 0x4b37);
        assert_eq!(!crc32_be(!0, text), 0xfc89_1918);
    }
}
