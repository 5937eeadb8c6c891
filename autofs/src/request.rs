//! What the kernel asks for: `struct autofs_v5_packet` (`linux/auto_fs.h`).

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Somebody waits for a mount.
    Missing,
    /// Nobody uses a mount: it is to be unmounted.
    Expire,
}

/// A request. Exactly one answer belongs to it; until then somebody waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What is to be done.
    pub kind: Kind,
    /// What the answer names it by.
    pub token: u32,
    /// The directory. There need not be one of that name.
    pub name: OsString,
}

/// Bytes before the name.
const HEAD: usize = 44;

impl Request {
    /// Bytes of the longest one.
    pub const LONGEST: usize = 304;

    /// Of what one read(2) gave. `None` if it is no request of an indirect map.
    pub fn parse(packet: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_ne_bytes(packet.get(at..at + 4)?.try_into().ok()?));
        let kind = match (word(0)?, word(4)?) {
            (5, 3) => Kind::Missing,
            (5, 4) => Kind::Expire,
            _ => return None,
        };
        let length = usize::try_from(word(40)?).ok()?;
        let name = packet.get(HEAD..HEAD.checked_add(length)?)?;
        Some(Self { kind, token: word(8)?, name: OsString::from_vec(name.to_vec()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(kind: u32, length: u32) -> Vec<u8> {
        let head = [5, kind, 7, 1, 2, 0, 3, 4, 5, 6, length];
        let mut packet: Vec<u8> = head.iter().flat_map(|word: &u32| word.to_ne_bytes()).collect();
        packet.extend(b"vm1");
        packet.resize(Request::LONGEST, 0);
        packet
    }

    #[test]
    fn requests_are_read_as_the_kernel_writes_them() {
        let request = Request { kind: Kind::Missing, token: 7, name: "vm1".into() };
        assert_eq!(Request::parse(&packet(3, 3)), Some(request.clone()));
        assert_eq!(Request::parse(&packet(4, 3)), Some(Request { kind: Kind::Expire, ..request }));
        assert_eq!(Request::parse(&packet(5, 3)), None, "of a direct map");
        for length in [261, u32::MAX] {
            assert_eq!(Request::parse(&packet(3, length)), None, "longer than it is");
        }
        for end in 0..HEAD + 3 {
            assert_eq!(Request::parse(&packet(3, 3)[..end]), None, "cut off at {end}");
        }
    }
}
