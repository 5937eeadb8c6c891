//! What disks, partitions and file systems are told apart by: magic bytes, identifiers and labels.

use std::fmt::Write as _;

use crate::{Disk, Result};

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

#[cfg(test)]
mod tests {
    use super::*;

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
    }
}
