//! Which pages of RAM exist, and which of them are this process's own.
//!
//! A page that was never touched is zero and must not be touched to find that out, or a save would cost the whole RAM. The
//! kernel's page map (Documentation/admin-guide/mm/pagemap.rst) tells.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use crate::memory::{GuestRam, RamPart};
use crate::page_set::PageSet;
use crate::sys::mapping::PAGE_BYTES;
use crate::sys::process;

const PAGE: u64 = PAGE_BYTES as u64;
/// Bits of a page map entry: the page is present; it is in swap; it is a file's or shared.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const FILE_OR_SHARED: u64 = 1 << 61;
/// Entries read at a time: 16 MiB of RAM.
const ENTRIES: usize = 4096;
const ENTRY_BYTES: usize = 8;

/// What a page of RAM is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Page {
    /// It was never touched: it is zero.
    Absent,
    /// It is as in the file that was laid over RAM, or as another process will serve it.
    View,
    /// It was written, or at least touched.
    Own,
    /// The guest has given it back, and nobody has touched it since: it is zero, whatever it was before.
    GivenBack,
}

/// What every page of RAM was at one moment, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageKinds(Vec<Page>);

/// In a process that has a copy of another's RAM: what the pages were when it was made.
static COPIED: OnceLock<PageKinds> = OnceLock::new();

impl PageKinds {
    /// What the pages of `ram` are now.
    ///
    /// # Errors
    /// The kernel's, when the page map cannot be read.
    pub fn read(ram: &GuestRam) -> io::Result<Self> {
        let pages = usize::try_from(ram.bytes()).unwrap_or(usize::MAX) / PAGE_BYTES;
        let mut kinds = Vec::with_capacity(pages);
        for_each_page(ram, |_, page| kinds.push(page))?;
        Ok(Self(kinds))
    }

    /// As if all pages of `ram` were written: what is not known to be zero is looked at.
    #[must_use]
    pub fn all_held(ram: &GuestRam) -> Self {
        let pages = usize::try_from(ram.bytes()).unwrap_or(usize::MAX) / PAGE_BYTES;
        Self(vec![Page::Own; pages])
    }

    /// What the page with this number is, counted in the memory file.
    #[must_use]
    pub fn kind(&self, number: u64) -> Page {
        let number = usize::try_from(number).unwrap_or(usize::MAX);
        self.0.get(number).copied().unwrap_or(Page::Absent)
    }

    /// The next of the pages `numbers` that hold something: the first, and how many follow each other, `most` at most. No more of
    /// them are looked at than that takes.
    #[must_use]
    pub fn next_held(&self, numbers: Range<u64>, most: u64) -> Option<(u64, u64)> {
        let place = |number| usize::try_from(number).unwrap_or(usize::MAX);
        let end = place(numbers.end).min(self.0.len());
        let rest = self.0.get(place(numbers.start)..end)?;
        let holds = |page: &Page| matches!(page, Page::Own | Page::View);
        let skipped = rest.iter().position(holds)?;
        let count = rest
            .iter()
            .skip(skipped)
            .take(place(most))
            .take_while(|page| holds(page))
            .count();
        Some((numbers.start + skipped as u64, count as u64))
    }

    /// A byte for each, in order.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.iter().map(|page| *page as u8).collect()
    }

    /// What [`to_bytes`](Self::to_bytes) was made of.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let all = [Page::Absent, Page::View, Page::Own, Page::GivenBack];
        let page = |byte: &u8| all.into_iter().find(|page| *page as u8 == *byte);
        // Nothing else is in it.
        Self(
            bytes
                .iter()
                .map(|byte| page(byte).unwrap_or(Page::Absent))
                .collect(),
        )
    }

    /// Has [`for_each_page`] tell these from now on. The page map that a process has open is that of the memory that it had
    /// when it opened it: of no use to a copy of the process, which may not open its own either.
    pub fn stand_for_page_map(self) {
        // A copy is made for one thing, and says it once.
        let _ = COPIED.set(self);
    }
}

/// Calls `visit` with the guest-physical address of each page of `ram`, in order.
///
/// # Errors
/// The kernel's, when the page map cannot be read.
pub fn for_each_page(ram: &GuestRam, mut visit: impl FnMut(u64, Page)) -> io::Result<()> {
    if let Some(PageKinds(kinds)) = COPIED.get() {
        let pages = |part: &RamPart| {
            (part.base.0..)
                .step_by(PAGE_BYTES)
                .take(part.mapping.bytes() / PAGE_BYTES)
        };
        let addresses = ram.parts().iter().flat_map(pages);
        addresses
            .zip(kinds)
            .for_each(|(address, page)| visit(address, *page));
        return Ok(());
    }
    // A copy: whoever visits a page may want to know more of it.
    let given_back = ram.given_back().clone();
    // Asked before the page map is read: of a page that was missing then, and has come since, the map says that it is not there.
    let was_served = ram.is_served();
    for_each_entry(ram, |address, entry| {
        let known = (ram, &given_back, was_served);
        visit(address, kind(known, address, entry));
    })
}

