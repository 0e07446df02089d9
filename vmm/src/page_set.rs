//! A set of pages of guest RAM: a bit each, and nothing until one is in it.

use crate::arch::host::layout;
use crate::sys::mapping::PAGE_BYTES;

const PAGE: u64 = PAGE_BYTES as u64;

/// The set.
#[derive(Debug, Clone, Default)]
pub struct PageSet(Vec<u64>);

impl PageSet {
    /// Puts the pages of `address..+bytes` into it.
    pub fn insert(&mut self, address: u64, bytes: u64) {
        for number in 0..bytes / PAGE {
            let (word, bit) = place(address + number * PAGE);
            if self.0.len() <= word {
                self.0.resize(word + 1, 0);
            }
            if let Some(bits) = self.0.get_mut(word) {
                *bits |= bit;
            }
        }
    }

    /// Whether the page at `address` is in it.
    #[must_use]
    pub fn contains(&self, address: u64) -> bool {
        let (word, bit) = place(address);
        self.0.get(word).is_some_and(|bits| bits & bit != 0)
    }
}

/// RAM is counted without the hole below 4 GiB.
fn place(address: u64) -> (usize, u64) {
    let offset = if address < layout::HOLE_START {
        address
    } else {
        address.saturating_sub(layout::HOLE_END - layout::HOLE_START)
    };
    let number = offset / PAGE;
    let word = usize::try_from(number / u64::from(u64::BITS)).unwrap_or(usize::MAX - 1);
    (word, 1 << (number % u64::from(u64::BITS)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// Runs of whole pages in RAM, near the edges: at the start, on both sides of the hole.
    fn run() -> impl Strategy<Value = (u64, u64)> {
        let edges = [0, layout::HOLE_START - 64 * PAGE, layout::HOLE_END];
        let place = (proptest::sample::select(edges.to_vec()), 0..32_u64);
        (place, 0..32_u64).prop_map(|((edge, page), pages)| (edge + page * PAGE, pages * PAGE))
    }

    proptest! {
        #[test]
        fn it_is_a_set_on_both_sides_of_the_hole(runs in proptest::collection::vec(run(), 0..12)) {
            let (mut set, mut model) = (PageSet::default(), BTreeSet::new());
            for (address, bytes) in runs {
                set.insert(address, bytes);
                model.extend((address..address + bytes).step_by(PAGE_BYTES));
            }
            for edge in [0, layout::HOLE_START - 64 * PAGE, layout::HOLE_END] {
                for address in (edge..edge + 64 * PAGE).step_by(PAGE_BYTES) {
                    let expected = model.contains(&address);
                    prop_assert_eq!(set.contains(address), expected, "{:#x}", address);
                    prop_assert_eq!(set.contains(address + PAGE - 1), expected, "{:#x}", address);
                }
            }
        }
    }
}
