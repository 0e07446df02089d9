//! The way on which guest memory goes back to the host.

use std::fmt;
use std::io;

/// Bytes of a page of the balloon, whatever the guest's own pages are (virtio 1.2 §5.5.6).
pub const PAGE_BYTES: u64 = 4096;

/// A stretch of guest RAM: whole pages, not empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct MemoryRange {
    /// Guest-physical address in bytes.
    pub address: u64,
    /// Length in bytes.
    pub bytes: u64,
}

impl MemoryRange {
    /// The first byte after it. A range lies in RAM, so it does not wrap.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.address.saturating_add(self.bytes)
    }
}

/// Gives guest memory back to the host.
pub trait Reclaim: Send + Sync + fmt::Debug {
    /// Gives back what `ranges`, which are in order, disjoint, and in RAM, hold. Of each page what was written to it is
    /// gone; what it reads as is for the implementation to say.
    ///
    /// # Errors
    /// The host's. Some of the ranges are then as they were; none is half given back in a way that the guest could see.
    fn release(&self, ranges: &[MemoryRange]) -> io::Result<()>;
}
