//! Disk blocks that describe themselves: from its content alone one can tell which block it is and that it is whole.
//!
//! Layout, little-endian: magic, seed, number, checksum (u64 each), then a pseudo-random payload that follows from
//! seed and number. The checksum covers everything else.

use crate::random::{SplitMix64, mix};

/// Bytes of a block.
pub const BYTES: usize = 4096;
/// The bytes `LVBLOCK1`.
pub const MAGIC: u64 = u64::from_le_bytes(*b"LVBLOCK1");

const WORD_BYTES: usize = 8;
const CHECKSUM_WORD: usize = 3;
const HEADER_WORDS: usize = 4;

/// A block.
pub type Block = [u8; BYTES];

/// What is wrong with a block that was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BlockFault {
    /// It does not begin with [`MAGIC`].
    Magic(u64),
    /// It belongs to another seed.
    Seed(u64),
    /// It is another block.
    Number(u64),
    /// Its content does not fit its checksum.
    Checksum,
}

/// Fills `block` with block `number` of `seed`, and gives its checksum.
pub fn fill(block: &mut Block, seed: u64, number: u64) -> u64 {
    let mut payload = SplitMix64::new(seed ^ mix(number));
    let header = [MAGIC, seed, number, 0];
    for (index, word) in block.chunks_exact_mut(WORD_BYTES).enumerate() {
        let value = header.get(index).copied().unwrap_or_else(|| payload.next());
        word.copy_from_slice(&value.to_le_bytes());
    }
    let sum = checksum(block);
    block[CHECKSUM_WORD * WORD_BYTES..HEADER_WORDS * WORD_BYTES]
        .copy_from_slice(&sum.to_le_bytes());
    sum
}

/// Checks that `block` is block `number` of `seed`, and gives its checksum.
///
/// # Errors
/// The first thing that is wrong.
pub fn verify(block: &Block, seed: u64, number: u64) -> Result<u64, BlockFault> {
    let found = [word(block, 0), word(block, 1), word(block, 2)];
    let sum = word(block, CHECKSUM_WORD);
    if found[0] != MAGIC {
        Err(BlockFault::Magic(found[0]))
    } else if found[1] != seed {
        Err(BlockFault::Seed(found[1]))
    } else if found[2] != number {
        Err(BlockFault::Number(found[2]))
    } else if sum != checksum(block) {
        Err(BlockFault::Checksum)
    } else {
        Ok(sum)
    }
}

/// Adds one block's checksum to the checksum of all blocks before it. Begin with 0; the order counts.
pub const fn fold(total: u64, block_checksum: u64) -> u64 {
    mix(total.rotate_left(1) ^ block_checksum)
}

/// The checksum that [`fold`] gives over blocks 0 to `count` of `seed`.
pub fn checksum_of_all(seed: u64, count: u64) -> u64 {
    let mut block = [0; BYTES];
    (0..count).fold(0, |total, number| {
        fold(total, fill(&mut block, seed, number))
    })
}

fn word(block: &Block, index: usize) -> u64 {
    let mut bytes = [0; WORD_BYTES];
    bytes.copy_from_slice(&block[index * WORD_BYTES..(index + 1) * WORD_BYTES]);
    u64::from_le_bytes(bytes)
}

/// Over all words but the checksum's own place.
fn checksum(block: &Block) -> u64 {
    (0..BYTES / WORD_BYTES)
        .filter(|&index| index != CHECKSUM_WORD)
        .fold(0, |sum, index| fold(sum, word(block, index)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_knows_itself() {
        let mut block = [0; BYTES];
        let sum = fill(&mut block, 7, 42);
        assert_eq!(verify(&block, 7, 42), Ok(sum));
        assert_eq!(verify(&block, 8, 42), Err(BlockFault::Seed(7)));
        assert_eq!(verify(&block, 7, 43), Err(BlockFault::Number(42)));
        assert_eq!(verify(&[0; BYTES], 7, 42), Err(BlockFault::Magic(0)));
    }

    #[test]
    fn any_changed_bit_is_found() {
        let mut block = [0; BYTES];
        fill(&mut block, 1, 2);
        for byte in 0..BYTES {
            let mut changed = block;
            changed[byte] ^= 1 << (byte % 8);
            assert!(verify(&changed, 1, 2).is_err(), "byte {byte}");
        }
    }

    #[test]
    fn total_depends_on_order() {
        assert_ne!(fold(fold(0, 1), 2), fold(fold(0, 2), 1));
        let mut block = [0; BYTES];
        let two = fold(fold(0, fill(&mut block, 9, 0)), fill(&mut block, 9, 1));
        assert_eq!(checksum_of_all(9, 2), two);
    }
}
