//! The network card (virtio 1.2 §5.1): a tap of the host, or a network in user space, as the guest's Ethernet card, and the
//! way to the metadata service if the guest may ask it.

mod backend;
mod config;
mod control;
mod frame;
mod pairs;
mod receive;
pub mod state;
mod stream;
mod tap;
mod tap_queues;
mod transmit;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

use virtio_queue::Queue;

pub use self::backend::Backend;
pub use self::config::{MTU_MIN, MacAddress, ParseMacError, feature};
pub use self::state::{NetStateV1, NetStateV2};
pub use self::stream::{FrameStream, StreamPeer};
pub use self::tap::{OpenTapError, Tap};

use self::pairs::{Active, Pair, Role};
use self::receive::{Given, Receiver};
use self::transmit::Ways;
use crate::counters::Counters;
use crate::fault::{ActivateError, HostFault, HostOperation, RestoreDeviceError};
use crate::limiter::{Limiter, LimiterOptions};
use crate::limits::{
    MMDS_FRAMES_WAITING_MAX, MMDS_ROUNDS_PER_TURN, NET_CONTROL_QUEUE_SIZE, NET_QUEUE_SIZE,
};
use crate::mmds::{Detour, Mmds, MmdsOptions};
use crate::state::DeviceState;
use crate::virtio::device::{Activation, DeviceKind, Progress, VirtioDevice};

/// Index of the first queue of frames for the guest (virtio 1.2 §5.1.2).
pub const RECEIVE_QUEUE: usize = 0;
/// Index of the first queue of frames from the guest.
pub const TRANSMIT_QUEUE: usize = 1;

/// What a network card is made of.
#[derive(Debug)]
pub struct NetOptions {
    /// Id in the VM's configuration.
    pub id: String,
    /// The host's side: the card has as many pairs of queues as it serves.
    pub backend: Backend,
    /// Address that the guest is told.
    pub mac: MacAddress,
    /// MTU that the guest is told.
    pub mtu: Option<u16>,
}

/// A virtio-net device.
#[derive(Debug)]
pub struct Net {
    id: String,
    mac: MacAddress,
    mtu: Option<u16>,
    config: [u8; 12],
    queue_sizes: Vec<u16>,
    backend: Backend,
    /// Pairs of queues that the driver uses, 1 or more. Outlives a pause.
    active_pairs: usize,
    /// The pair that has the next frames of the host first.
    first_pair: usize,
    /// The tap was deleted, or broke: it is not watched until a frame can be sent again. A network in user space does not come
    /// back.
    is_gone: bool,
    /// Since when there is more to do, that a turn has left over and nobody will say.
    more_since: Option<Instant>,
    counters: Arc<Counters>,
    /// Of frames for the guest.
    receive_limiter: Limiter,
    /// Of frames from the guest.
    transmit_limiter: Limiter,
    active: Option<Active>,
    metadata: Option<Metadata>,
}

/// The way to the metadata service. Its connections outlive a pause.
#[derive(Debug)]
struct Metadata {
    detour: Detour,
    /// When it has to be served again at the latest.
    serve_by: Option<Instant>,
}

impl Net {
    /// A network card, idle.
    #[must_use]
    pub fn new(options: NetOptions) -> Self {
        let NetOptions {
            id,
            backend,
            mac,
            mtu,
        } = options;
        let pairs = backend.pairs();
        let config = config::config_space(mac, mtu, pairs);
        let counters = Arc::default();
        Self {
            id,
            mac,
            mtu,
            config,
            queue_sizes: queue_sizes(pairs),
            backend,
            active_pairs: 1,
            first_pair: 0,
            is_gone: false,
            more_since: None,
            counters,
            receive_limiter: Limiter::default(),
            transmit_limiter: Limiter::default(),
            active: None,
            metadata: None,
        }
    }

    /// The guest reaches `mmds` by this card too.
    pub fn reach_metadata(&mut self, mmds: Mmds, options: MmdsOptions) {
        self.metadata = Some(Metadata {
            detour: Detour::new(mmds, options),
            serve_by: None,
        });
    }

