//! Sets of blocks, a bit each.

use std::ops::Range;

/// Blocks of a word.
const WORD: u64 = u64::BITS as u64;

/// A set of blocks of a disk. Memory that was never written to is the host's: an empty set of a large disk takes none.
#[derive(Debug)]
pub(super) struct BlockSet {
    words: Vec<u64>,
    count: u64,
}

impl BlockSet {
    /// The empty set, of a disk of `blocks`.
    pub(super) fn new(blocks: u64) -> Self {
        let words = usize::try_from(blocks.div_ceil(WORD)).unwrap_or(usize::MAX);
        Self {
            words: vec![0; words],
            count: 0,
        }
    }

    /// How many there are.
    pub(super) const fn count(&self) -> u64 {
        self.count
    }

    /// Adds all of `range`; gives whether any was new.
    pub(super) fn insert(&mut self, range: Range<u64>) -> bool {
        let before = self.count;
        for (place, mask) in masks(range) {
            if let Some(word) = self.words.get_mut(place) {
                self.count += u64::from((mask & !*word).count_ones());
                *word |= mask;
            }
        }
        self.count > before
    }

    /// Takes all of `range` away.
    pub(super) fn remove(&mut self, range: Range<u64>) {
        for (place, mask) in masks(range) {
            if let Some(word) = self.words.get_mut(place) {
                self.count -= u64::from((mask & *word).count_ones());
                *word &= !mask;
            }
        }
    }

    /// How many of `range` are not in it.
    pub(super) fn missing(&self, range: Range<u64>) -> u64 {
        let missing = masks(range).map(|(place, mask)| {
            let word = self.words.get(place).copied().unwrap_or(0);
            u64::from((mask & !word).count_ones())
        });
        missing.sum()
    }

    pub(super) fn contains(&self, block: u64) -> bool {
        self.missing(block..block.saturating_add(1)) == 0
    }

    /// Whether the first block of `range` is in it, and where in `range` the first one follows of which the opposite is true.
    pub(super) fn run(&self, range: Range<u64>) -> (bool, u64) {
        let is_in = self.contains(range.start);
        for (place, mask) in masks(range.clone()) {
            let word = self.words.get(place).copied().unwrap_or(0);
            let others = mask & if is_in { !word } else { word };
            if others != 0 {
                let first = (place as u64).saturating_mul(WORD);
                return (
                    is_in,
                    first.saturating_add(u64::from(others.trailing_zeros())),
                );
            }
        }
        (is_in, range.end)
    }

    /// Empties it, and gives its memory back.
    pub(super) fn clear(&mut self) {
        *self = Self {
            words: vec![0; self.words.len()],
            count: 0,
        };
    }

    /// Bytes `range` of the set as it is stored: block N is bit N % 8 of byte N / 8.
    pub(super) fn bytes(&self, range: Range<usize>) -> Vec<u8> {
        let words = range.start / 8..range.end.div_ceil(8).min(self.words.len());
        let words = self.words.get(words).unwrap_or_default();
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// Adds the blocks of `bytes`, which stand at `start` (a multiple of 8) of the set as it is stored. Those past the disk's
    /// end are passed over.
    pub(super) fn add_bytes(&mut self, start: usize, bytes: &[u8], blocks: u64) {
        let words = bytes.chunks(8).zip(start / 8..);
        for (bytes, place) in words {
            let mut whole = [0; 8];
            whole
                .iter_mut()
                .zip(bytes)
                .for_each(|(to, from)| *to = *from);
            let first = (place as u64).saturating_mul(WORD);
            let valid = match blocks.saturating_sub(first) {
                0 => 0,
                left if left >= WORD => u64::MAX,
                left => (1 << left) - 1,
            };
            let added = u64::from_le_bytes(whole) & valid;
            // Zeroes are not written: memory for them would have to be there.
            if let Some(word) = self.words.get_mut(place).filter(|_| added != 0) {
                self.count += u64::from((added & !*word).count_ones());
                *word |= added;
            }
        }
    }
}

/// The words that `range` touches, and which of their bits.
fn masks(range: Range<u64>) -> impl Iterator<Item = (usize, u64)> {
    let words = if range.is_empty() {
        0..0
    } else {
        range.start / WORD..range.end.div_ceil(WORD)
    };
    words.map(move |word| {
        let first = word.saturating_mul(WORD);
        let from = range.start.saturating_sub(first).min(WORD - 1);
        let bits = range.end.saturating_sub(first).min(WORD) - from;
        let mask = u64::MAX >> (WORD - bits) << from;
        (usize::try_from(word).unwrap_or(usize::MAX), mask)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const BLOCKS: u64 = 300;

    proptest! {
        #[test]
        fn it_is_a_set(steps in proptest::collection::vec((0..BLOCKS, 0..BLOCKS, any::<bool>()), 1..20)) {
            let (mut set, mut model) = (BlockSet::new(BLOCKS), BTreeSet::new());
            for (a, b, inserts) in steps {
                let range = a.min(b)..a.max(b);
                if inserts {
                    let is_new = range.clone().any(|block| !model.contains(&block));
                    prop_assert_eq!(set.insert(range.clone()), is_new);
                    model.extend(range.clone());
                } else {
                    set.remove(range.clone());
                    model.retain(|block| !range.contains(block));
                }
                prop_assert_eq!(set.count(), model.len() as u64);
                let missing = (a..BLOCKS).filter(|block| !model.contains(block)).count();
                prop_assert_eq!(set.missing(a..BLOCKS), missing as u64);
                let is_in = model.contains(&a);
                let end = (a..BLOCKS).find(|block| model.contains(block) != is_in);
                prop_assert_eq!(set.run(a..BLOCKS), (is_in, end.unwrap_or(BLOCKS)));
                let mut copy = BlockSet::new(BLOCKS);
                let bytes = set.bytes(0..usize::MAX);
                copy.add_bytes(0, &bytes[..16], BLOCKS);
                copy.add_bytes(16, &bytes[16..], BLOCKS);
                prop_assert_eq!(&copy.words, &set.words);
                prop_assert_eq!(copy.count(), set.count());
            }
        }
    }

    #[test]
    fn blocks_past_the_end_are_not_taken_from_a_file() {
        let mut set = BlockSet::new(70);
        set.add_bytes(0, &[0xff; 32], 70);
        assert_eq!(set.count(), 70);
        set.clear();
        assert_eq!((set.count(), set.contains(3)), (0, false));
    }
}
