//! Checksums within the blocks that they are of.

use crate::checksum::crc32c;

/// Whether the sum of a block, which lies in it at `at`, is right: itself it counts as zeroes.
pub(super) fn is_right(block: &[u8], at: usize) -> bool {
    let Some((head, rest)) = block.split_at_checked(at) else { return false };
    let Some((stored, tail)) = rest.split_first_chunk::<4>() else { return false };
    !crc32c(crc32c(crc32c(!0, head), &[0; 4]), tail) == u32::from_le_bytes(*stored)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_within_its_block() {
        let mut block = vec![7; 100];
        block[20..24].copy_from_slice(&[0; 4]);
        let sum = !crc32c(!0, &block);
        block[20..24].copy_from_slice(&sum.to_le_bytes());
        assert!(is_right(&block, 20));
        block[99] ^= 1;
        assert!(!is_right(&block, 20));
        assert!(!is_right(&block, 97));
    }
}
