//! A queue of buffers that the guest wants filled.

use std::collections::VecDeque;

use virtio_queue::Queue;

use crate::counters::Counters;
use crate::virtio::chain::{Chain, lie_in_ram, total_bytes, write_at};
use crate::virtio::ring::{Popped, Ring};

/// The queue at work, of the console or the socket device.
///
/// Chains are taken from the ring before there is anything for them, since a stream is not read before there is room.
/// They go back to the ring when the device stops.
#[derive(Debug)]
pub(crate) struct Receiver {
    ring: Ring,
    /// Chains that can be filled, in the order of the ring: at most its size.
    waiting: VecDeque<Chain>,
    /// Bytes without which a buffer is of no use.
    bytes_min: u64,
}

impl Receiver {
    pub(crate) const fn new(ring: Ring, bytes_min: u64) -> Self {
        Self {
            ring,
            waiting: VecDeque::new(),
            bytes_min,
        }
    }

    /// Gives the queue back, with the chains that are not used.
    pub(crate) fn into_queue(mut self) -> Queue {
        self.ring.put_back(self.waiting.into_iter());
        self.ring.notify();
        self.ring.into_queue()
    }

    /// The driver has put buffers into the ring, or may have.
    pub(crate) fn buffers_came(&mut self) {
        let size = usize::from(self.ring.size());
        // While there is room, the driver need not say that it has made more.
        self.ring.pause_kicks();
        // Chains of no use count too: a ring has at most its size of them.
        for _ in 0..size {
            if self.waiting.len() >= size {
                break;
            }
            match self.ring.pop() {
                Popped::Chain(chain) if self.is_useful(&chain) => self.waiting.push_back(chain),
                Popped::Chain(chain) => self.ring.refuse(chain),
                Popped::Malformed => {}
                Popped::Empty => break,
            }
        }
        if self.waiting.is_empty() && self.ring.resume_kicks() {
            // It came in between, or the driver makes bad ones all the time: a good one is found at the next message.
            if let Popped::Chain(chain) = self.ring.pop() {
                if self.is_useful(&chain) {
                    self.waiting.push_back(chain);
                } else {
                    self.ring.refuse(chain);
                }
            }
        }
        self.ring.notify();
    }

    fn is_useful(&self, chain: &Chain) -> bool {
        total_bytes(chain.writable()) >= self.bytes_min
            && lie_in_ram(self.ring.mem(), chain.writable())
    }

    /// Bytes that the next buffer takes, if there is one.
    pub(crate) fn room(&self) -> Option<u64> {
        self.waiting
            .front()
            .map(|chain| total_bytes(chain.writable()))
    }

    /// Buffers that there are.
    pub(crate) fn count(&self) -> usize {
        self.waiting.len()
    }

    /// Has the driver notify when it gives the next buffer, although there are some.
    pub(crate) fn ask_for_kick(&mut self) {
        if self.ring.resume_kicks() {
            self.buffers_came();
        }
    }

    /// As [`fill`](Self::fill), and counts it.
    pub(crate) fn deliver(&mut self, bytes: &[u8], counters: &Counters) -> bool {
        let is_delivered = self.fill(bytes, counters);
        if is_delivered {
            Counters::add_one(&counters.reads);
            Counters::add(&counters.bytes_to_guest, bytes.len() as u64);
        }
        is_delivered
    }

    /// Gives the guest `bytes` in one buffer; [`notify`](Self::notify) tells it. Buffers that are too small go back
    /// empty. False if there is none that is large enough.
    pub(crate) fn fill(&mut self, bytes: &[u8], counters: &Counters) -> bool {
        let mut is_delivered = false;
        while let Some(chain) = self.waiting.pop_front() {
            let written = write_at(self.ring.mem(), chain.writable(), 0, bytes);
            if written.is_ok() {
                self.ring
                    .complete(chain, u32::try_from(bytes.len()).unwrap_or(0));
                is_delivered = true;
                break;
            }
            counters.guest_fault();
            self.ring.complete(chain, 0);
        }
        if self.waiting.is_empty() {
            self.buffers_came();
        }
        is_delivered
    }

    /// Raises the interrupt for what was delivered.
    pub(crate) fn notify(&mut self) {
        self.ring.notify();
    }
}