/// Calls `visit` with the guest-physical address of each page of `ram` that is in memory, in order, and whether it is this
/// process's own: it was written, or, where there is no file, touched.
///
/// # Errors
/// The kernel's, when the page map cannot be read.
pub fn for_each_resident(ram: &GuestRam, mut visit: impl FnMut(u64, bool)) -> io::Result<()> {
    for_each_entry(ram, |address, entry| {
        if entry & PRESENT != 0 {
            visit(address, entry & FILE_OR_SHARED == 0);
        }
    })
}

fn for_each_entry(ram: &GuestRam, mut visit: impl FnMut(u64, u64)) -> io::Result<()> {
    let map = process::page_map()?;
    let mut entries = vec![0_u8; ENTRIES * ENTRY_BYTES];
    for part in ram.parts() {
        visit_part(part, &map, &mut entries, &mut visit)?;
    }
    Ok(())
}

fn visit_part(
    part: &RamPart,
    map: &File,
    entries: &mut [u8],
    visit: &mut impl FnMut(u64, u64),
) -> io::Result<()> {
    let pages = part.mapping.bytes() / PAGE_BYTES;
    let first_entry = (part.mapping.address() / PAGE_BYTES) as u64;
    for chunk in (0..pages).step_by(ENTRIES) {
        let count = ENTRIES.min(pages - chunk);
        let buffer = entries.get_mut(..count * ENTRY_BYTES).unwrap_or_default();
        let offset = (first_entry + chunk as u64) * ENTRY_BYTES as u64;
        map.read_exact_at(buffer, offset)?;
        for (page, entry) in (chunk..).zip(buffer.as_chunks::<ENTRY_BYTES>().0) {
            let address = part.base.0 + page as u64 * PAGE;
            visit(address, u64::from_le_bytes(*entry));
        }
    }
    Ok(())
}

fn kind(
    (ram, given_back, was_served): (&GuestRam, &PageSet, bool),
    address: u64,
    entry: u64,
) -> Page {
    let is_there = entry & (PRESENT | SWAPPED) != 0;
    let is_files = entry & SWAPPED == 0 && entry & FILE_OR_SHARED != 0;
    if is_there && !is_files {
        Page::Own
    } else if is_there {
        Page::View
    } else if given_back.contains(address) {
        Page::GivenBack
    } else if was_served || ram.is_view(address) {
        Page::View
    } else {
        Page::Absent
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::sys::uffd::Userfault;

    #[test]
    fn what_was_missing_when_the_page_map_was_read_is_no_zero_page_when_all_has_come_since() {
        let userfault = match Userfault::new() {
            // As machines that are served, it takes a privilege.
            Err(cause) if cause.kind() == io::ErrorKind::PermissionDenied => return,
            found => found.unwrap(),
        };
        let (stream, _server) = UnixStream::pair().unwrap();
        let mut ram = GuestRam::allocate(16 << 20).unwrap();
        let served = ram.serve_by(userfault, stream);
        let mut kinds = Vec::new();
        for_each_page(&ram, |_, page| {
            kinds.push(page);
            served.end();
        })
        .unwrap();
        assert_eq!(kinds, [Page::View; ENTRIES]);
        for_each_page(&ram, |_, page| assert_eq!(page, Page::Absent)).unwrap();
    }

    #[test]
    fn the_next_pages_that_hold_something_are_found_in_a_range_and_no_more_than_asked_for() {
        let all = [Page::Absent, Page::Own, Page::View, Page::GivenBack];
        let kinds = [0, 1, 2, 1, 3, 0, 2].map(|place: usize| all[place]);
        let kinds = PageKinds(kinds.to_vec());
        for (range, most, found) in [
            (0..u64::MAX, 9, Some((1, 3))),
            (0..u64::MAX, 2, Some((1, 2))),
            (3..7, 9, Some((3, 1))),
            (0..3, 9, Some((1, 2))),
            (4..6, 9, None),
            (4..7, 9, Some((6, 1))),
            (7..u64::MAX, 9, None),
            (8..u64::MAX, 9, None),
            (5..5, 9, None),
        ] {
            assert_eq!(
                kinds.next_held(range.clone(), most),
                found,
                "{range:?} {most}"
            );
        }
    }
}
