//! Numbers and pieces of a block, none of them past its end.

use crate::{Error, Result};

fn short() -> Error {
    Error::corrupt("XFS: a structure reaches past the end of its block")
}

/// `length` bytes at `at`.
pub(super) fn slice(block: &[u8], at: usize, length: usize) -> Result<&[u8]> {
    let end = at.checked_add(length).ok_or_else(short)?;
    block.get(at..end).ok_or_else(short)
}

pub(super) fn slice_mut(block: &mut [u8], at: usize, length: usize) -> Result<&mut [u8]> {
    let end = at.checked_add(length).ok_or_else(short)?;
    block.get_mut(at..end).ok_or_else(short)
}

pub(super) fn array<const N: usize>(block: &[u8], at: usize) -> Result<[u8; N]> {
    slice(block, at, N)?.try_into().map_err(|_| short())
}

pub(super) fn byte(block: &[u8], at: usize) -> Result<u8> {
    block.get(at).copied().ok_or_else(short)
}

pub(super) fn be16(block: &[u8], at: usize) -> Result<u16> {
    array(block, at).map(u16::from_be_bytes)
}

pub(super) fn be32(block: &[u8], at: usize) -> Result<u32> {
    array(block, at).map(u32::from_be_bytes)
}

pub(super) fn be64(block: &[u8], at: usize) -> Result<u64> {
    array(block, at).map(u64::from_be_bytes)
}

pub(super) fn le16(block: &[u8], at: usize) -> Result<u16> {
    array(block, at).map(u16::from_le_bytes)
}

pub(super) fn le32(block: &[u8], at: usize) -> Result<u32> {
    array(block, at).map(u32::from_le_bytes)
}

pub(super) fn le64(block: &[u8], at: usize) -> Result<u64> {
    array(block, at).map(u64::from_le_bytes)
}

/// For indices; what does not fit is past the end of everything.
pub(super) fn index(number: impl TryInto<usize>) -> usize {
    number.try_into().unwrap_or(usize::MAX)
}

/// For lengths of what is in memory.
pub(super) fn length(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}
