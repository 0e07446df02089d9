//! Frames from the guest to the tap.

use std::io::{self, ErrorKind};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use virtio_queue::Queue;

use crate::counters::Counters;
use crate::fault::GuestFault;
use crate::limiter::Limiter;
use crate::limits::NET_FRAMES_PER_TURN;
use crate::sys::guest_buffers::GuestBuffers;
use crate::virtio::chain::{Chain, parts, read_at, total_bytes};
use crate::virtio::device::Progress;
use crate::virtio::net::frame::{HEADER_BYTES, TransmitHeader};
use crate::virtio::ring::{Popped, Ring};

/// The transmit queue at work.
#[derive(Debug)]
pub(super) struct Transmitter {
    ring: Ring,
    buffers: GuestBuffers,
    acked_features: u64,
}

/// How a turn went.
pub(super) struct Turn {
    pub(super) progress: Progress,
    /// The tap took a frame.
    pub(super) has_sent: bool,
}

impl Transmitter {
    pub(super) fn new(ring: Ring, acked_features: u64) -> Self {
        let buffers = GuestBuffers::new(Arc::clone(ring.mem()));
        Self {
            ring,
            buffers,
            acked_features,
        }
    }

    pub(super) fn into_queue(self) -> Queue {
        self.ring.into_queue()
    }

    /// Sends what waits, up to the limit of a turn. A frame that cannot be sent is dropped, as on any network.
    pub(super) fn serve_turn(
        &mut self,
        tap: BorrowedFd<'_>,
        counters: &Counters,
        limiter: &mut Limiter,
    ) -> Turn {
        let mut turn = Turn {
            progress: Progress::More,
            has_sent: false,
        };
        self.ring.pause_kicks();
        for _ in 0..NET_FRAMES_PER_TURN {
            if limiter.holds_up(|| self.ring.has_waiting()) {
                Counters::add_one(&counters.throttled_from_guest);
                turn.progress = Progress::Done;
                break;
            }
            match self.ring.pop() {
                Popped::Chain(chain) => {
                    turn.has_sent |= self.send(&chain, tap, counters);
                    limiter.charge(total_bytes(chain.readable()));
                    self.ring.complete(chain, 0);
                }
                Popped::Malformed => Counters::add_one(&counters.frames_dropped_from_guest),
                Popped::Empty => {
                    if !self.ring.resume_kicks() {
                        turn.progress = Progress::Done;
                        break;
                    }
                }
            }
        }
        self.ring.notify();
        turn
    }

    /// Whether the frame in `chain` was sent.
    fn send(&mut self, chain: &Chain, tap: BorrowedFd<'_>, counters: &Counters) -> bool {
        let header = match self.prepare(chain) {
            Ok(header) => header,
            Err(_) => {
                counters.guest_fault();
                Counters::add_one(&counters.frames_dropped_from_guest);
                return false;
            }
        };
        let frame_bytes = self.buffers.bytes();
        let began = Instant::now();
        match send_whole(&mut self.buffers, tap, &header) {
            Ok(()) => {
                counters.write_time.record_since(began);
                Counters::add_one(&counters.writes);
                Counters::add(&counters.bytes_from_guest, frame_bytes);
                true
            }
            Err(cause) => {
                Counters::add_one(&counters.frames_dropped_from_guest);
                // EINVAL is the kernel's word on a header that this device let pass.
                if cause.raw_os_error() == Some(libc::EINVAL) {
                    counters.guest_fault();
                } else if cause.kind() != ErrorKind::WouldBlock {
                    counters.host_fault(&cause);
                }
                false
            }
        }
    }

    /// Checks the frame in `chain` and collects its buffers. A chain with a writable buffer is no frame.
    fn prepare(&mut self, chain: &Chain) -> Result<TransmitHeader, GuestFault> {
        self.buffers.clear();
        if !chain.writable().is_empty() {
            return Err(GuestFault::BadFrame);
        }
        let mut header = [0; HEADER_BYTES];
        read_at(self.ring.mem(), chain.readable(), 0, &mut header)?;
        let skip = HEADER_BYTES as u64;
        let frame_bytes = total_bytes(chain.readable()).saturating_sub(skip);
        let header = TransmitHeader::check(header, frame_bytes, self.acked_features)?;
        for part in parts(chain.readable(), skip, frame_bytes) {
            self.buffers.push(part)?;
        }
        Ok(header)
    }
}

fn send_whole(
    buffers: &mut GuestBuffers,
    tap: BorrowedFd<'_>,
    header: &TransmitHeader,
) -> io::Result<()> {
    loop {
        match buffers.send_frame(tap, header.bytes()) {
            Err(cause) if cause.kind() == ErrorKind::Interrupted => {}
            // A tap takes a frame whole or not at all.
            other => return other.map(|_bytes| ()),
        }
    }
}
