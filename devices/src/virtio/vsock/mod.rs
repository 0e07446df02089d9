//! The socket device (virtio 1.2 §5.10) in Firecracker's form: streams between programs of the guest and Unix sockets of the
//! host.
//!
//! A client of the host connects to the socket `PATH`, says `CONNECT PORT\n`, and is told `OK HOSTPORT\n` when a program of
//! the guest listens there. A program of the guest that connects to port N of the host is connected to the socket
//! `PATH_N`.
//!
//! ```text
//!   queue from the guest --> Vsock::receive --> Host::take --> Connection --> socket
//!   queue to the guest <---- Vsock::send <----- Host::next_for_guest <-- Connection <-- socket
//! ```
//!
//! A pause takes the queues and nothing else: connections go on after it. A reset by the driver ends them, and so does a
//! restore, of which the guest is told twice: by an event (virtio 1.2 §5.10.6.7), after which only what listens is left, and,
//! for drivers that do not look at events, by an RST for each connection.

mod connection;
mod greeting;
mod host;
mod packet;
mod slots;
pub mod state;
mod watch;

use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use virtio_queue::Queue;

pub use self::packet::{HOST_CID, op, shutdown, socket_type};
pub use self::state::VsockStateV1;

use self::host::{Failure, Host};
use self::packet::{HEADER_BYTES, Header, Pair};
use crate::counters::Counters;
use crate::fault::{ActivateError, HostFault, RestoreDeviceError};
use crate::limits::{
    VSOCK_BUFFER_BYTES, VSOCK_BYTES_PER_TURN, VSOCK_PACKETS_PER_TURN, VSOCK_QUEUE_SIZE,
    VSOCK_RESET_MS,
};
use crate::state::DeviceState;
use crate::virtio::chain::{Chain, read_at};
use crate::virtio::device::{Activation, DeviceKind, Progress, VirtioDevice};
use crate::virtio::receive::Receiver;
use crate::virtio::ring::{Popped, Ring};

/// Index of the queue of packets for the guest (virtio 1.2 §5.10.2).
pub const RECEIVE_QUEUE: usize = 0;
/// Index of the queue of packets from the guest.
pub const TRANSMIT_QUEUE: usize = 1;
/// Index of the queue of events.
pub const EVENT_QUEUE: usize = 2;

const QUEUE_SIZES: [u16; 3] = [VSOCK_QUEUE_SIZE; 3];

/// Least and greatest context id of a guest: 0–2 and 2^32-1 have meanings of their own (virtio 1.2 §5.10.4).
pub const GUEST_CIDS: std::ops::RangeInclusive<u32> = 3..=u32::MAX - 1;

/// Feature bits of the socket device.
pub mod feature {
    /// Streams.
    pub const STREAM: u64 = 1 << 0;
}

