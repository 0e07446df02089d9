//! A queue at work: take chains, give them back, notify.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueOwnedT, QueueT};

use crate::counters::Counters;
use crate::fault::GuestFault;
use crate::interrupt::Interrupt;
use crate::limits::{CHAIN_DESCRIPTORS_MAX, SPARE_CHAINS_MAX};
use crate::memory::{self, GuestMem};
use crate::virtio::chain::{Chain, Segment};
use crate::virtio::feature;

/// Bytes of a descriptor (virtio 1.2 §2.7.5).
const DESCRIPTOR_BYTES: u32 = 16;
/// Bytes of the available ring before its entries (virtio 1.2 §2.7.6).
const AVAILABLE_HEADER_BYTES: u64 = 4;
/// Where its index is.
const AVAILABLE_INDEX_AT: u64 = 2;
/// Bytes of an entry of it.
const AVAILABLE_ELEMENT_BYTES: u64 = 2;
/// Bytes of the used ring before its entries (virtio 1.2 §2.7.8).
const USED_HEADER_BYTES: u64 = 4;
/// Bytes of an entry of the used ring.
const USED_ELEMENT_BYTES: u64 = 8;

/// What the rings of one device have in common.
#[derive(Debug, Clone)]
pub(crate) struct RingContext {
    pub(crate) mem: Arc<GuestMem>,
    pub(crate) interrupt: Interrupt,
    pub(crate) counters: Arc<Counters>,
    pub(crate) acked_features: u64,
}

/// What [`Ring::pop`] found.
#[derive(Debug)]
pub(crate) enum Popped {
    /// A well-formed chain.
    Chain(Chain),
    /// A malformed one: counted, and given back with length 0. Counts against the limit of a turn as any other.
    Malformed,
    /// No chain waits, or the ring is broken.
    Empty,
}

/// A queue that the driver has handed over, or an unused one, which is always empty.
///
/// A ring whose index jumped is *broken*: it reports DEVICE_NEEDS_RESET once, and is empty from then on.
pub(crate) struct Ring {
    queue: Queue,
    context: RingContext,
    is_broken: bool,
    /// The available index as it was last read: up to there the driver has made chains available. It lies where the driver writes
    /// all the time, so it is read again only when all those were taken.
    available: u16,
    /// The used index at the last [`notify`](Self::notify).
    notified_used: u16,
    /// Chains popped since the last malformed one: those that [`put_back`](Self::put_back) can step back over.
    popped_in_a_row: u16,
    /// Used-up chains, kept for their space: at most [`SPARE_CHAINS_MAX`].
    spare: Vec<Chain>,
}

/// Where descriptors are read from: the queue's own table or an indirect one.
#[derive(Clone, Copy)]
struct Table {
    address: u64,
    descriptors: u16,
    is_indirect: bool,
}

impl Ring {
    pub(crate) fn new(mut queue: Queue, context: RingContext) -> Self {
        queue.set_event_idx(context.acked_features & feature::RING_EVENT_IDX != 0);
        let notified_used = queue.next_used();
        let available = queue.next_avail();
        Self {
            queue,
            context,
            is_broken: false,
            available,
            notified_used,
            popped_in_a_row: 0,
            spare: Vec::new(),
        }
    }

    /// The queue, to be given back to the transport.
    pub(crate) fn into_queue(self) -> Queue {
        self.queue
    }

    pub(crate) fn mem(&self) -> &Arc<GuestMem> {
        &self.context.mem
    }

    pub(crate) fn size(&self) -> u16 {
        self.queue.size()
    }

    fn is_usable(&self) -> bool {
        self.queue.ready() && !self.is_broken
    }

    /// Takes the next chain.
    pub(crate) fn pop(&mut self) -> Popped {
        match self.pop_head() {
            Ok(None) => Popped::Empty,
            Ok(Some(head)) => self.pop_chain(head),
            Err(fault) => {
                self.break_off(fault);
                Popped::Empty
            }
        }
    }

    fn pop_head(&mut self) -> Result<Option<u16>, GuestFault> {
        if !self.is_usable() {
            return Ok(None);
        }
        let (next_avail, queue_size) = (self.queue.next_avail(), self.queue.size());
        if self.available == next_avail {
            let avail_index = self.avail_index();
            let waiting = avail_index.wrapping_sub(next_avail);
            if waiting == 0 {
                return Ok(None);
            }
            if waiting > queue_size {
                return Err(GuestFault::AvailIndexJump {
                    avail_index,
                    next_avail,
                    queue_size,
                });
            }
            self.available = avail_index;
        }
        let slot = slot(next_avail, queue_size);
        let head = self.read_available(AVAILABLE_HEADER_BYTES + slot * AVAILABLE_ELEMENT_BYTES);
        self.queue.set_next_avail(next_avail.wrapping_add(1));
        if head >= queue_size {
            return Err(GuestFault::HeadOutOfTable { head, queue_size });
        }
        Ok(Some(head))
    }

