//! Disk files, and what the minimal guest writes into them (guest-kernel/workloads/src/block.rs).

use std::fs::File;
use std::path::Path;

/// Bytes of a block.
pub const BLOCK_BYTES: usize = 4096;

/// Makes an empty disk.
///
/// # Panics
/// When there is no room for it.
pub fn create(path: &Path, bytes: u64) {
    let file = File::create(path).expect("a disk file");
    file.set_len(bytes).expect("room for a disk");
}

/// Numbers of the blocks of `seed` that lie on the disk, in the order of their places.
///
/// # Panics
/// When there is anything else than blocks of `seed` and zeros.
#[must_use]
pub fn blocks_of(disk: &[u8], seed: u64) -> Vec<u64> {
    let mut numbers = Vec::new();
    for (place, block) in disk.chunks_exact(BLOCK_BYTES).enumerate() {
        if block.iter().all(|byte| *byte == 0) {
            continue;
        }
        let word = |index: usize| {
            let bytes = block[index * 8..][..8].try_into().expect("eight bytes");
            u64::from_le_bytes(bytes)
        };
        assert_eq!(&block[..8], b"LVBLOCK1", "at block {place}");
        assert_eq!(word(1), seed, "at block {place}");
        numbers.push(word(2));
    }
    numbers
}

/// Bytes that follow from `seed`, and look like nothing else.
#[must_use]
pub fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    std::iter::repeat_with(next).take(bytes).collect()
}
