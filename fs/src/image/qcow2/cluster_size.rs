//! The unit in which a qcow2 image allocates, and the limits that follow from it.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use crate::error::{Error, Kind, Result};

/// Bits of the smallest and the largest cluster that QEMU opens.
const BITS: std::ops::RangeInclusive<u32> = 9..=21;

/// The longest L1 table that QEMU opens, in entries of 8 bytes (32 MiB).
const MAX_L1_ENTRIES: u64 = (32 << 20) / ENTRY;

/// Bytes of an entry of an L1, L2 or refcount table.
pub(super) const ENTRY: u64 = 8;

/// A cluster size: a power of two from 512 bytes to 2 MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClusterSize {
    bits: u32,
}

impl Default for ClusterSize {
    /// 64 KiB, as `qemu-img create`.
    fn default() -> Self {
        Self { bits: 16 }
    }
}

impl ClusterSize {
    /// A cluster of so many bytes.
    ///
    /// # Errors
    /// [`Kind::Invalid`] unless it is a power of two from 512 bytes to 2 MiB.
    pub fn new(bytes: u64) -> Result<Self> {
        let bits = bytes.trailing_zeros();
        if bytes.is_power_of_two() && BITS.contains(&bits) {
            return Ok(Self { bits });
        }
        Err(Error::new(Kind::Invalid, format!("cluster size {bytes}: it must be a power of two from 512 to 2M")))
    }

    /// In bytes.
    pub fn bytes(self) -> u64 {
        1 << self.bits
    }

    pub(super) fn bits(self) -> u32 {
        self.bits
    }

    /// Entries of 8 bytes in a cluster: the clusters that one L2 table describes.
    pub(super) fn entries(self) -> u64 {
        self.bytes() / ENTRY
    }

    /// Clusters that hold `bytes` bytes.
    pub(super) fn count(self, bytes: u64) -> u64 {
        bytes.div_ceil(self.bytes())
    }

    /// The clusters that a non-empty range of bytes touches.
    pub(super) fn touched(self, range: &Range<u64>) -> Range<u64> {
        range.start / self.bytes()..self.count(range.end)
    }

    /// L1 entries of a disk of `disk` bytes.
    ///
    /// # Errors
    /// [`Kind::TooLarge`] if QEMU would not open a table of that length.
    pub(super) fn l1_entries(self, disk: u64) -> Result<u64> {
        let entries = |size: Self| size.count(disk).div_ceil(size.entries());
        if entries(self) <= MAX_L1_ENTRIES {
            return Ok(entries(self));
        }
        let larger = BITS.map(|bits| Self { bits }).find(|&size| entries(size) <= MAX_L1_ENTRIES);
        Err(self.too_small(&format!("a disk of {disk} bytes"), larger))
    }

    /// The error for `what` when these clusters are too small for it; `larger` are large enough.
    pub(super) fn too_small(self, what: &str, larger: Option<Self>) -> Error {
        let remedy = match larger {
            Some(larger) => format!("set cluster_size={larger} or larger"),
            None => "no cluster size is large enough, use the raw file".to_owned(),
        };
        Error::new(Kind::TooLarge, format!("{what} does not fit a qcow2 image with clusters of {self}: {remedy}"))
    }

    /// The next larger size.
    pub(super) fn doubled(self) -> Option<Self> {
        BITS.contains(&(self.bits + 1)).then_some(Self { bits: self.bits + 1 })
    }
}

impl FromStr for ClusterSize {
    type Err = Error;

    /// Bytes, or with the suffix `K` or `M`: `65536`, `64K`, `2M`.
    fn from_str(text: &str) -> Result<Self> {
        let (digits, shift) = match text.strip_suffix(['K', 'k']) {
            Some(digits) => (digits, 10),
            None => text.strip_suffix(['M', 'm']).map_or((text, 0), |digits| (digits, 20)),
        };
        let number = digits.bytes().all(|digit| digit.is_ascii_digit()).then(|| digits.parse::<u64>().ok()).flatten();
        let bytes = number.and_then(|number| number.checked_mul(1 << shift));
        let bytes = bytes.ok_or_else(|| Error::new(Kind::Invalid, format!("cluster size `{text}`: try 64K")))?;
        Self::new(bytes)
    }
}

impl fmt::Display for ClusterSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.bits {
            20.. => write!(f, "{}M", self.bytes() >> 20),
            10.. => write!(f, "{}K", self.bytes() >> 10),
            _ => write!(f, "{}", self.bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_prints() {
        for bits in BITS {
            let size = ClusterSize { bits };
            assert_eq!(size.to_string().parse::<ClusterSize>().unwrap(), size);
            assert_eq!(size.bytes().to_string().parse::<ClusterSize>().unwrap(), size);
        }
        assert_eq!("64k".parse::<ClusterSize>().unwrap(), ClusterSize::default());
    }

    #[test]
    fn refuses_what_qemu_would_not_open() {
        for text in ["", "K", "0", "256", "4M", "96K", "-64K", "+64K", "64KiB", "64G", "18446744073709551615M"] {
            assert_eq!(text.parse::<ClusterSize>().unwrap_err().kind(), Kind::Invalid, "{text}");
        }
    }

    #[test]
    fn a_disk_too_large_names_the_size_that_would_do() {
        let size = ClusterSize::new(512).unwrap();
        assert_eq!(size.l1_entries(128 << 30).unwrap(), MAX_L1_ENTRIES);
        let error = size.l1_entries((128 << 30) + 1).unwrap_err();
        assert_eq!(error.kind(), Kind::TooLarge);
        assert!(error.to_string().ends_with("set cluster_size=1K or larger"), "{error}");
        assert!(ClusterSize::default().l1_entries(64 << 40).is_ok());
        let error = ClusterSize::default().l1_entries(u64::MAX).unwrap_err();
        assert!(error.to_string().contains("no cluster size"), "{error}");
    }
}
