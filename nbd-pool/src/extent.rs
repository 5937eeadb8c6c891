//! Runs of an export that share their status.

use std::ops::Range;

/// A run of bytes with the same status in one metadata context.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Extent {
    /// Where it begins, in bytes from the start of the export.
    pub offset: u64,
    /// How many bytes it has, never 0.
    pub length: u64,
    /// Status flags; their meaning is the context's (see [`crate::context`]).
    pub flags: u64,
}

impl Extent {
    /// The first byte after it.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.length)
    }

    /// The part of it within `range`, or `None` where they do not meet.
    #[must_use]
    pub fn clamp(&self, range: &Range<u64>) -> Option<Extent> {
        let offset = self.offset.max(range.start);
        let end = self.end().min(range.end);
        (offset < end).then(|| Extent { offset, length: end - offset, flags: self.flags })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clamp_keeps_what_lies_within() {
        let extent = Extent { offset: 10, length: 10, flags: 3 };
        assert_eq!(extent.clamp(&(0..100)), Some(extent));
        assert_eq!(extent.clamp(&(12..15)), Some(Extent { offset: 12, length: 3, flags: 3 }));
        assert_eq!(extent.clamp(&(20..30)), None);
        assert_eq!(extent.clamp(&(0..10)), None);
    }
}
