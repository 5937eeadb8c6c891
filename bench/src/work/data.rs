//! Disks to measure with, and copies of them.

use std::path::Path;
use std::process::Command;

use pullfs_tests::disk::Disk;
use pullfs_tests::tools::tool;

use crate::process::timed;
use crate::units::MIB;

/// So much is filled at once, in memory.
const PIECE: u64 = 64 * MIB;

/// A raw disk full of words that are all different. Nothing here compresses, so that is as good as random.
#[track_caller]
pub(crate) fn full(id: &str, size: u64) -> Disk {
    Disk::raw(id, size).filled(&pieces(0, size))
}

/// An extent in pieces that memory holds.
pub(crate) fn pieces(offset: u64, length: u64) -> Vec<(u64, u64)> {
    let starts = (0..length).step_by(usize::try_from(PIECE).expect("a size in memory"));
    starts.map(|start| (offset + start, PIECE.min(length - start))).collect()
}

/// `cp` with its defaults, which keep holes where it sees some.
#[track_caller]
pub(crate) fn cp(from: &Path, to: &Path) -> Command {
    let mut command = tool("cp");
    command.arg(from).arg(to);
    command
}

/// Panics unless two files hold the same bytes.
#[track_caller]
pub(crate) fn same(one: &Path, other: &Path) {
    timed(tool("cmp").arg(one).arg(other));
}

/// Panics unless two images hold the same bytes, whatever their formats; a machine may have them.
#[track_caller]
pub(crate) fn same_image(one: &Path, other: &Path) {
    timed(tool("qemu-img").args(["compare", "-U"]).arg(one).arg(other));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_the_whole_extent() {
        assert_eq!(pieces(MIB, PIECE + 5), [(MIB, PIECE), (MIB + PIECE, 5)]);
        assert!(pieces(7, 0).is_empty());
    }
}
