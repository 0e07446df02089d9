//! Guest memory that goes back to the host, and which pages did (docs/adr/0015-memory-given-back.md).
//!
//! A page that was given back is zero, and nothing of it is kept, with one exception: where RAM is a view of a file, mapped
//! memory has to take the view's place, and mappings are scarce. When they are used up, such a page is as in the file again,
//! which is what the guest had there once.

use std::io;
use std::sync::Mutex;

use lightv_devices::virtio::balloon::{MemoryRange, Reclaim};

use crate::limits;
use crate::lock::lock;
use crate::memory::{GuestRam, RamError, RamPart, RamRun};
use crate::sys::mapping::{MapError, PAGE_BYTES};

const PAGE: u64 = PAGE_BYTES as u64;

/// Gives pages of `ram` back.
#[derive(Debug)]
pub struct Reclaimer {
    ram: GuestRam,
    /// Mappings that may still take a view's place.
    mappings_left: Mutex<usize>,
}

/// What lies under a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Under {
    /// Memory that is zero once it is let go.
    Zeroes,
    /// A view of a file, or what another process serves.
    View,
}

impl Reclaimer {
    /// For the pages of `ram`.
    #[must_use]
    pub fn new(ram: &GuestRam) -> Self {
        Self {
            ram: ram.clone(),
            mappings_left: Mutex::new(limits::RELEASED_MAPPINGS_MAX),
        }
    }

    fn release_range(&self, range: MemoryRange) -> io::Result<()> {
        let end = range.end();
        let mut at = range.address;
        while at < end {
            let under = self.under(at);
            let mut next = at + PAGE;
            while next < end && self.under(next) == under {
                next += PAGE;
            }
            self.release_stretch(at, next - at, under)?;
            at = next;
        }
        Ok(())
    }

    fn under(&self, address: u64) -> Under {
        if self.ram.given_back().contains(address) || !self.ram.is_view(address) {
            Under::Zeroes
        } else {
            Under::View
        }
    }

    fn release_stretch(&self, address: u64, bytes: u64, under: Under) -> io::Result<()> {
        let run = RamRun {
            address,
            bytes,
            file_offset: 0,
        };
        let (part, offset, length) = self.ram.locate(run).map_err(cause)?;
        let is_zero = match under {
            Under::Zeroes => {
                part.mapping.let_go(offset, length).map_err(map_cause)?;
                true
            }
            Under::View => self.replace(part, offset, length)?,
        };
        if is_zero {
            self.ram.given_back().insert(address, bytes);
        }
        Ok(())
    }

    /// Maps zeroes over a view. Without mappings left the view stays, and the guest's own pages on it are let go; what another
    /// process serves stays as it is, since that process may not serve a page twice. True if it is zero now.
    fn replace(&self, part: &RamPart, offset: usize, length: usize) -> io::Result<bool> {
        let mut left = lock(&self.mappings_left);
        if let Some(fewer) = left.checked_sub(1) {
            *left = fewer;
            part.mapping.replace(offset, length).map_err(map_cause)?;
            return Ok(true);
        }
        if !self.ram.is_served() {
            part.mapping.let_go(offset, length).map_err(map_cause)?;
        }
        Ok(false)
    }
}

impl Reclaim for Reclaimer {
    fn release(&self, ranges: &[MemoryRange]) -> io::Result<()> {
        ranges
            .iter()
            .try_for_each(|range| self.release_range(*range))
    }
}

fn cause(error: RamError) -> io::Error {
    io::Error::other(error)
}

