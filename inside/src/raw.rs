//! Numbers, names and checksums at their places in bytes. Whatever is not there is `None`.

use std::fmt::Write as _;

use crate::{Disk, Result};

pub(crate) fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

pub(crate) fn byte(bytes: &[u8], at: usize) -> Option<u8> {
    bytes.get(at).copied()
}

pub(crate) fn le16(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_le_bytes)
}

pub(crate) fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_le_bytes)
}

pub(crate) fn le64(bytes: &[u8], at: usize) -> Option<u64> {
    array(bytes, at).map(u64::from_le_bytes)
}

pub(crate) fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_be_bytes)
}

pub(crate) fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_be_bytes)
}

pub(crate) fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    array(bytes, at).map(u64::from_be_bytes)
}

/// Whether `magic` is at that place.
pub(crate) fn has(bytes: &[u8], at: usize, magic: &[u8]) -> bool {
    bytes.get(at..).is_some_and(|rest| rest.starts_with(magic))
}

/// A piece of a disk; none where it reaches past the end. `length` is always a bound of ours.
pub(crate) fn read<D: Disk + ?Sized>(disk: &D, offset: u64, length: usize) -> Result<Option<Vec<u8>>> {
    let end = u64::try_from(length).ok().and_then(|length| offset.checked_add(length));
    if end.is_none_or(|end| end > disk.size()) {
        return Ok(None);
    }
    let mut bytes = vec![0; length];
    disk.read_at(offset, &mut bytes)?;
    Ok(Some(bytes))
}

/// Sixteen bytes as a UUID in their order; none if they are all zero.
pub(crate) fn uuid(bytes: [u8; 16]) -> Option<String> {
    (bytes != [0; 16]).then(|| grouped(&bytes))
}

/// Sixteen bytes as a GUID, whose first three numbers are little-endian.
pub(crate) fn guid(bytes: [u8; 16]) -> String {
    let mut ordered = bytes;
    ordered[0..4].reverse();
    ordered[4..6].reverse();
    ordered[6..8].reverse();
    grouped(&ordered)
}

fn grouped(bytes: &[u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// A label as blkid(8) cuts it: up to the first NUL, without white space at its end; none if nothing is left.
pub(crate) fn label(bytes: &[u8]) -> Option<Vec<u8>> {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    let space = |byte: &u8| matches!(byte, b' ' | b'\t'..=b'\r');
    let end = bytes[..end].iter().rposition(|byte| !space(byte)).map_or(0, |last| last + 1);
    (end > 0).then(|| bytes[..end].to_vec())
}

/// UTF-16 in UTF-8, up to the first NUL; what is no character becomes U+FFFD.
pub(crate) fn utf16(bytes: &[u8], from: fn([u8; 2]) -> u16) -> String {
    let units = bytes.chunks_exact(2).map(|pair| from([pair[0], pair[1]])).take_while(|&unit| unit != 0);
    char::decode_utf16(units).map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
}

/// A cyclic redundancy check of 32 bits, its lowest bit first.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Crc {
    state: u32,
    table: &'static [u32; 256],
}

static IEEE: [u32; 256] = crc_table(0xedb8_8320);
static CASTAGNOLI: [u32; 256] = crc_table(0x82f6_3b78);

const fn crc_table(polynomial: u32) -> [u32; 256] {
    let mut table = [0; 256];
    let mut index = 0;
    let mut value = 0_u32;
    while index < 256 {
        let mut remainder = value;
        let mut bit = 0;
        while bit < 8 {
            remainder = (remainder >> 1) ^ if remainder & 1 == 1 { polynomial } else { 0 };
            bit += 1;
        }
        table[index] = remainder;
        index += 1;
        value += 1;
    }
    table
}

impl Crc {
    /// CRC-32 that begins with that state.
    pub(crate) fn ieee(state: u32) -> Self {
        Self { state, table: &IEEE }
    }

    /// CRC-32C that begins with that state.
    pub(crate) fn castagnoli(state: u32) -> Self {
        Self { state, table: &CASTAGNOLI }
    }

    /// Takes bytes in.
    #[must_use]
    pub(crate) fn over(mut self, bytes: &[u8]) -> Self {
        for byte in bytes {
            let [low, ..] = self.state.to_le_bytes();
            self.state = (self.state >> 8) ^ self.table[usize::from(low ^ byte)];
        }
        self
    }

    /// What it is now, not inverted.
    pub(crate) fn state(self) -> u32 {
        self.state
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_the_known_ones() {
        assert_eq!(!Crc::ieee(u32::MAX).over(b"1234").over(b"56789").state(), 0xcbf4_3926);
        assert_eq!(!Crc::castagnoli(u32::MAX).over(b"123456789").state(), 0xe306_9283);
    }

    #[test]
    fn labels_are_cut_as_blkid_does() {
        assert_eq!(label(b"root  \0junk"), Some(b"root".to_vec()));
        assert_eq!(label(b" a b \t\n"), Some(b" a b".to_vec()));
        assert_eq!(label(b"  \0x"), None);
        assert_eq!(label(b""), None);
    }

    #[test]
    fn identifiers_are_written_as_everybody_does() {
        let bytes = [0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b];
        assert_eq!(guid(bytes), "c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
        assert_eq!(uuid(bytes).unwrap(), "28732ac1-1ff8-d211-ba4b-00a0c93ec93b");
        assert_eq!(uuid([0; 16]), None);
        assert_eq!(utf16(&[b'a', 0, 0, 0xd8, b'b', 0, 0, 0, b'c', 0], u16::from_le_bytes), "a\u{fffd}b");
    }
}