    /// A network card as it was saved, on a host's side that the caller has found for it; idle.
    ///
    /// # Errors
    /// [`RestoreDeviceError::Mac`], [`RestoreDeviceError::Mtu`], [`RestoreDeviceError::QueuePairs`].
    pub fn from_state(
        id: String,
        state: &NetStateV2,
        backend: impl Into<Backend>,
    ) -> Result<Self, RestoreDeviceError> {
        let (mac, mtu) = state.check(&id)?;
        let backend = backend.into();
        let (saved, found) = (state.active_pairs, backend.pairs());
        if !(1..=found).contains(&saved.into()) {
            return Err(RestoreDeviceError::QueuePairs {
                device: id,
                saved,
                found,
            });
        }
        let mut card = Self::new(NetOptions {
            id,
            backend,
            mac,
            mtu,
        });
        card.active_pairs = saved.into();
        Ok(card)
    }

    /// The driver has reset the card, which is idle: the next one uses one pair, until it asks for more.
    pub const fn forget_driver(&mut self) {
        self.active_pairs = 1;
    }

    /// Address that the guest is told.
    #[must_use]
    pub const fn mac(&self) -> MacAddress {
        self.mac
    }

    /// The host's side.
    #[must_use]
    pub const fn backend(&self) -> &Backend {
        &self.backend
    }

    /// Changes what the guest may receive and send, also while at work.
    pub fn change_limits(&mut self, receive: LimiterOptions, transmit: LimiterOptions) {
        self.receive_limiter.change(receive);
        self.transmit_limiter.change(transmit);
    }

    /// Tells the tap what the guest has accepted. True if the tap has been deleted: the guest then has a card without
    /// a cable.
    fn settle_offload(&mut self, acked_features: u64) -> io::Result<bool> {
        match self.backend.set_offload(acked_features) {
            Err(cause) if cause.raw_os_error() == Some(libc::EBADFD) => Ok(true),
            result => result.map(|()| false),
        }
    }

    /// Has the tap serve the pairs that the driver uses, unless it has been deleted.
    fn settle_pairs(&mut self, is_gone: bool) -> io::Result<()> {
        if is_gone {
            Ok(())
        } else {
            self.backend.attach(self.active_pairs)
        }
    }

    /// Does what the driver asks for by the control queue.
    fn command(&mut self) -> Result<Progress, HostFault> {
        let Some(active) = &mut self.active else {
            return Ok(Progress::Done);
        };
        let pairs_max = active.pairs_max();
        let Some(control) = &mut active.control else {
            return Ok(Progress::Done);
        };
        let mut failure = None;
        let (backend, active_pairs, is_gone) =
            (&mut self.backend, &mut self.active_pairs, self.is_gone);
        let progress = control.serve_turn(pairs_max, &self.counters, |pairs| {
            // A card without a cable has as many pairs as it likes.
            if let Some(cause) = backend.attach(pairs).err().filter(|_| !is_gone) {
                failure = Some(cause);
                return false;
            }
            *active_pairs = pairs;
            true
        });
        let Some(cause) = failure else {
            return Ok(progress);
        };
        if progress == Progress::More {
            self.more_since = Some(Instant::now());
        }
        Err(self.host_fault(HostOperation::SetQueues, cause))
    }

    fn host_fault(&self, operation: HostOperation, cause: io::Error) -> HostFault {
        self.counters.host_fault(&cause);
        HostFault {
            device: self.id.clone(),
            operation,
            cause,
        }
    }

    /// Sends what waits in the queue of `number`. A pair that the driver does not use sends by the first: what it was given when
    /// the driver still used it is not lost.
    fn transmit(&mut self, number: usize) -> Result<Progress, HostFault> {
        let active = self.active.as_mut();
        let Some(pair) = active.and_then(|active| active.pairs.get_mut(number)) else {
            return Ok(Progress::Done);
        };
        let ways = Ways {
            backend: &mut self.backend,
            pair: number,
            is_gone: self.is_gone,
            detour: self.metadata.as_mut().map(|metadata| &mut metadata.detour),
        };
        let turn = pair
            .transmitter
            .serve_turn(ways, &self.counters, &mut self.transmit_limiter);
        // It works again: it was only away.
        self.is_gone &= !turn.has_sent;
        self.serve_metadata();
        match turn.gone {
            Some(cause) => Err(self.note_gone(HostOperation::SendFrame, cause)),
            None => Ok(turn.progress),
        }
    }

