//! Where a queue lies and stands: checks before it is used, and its saved form.

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemoryBackend};

use crate::memory::GuestMem;

/// Saved queue, version 1. Never edit: a new field is a new version of the section that holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct QueueStateV1 {
    /// Entries, a power of two.
    pub size: u16,
    /// The driver uses it.
    pub is_ready: bool,
    /// Guest-physical address of the descriptor table.
    pub descriptor_table: u64,
    /// Guest-physical address of the available ring.
    pub available_ring: u64,
    /// Guest-physical address of the used ring.
    pub used_ring: u64,
    /// Index of the next chain to take.
    pub next_available: u16,
    /// Index of the next chain to give back.
    pub next_used: u16,
}

/// Why a queue cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QueueRefused {
    /// Not a power of two, or above the device's limit.
    #[error("Queue size {size} is not a power of two up to {max}")]
    Size {
        /// What was asked for.
        size: u16,
        /// The limit.
        max: u16,
    },
    /// A ring is not aligned (virtio 1.2 §2.7).
    #[error("Ring at {address:#x} is not aligned to {alignment} bytes")]
    Unaligned {
        /// Guest-physical address.
        address: u64,
        /// What it should be a multiple of.
        alignment: u64,
    },
    /// A ring does not lie wholly in RAM.
    #[error("Ring at {address:#x} with {bytes} bytes does not lie in guest RAM")]
    OutOfRam {
        /// Guest-physical address.
        address: u64,
        /// Length in bytes.
        bytes: u64,
    },
    /// Two rings lie on the same memory.
    #[error("Rings at {first:#x} and {second:#x} overlap")]
    Overlap {
        /// Guest-physical address of one.
        first: u64,
        /// Guest-physical address of the other.
        second: u64,
    },
}

/// One ring of a queue.
#[derive(Clone, Copy)]
struct Extent {
    address: u64,
    bytes: u64,
    alignment: u64,
}

impl QueueStateV1 {
    /// A queue as after a reset.
    #[must_use]
    pub fn unused(size_max: u16) -> Self {
        Self {
            size: size_max,
            ..Self::default()
        }
    }

    /// The live queue, if all of it can be used.
    ///
    /// # Errors
    /// [`QueueRefused`]. A queue that is not ready is never refused for its addresses.
    pub fn to_queue(&self, size_max: u16, mem: &GuestMem) -> Result<Queue, QueueRefused> {
        let bad_size = QueueRefused::Size {
            size: self.size,
            max: size_max,
        };
        let mut queue = Queue::new(size_max).map_err(|_| bad_size)?;
        queue.try_set_size(self.size).map_err(|_| bad_size)?;
        if self.is_ready {
            self.check_rings(mem)?;
            let low_high = |address: u64| {
                let [a, b, c, d, e, f, g, h] = address.to_le_bytes();
                (
                    Some(u32::from_le_bytes([a, b, c, d])),
                    Some(u32::from_le_bytes([e, f, g, h])),
                )
            };
            let (low, high) = low_high(self.descriptor_table);
            queue.set_desc_table_address(low, high);
            let (low, high) = low_high(self.available_ring);
            queue.set_avail_ring_address(low, high);
            let (low, high) = low_high(self.used_ring);
            queue.set_used_ring_address(low, high);
            queue.set_ready(true);
        }
        queue.set_next_avail(self.next_available);
        queue.set_next_used(self.next_used);
        Ok(queue)
    }

    /// Virtio 1.2 §2.7: lengths and alignments; whole rings in RAM, none on another.
    fn check_rings(&self, mem: &GuestMem) -> Result<(), QueueRefused> {
        let size = u64::from(self.size);
        let table = Extent {
            address: self.descriptor_table,
            bytes: 16 * size,
            alignment: 16,
        };
        let available = Extent {
            address: self.available_ring,
            bytes: 6 + 2 * size,
            alignment: 2,
        };
        let used = Extent {
            address: self.used_ring,
            bytes: 6 + 8 * size,
            alignment: 4,
        };
        for ring in [table, available, used] {
            ring.check(mem)?;
        }
        for (first, second) in [(table, available), (table, used), (available, used)] {
            if first.overlaps(second) {
                let (first, second) = (first.address, second.address);
                return Err(QueueRefused::Overlap { first, second });
            }
        }
        // virtio-queue takes an available ring at 0 for a queue that was never set up.
        if self.available_ring == 0 {
            return Err(QueueRefused::OutOfRam {
                address: 0,
                bytes: available.bytes,
            });
        }
        Ok(())
    }
}

impl Extent {
    fn check(self, mem: &GuestMem) -> Result<(), QueueRefused> {
        let Self {
            address,
            bytes,
            alignment,
        } = self;
        if address % alignment != 0 {
            return Err(QueueRefused::Unaligned { address, alignment });
        }
        let length =
            usize::try_from(bytes).map_err(|_| QueueRefused::OutOfRam { address, bytes })?;
        let is_in_ram = address.checked_add(bytes).is_some()
            && GuestMemoryBackend::check_range(mem, GuestAddress(address), length);
        if is_in_ram {
            Ok(())
        } else {
            Err(QueueRefused::OutOfRam { address, bytes })
        }
    }

    /// Both lie in RAM, so the sums do not wrap.
    const fn overlaps(self, other: Self) -> bool {
        self.address < other.address.saturating_add(other.bytes)
            && other.address < self.address.saturating_add(self.bytes)
    }
}

impl From<&Queue> for QueueStateV1 {
    fn from(queue: &Queue) -> Self {
        Self {
            size: queue.size(),
            is_ready: queue.ready(),
            descriptor_table: queue.desc_table(),
            available_ring: queue.avail_ring(),
            used_ring: queue.used_ring(),
            next_available: queue.next_avail(),
            next_used: queue.next_used(),
        }
    }
}

#[cfg(test)]
#[path = "queue_state_tests.rs"]
mod tests;
