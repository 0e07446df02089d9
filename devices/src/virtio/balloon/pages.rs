//! From what a driver names to ranges of RAM: read once, checked, in order, each page once.

use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::reclaim::{MemoryRange, PAGE_BYTES};
use crate::fault::GuestFault;
use crate::limits::{BALLOON_CHAIN_BYTES_MAX, BALLOON_PFNS_PER_CHAIN_MAX};
use crate::memory::GuestMem;
use crate::virtio::chain::{Segment, read_at, total_bytes};

/// Bytes of a page frame number (virtio 1.2 §5.5.6.1).
const PFN_BYTES: usize = 4;
/// Numbers that are read at a time.
const PFNS_PER_READ: usize = 256;

/// What is to be given back at the end of a turn.
#[derive(Debug, Default)]
pub(super) struct PageList(Vec<MemoryRange>);

impl PageList {
    /// Adds the pages of an array of page frame numbers. Gives how many lie in RAM; the others are left out.
    ///
    /// # Errors
    /// An array that is too long, not of whole numbers, or not in RAM. What was read before that is added: the driver has
    /// named it.
    pub(super) fn add_pfns(
        &mut self,
        mem: &GuestMem,
        array: &[Segment],
    ) -> Result<Added, GuestFault> {
        let bytes = total_bytes(array);
        if bytes > BALLOON_PFNS_PER_CHAIN_MAX * PFN_BYTES as u64 {
            return Err(GuestFault::TooLarge { bytes });
        }
        if bytes == 0 || !bytes.is_multiple_of(PFN_BYTES as u64) {
            return Err(GuestFault::ShortChain);
        }
        let mut added = Added::default();
        let mut buffer = [0_u8; PFNS_PER_READ * PFN_BYTES];
        let mut done = 0_u64;
        while done < bytes {
            let left = usize::try_from(bytes.saturating_sub(done)).unwrap_or(usize::MAX);
            let wanted = left.min(buffer.len());
            let part = buffer.get_mut(..wanted).unwrap_or_default();
            read_at(mem, array, done, part)?;
            for pfn in part.as_chunks::<PFN_BYTES>().0 {
                self.add_page(mem, u32::from_le_bytes(*pfn), &mut added);
            }
            done = done.saturating_add(wanted as u64);
        }
        Ok(added)
    }

    fn add_page(&mut self, mem: &GuestMem, pfn: u32, added: &mut Added) {
        let range = MemoryRange {
            address: u64::from(pfn) * PAGE_BYTES,
            bytes: PAGE_BYTES,
        };
        if !is_in_ram(mem, range) {
            added.refused = added.refused.saturating_add(1);
            return;
        }
        added.bytes = added.bytes.saturating_add(PAGE_BYTES);
        match self.0.last_mut() {
            // Drivers name neighbours one after the other.
            Some(last) if last.end() == range.address => {
                last.bytes = last.bytes.saturating_add(PAGE_BYTES);
            }
            _ => self.0.push(range),
        }
    }

    /// Adds `buffers`, each of which is free memory. Those that are no whole pages of RAM are left out, and all that comes
    /// after [`BALLOON_CHAIN_BYTES_MAX`].
    pub(super) fn add_buffers(&mut self, mem: &GuestMem, buffers: &[Segment]) -> Added {
        let mut added = Added::default();
        for buffer in buffers {
            let range = MemoryRange {
                address: buffer.address,
                bytes: u64::from(buffer.bytes),
            };
            let are_pages =
                range.address.is_multiple_of(PAGE_BYTES) && range.bytes.is_multiple_of(PAGE_BYTES);
            let sum = added.bytes.saturating_add(range.bytes);
            if are_pages && sum <= BALLOON_CHAIN_BYTES_MAX && is_in_ram(mem, range) {
                added.bytes = sum;
                self.0.push(range);
            } else {
                added.refused = added.refused.saturating_add(1);
            }
        }
        added
    }

    /// Ranges so far.
    pub(super) const fn len(&self) -> usize {
        self.0.len()
    }

    /// The pages in order, each once, neighbours as one range.
    pub(super) fn take_ranges(&mut self) -> Vec<MemoryRange> {
        let mut all = std::mem::take(&mut self.0);
        all.sort_unstable();
        let mut ranges: Vec<MemoryRange> = Vec::with_capacity(all.len());
        for range in all {
            match ranges.last_mut() {
                Some(last) if range.address <= last.end() => {
                    let end = last.end().max(range.end());
                    last.bytes = end.saturating_sub(last.address);
                }
                _ => ranges.push(range),
            }
        }
        ranges
    }
}

/// What became of the pages of a chain.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Added {
    /// To be given back, in bytes; a page that is named twice counts twice.
    pub(super) bytes: u64,
    /// Pages or buffers that were left out.
    pub(super) refused: u64,
}

fn is_in_ram(mem: &GuestMem, range: MemoryRange) -> bool {
    usize::try_from(range.bytes)
        .is_ok_and(|bytes| GuestMemoryBackend::check_range(mem, GuestAddress(range.address), bytes))
}
