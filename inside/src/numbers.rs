//! Numbers and pieces at their places in bytes. What is not there is an error here, and nothing in [`maybe`].

use crate::{Error, Result};

/// Each kind of number, told as `$told`.
macro_rules! numbers {
    ($told:ident) => {
        pub(crate) fn le16(bytes: &[u8], at: usize) -> $told<u16> {
            array(bytes, at).map(u16::from_le_bytes)
        }

        pub(crate) fn le32(bytes: &[u8], at: usize) -> $told<u32> {
            array(bytes, at).map(u32::from_le_bytes)
        }

        pub(crate) fn le64(bytes: &[u8], at: usize) -> $told<u64> {
            array(bytes, at).map(u64::from_le_bytes)
        }

        pub(crate) fn be16(bytes: &[u8], at: usize) -> $told<u16> {
            array(bytes, at).map(u16::from_be_bytes)
        }

        pub(crate) fn be32(bytes: &[u8], at: usize) -> $told<u32> {
            array(bytes, at).map(u32::from_be_bytes)
        }

        pub(crate) fn be64(bytes: &[u8], at: usize) -> $told<u64> {
            array(bytes, at).map(u64::from_be_bytes)
        }
    };
}

/// For what looks whether something is there: `None` where bytes end before it.
pub(crate) mod maybe {
    numbers!(Option);

    pub(crate) fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
        bytes.get(at..)?.first_chunk().copied()
    }

    pub(crate) fn byte(bytes: &[u8], at: usize) -> Option<u8> {
        bytes.get(at).copied()
    }
}

numbers!(Result);

pub(crate) fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N]> {
    maybe::array(bytes, at).ok_or_else(|| missing(bytes, at, N))
}

pub(crate) fn byte(bytes: &[u8], at: usize) -> Result<u8> {
    maybe::byte(bytes, at).ok_or_else(|| missing(bytes, at, 1))
}

/// `length` bytes at `at`.
pub(crate) fn slice(bytes: &[u8], at: usize, length: usize) -> Result<&[u8]> {
    let found = at.checked_add(length).and_then(|end| bytes.get(at..end));
    found.ok_or_else(|| missing(bytes, at, length))
}

/// [`slice`], to be changed.
pub(crate) fn slice_mut(bytes: &mut [u8], at: usize, length: usize) -> Result<&mut [u8]> {
    match at.checked_add(length) {
        Some(end) if end <= bytes.len() => Ok(&mut bytes[at..end]),
        _ => Err(missing(bytes, at, length)),
    }
}

fn missing(bytes: &[u8], at: usize, length: usize) -> Error {
    Error::corrupt(format!("a structure of {} bytes has no {length} at {at}", bytes.len()))
}

/// A number of the disk as a length in memory.
pub(crate) fn in_memory(number: u64) -> Result<usize> {
    usize::try_from(number).map_err(|_| Error::corrupt("a length in the file system is past all memory"))
}

/// A number of the disk as an index; what does not fit is past the end of everything.
pub(crate) fn index(number: impl TryInto<usize>) -> usize {
    number.try_into().unwrap_or(usize::MAX)
}

/// A length of what is in memory as a number of the disk.
pub(crate) fn length(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_past_the_end() {
        let mut bytes = [1, 2, 3, 4];
        assert_eq!((le16(&bytes, 2).unwrap(), be16(&bytes, 2).unwrap()), (0x0403, 0x0304));
        assert_eq!((maybe::le32(&bytes, 0), maybe::be32(&bytes, 1)), (Some(0x0403_0201), None));
        assert_eq!(slice(&bytes, 4, 0).unwrap(), []);
        for (at, length) in [(3, 2), (5, 0), (usize::MAX, 1), (1, usize::MAX)] {
            assert!(slice(&bytes, at, length).is_err() && slice_mut(&mut bytes, at, length).is_err());
        }
        assert!(byte(&bytes, 4).is_err() && le64(&bytes, usize::MAX).is_err());
        slice_mut(&mut bytes, 1, 2).unwrap().fill(0);
        assert_eq!(bytes, [1, 0, 0, 4]);
    }
}