    fn pop_chain(&mut self, head: u16) -> Popped {
        Counters::add_one(&self.context.counters.requests);
        let mut chain = self.spare.pop().unwrap_or_default();
        chain.restart(head);
        match self.walk(&mut chain) {
            Ok(()) => {
                self.popped_in_a_row = self.popped_in_a_row.saturating_add(1);
                Popped::Chain(chain)
            }
            Err(_) => {
                self.refuse(chain);
                Popped::Malformed
            }
        }
    }

    /// Copies the descriptors from the chain's head on. Ends after at most twice [`CHAIN_DESCRIPTORS_MAX`].
    fn walk(&self, chain: &mut Chain) -> Result<(), GuestFault> {
        let size = self.queue.size();
        let mut table = Table {
            address: self.queue.desc_table(),
            descriptors: size,
            is_indirect: false,
        };
        let mut left = size.min(CHAIN_DESCRIPTORS_MAX);
        let mut index = chain.head();
        let mut total_bytes = 0_u32;
        loop {
            left = left.checked_sub(1).ok_or(GuestFault::BadChain)?;
            let descriptor = self.read_descriptor(table, index)?;
            if descriptor.refers_to_indirect_table() {
                table = self.indirect_table(descriptor, table)?;
                left = CHAIN_DESCRIPTORS_MAX;
                index = 0;
                continue;
            }
            let (address, bytes) = (descriptor.addr().0, descriptor.len());
            total_bytes = total_bytes.checked_add(bytes).ok_or(GuestFault::BadChain)?;
            chain.push(Segment { address, bytes }, descriptor.is_write_only())?;
            if !descriptor.has_next() {
                return Ok(());
            }
            index = descriptor.next();
        }
    }

    fn read_descriptor(&self, table: Table, index: u16) -> Result<Descriptor, GuestFault> {
        if index >= table.descriptors {
            return Err(GuestFault::BadChain);
        }
        let offset = u64::from(index) * u64::from(DESCRIPTOR_BYTES);
        let address = table
            .address
            .checked_add(offset)
            .ok_or(GuestFault::BadChain)?;
        memory::read(&self.context.mem, address).map_err(|_| GuestFault::BadChain)
    }

    /// Virtio 1.2 §2.7.5.3: one level, not combined with NEXT, only if accepted.
    fn indirect_table(&self, descriptor: Descriptor, from: Table) -> Result<Table, GuestFault> {
        let is_accepted = self.context.acked_features & feature::RING_INDIRECT_DESC != 0;
        let is_whole = descriptor.len() != 0 && descriptor.len().is_multiple_of(DESCRIPTOR_BYTES);
        if from.is_indirect || descriptor.has_next() || !is_accepted || !is_whole {
            return Err(GuestFault::BadChain);
        }
        // A larger table is no fault in itself: the chain in it is bounded by `walk`.
        let descriptors = u16::try_from(descriptor.len() / DESCRIPTOR_BYTES).unwrap_or(u16::MAX);
        Ok(Table {
            address: descriptor.addr().0,
            descriptors,
            is_indirect: true,
        })
    }

    /// Gives a chain back: `used_bytes` of its writable buffers were filled (virtio 1.2 §2.7.8).
    pub(crate) fn complete(&mut self, chain: Chain, used_bytes: u32) {
        self.complete_together(std::iter::once((chain, used_bytes)));
    }

    /// Gives chains back, which the driver sees all at once: those of one frame (virtio 1.2 §5.1.6.4).
    pub(crate) fn complete_together(&mut self, chains: impl Iterator<Item = (Chain, u32)>) {
        let mem: &GuestMem = &self.context.mem;
        let used_ring = self.queue.used_ring();
        let mut next_used = self.queue.next_used();
        let mut is_written = true;
        for (chain, used_bytes) in chains {
            let slot = slot(next_used, self.queue.size());
            let address = used_ring.wrapping_add(USED_HEADER_BYTES + slot * USED_ELEMENT_BYTES);
            let element = u64::from(chain.head()) | (u64::from(used_bytes) << 32);
            is_written &= memory::write(mem, address, element.to_le()).is_ok();
            next_used = next_used.wrapping_add(1);
            keep(&mut self.spare, chain);
        }
        let index_at = used_ring.wrapping_add(2);
        // Release: a driver that sees the index sees the elements, and the data before them.
        is_written &= memory::store(mem, index_at, next_used, Ordering::Release).is_ok();
        self.queue.set_next_used(next_used);
        if !is_written {
            self.break_off(GuestFault::BadChain);
        }
    }

