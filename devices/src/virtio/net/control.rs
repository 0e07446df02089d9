//! The control queue (virtio 1.2 §5.1.6.5): by it a driver says how many of the card's queue pairs it uses. Nothing else is
//! offered, and all else is refused.

use virtio_queue::Queue;

use crate::counters::Counters;
use crate::fault::GuestFault;
use crate::limits::NET_COMMANDS_PER_TURN;
use crate::memory::GuestMem;
use crate::virtio::chain::{Chain, lie_in_ram, read_at, total_bytes, write_at};
use crate::virtio::device::Progress;
use crate::virtio::ring::{Popped, Ring};

/// Class of commands about several queues.
pub(super) const CLASS_MQ: u8 = 4;
/// The number of pairs that the driver uses, 16 bits.
pub(super) const VQ_PAIRS_SET: u8 = 0;
/// Bytes of it: class, command, number.
const VQ_PAIRS_SET_BYTES: u64 = 4;

/// What the driver is answered.
mod ack {
    pub(super) const OK: u8 = 0;
    pub(super) const ERR: u8 = 1;
}

/// The queue at work.
#[derive(Debug)]
pub(super) struct ControlQueue {
    ring: Ring,
}

impl ControlQueue {
    pub(super) const fn new(ring: Ring) -> Self {
        Self { ring }
    }

    pub(super) fn into_queue(self) -> Queue {
        self.ring.into_queue()
    }

    /// Carries out the commands that wait, up to the limit of a turn. `use_pairs` does what they say, of numbers from 1 to
    /// `pairs_max`, and says whether it could.
    pub(super) fn serve_turn(
        &mut self,
        pairs_max: usize,
        counters: &Counters,
        mut use_pairs: impl FnMut(usize) -> bool,
    ) -> Progress {
        let mut progress = Progress::More;
        self.ring.pause_kicks();
        for _ in 0..NET_COMMANDS_PER_TURN {
            match self.ring.pop() {
                Popped::Chain(chain) => {
                    let mem = self.ring.mem();
                    let answer = match parse(mem, &chain, pairs_max) {
                        Ok(pairs) if use_pairs(pairs) => Some(ack::OK),
                        Ok(_) => Some(ack::ERR),
                        Err(fault) => {
                            counters.guest_fault();
                            (fault != GuestFault::ShortChain).then_some(ack::ERR)
                        }
                    };
                    let answered = answer.map(|answer| {
                        let written = write_at(mem, chain.writable(), 0, &[answer]);
                        u32::from(written.is_ok())
                    });
                    self.ring.complete(chain, answered.unwrap_or(0));
                }
                Popped::Malformed => {}
                Popped::Empty => {
                    if !self.ring.resume_kicks() {
                        progress = Progress::Done;
                        break;
                    }
                }
            }
        }
        self.ring.notify();
        progress
    }
}

/// The number of pairs that is asked for. What could not be answered is not looked at.
fn parse(mem: &GuestMem, chain: &Chain, pairs_max: usize) -> Result<usize, GuestFault> {
    let can_be_answered = chain
        .writable()
        .first()
        .is_some_and(|answer| lie_in_ram(mem, &[*answer]));
    if !can_be_answered {
        return Err(GuestFault::ShortChain);
    }
    let mut head = [0; 2];
    read_at(mem, chain.readable(), 0, &mut head).map_err(|_| GuestFault::BadChain)?;
    let [class, command] = head;
    if (class, command) != (CLASS_MQ, VQ_PAIRS_SET) {
        return Err(GuestFault::UnknownType(class.into()));
    }
    if total_bytes(chain.readable()) != VQ_PAIRS_SET_BYTES {
        return Err(GuestFault::BadChain);
    }
    let mut pairs = [0; 2];
    read_at(mem, chain.readable(), 2, &mut pairs).map_err(|_| GuestFault::BadChain)?;
    let pairs = usize::from(u16::from_le_bytes(pairs));
    if (1..=pairs_max).contains(&pairs) {
        Ok(pairs)
    } else {
        Err(GuestFault::BadPairs { pairs, pairs_max })
    }
}