fn map_cause(error: MapError) -> io::Error {
    match error {
        MapError::Map { cause, .. } => cause,
        other @ (MapError::Part { .. } | MapError::Pool { .. }) => io::Error::other(other),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt as _;

    use lightv_devices::memory::GuestMem;
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::arch::host::layout;
    use crate::snapshot::page_log::{PageLog, own_pages};
    use crate::snapshot::page_map::{Page, for_each_page};
    use crate::snapshot::ram_scan::all_runs;

    const MIB: u64 = 1 << 20;

    fn page(mem: &GuestMem, number: u64) -> u8 {
        mem.read_obj(GuestAddress(number * PAGE + 8)).unwrap()
    }

    fn write(mem: &GuestMem, number: u64, value: u8) {
        mem.write_obj(value, GuestAddress(number * PAGE + 8))
            .unwrap();
    }

    fn range(first: u64, count: u64) -> MemoryRange {
        MemoryRange {
            address: first * PAGE,
            bytes: count * PAGE,
        }
    }

    fn numbers(runs: &[crate::image::manifest::MemoryRunV1]) -> Vec<u64> {
        runs.iter()
            .flat_map(|run| run.address / PAGE..(run.address + run.bytes) / PAGE)
            .collect()
    }

    fn kinds(ram: &GuestRam, of: Page) -> Vec<u64> {
        let mut found = Vec::new();
        for_each_page(ram, |address, page| {
            if page == of {
                found.push(address / PAGE);
            }
        })
        .unwrap();
        found
    }

    /// 16 MiB, whose pages 0–63 are a view of a file with `0xf` in each.
    fn restored() -> (GuestRam, File) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(64 * PAGE).unwrap();
        for number in 0..64 {
            file.write_all_at(&[0xf], number * PAGE + 8).unwrap();
        }
        let mut ram = GuestRam::allocate(16 * MIB).unwrap();
        let run = RamRun {
            address: 0,
            bytes: 64 * PAGE,
            file_offset: 0,
        };
        ram.overlay(&file, run).unwrap();
        (ram, file)
    }

    #[test]
    fn pages_are_zero_on_both_sides_of_the_hole_and_can_be_used_again() {
        let ram = GuestRam::allocate(layout::HOLE_START + 16 * MIB).unwrap();
        let high = layout::HOLE_END / PAGE;
        let last = layout::HOLE_START / PAGE - 1;
        for number in [3, 4, 5, last, high, high + 1] {
            write(ram.mem(), number, 7);
        }
        let reclaim = Reclaimer::new(&ram);
        reclaim
            .release(&[range(4, 1), range(last, 1), range(high, 1)])
            .unwrap();
        assert_eq!(kinds(&ram, Page::Own), [3, 5, high + 1]);
        assert_eq!(kinds(&ram, Page::GivenBack), [4, last, high]);
        assert_eq!(numbers(&all_runs(&ram).unwrap()), [3, 5, high + 1]);
        assert_eq!((page(ram.mem(), 4), page(ram.mem(), high)), (0, 0));
        write(ram.mem(), 4, 9);
        assert_eq!(numbers(&all_runs(&ram).unwrap()), [3, 4, 5, high + 1]);
        assert!(reclaim.release(&[range(last + 1, 1)]).is_err(), "the hole");
    }

    #[test]
    fn a_view_of_a_file_is_zero_where_it_was_given_back_and_as_before_elsewhere() {
        let (ram, file) = restored();
        write(ram.mem(), 10, 1);
        write(ram.mem(), 11, 1);
        let reclaim = Reclaimer::new(&ram);
        // Twice: the second time they are memory already.
        for _ in 0..2 {
            reclaim.release(&[range(10, 4), range(60, 8)]).unwrap();
        }
        let found: Vec<u8> = (8..16).map(|number| page(ram.mem(), number)).collect();
        assert_eq!(found, [0xf, 0xf, 0, 0, 0, 0, 0xf, 0xf]);
        let mut byte = [0];
        file.read_exact_at(&mut byte, 10 * PAGE + 8).unwrap();
        assert_eq!(byte, [0xf], "the file is as it was");
        write(ram.mem(), 12, 3);
        assert_eq!(page(ram.mem(), 12), 3);
    }

    #[test]
    fn a_full_save_leaves_out_and_a_difference_holds_what_is_zero_now() {
        let (ram, _file) = restored();
        write(ram.mem(), 100, 1);
        let log = PageLog::new(&ram).unwrap();
        let first = log.changes(&ram).unwrap();
        assert_eq!(numbers(&first.runs), [100]);
        let reclaim = Reclaimer::new(&ram);
        reclaim.release(&[range(10, 2), range(100, 2)]).unwrap();
        assert_eq!(
            numbers(&all_runs(&ram).unwrap()),
            (0..10).chain(12..64).collect::<Vec<_>>()
        );
        let second = first.log.changes(&ram).unwrap();
        // 101 was zero before too.
        assert_eq!(numbers(&second.runs), [10, 11, 100]);
        assert_eq!(numbers(&own_pages(&ram).unwrap()), [10, 11, 100, 101]);
        assert_eq!(numbers(&second.log.changes(&ram).unwrap().runs), [0; 0]);
        // Read only, they are still no change.
        assert_eq!((page(ram.mem(), 10), page(ram.mem(), 100)), (0, 0));
        assert!(!numbers(&second.log.changes(&ram).unwrap().runs).contains(&10));
        write(ram.mem(), 11, 0xf);
        assert_eq!(numbers(&all_runs(&ram).unwrap()).len(), 63);
        assert!(numbers(&second.log.changes(&ram).unwrap().runs).contains(&11));
    }

    #[test]
    fn without_mappings_left_a_view_is_as_in_the_file_again_and_saved_so() {
        let (ram, _file) = restored();
        let log = PageLog::new(&ram).unwrap();
        for number in 0..64 {
            write(ram.mem(), number, 1);
        }
        let written = log.changes(&ram).unwrap();
        assert_eq!(written.runs.len(), 1);
        let reclaim = Reclaimer {
            ram: ram.clone(),
            mappings_left: Mutex::new(1),
        };
        reclaim.release(&[range(2, 1), range(5, 1)]).unwrap();
        assert_eq!((page(ram.mem(), 2), page(ram.mem(), 5)), (0, 0xf));
        assert_eq!(kinds(&ram, Page::View), [5]);
        let changed = written.log.changes(&ram).unwrap();
        assert_eq!(numbers(&changed.runs), [2, 5]);
        // A difference of an untracked machine goes with what it was loaded from: there 5 is as it is now.
        assert!(!numbers(&own_pages(&ram).unwrap()).contains(&5));
        assert!(numbers(&all_runs(&ram).unwrap()).contains(&5));
    }

    #[test]
    fn mappings_stay_bounded_however_memory_is_given_back() {
        let (ram, _file) = restored();
        let reclaim = Reclaimer::new(&ram);
        let count = || {
            std::fs::read_to_string("/proc/self/maps")
                .unwrap()
                .lines()
                .count()
        };
        let before = count();
        for _ in 0..100 {
            for number in (0..64).step_by(2) {
                reclaim.release(&[range(number, 1)]).unwrap();
            }
        }
        assert!(count() < before + 200, "{before} {}", count());
        reclaim.release(&[range(0, 4096)]).unwrap();
        assert_eq!(numbers(&all_runs(&ram).unwrap()), [0; 0]);
    }
}
