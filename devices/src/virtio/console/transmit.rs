//! A queue of buffers with bytes from the guest.

use virtio_queue::Queue;

use crate::counters::Counters;
use crate::limits::{
    CONSOLE_BUFFER_BYTES_MAX, CONSOLE_BUFFERS_PER_TURN, CONSOLE_BYTES_PER_TURN,
    CONSOLE_FINISH_STEP_MS,
};
use crate::virtio::chain::{Chain, lie_in_ram, read_at, total_bytes};
use crate::virtio::console::stream::{Output, Took};
use crate::virtio::ring::{Popped, Ring};

/// The queue at work.
#[derive(Debug)]
pub(super) struct Transmitter {
    ring: Ring,
    /// The buffer that the host has not taken yet, or not all of.
    pending: Option<Pending>,
    /// Bytes of the next buffer that were written before a pause.
    skip: u64,
    /// The last turn ended before the ring was empty, and the driver has not been asked to notify.
    is_unfinished: bool,
}

#[derive(Debug)]
struct Pending {
    chain: Chain,
    bytes: u64,
    /// Bytes that were written.
    written: u64,
}

/// How it went with one buffer.
enum Step {
    /// It is done, in one way or the other; so many bytes were written.
    Served(usize),
    /// The host takes nothing for now.
    Blocked,
    /// There is none.
    Empty,
}

impl Transmitter {
    /// Of the first buffer `skip` bytes were written already.
    pub(super) const fn new(ring: Ring, skip: u64) -> Self {
        Self {
            ring,
            pending: None,
            skip,
            is_unfinished: false,
        }
    }

    /// Gives the queue back, and how much was written of its first buffer. One that the host has not taken, or not all of, is in
    /// it again: it was the last that was popped.
    pub(super) fn into_queue(mut self) -> (Queue, u64) {
        let written = match self.pending.take() {
            Some(Pending { chain, written, .. }) => {
                self.ring.put_back(std::iter::once(chain));
                written
            }
            None => self.skip,
        };
        self.ring.notify();
        (self.ring.into_queue(), written)
    }

    /// Whether there is more to do as soon as the host takes bytes.
    pub(super) const fn is_unfinished(&self) -> bool {
        self.is_unfinished
    }

    /// Writes what waits, up to the limit of a turn, and as far as the host takes it. The rest stays in the ring: so the
    /// guest is held back, and nothing grows here. It is served again when the host takes bytes, without a notification.
    pub(super) fn serve_turn(
        &mut self,
        output: &mut Output,
        chunk: &mut [u8],
        counters: &Counters,
    ) {
        self.ring.pause_kicks();
        self.is_unfinished = true;
        let mut bytes_left = CONSOLE_BYTES_PER_TURN;
        for _ in 0..CONSOLE_BUFFERS_PER_TURN {
            match self.step(output, chunk, counters) {
                Step::Served(bytes) => bytes_left = bytes_left.saturating_sub(bytes),
                Step::Blocked => break,
                Step::Empty if self.ring.resume_kicks() => continue,
                Step::Empty => {
                    self.is_unfinished = false;
                    break;
                }
            }
            if bytes_left == 0 {
                break;
            }
        }
        self.ring.notify();
    }

    /// Writes all that waits now, until `gives_up`: as many buffers as the ring holds, whatever other CPUs of the guest
    /// add meanwhile.
    pub(super) fn finish(
        &mut self,
        output: &mut Output,
        chunk: &mut [u8],
        counters: &Counters,
        gives_up: &dyn Fn() -> bool,
    ) {
        let mut buffers_left = u32::from(self.ring.size()).saturating_add(1);
        while buffers_left > 0 {
            match self.step(output, chunk, counters) {
                Step::Served(_) => buffers_left = buffers_left.saturating_sub(1),
                Step::Blocked if gives_up() => break,
                Step::Blocked => output.wait(CONSOLE_FINISH_STEP_MS),
                Step::Empty => break,
            }
        }
        self.ring.notify();
    }

    fn step(&mut self, output: &mut Output, chunk: &mut [u8], counters: &Counters) -> Step {
        let mut pending = match self.pending.take() {
            Some(pending) => pending,
            None => match self.ring.pop() {
                Popped::Chain(chain) if self.is_good(&chain) => {
                    let bytes = total_bytes(chain.readable());
                    // The guest may have changed it meanwhile.
                    let written = std::mem::take(&mut self.skip).min(bytes);
                    Pending {
                        chain,
                        bytes,
                        written,
                    }
                }
                Popped::Chain(chain) => {
                    self.ring.refuse(chain);
                    return Step::Served(0);
                }
                Popped::Malformed => return Step::Served(0),
                Popped::Empty => return Step::Empty,
            },
        };
        match self.write(&mut pending, output, chunk) {
            Took::Nothing => {
                self.pending = Some(pending);
                Step::Blocked
            }
            Took::Bytes(bytes) => {
                Counters::add_one(&counters.writes);
                Counters::add(&counters.bytes_from_guest, pending.bytes);
                self.ring.complete(pending.chain, 0);
                Step::Served(bytes)
            }
        }
    }

    fn is_good(&self, chain: &Chain) -> bool {
        (1..=CONSOLE_BUFFER_BYTES_MAX).contains(&total_bytes(chain.readable()))
            && lie_in_ram(self.ring.mem(), chain.readable())
    }

    /// Writes `pending` to its end, or until the host takes no more.
    fn write(&self, pending: &mut Pending, output: &mut Output, chunk: &mut [u8]) -> Took {
        let mut bytes = 0;
        while pending.written < pending.bytes && output.goes_somewhere() {
            let left = pending.bytes.saturating_sub(pending.written);
            let length = usize::try_from(left).unwrap_or(usize::MAX).min(chunk.len());
            let part = chunk.get_mut(..length).unwrap_or_default();
            let chain = &pending.chain;
            if read_at(self.ring.mem(), chain.readable(), pending.written, part).is_err() {
                break;
            }
            match output.write(part) {
                Took::Nothing => return Took::Nothing,
                Took::Bytes(taken) => {
                    bytes = taken.saturating_add(bytes);
                    pending.written = pending.written.saturating_add(taken as u64);
                }
            }
        }
        Took::Bytes(bytes)
    }
}
