//! Names in UTF-16, as Windows has them, and as bytes; labels in UTF-16, as text.
//!
//! A name of Windows is any sequence of 16-bit units, so a surrogate may stand alone. As bytes it is WTF-8: UTF-8, and a lone
//! surrogate in three bytes as if it were a character. No two names become one, and each goes back to what it was.

use std::fmt::Write as _;

/// The units of a name in the order of the disk, least byte first; a last odd byte is left out.
pub(crate) fn units(bytes: &[u8]) -> Vec<u16> {
    bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect()
}

/// Units as bytes.
pub(crate) fn to_bytes(units: &[u16]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(units.len() * 3);
    for unit in char::decode_utf16(units.iter().copied()) {
        match unit {
            Ok(character) => bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
            Err(lone) => {
                let unit = lone.unpaired_surrogate();
                let low_six = |shift: u16| ((unit >> shift) & 0x3F).to_le_bytes()[0] | 0x80;
                bytes.extend_from_slice(&[0xED, low_six(6), low_six(0)]);
            }
        }
    }
    bytes
}

/// Bytes as units; none if no units give these bytes.
pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Vec<u16>> {
    let mut units = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    loop {
        let (good, bad) = match std::str::from_utf8(rest) {
            Ok(good) => (good, None),
            Err(error) => {
                let (good, bad) = rest.split_at(error.valid_up_to());
                (std::str::from_utf8(good).ok()?, Some(bad))
            }
        };
        units.extend(good.encode_utf16());
        match bad {
            None => break,
            Some([0xED, high @ 0xA0..=0xBF, low @ 0x80..=0xBF, after @ ..]) => {
                units.push(0xD000 | u16::from(high & 0x3F) << 6 | u16::from(low & 0x3F));
                rest = after;
            }
            Some(_) => return None,
        }
    }
    // Two lone ones that make a pair are not how the pair is written.
    (to_bytes(&units) == bytes).then_some(units)
}

/// UTF-16 in UTF-8, up to the first NUL; what is no character becomes U+FFFD.
pub(crate) fn text(bytes: &[u8], from: fn([u8; 2]) -> u16) -> String {
    let units = bytes.chunks_exact(2).map(|pair| from([pair[0], pair[1]])).take_while(|&unit| unit != 0);
    char::decode_utf16(units).map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
}

/// Whether these bytes can be a name in a directory.
pub(crate) fn is_name(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes != b"." && bytes != b".." && !bytes.iter().any(|&byte| byte == b'/' || byte == 0)
}

/// A name for a message: short, and of one line.
pub(crate) fn quoted(name: &[u8]) -> String {
    let mut text = String::new();
    for character in String::from_utf8_lossy(name).chars().take(64) {
        let _ = write!(text, "{}", character.escape_debug());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_goes_there_and_back() {
        for units in [&[0x61, 0x2F00][..], &[0xD83D, 0xDE00], &[0xD83D], &[0xDE00, 0xD83D], &[0xDC00, 0x61, 0xD800]] {
            assert_eq!(from_bytes(&to_bytes(units)).as_deref(), Some(units), "{units:x?}");
        }
        assert_eq!(to_bytes(&[0xD83D, 0xDE00]), "😀".as_bytes());
        assert_eq!(to_bytes(&[0xD83D]), b"\xED\xA0\xBD");
    }

    #[test]
    fn what_no_name_is_written_as_is_none() {
        assert_eq!(from_bytes(b"\xED\xA0\xBD\xED\xB8\x80"), None, "a pair as two");
        assert_eq!(from_bytes(b"a\xFF"), None);
        assert_eq!(from_bytes(b"a\xED\xA0"), None);
    }

    #[test]
    fn a_text_ends_with_the_first_nul() {
        assert_eq!(text(&[b'a', 0, 0, 0xd8, b'b', 0, 0, 0, b'c', 0], u16::from_le_bytes), "a\u{fffd}b");
    }

    #[test]
    fn names() {
        for name in [&b""[..], b".", b"..", b"a/b", b"a\0"] {
            assert!(!is_name(name), "{name:?}");
        }
        assert!(is_name(b"..."));
    }
}