    /// Gives the guest what has come from the host for a pair that it uses.
    fn receive(&mut self, number: usize) -> Result<(), HostFault> {
        let active = self.active.as_mut();
        let Some(pair) = active.and_then(|active| active.pairs.get_mut(number)) else {
            return Ok(());
        };
        let (receiver, limiter) = (&mut pair.receiver, &mut self.receive_limiter);
        let served = match &mut self.backend {
            Backend::Tap(tap) => receiver.serve_turn(tap.queue(number), &self.counters, limiter),
            Backend::Stream(stream) => {
                receiver
                    .serve_stream(stream, &self.counters, limiter)
                    .map(|has_more| {
                        if has_more {
                            self.more_since = Some(Instant::now());
                        }
                    })
            }
        };
        served.map_err(|cause| self.note_gone(HostOperation::ReceiveFrame, cause))
    }

    /// Gives each pair what has come for it. When a limit ends that, the next pair is first the next time, so that one with much
    /// traffic does not use up what all may have.
    fn receive_by_all(&mut self) -> Result<(), HostFault> {
        let count = self.active_pairs;
        for step in 0..count {
            let number = self.first_pair.wrapping_add(step).checked_rem(count);
            let number = number.unwrap_or(0);
            if !self.wants_frames_of(number) {
                continue;
            }
            self.receive(number)?;
            if self.receive_limiter.blocked_until().is_some() {
                self.first_pair = number.wrapping_add(1);
                break;
            }
        }
        Ok(())
    }

    /// A network in user space: what has come of it may have waited for buffers, and for the limiter.
    fn receive_stream(&mut self) -> Result<(), HostFault> {
        let is_served = matches!(self.backend, Backend::Stream(_)) && self.wants_frames();
        if is_served { self.receive(0) } else { Ok(()) }
    }

    fn note_gone(&mut self, operation: HostOperation, cause: io::Error) -> HostFault {
        self.is_gone = true;
        // What is still in the rings is lost too, and a driver that waits for room does not ring before that.
        self.more_since = Some(Instant::now());
        self.host_fault(operation, cause)
    }

    /// Whether a frame of the host could be given to the guest now.
    fn wants_frames(&self) -> bool {
        (0..self.active_pairs).any(|number| self.wants_frames_of(number))
    }

    /// The same, by one pair.
    fn wants_frames_of(&self, number: usize) -> bool {
        let active = self.active.as_ref();
        let pair = active.and_then(|active| active.pairs.get(number));
        let has_buffers = pair.is_some_and(|pair| pair.receiver.has_buffers());
        has_buffers
            && number < self.active_pairs
            && !self.is_gone
            && self.receive_limiter.blocked_until().is_none()
    }

    /// Has the host's side watched for what is waited for now, where it is more than one descriptor.
    fn settle_watch(&mut self) {
        for number in 0..self.backend.pairs() {
            let wants_frames = self.wants_frames_of(number);
            match &mut self.backend {
                Backend::Stream(stream) => stream.watch(wants_frames),
                Backend::Tap(tap) => tap.watch(number, wants_frames),
            }
        }
    }

    fn serve_queue(&mut self, index: usize) -> Result<Progress, HostFault> {
        let Some(active) = &mut self.active else {
            return Ok(Progress::Done);
        };
        match active.role(index) {
            Role::Receive(number) => {
                if let Some(pair) = active.pairs.get_mut(number) {
                    pair.receiver.buffers_came();
                }
                self.serve_metadata();
                self.receive_stream().map(|()| Progress::Done)
            }
            Role::Transmit(number) => self.transmit(number),
            Role::Control => self.command(),
            Role::Unused => Ok(Progress::Done),
        }
    }

    /// Lets the metadata service work, and gives the guest what it says.
    fn serve_metadata(&mut self) {
        let active = self.active.as_mut();
        // By the first pair, which every driver uses.
        let pair = active.and_then(|active| active.pairs.first_mut());
        let (Some(metadata), Some(Pair { receiver, .. })) = (&mut self.metadata, pair) else {
            return;
        };
        let detour = &mut metadata.detour;
        for _ in 0..MMDS_ROUNDS_PER_TURN {
            let has_moved = detour.serve();
            let has_given = give_frames(detour, receiver, &self.counters);
            if !has_moved && !has_given {
                break;
            }
        }
        receiver.notify();
        metadata.serve_by = detour.deadline();
    }
}

impl VirtioDevice for Net {
    fn id(&self) -> &str {
        &self.id
    }

    fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    fn kind(&self) -> DeviceKind {
        DeviceKind::Net
    }

