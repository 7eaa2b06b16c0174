//! Whole blocks of zeroes in a write: they become map state and are never written.

use crate::pool::slot::BLOCK_BYTES;

/// The 4 KiB blocks of the slot that `bytes`, standing `in_slot` bytes into it, cover whole and that are all zeroes. A
/// block is given up at its first word that isn't, so data that is not zero costs next to nothing.
pub fn zero_blocks(bytes: &[u8], in_slot: u32) -> u16 {
    let block_bytes = BLOCK_BYTES as usize;
    let lead = (block_bytes - in_slot as usize % block_bytes) % block_bytes;
    let Some(whole) = bytes.get(lead..) else { return 0 };
    let first = (in_slot as usize + lead) / block_bytes;
    whole
        .chunks_exact(block_bytes)
        .enumerate()
        .filter(|(_, block)| is_zero(block))
        .fold(0, |mask, (nth, _)| mask | 1 << (first + nth))
}

/// Whether all bytes are zero. By 128 bytes at a time, which compilers make wide loads of.
#[inline]
pub fn is_zero(bytes: &[u8]) -> bool {
    let mut wide = bytes.chunks_exact(128);
    wide.all(|chunk| chunk.iter().fold(0, |all, &byte| all | byte) == 0)
        && wide.remainder().iter().all(|&byte| byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: exactly the whole blocks of zeroes are found; one byte anywhere makes the difference. Method: each byte of
    /// a block, at each of three places in the slot.
    #[test]
    fn finds_whole_blocks_only() {
        let mut bytes = vec![0u8; 3 * 4096];
        assert_eq!(
            (zero_blocks(&bytes, 0), zero_blocks(&bytes, 512), zero_blocks(&bytes, 8192)),
            (7, 6, 0x1c)
        );
        for at in 4096..8192 {
            bytes[at] = 1;
            assert_eq!(zero_blocks(&bytes, 0), 5, "byte {at}");
            bytes[at] = 0;
        }
        assert_eq!(zero_blocks(&bytes[..4095], 0), 0);
        assert_eq!(zero_blocks(&bytes[..100], 4000), 0);
    }
}
