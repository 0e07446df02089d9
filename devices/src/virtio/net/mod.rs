//! The network card (virtio 1.2 §5.1): a tap of the host as the guest's Ethernet card, and the way to the metadata service
//! if the guest may ask it.

mod config;
mod frame;
mod receive;
pub mod state;
mod tap;
mod transmit;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

use virtio_queue::Queue;

pub use self::config::{MTU_MIN, MacAddress, ParseMacError, feature};
pub use self::state::NetStateV1;
pub use self::tap::{OpenTapError, Tap};

use self::receive::{Given, Receiver};
use self::transmit::Transmitter;
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
    pub tap: Tap,
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
    tap: Tap,
    /// The tap was deleted, or broke: it is not watched until a frame can be sent again.
    is_tap_gone: bool,
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
        let NetOptions { id, tap, mac, mtu } = options;
        let config = config::config_space(mac, mtu);
        let counters = Arc::default();
        Self {
            id,
            mac,
            mtu,
            config,
            tap,
            is_tap_gone: false,
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

    /// A network card as it was saved, on a tap that the caller has found for it; idle.
    ///
    /// # Errors
    /// [`RestoreDeviceError::Mac`], [`RestoreDeviceError::Mtu`].
    pub fn from_state(
        id: String,
        state: &NetStateV1,
        tap: Tap,
    ) -> Result<Self, RestoreDeviceError> {
        let (mac, mtu) = state.check(&id)?;
        Ok(Self::new(NetOptions { id, tap, mac, mtu }))
    }

    /// Address that the guest is told.
    #[must_use]
    pub const fn mac(&self) -> MacAddress {
        self.mac
    }

    /// The host's side.
    #[must_use]
    pub const fn tap(&self) -> &Tap {
        &self.tap
    }

    /// Changes what the guest may receive and send, also while at work.
    pub fn change_limits(&mut self, receive: LimiterOptions, transmit: LimiterOptions) {
        self.receive_limiter.change(receive);
        self.transmit_limiter.change(transmit);
    }

    /// Tells the tap what the guest has accepted. True if the tap has been deleted: the guest then has a card without
    /// a cable.
    fn settle_offload(&mut self, acked_features: u64) -> io::Result<bool> {
        match self.tap.set_offload(acked_features) {
            Err(cause) if cause.raw_os_error() == Some(libc::EBADFD) => Ok(true),
            result => result.map(|()| false),
        }
    }

    fn transmit(&mut self) -> Progress {
        let Some(active) = &mut self.active else {
            return Progress::Done;
        };
        let detour = self.metadata.as_mut().map(|metadata| &mut metadata.detour);
        let turn = active.transmitter.serve_turn(
            self.tap.as_fd(),
            &self.counters,
            &mut self.transmit_limiter,
            detour,
        );
        // It works again: it was only away.
        self.is_tap_gone &= !turn.has_sent;
        self.serve_metadata();
        turn.progress
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
        config::features(self.mtu)
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
        self.is_tap_gone = self.settle_offload(acked_features).map_err(|cause| {
            self.counters.host_fault(&cause);
            let device = self.id.clone();
            ActivateError::Host(HostFault {
                device,
                operation: HostOperation::SetOffload,
                cause,
            })
        })?;
        let [receive, transmit] = env.into_rings(&self.id, &self.counters)?;
        let receiver = Receiver::new(receive, acked_features);
        let transmitter = Transmitter::new(transmit, acked_features);
        self.active = Some(Active {
            receiver,
            transmitter,
        });
        Ok(())
    }

    /// Frames are sent or received whole within a call: none waits for the host.
    fn finish(&mut self, _gives_up: &dyn Fn() -> bool) {}

    fn deactivate(&mut self) -> Vec<Queue> {
        // Frames are sent or received whole within a call, so none is under way here.
        self.receive_limiter.forget_wait();
        self.transmit_limiter.forget_wait();
        let Some(Active {
            receiver,
            transmitter,
        }) = self.active.take()
        else {
            return Vec::new();
        };
        vec![receiver.into_queue(), transmitter.into_queue()]
    }

    fn process_queue(&mut self, index: usize) -> Result<Progress, HostFault> {
        match (index, &mut self.active) {
            (RECEIVE_QUEUE, Some(active)) => {
                active.receiver.buffers_came();
                // Looks again, when the wait is over.
                let _ = self.receive_limiter.is_blocked();
                self.serve_metadata();
                Ok(Progress::Done)
            }
            (TRANSMIT_QUEUE, Some(_)) => Ok(self.transmit()),
            _ => Ok(Progress::Done),
        }
    }

    fn backend_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.tap.as_fd())
    }

    fn wants_backend(&self) -> bool {
        let has_buffers = self
            .active
            .as_ref()
            .is_some_and(|active| active.receiver.has_buffers());
        has_buffers && !self.is_tap_gone && self.receive_limiter.blocked_until().is_none()
    }

    fn process_backend(&mut self) -> Result<(), HostFault> {
        let Some(active) = &mut self.active else {
            return Ok(());
        };
        active
            .receiver
            .serve_turn(self.tap.as_fd(), &self.counters, &mut self.receive_limiter)
            .map_err(|cause| {
                self.is_tap_gone = true;
                self.counters.host_fault(&cause);
                let device = self.id.clone();
                HostFault {
                    device,
                    operation: HostOperation::ReceiveFrame,
                    cause,
                }
            })
    }

    fn wake_at(&self) -> Option<Instant> {
        let (receive, transmit) = (&self.receive_limiter, &self.transmit_limiter);
        let metadata = self.metadata.as_ref().filter(|_| self.active.is_some());
        let waits = [
            receive.blocked_until(),
            transmit.blocked_until(),
            metadata.and_then(|metadata| metadata.serve_by),
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
