//! Names and flags of metadata contexts (spec "Metadata querying"; QEMU's own in its `nbd.txt`).

/// The context that says what is allocated and what reads as zeroes.
pub const BASE_ALLOCATION: &str = "base:allocation";

/// Flag of [`BASE_ALLOCATION`]: nothing is allocated here.
pub const STATE_HOLE: u64 = 1;

/// Flag of [`BASE_ALLOCATION`]: reads as zeroes.
pub const STATE_ZERO: u64 = 2;

/// Flag of a QEMU dirty-bitmap context: changed since the bitmap was cleared.
pub const STATE_DIRTY: u64 = 1;

/// The context of the dirty bitmap `name` that QEMU exports.
pub fn dirty_bitmap(name: &str) -> String {
    format!("qemu:dirty-bitmap:{name}")
}
