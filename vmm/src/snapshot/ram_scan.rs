//! Which pages of RAM an image must hold: those that are not zero. Only pages that exist are looked at.

use std::io;

use lightv_devices::memory::GuestMem;
use vm_memory::{Bytes, GuestAddress};

use super::page_map::{Page, for_each_page};
use crate::arch::host::layout;
use crate::image::manifest::MemoryRunV1;
use crate::limits;
use crate::memory::GuestRam;
use crate::sys::mapping::PAGE_BYTES;

const PAGE: u64 = PAGE_BYTES as u64;

/// The stretches of RAM that are not zero, in address order, at most [`limits::MEMORY_RUNS_MAX`]: where there are
/// more, those with the smallest gaps between them become one, gap included.
///
/// The guest must be paused.
///
/// # Errors
/// The kernel's, when the page map cannot be read.
pub fn non_zero_runs(ram: &GuestRam) -> io::Result<Vec<MemoryRunV1>> {
    let (low, high) = all_runs(ram)?
        .into_iter()
        .partition(|run| run.address < layout::HOLE_START);
    Ok(merge(vec![low, high], limits::MEMORY_RUNS_MAX))
}

/// All stretches of RAM that are not zero, in address order. The guest must be paused.
///
/// # Errors
/// The kernel's, when the page map cannot be read.
pub fn all_runs(ram: &GuestRam) -> io::Result<Vec<MemoryRunV1>> {
    let mut runs = Vec::new();
    let mut bytes = vec![0_u8; PAGE_BYTES];
    for_each_page(ram, |address, page| {
        let may_hold = matches!(page, Page::View | Page::Own);
        if may_hold && !is_zero(ram.mem(), address, &mut bytes) {
            push_page(&mut runs, address);
        }
    })?;
    Ok(runs)
}

/// Whether a page is zero; `buffer` has room for it.
fn is_zero(mem: &GuestMem, address: u64, buffer: &mut [u8]) -> bool {
    // What cannot be read is left to the writer, which fails with the address.
    mem.read_slice(buffer, GuestAddress(address)).is_ok() && buffer.iter().all(|b| *b == 0)
}

/// Adds the page at `address`, which lies after all of `runs`.
pub(super) fn push_page(runs: &mut Vec<MemoryRunV1>, address: u64) {
    match runs.last_mut() {
        Some(last) if last.address + last.bytes == address => last.bytes += PAGE,
        _ => runs.push(MemoryRunV1 {
            address,
            bytes: PAGE,
        }),
    }
}

/// Joins neighbours of one part until at most `max` runs are left (or one a part).
fn merge(parts: Vec<Vec<MemoryRunV1>>, max: usize) -> Vec<MemoryRunV1> {
    let total: usize = parts.iter().map(Vec::len).sum();
    let gap = |pair: &[MemoryRunV1]| match pair {
        [a, b] => b.address - (a.address + a.bytes),
        _ => u64::MAX,
    };
    let mut gaps: Vec<u64> = parts
        .iter()
        .flat_map(|runs| runs.windows(2).map(gap))
        .collect();
    gaps.sort_unstable();
    // All gaps up to this one are closed.
    let last = total
        .checked_sub(max + 1)
        .zip(gaps.len().checked_sub(1))
        .map(|(wanted, most)| wanted.min(most));
    let closed = last.and_then(|last| gaps.get(last).copied()).unwrap_or(0);
    let mut merged = Vec::with_capacity(max);
    for runs in parts {
        let mut current: Option<MemoryRunV1> = None;
        for run in runs {
            current = match current {
                Some(mut last) if run.address - (last.address + last.bytes) <= closed => {
                    last.bytes = run.address + run.bytes - last.address;
                    Some(last)
                }
                other => {
                    merged.extend(other);
                    Some(run)
                }
            };
        }
        merged.extend(current);
    }
    merged
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn run(address: u64, bytes: u64) -> MemoryRunV1 {
        MemoryRunV1 { address, bytes }
    }

    #[test]
    fn only_pages_that_hold_something_are_found_on_both_sides_of_the_hole() {
        let ram = GuestRam::allocate(layout::HOLE_START + (16 << 20)).unwrap();
        let write = |address| ram.mem().write_obj(1_u8, GuestAddress(address)).unwrap();
        write(PAGE * 3 + 17);
        write(PAGE * 4);
        ram.mem().write_obj(0_u8, GuestAddress(PAGE * 9)).unwrap();
        write(layout::HOLE_START - 1);
        write(layout::HOLE_END);
        assert_eq!(
            non_zero_runs(&ram).unwrap(),
            [
                run(3 * PAGE, 2 * PAGE),
                run(layout::HOLE_START - PAGE, PAGE),
                run(layout::HOLE_END, PAGE)
            ]
        );
    }

    #[test]
    fn the_smallest_gaps_are_closed_and_never_the_hole() {
        let low = vec![run(0, 10), run(12, 8), run(100, 1), run(103, 1)];
        let high = vec![run(1000, 1)];
        assert_eq!(merge(vec![low.clone(), high.clone()], 5).len(), 5);
        let merged = merge(vec![low.clone(), high.clone()], 4);
        assert!(
            merged.len() <= 4 && merged.contains(&run(1000, 1)) && merged.contains(&run(0, 20)),
            "{merged:?}"
        );
        assert_eq!(merge(vec![low, high], 1), [run(0, 104), run(1000, 1)]);
    }

    proptest! {
        /// Whatever pages there are: runs are in order, have all of them, and are as few as they may be.
        #[test]
        fn merged_runs_have_every_page(
            low in proptest::collection::btree_set(0..400_u64, 0..60),
            high in proptest::collection::btree_set(0..400_u64, 0..60),
            max in 1..20_usize,
        ) {
            let runs_of = |pages: &BTreeSet<u64>, base: u64| {
                let mut runs = Vec::new();
                pages.iter().for_each(|page| push_page(&mut runs, base + page * PAGE));
                runs
            };
            let parts = [(&low, 0), (&high, layout::HOLE_END)];
            let all: Vec<_> = parts.iter().map(|(pages, base)| runs_of(pages, *base)).collect();
            let parts_used = all.iter().filter(|runs| !runs.is_empty()).count();
            let merged = merge(all, max);
            prop_assert!(merged.len() <= max.max(parts_used));
            for pair in merged.windows(2) {
                prop_assert!(pair[0].address + pair[0].bytes < pair[1].address);
            }
            for (pages, base) in parts {
                for address in pages.iter().map(|page| base + page * PAGE) {
                    let has = |run: &MemoryRunV1| (run.address..run.address + run.bytes).contains(&address);
                    prop_assert!(merged.iter().any(has), "{:#x}", address);
                }
            }
            let in_hole = |run: &MemoryRunV1| run.address + run.bytes > layout::HOLE_START && run.address < layout::HOLE_END;
            prop_assert!(!merged.iter().any(in_hole));
        }
    }
}
