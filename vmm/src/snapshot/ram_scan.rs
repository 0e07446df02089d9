//! Which pages of RAM an image must hold: those that are not zero.
//!
//! A page that was never touched is zero and must not be touched to find that out, or a save would cost the whole
//! RAM. The kernel's page map (Documentation/admin-guide/mm/pagemap.rst) says which pages exist; only those, and the
//! views of an earlier image, are looked at.

use std::fs::File;
use std::os::unix::fs::FileExt;

use lightv_devices::memory::GuestMem;
use vm_memory::{Bytes, GuestAddress};

use crate::image::manifest::MemoryRunV1;
use crate::limits;
use crate::memory::{GuestRam, RamPart};
use crate::sys::mapping::PAGE_BYTES;

const PAGE: u64 = PAGE_BYTES as u64;
/// Bits of a page map entry: the page is present; it is in swap.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
/// Entries read at a time: 16 MiB of RAM.
const ENTRIES: usize = 4096;
const ENTRY_BYTES: usize = 8;

/// The stretches of RAM that are not zero, in address order, at most [`limits::MEMORY_RUNS_MAX`]: where there are
/// more, those with the smallest gaps between them become one, gap included.
///
/// The guest must be paused.
#[must_use]
pub fn non_zero_runs(ram: &GuestRam) -> Vec<MemoryRunV1> {
    merge(scan(ram), limits::MEMORY_RUNS_MAX)
}

/// All stretches of RAM that are not zero, in address order. The guest must be paused.
#[must_use]
pub fn all_runs(ram: &GuestRam) -> Vec<MemoryRunV1> {
    scan(ram).concat()
}

/// The stretches of each part of RAM that are not zero.
fn scan(ram: &GuestRam) -> Vec<Vec<MemoryRunV1>> {
    let map = File::open("/proc/self/pagemap").ok();
    let mut runs = Vec::new();
    for part in ram.parts() {
        let mut part_runs = Vec::new();
        scan_part(ram, part, map.as_ref(), &mut part_runs);
        runs.push(part_runs);
    }
    runs
}

fn scan_part(ram: &GuestRam, part: &RamPart, map: Option<&File>, runs: &mut Vec<MemoryRunV1>) {
    let pages = part.mapping.bytes() / PAGE_BYTES;
    let first_entry = (part.mapping.address() / PAGE_BYTES) as u64;
    let mut entries = vec![0_u8; ENTRIES * ENTRY_BYTES];
    let mut page_bytes = vec![0_u8; PAGE_BYTES];
    for chunk in (0..pages).step_by(ENTRIES) {
        let count = ENTRIES.min(pages - chunk);
        let buffer = entries.get_mut(..count * ENTRY_BYTES).unwrap_or_default();
        let offset = (first_entry + chunk as u64) * ENTRY_BYTES as u64;
        // Without a page map every page may exist.
        let known = map.is_some_and(|map| map.read_exact_at(buffer, offset).is_ok());
        for (page, entry) in (chunk..).zip(buffer.chunks_exact(ENTRY_BYTES)) {
            let entry = entry.try_into().map_or(0, u64::from_le_bytes);
            let address = part.base.0 + page as u64 * PAGE;
            let may_hold = !known || entry & (PRESENT | SWAPPED) != 0 || is_overlaid(ram, address);
            if may_hold && !is_zero(ram.mem(), address, &mut page_bytes) {
                push_page(runs, address);
            }
        }
    }
}

fn is_overlaid(ram: &GuestRam, address: u64) -> bool {
    ram.overlays()
        .iter()
        .any(|run| (run.address..run.address + run.bytes).contains(&address))
}

fn is_zero(mem: &GuestMem, address: u64, buffer: &mut [u8]) -> bool {
    // What cannot be read is left to the writer, which fails with the address.
    mem.read_slice(buffer, GuestAddress(address)).is_ok() && buffer.iter().all(|b| *b == 0)
}

fn push_page(runs: &mut Vec<MemoryRunV1>, address: u64) {
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
    use super::*;
    use crate::arch::host::layout;

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
            non_zero_runs(&ram),
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
}
