//! The network card (virtio 1.2 §5.1): a tap of the host, or a network in user space, as the guest's Ethernet card, and the
//! way to the metadata service if the guest may ask it.

mod backend;
mod config;
mod frame;
mod receive;
pub mod state;
mod stream;
mod tap;
mod transmit;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

use virtio_queue::Queue;

pub use self::backend::Backend;
pub use self::config::{MTU_MIN, MacAddress, ParseMacError, feature};
pub use self::state::NetStateV1;
pub use self::stream::{FrameStream, StreamPeer};
pub use self::tap::{OpenTapError, Tap};

use self::receive::{Given, Receiver};
use self::transmit::{Transmitter, Ways};
use crate::counters::Counters;
use crate::fault::{ActivateError, HostFault, HostOperation, RestoreDeviceError};
use crate::limiter::{Limiter, LimiterOptions};
use crate::limits::{MMDS_FRAMES_WAITING_MAX, MMDS_ROUNDS_PER_TURN, NET_QUEUE_SIZE};
use crate::mmds::{Detour, Mmds, MmdsOptions};
use crate::state::DeviceState;
use crate::virtio::device::{Activation, DeviceKind, Progress, VirtioDevice};

/// Index of the queue of frames for the guest (virtio 1.2 §5.1.2).
pub const RECEIVE_QUEUE: usize = 0;
/// Index of the queue of frames from the guest.
pub const TRANSMIT_QUEUE: usize = 1;

const QUEUE_SIZES: [u16; 2] = [NET_QUEUE_SIZE; 2];