    /// Gives back, empty, the chain that was popped last, which is of no use.
    pub(crate) fn refuse(&mut self, chain: Chain) {
        self.context.counters.guest_fault();
        self.popped_in_a_row = 0;
        self.complete(chain, 0);
    }

    /// Puts back the chains that were popped last, given in the order in which they were popped, as if they never
    /// were. One that was popped before a malformed chain, which the driver has back already, is completed empty.
    pub(crate) fn put_back(&mut self, chains: impl DoubleEndedIterator<Item = Chain>) {
        for chain in chains.rev() {
            if let Some(left) = self.popped_in_a_row.checked_sub(1) {
                self.popped_in_a_row = left;
                self.queue.go_to_previous_position();
                keep(&mut self.spare, chain);
            } else {
                self.complete(chain, 0);
            }
        }
    }

    /// Whether something waits: a chain, or an index that breaks the ring when it is popped. False for one that is broken.
    pub(crate) fn has_waiting(&self) -> bool {
        let next_avail = self.queue.next_avail();
        self.is_usable() && (self.available != next_avail || self.avail_index() != next_avail)
    }

    /// Tells the driver that it need not notify: the device will look by itself.
    pub(crate) fn pause_kicks(&mut self) {
        if self.is_usable() {
            let mem: &GuestMem = &self.context.mem;
            // Only a hint; the ring lies in RAM.
            let _ = self.queue.disable_notification(mem);
        }
    }

    /// Asks the driver to notify again. True if a chain has come meanwhile: it must be served without a notification.
    #[must_use]
    pub(crate) fn resume_kicks(&mut self) -> bool {
        if !self.is_usable() {
            return false;
        }
        let mem: &GuestMem = &self.context.mem;
        self.queue.enable_notification(mem).unwrap_or(false)
    }

    /// Raises the interrupt if chains were given back and the driver wants to know (virtio 1.2 §2.7.7).
    pub(crate) fn notify(&mut self) {
        let next_used = self.queue.next_used();
        let before = std::mem::replace(&mut self.notified_used, next_used);
        if next_used == before {
            return;
        }
        // The used index must be visible before the driver's wish is read.
        fence(Ordering::SeqCst);
        let is_wanted = if self.queue.event_idx_enabled() {
            // As `vring_need_event` in linux/virtio_ring.h: the wanted index was passed since the last time.
            let size = u64::from(self.queue.size());
            let used_event = self.read_available(AVAILABLE_HEADER_BYTES + 2 * size);
            let passed = next_used.wrapping_sub(used_event).wrapping_sub(1);
            passed < next_used.wrapping_sub(before)
        } else {
            u32::from(self.read_available(0)) & VRING_AVAIL_F_NO_INTERRUPT == 0
        };
        if is_wanted {
            self.context.interrupt.signal_used_ring();
        }
    }

    /// A 16-bit field of the available ring, which lies in RAM.
    fn read_available(&self, offset: u64) -> u16 {
        let address = self.queue.avail_ring().wrapping_add(offset);
        memory::load(&self.context.mem, address, Ordering::Relaxed).unwrap_or(0)
    }

    /// Acquire: what the driver wrote before it moved the index is seen.
    fn avail_index(&self) -> u16 {
        let address = self.queue.avail_ring().wrapping_add(AVAILABLE_INDEX_AT);
        let index = memory::load(&self.context.mem, address, Ordering::Acquire);
        index.unwrap_or(self.queue.next_avail())
    }

    /// The ring cannot be trusted any more: the device needs a reset (virtio 1.2 §2.1.2).
    fn break_off(&mut self, _fault: GuestFault) {
        self.is_broken = true;
        self.context.counters.guest_fault();
        self.context.interrupt.raise_needs_reset();
    }
}

/// Where the entry of `index` is in a ring. The size is a power of two; sums stay inside the ring, which lies in RAM.
fn slot(index: u16, queue_size: u16) -> u64 {
    u64::from(index.checked_rem(queue_size).unwrap_or(0))
}

fn keep(spare: &mut Vec<Chain>, chain: Chain) {
    if spare.len() < SPARE_CHAINS_MAX {
        spare.push(chain);
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("queue", &self.queue)
            .field("is_broken", &self.is_broken)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "ring_tests.rs"]
mod tests;
