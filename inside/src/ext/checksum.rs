//! The checksums that ext4 and its journal alone have. None is inverted at its end: each goes on where the last piece ended.

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
        assert_eq!(crc16(!0, text), 0x4b37);
        assert_eq!(!crc32_be(!0, text), 0xfc89_1918);
    }
}