/// What a network card is made of.
#[derive(Debug)]
pub struct NetOptions {
    /// Id in the VM's configuration.
    pub id: String,
    /// The host's side.
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
    backend: Backend,
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

/// What a device has while it works.
#[derive(Debug)]
struct Active {
    receiver: Receiver,
    transmitter: Transmitter,
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
        let config = config::config_space(mac, mtu);
        let counters = Arc::default();
        Self {
            id,
            mac,
            mtu,
            config,
            backend,
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
    /// [`RestoreDeviceError::Mac`], [`RestoreDeviceError::Mtu`].
    pub fn from_state(
        id: String,
        state: &NetStateV1,
        backend: impl Into<Backend>,
    ) -> Result<Self, RestoreDeviceError> {
        let (mac, mtu) = state.check(&id)?;
        let backend = backend.into();
        Ok(Self::new(NetOptions {
            id,
            backend,
            mac,
            mtu,
        }))
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

    fn transmit(&mut self) -> Result<Progress, HostFault> {
        let Some(active) = &mut self.active else {
            return Ok(Progress::Done);
        };
        let ways = Ways {
            backend: &mut self.backend,
            is_gone: self.is_gone,
            detour: self.metadata.as_mut().map(|metadata| &mut metadata.detour),
        };
        let turn = active
            .transmitter
            .serve_turn(ways, &self.counters, &mut self.transmit_limiter);
        // It works again: it was only away.
        self.is_gone &= !turn.has_sent;
        self.serve_metadata();
        match turn.gone {
            Some(cause) => {
                // What is still in the ring is lost too, and its driver does not ring again before that.
                self.more_since = Some(Instant::now());
                Err(self.note_gone(HostOperation::SendFrame, cause))
            }
            None => Ok(turn.progress),
        }
    }

    /// Gives the guest what has come from the host.
    fn receive(&mut self) -> Result<(), HostFault> {
        let Some(active) = &mut self.active else {
            return Ok(());
        };
        let (receiver, limiter) = (&mut active.receiver, &mut self.receive_limiter);
        let served = match &mut self.backend {
            Backend::Tap(tap) => receiver.serve_turn(tap.as_fd(), &self.counters, limiter),
            Backend::Stream(stream) => receiver
                .serve_stream(stream, &self.counters, limiter)
                .map(|has_more| self.more_since = has_more.then(Instant::now)),
        };
        served.map_err(|cause| self.note_gone(HostOperation::ReceiveFrame, cause))
    }

    /// A network in user space: what has come of it may have waited for buffers, and for the limiter.
    fn receive_stream(&mut self) -> Result<(), HostFault> {
        let is_served = matches!(self.backend, Backend::Stream(_)) && self.wants_frames();
        if is_served { self.receive() } else { Ok(()) }
    }

    fn note_gone(&mut self, operation: HostOperation, cause: io::Error) -> HostFault {
        self.is_gone = true;
        self.counters.host_fault(&cause);
        HostFault {
            device: self.id.clone(),
            operation,
            cause,
        }
    }

    /// Whether a frame of the host could be given to the guest now.
    fn wants_frames(&self) -> bool {
        let has_buffers = self
            .active
            .as_ref()
            .is_some_and(|active| active.receiver.has_buffers());
        has_buffers && !self.is_gone && self.receive_limiter.blocked_until().is_none()
    }

    /// Has a network in user space watched for what is waited for now.
    fn settle_watch(&self) {
        if let Backend::Stream(stream) = &self.backend {
            stream.watch(self.wants_frames());
        }
    }

    fn serve_queue(&mut self, index: usize) -> Result<Progress, HostFault> {
        match (index, &mut self.active) {
            (RECEIVE_QUEUE, Some(active)) => {
                active.receiver.buffers_came();
                // Looks again, when the wait is over.
                let _ = self.receive_limiter.is_blocked();
                self.serve_metadata();
                self.receive_stream().map(|()| Progress::Done)
            }
            (TRANSMIT_QUEUE, Some(_)) => self.transmit(),
            _ => Ok(Progress::Done),
        }
    }

    /// Lets the metadata service work, and gives the guest what it says.
    fn serve_metadata(&mut self) {
        let (Some(metadata), Some(active)) = (&mut self.metadata, &mut self.active) else {
            return;
        };
        let detour = &mut metadata.detour;
        for _ in 0..MMDS_ROUNDS_PER_TURN {
            let has_moved = detour.serve();
            let has_given = give_frames(detour, &mut active.receiver, &self.counters);
            if !has_moved && !has_given {
                break;
            }
        }
        active.receiver.notify();
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
        config::features(self.mtu, self.backend.offloads())
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn activate(&mut self, env: Activation) -> Result<(), ActivateError> {
        ActivateError::unless_idle(&self.id, self.active.is_some())?;
        let acked_features = env.acked_features;
        let is_gone = self.settle_offload(acked_features).map_err(|cause| {
            self.counters.host_fault(&cause);
            let device = self.id.clone();
            ActivateError::Host(HostFault {
                device,
                operation: HostOperation::SetOffload,
                cause,
            })
        })?;
        // A tap may have come back; a network in user space has not.
        self.is_gone = is_gone || (self.is_gone && matches!(self.backend, Backend::Stream(_)));
        let [receive, transmit] = env.into_rings(&self.id, &self.counters)?;
        let receiver = Receiver::new(receive, acked_features);
        let transmitter = Transmitter::new(transmit, acked_features);
        self.active = Some(Active {
            receiver,
            transmitter,
        });
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
        let Some(Active {
            receiver,
            transmitter,
        }) = self.active.take()
        else {
            return Vec::new();
        };
        self.settle_watch();
        vec![receiver.into_queue(), transmitter.into_queue()]
    }

    fn process_queue(&mut self, index: usize) -> Result<Progress, HostFault> {
        if index == RECEIVE_QUEUE {
            self.more_since = None;
        }
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
            Backend::Stream(stream) if stream.has_unsent() => self.transmit(),
            _ => Ok(Progress::Done),
        };
        let received = match &self.backend {
            Backend::Tap(_) => self.receive(),
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

    fn save(&self) -> DeviceState {
        DeviceState::Net(NetStateV1 {
            mac: self.mac.bytes(),
            mtu: self.mtu,
        })
    }
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
mod tests;