    fn features(&self) -> u64 {
        config::features(self.mtu, self.backend.pairs(), self.backend.offloads())
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn activate(&mut self, env: Activation) -> Result<(), ActivateError> {
        ActivateError::unless_idle(&self.id, self.active.is_some())?;
        let acked_features = env.acked_features;
        let is_gone = self.settle_offload(acked_features).map_err(|cause| {
            ActivateError::Host(self.host_fault(HostOperation::SetOffload, cause))
        })?;
        if !pairs::are_several(acked_features) {
            self.active_pairs = 1;
        }
        self.settle_pairs(is_gone).map_err(|cause| {
            ActivateError::Host(self.host_fault(HostOperation::SetQueues, cause))
        })?;
        // A tap may have come back; a network in user space has not.
        self.is_gone = is_gone || (self.is_gone && matches!(self.backend, Backend::Stream(_)));
        let rings = env.into_ring_list(&self.id, &self.counters, self.queue_sizes.len())?;
        self.active = Some(Active::new(rings, acked_features));
        self.settle_watch();
        Ok(())
    }

    /// Frames are sent or received whole within a call, but for one that a network in user space is about to take: none
    /// waits for the host in the guest's memory.
    fn finish(&mut self, _gives_up: &dyn Fn() -> bool) {}

    fn deactivate(&mut self) -> Vec<Queue> {
        // Frames are sent or received whole within a call, so none is under way here.
        self.receive_limiter.forget_wait();
        self.transmit_limiter.forget_wait();
        self.more_since = None;
        let Some(active) = self.active.take() else {
            return Vec::new();
        };
        self.settle_watch();
        active.into_queues()
    }

    fn process_queue(&mut self, index: usize) -> Result<Progress, HostFault> {
        let served = self.serve_queue(index);
        self.settle_watch();
        served
    }

    fn backend_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.backend.as_fd())
    }

    fn wants_backend(&self) -> bool {
        match &self.backend {
            Backend::Stream(stream) if stream.has_unsent() => self.active.is_some(),
            _ => self.wants_frames(),
        }
    }

    fn process_backend(&mut self) -> Result<(), HostFault> {
        // There is room again: what waits in the ring comes after what was kept.
        let sent = match &self.backend {
            Backend::Stream(stream) if stream.has_unsent() => self.transmit(0),
            _ => Ok(Progress::Done),
        };
        let received = match &self.backend {
            Backend::Tap(_) => self.receive_by_all(),
            Backend::Stream(_) => self.receive_stream(),
        };
        if matches!(sent, Ok(Progress::More)) {
            self.more_since = Some(Instant::now());
        }
        self.settle_watch();
        sent.and(received)
    }

    fn wake_at(&self) -> Option<Instant> {
        let (receive, transmit) = (&self.receive_limiter, &self.transmit_limiter);
        let metadata = self.metadata.as_ref().filter(|_| self.active.is_some());
        let waits = [
            receive.blocked_until(),
            transmit.blocked_until(),
            metadata.and_then(|metadata| metadata.serve_by),
            self.more_since,
        ];
        waits.into_iter().flatten().min()
    }

    fn rung(&mut self) {
        self.more_since = None;
        self.receive_limiter.forget_due();
        self.transmit_limiter.forget_due();
    }

    fn save(&self) -> DeviceState {
        DeviceState::Net(NetStateV2 {
            mac: self.mac.bytes(),
            mtu: self.mtu,
            active_pairs: u16::try_from(self.active_pairs).unwrap_or(u16::MAX),
        })
    }
}

/// Of a receive and a transmit queue a pair, and of the control queue, if there are several pairs.
fn queue_sizes(pairs: usize) -> Vec<u16> {
    let mut sizes = vec![NET_QUEUE_SIZE; pairs.saturating_mul(2)];
    if pairs > 1 {
        sizes.push(NET_CONTROL_QUEUE_SIZE);
    }
    sizes
}

/// Gives the guest what waits of the metadata service's frames. True if any was done with.
fn give_frames(detour: &mut Detour, receiver: &mut Receiver, counters: &Counters) -> bool {
    for given in 0..MMDS_FRAMES_WAITING_MAX {
        let Some(frame) = detour.next_frame() else {
            return given > 0;
        };
        match receiver.give(frame, counters) {
            Given::Now => detour.note_given(),
            Given::Never => detour.note_lost(),
            Given::Later => return given > 0,
        }
    }
    true
}

#[cfg(test)]
mod metadata_tests;
#[cfg(test)]
mod pairs_tests;
#[cfg(test)]
mod tests;