/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET`: all connections have ended (virtio 1.2 §5.10.6.7).
pub const EVENT_TRANSPORT_RESET: u32 = 0;

/// Bytes of a buffer for events.
const EVENT_BYTES: u64 = 4;
/// Bytes of a buffer for packets: a header, and at least one byte.
const PACKET_BYTES_MIN: u64 = HEADER_BYTES as u64 + 1;

/// Whether the guest knows that its connections have ended with a restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TransportReset {
    /// There is nothing to know.
    None,
    /// It is to be told.
    Owed,
    /// It has been told, and has not given another buffer: it has still so many out.
    Told { buffers: usize, at: Instant },
}

/// The socket device.
#[derive(Debug)]
pub struct Vsock {
    id: String,
    guest_cid: u32,
    config: [u8; 8],
    counters: Arc<Counters>,
    host: Host,
    /// A driver has started the device since its last reset.
    has_driver: bool,
    reset: TransportReset,
    active: Option<Active>,
}

/// What a device has while it works.
#[derive(Debug)]
struct Active {
    to_guest: Receiver,
    from_guest: Ring,
    events: Receiver,
    /// What is on the way between a socket and guest memory.
    chunk: Vec<u8>,
}

impl Vsock {
    /// A socket device for the guest `guest_cid`, idle. `listener` is the socket at `path`.
    ///
    /// # Errors
    /// The kernel's, when there are no descriptors left.
    pub fn new(
        id: String,
        guest_cid: u32,
        path: &Path,
        listener: UnixListener,
    ) -> io::Result<Self> {
        let counters = Arc::<Counters>::default();
        Ok(Self {
            id,
            guest_cid,
            config: u64::from(guest_cid).to_le_bytes(),
            host: Host::new(guest_cid, path, listener, Arc::clone(&counters))?,
            counters,
            has_driver: false,
            reset: TransportReset::None,
            active: None,
        })
    }

    /// This device, fresh and idle, as it was saved: without the connections, of whose end the guest is told.
    ///
    /// # Errors
    /// [`RestoreDeviceError::GuestCid`], [`RestoreDeviceError::Connections`].
    pub fn with_state(mut self, state: &VsockStateV1) -> Result<Self, RestoreDeviceError> {
        state.check(&self.id, self.guest_cid)?;
        let ended = state.connections.iter().copied().map(Pair::from);
        self.host.take_over(state.next_host_port, ended);
        self.has_driver = state.has_driver;
        // Of nothing that has ended nobody is told: the event costs a guest an interrupt and its driver's work at every start.
        if self.has_driver && !state.connections.is_empty() {
            self.reset = TransportReset::Owed;
        }
        Ok(self)
    }

    /// The driver has reset the device: connections end.
    pub fn forget_driver(&mut self) {
        self.has_driver = false;
        self.reset = TransportReset::None;
        self.host.forget_guest();
    }

    /// Gives programs of the host the guest's last bytes, before the machine ends. Waits for them, but not for long, and not
    /// after `gives_up`.
    pub fn flush_last(&mut self, gives_up: &dyn Fn() -> bool) {
        self.host.flush_last(gives_up);
    }

    /// Serves all three queues, in both directions, up to the limit of a turn.
    fn turn(&mut self) -> Result<Progress, HostFault> {
        self.tell_reset();
        let Some(active) = &mut self.active else {
            return Ok(Progress::Done);
        };
        let mut failure = None;
        let received = active.receive(&mut self.host, &self.counters, &mut failure);
        let was_full = self.host.is_full();
        let sent = active.send(&mut self.host, &self.counters);
        // Answers were in the way of more packets, and are not any more.
        let is_free_again = was_full && !self.host.is_full();
        let is_done = (received, sent) == (Progress::Done, Progress::Done) && !is_free_again;
        match failure {
            Some(failure) => {
                // Whoever hears of it does not hear that there is more to do.
                self.host.ring();
                Err(self.fault(failure))
            }
            None if is_done => Ok(Progress::Done),
            None => Ok(Progress::More),
        }
    }

    fn fault(&self, (operation, cause): Failure) -> HostFault {
        self.counters.host_fault(&cause);
        HostFault {
            device: self.id.clone(),
            operation,
            cause,
        }
    }

    /// Tells the guest that its connections have ended, and lets clients in when it has heard it: what they connect before
    /// that would end with the others.
    fn tell_reset(&mut self) {
        let Some(active) = &mut self.active else {
            return;
        };
        let events = &mut active.events;
        let event = EVENT_TRANSPORT_RESET.to_le_bytes();
        if self.reset == TransportReset::Owed && events.fill(&event, &self.counters) {
            self.reset = TransportReset::Told {
                buffers: events.count(),
                at: Instant::now(),
            };
            events.ask_for_kick();
            events.notify();
        }
        if let TransportReset::Told { buffers, at } = self.reset {
            let is_over = at.elapsed() >= Duration::from_millis(VSOCK_RESET_MS);
            if is_over || events.count() > buffers {
                self.reset = TransportReset::None;
            }
        }
        // A driver without buffers for events does not look at them.
        let is_open = !matches!(self.reset, TransportReset::Told { .. });
        self.host.set_open(is_open);
        if !is_open {
            self.host.keep_ticking();
        }
    }
}

impl Active {
    /// Takes packets of the guest, up to the limit of a turn, and not while answers to others wait.
    fn receive(
        &mut self,
        host: &mut Host,
        counters: &Counters,
        failure: &mut Option<Failure>,
    ) -> Progress {
        let ring = &mut self.from_guest;
        ring.pause_kicks();
        let mut progress = Progress::More;
        let mut bytes_left = VSOCK_BYTES_PER_TURN;
        for _ in 0..VSOCK_PACKETS_PER_TURN {
            if bytes_left == 0 {
                break;
            }
            if host.is_full() {
                // It goes on when the guest has taken some.
                progress = Progress::Done;
                break;
            }
            match ring.pop() {
                Popped::Chain(chain) => {
                    let taken = take_packet(ring, &chain, &mut self.chunk, host);
                    ring.complete(chain, 0);
                    match taken {
                        Ok(bytes) => {
                            Counters::add_one(&counters.writes);
                            Counters::add(&counters.bytes_from_guest, bytes as u64);
                            bytes_left = bytes_left.saturating_sub(bytes);
                        }
                        Err(Untaken::Guest) => counters.guest_fault(),
                        Err(Untaken::Host(cause)) => *failure = failure.take().or(Some(cause)),
                    }
                }
                Popped::Malformed => {}
                Popped::Empty => {
                    if !ring.resume_kicks() {
                        progress = Progress::Done;
                        break;
                    }
                }
            }
        }
        ring.notify();
        progress
    }

    /// Gives the guest what there is for it, up to the limit of a turn, and as far as it has buffers.
    fn send(&mut self, host: &mut Host, counters: &Counters) -> Progress {
        let receiver = &mut self.to_guest;
        let mut progress = Progress::More;
        let mut bytes_left = VSOCK_BYTES_PER_TURN;
        for _ in 0..VSOCK_PACKETS_PER_TURN {
            let buffer = receiver.room().filter(|_| host.has_for_guest());
            let Some(buffer) = buffer else {
                progress = Progress::Done;
                break;
            };
            if bytes_left == 0 {
                break;
            }
            let Some((header_at, rest)) = self.chunk.split_first_chunk_mut::<HEADER_BYTES>() else {
                break;
            };
            let room = usize::try_from(buffer).unwrap_or(usize::MAX);
            let room = room.saturating_sub(HEADER_BYTES).min(rest.len());
            let target = rest.get_mut(..room).unwrap_or_default();
            let Some(header) = host.next_for_guest(target) else {
                continue;
            };
            *header_at = header.encode();
            let len = usize::try_from(header.len).unwrap_or(0);
            let packet = self.chunk.get(..HEADER_BYTES.saturating_add(len));
            // There is room, in RAM.
            receiver.fill(packet.unwrap_or_default(), counters);
            Counters::add_one(&counters.reads);
            Counters::add(&counters.bytes_to_guest, len as u64);
            bytes_left = bytes_left.saturating_sub(len);
        }
        receiver.notify();
        progress
    }
}

/// Why a packet of the guest was not taken.
enum Untaken {
    /// The guest's mistake.
    Guest,
    /// The host's failure.
    Host(Failure),
}

/// Takes one packet: its header is read once, its bytes once. Gives their number.
fn take_packet(
    ring: &Ring,
    chain: &Chain,
    chunk: &mut [u8],
    host: &mut Host,
) -> Result<usize, Untaken> {
    let (mem, segments) = (ring.mem(), chain.readable());
    let mut bytes = [0; HEADER_BYTES];
    read_at(mem, segments, 0, &mut bytes).map_err(|_| Untaken::Guest)?;
    let header = Header::decode(&bytes);
    let bad = Err(Untaken::Guest);
    if header.src_cid != u64::from(host.guest_cid()) {
        // An answer would not find it.
        return bad;
    }
    if header.dst_cid != HOST_CID || header.socket_type != socket_type::STREAM {
        host.refuse(&header);
        return bad;
    }
    let payload = match header.op {
        op::RW => {
            let len = usize::try_from(header.len).unwrap_or(usize::MAX);
            let target = chunk.get_mut(..len);
            target.and_then(|target| {
                let read = read_at(mem, segments, HEADER_BYTES as u64, target);
                read.is_ok().then_some(&*target)
            })
        }
        _ => Some(&[][..]),
    };
    match host.take(&header, payload) {
        Ok(true) => Ok(payload.map_or(0, <[u8]>::len)),
        Ok(false) => bad,
        Err(failure) => Err(Untaken::Host(failure)),
    }
}

impl VirtioDevice for Vsock {
    fn id(&self) -> &str {
        &self.id
    }

    fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    fn kind(&self) -> DeviceKind {
        DeviceKind::Vsock
    }

    fn features(&self) -> u64 {
        crate::virtio::feature::COMMON | feature::STREAM
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn activate(&mut self, env: Activation) -> Result<(), ActivateError> {
        ActivateError::unless_idle(&self.id, self.active.is_some())?;
        let [to_guest, from_guest, events] = env.into_rings(&self.id, &self.counters)?;
        let mut active = Active {
            to_guest: Receiver::new(to_guest, PACKET_BYTES_MIN),
            from_guest,
            events: Receiver::new(events, EVENT_BYTES),
            chunk: vec![0; HEADER_BYTES + VSOCK_BUFFER_BYTES],
        };
        active.to_guest.buffers_came();
        active.events.buffers_came();
        self.active = Some(active);
        self.has_driver = true;
        self.host.restart_clocks();
        // Before the first client.
        self.tell_reset();
        Ok(())
    }

    /// What the host does not take at once stays with the connections, which a pause does not end.
    fn finish(&mut self, _gives_up: &dyn Fn() -> bool) {
        self.host.flush();
    }

    fn deactivate(&mut self) -> Vec<Queue> {
        // Packets are taken and given whole within a call, so none is under way here.
        let Some(active) = self.active.take() else {
            return Vec::new();
        };
        let Active {
            to_guest,
            from_guest,
            events,
            ..
        } = active;
        vec![
            to_guest.into_queue(),
            from_guest.into_queue(),
            events.into_queue(),
        ]
    }

    fn process_queue(&mut self, index: usize) -> Result<Progress, HostFault> {
        match (index, &mut self.active) {
            (RECEIVE_QUEUE, Some(active)) => active.to_guest.buffers_came(),
            (EVENT_QUEUE, Some(active)) => active.events.buffers_came(),
            (TRANSMIT_QUEUE, Some(_)) => {}
            _ => return Ok(Progress::Done),
        }
        self.turn()
    }

    fn backend_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.host.fd())
    }

    fn wants_backend(&self) -> bool {
        self.active.is_some()
    }

    fn process_backend(&mut self) -> Result<(), HostFault> {
        if self.active.is_none() {
            return Ok(());
        }
        let served = self.host.serve();
        let served = served.map_err(|failure| self.fault(failure));
        match self.turn() {
            Ok(Progress::Done) => served,
            Ok(Progress::More) => {
                self.host.ring();
                served
            }
            Err(fault) => served.and(Err(fault)),
        }
    }

    fn save(&self) -> DeviceState {
        let pairs = self.host.pairs().into_iter();
        DeviceState::Vsock(VsockStateV1 {
            guest_cid: self.guest_cid,
            has_driver: self.has_driver,
            next_host_port: self.host.next_port(),
            connections: pairs.map(Into::into).collect(),
        })
    }
}

#[cfg(test)]
mod tests;
