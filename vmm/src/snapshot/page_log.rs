//! Which pages of RAM have changed since the snapshot before: what a differential snapshot holds.
//!
//! A machine that tracks them keeps a checksum of each page that was written, as of its last snapshot, and compares. That
//! finds what vCPUs and devices wrote alike, costs nothing while the guest runs, and a pass over the pages that exist at a
//! save (docs/adr/0013-differential-snapshots.md). One that does not track is told by the page map alone.

use std::io;

use vm_memory::{Bytes, GuestAddress};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::memory_file::file_offset;
use super::page_map::{Page, for_each_page};
use super::ram_scan::push_page;
use crate::image::manifest::MemoryRunV1;
use crate::memory::GuestRam;
use crate::sys::mapping::PAGE_BYTES;
use crate::sys::process::random;

/// A page that is as it was before the machine ran: zero, or as in the file that it was loaded from.
const AS_IN_THE_BEGINNING: u64 = 0;

/// The pages as of the last snapshot.
#[derive(Debug, Clone)]
pub struct PageLog {
    /// Checksums by place in the memory file, or [`AS_IN_THE_BEGINNING`].
    pages: Vec<u64>,
    /// A guest that knew it could make pages that look alike.
    seed: u64,
}

/// What a pass has found.
#[derive(Debug)]
pub struct Changes {
    /// What has changed, in address order.
    pub runs: Vec<MemoryRunV1>,
    /// What the pages are now: to be kept once the snapshot is written.
    pub log: PageLog,
}

impl PageLog {
    /// The log of a machine that has not run yet.
    ///
    /// # Errors
    /// The kernel's, when it has no random bytes.
    pub fn new(ram: &GuestRam) -> io::Result<Self> {
        let mut seed = [0; 8];
        random(&mut seed)?;
        let pages = usize::try_from(ram.bytes()).unwrap_or(usize::MAX) / PAGE_BYTES;
        Ok(Self {
            pages: vec![AS_IN_THE_BEGINNING; pages],
            seed: u64::from_le_bytes(seed),
        })
    }

    /// What has changed since this log was made. The guest is paused.
    ///
    /// # Errors
    /// The kernel's, when the page map cannot be read.
    pub fn changes(&self, ram: &GuestRam) -> io::Result<Changes> {
        let mut runs = Vec::new();
        let mut log = Self {
            pages: vec![AS_IN_THE_BEGINNING; self.pages.len()],
            seed: self.seed,
        };
        let mut bytes = vec![0; PAGE_BYTES];
        let zero = self.sum(&bytes);
        for_each_page(ram, |address, page| {
            let now = match page {
                Page::Own => self.checksum(ram, address, &mut bytes),
                Page::View | Page::Absent => AS_IN_THE_BEGINNING,
                Page::GivenBack if ram.began_as_zero(address) => AS_IN_THE_BEGINNING,
                Page::GivenBack => zero,
            };
            let place = usize::try_from(file_offset(address)).unwrap_or(usize::MAX) / PAGE_BYTES;
            if self.pages.get(place) != Some(&now) {
                push_page(&mut runs, address);
            }
            if let Some(known) = log.pages.get_mut(place) {
                *known = now;
            }
        })?;
        Ok(Changes { runs, log })
    }

    fn checksum(&self, ram: &GuestRam, address: u64, bytes: &mut [u8]) -> u64 {
        match ram.mem().read_slice(bytes, GuestAddress(address)) {
            Ok(()) => self.sum(bytes),
            // What cannot be read is left to the writer, which fails with the address.
            Err(_) => u64::MAX,
        }
    }

    fn sum(&self, bytes: &[u8]) -> u64 {
        xxh3_64_with_seed(bytes, self.seed).max(1)
    }
}

/// What a machine that does not track may have changed: since it was loaded, the pages that are its own; since it was
/// booted, all that exist. Those that the guest has given back, since then or before, are zero and may have held something. The
/// guest is paused.
///
/// # Errors
/// The kernel's, when the page map cannot be read.
pub fn own_pages(ram: &GuestRam) -> io::Result<Vec<MemoryRunV1>> {
    let mut runs = Vec::new();
    for_each_page(ram, |address, page| {
        if matches!(page, Page::Own | Page::GivenBack) {
            push_page(&mut runs, address);
        }
    })?;
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::host::layout;

    const PAGE: u64 = PAGE_BYTES as u64;

    fn run(address: u64) -> MemoryRunV1 {
        MemoryRunV1 {
            address,
            bytes: PAGE,
        }
    }

    #[test]
    fn each_pass_finds_what_came_after_the_one_before_on_both_sides_of_the_hole() {
        let ram = GuestRam::allocate(layout::HOLE_START + (16 << 20)).unwrap();
        let write = |address, value: u8| {
            ram.mem().write_obj(value, GuestAddress(address)).unwrap();
        };
        let log = PageLog::new(&ram).unwrap();
        write(5 * PAGE, 1);
        write(layout::HOLE_END + PAGE, 1);
        let first = log.changes(&ram).unwrap();
        assert_eq!(first.runs, [run(5 * PAGE), run(layout::HOLE_END + PAGE)]);
        assert_eq!(first.log.changes(&ram).unwrap().runs, []);
        // Back to zero is a change too, and the same value again is none.
        write(5 * PAGE, 0);
        write(layout::HOLE_END + PAGE, 1);
        write(layout::HOLE_START - 1, 2);
        let second = first.log.changes(&ram).unwrap();
        assert_eq!(second.runs, [run(5 * PAGE), run(layout::HOLE_START - PAGE)]);
        assert_eq!(own_pages(&ram).unwrap().len(), 3);
    }
}
