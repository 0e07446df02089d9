//! The virtio device trait and its lifecycle.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use virtio_queue::Queue;

use crate::counters::Counters;
use crate::fault::{ActivateError, HostFault};
use crate::interrupt::Interrupt;
use crate::memory::GuestMem;
use crate::state::DeviceState;
use crate::virtio::live_config::LiveConfig;
use crate::virtio::ring::{Ring, RingContext};

/// What a device is (virtio 1.2 §5): the number that the guest reads as its device id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeviceKind {
    /// Network card (§5.1).
    Net,
    /// Block device (§5.2).
    Block,
    /// Console (§5.3).
    Console,
    /// Entropy source (§5.4).
    Entropy,
    /// Memory balloon (§5.5).
    Balloon,
    /// Sockets between guest and host (§5.10).
    Vsock,
}

impl DeviceKind {
    /// The number that the guest reads.
    #[must_use]
    pub const fn id(self) -> u32 {
        match self {
            Self::Net => 1,
            Self::Block => 2,
            Self::Console => 3,
            Self::Entropy => 4,
            Self::Balloon => 5,
            Self::Vsock => 19,
        }
    }
}

/// What a device needs to work: everything that the driver has settled before DRIVER_OK.
#[derive(Debug)]
pub struct Activation {
    /// Guest RAM.
    pub mem: Arc<GuestMem>,
    /// The queues, in index order, checked against RAM. A queue that the driver left unused is not ready.
    pub queues: Vec<Queue>,
    /// Raises the device's interrupt.
    pub interrupt: Interrupt,
    /// Feature bits that the driver accepted: a subset of [`VirtioDevice::features`].
    pub acked_features: u64,
}

impl Activation {
    /// The queues at work.
    pub(crate) fn into_rings<const QUEUES: usize>(
        self,
        device: &str,
        counters: &Arc<Counters>,
    ) -> Result<[Ring; QUEUES], ActivateError> {
        let rings = self.into_ring_list(device, counters, QUEUES)?;
        let found = rings.len();
        <[Ring; QUEUES]>::try_from(rings).map_err(|_| ActivateError::QueueCount {
            device: device.to_owned(),
            expected: QUEUES,
            found,
        })
    }

    /// The queues at work, of a device whose features decide how many there are.
    pub(crate) fn into_ring_list(
        self,
        device: &str,
        counters: &Arc<Counters>,
        expected: usize,
    ) -> Result<Vec<Ring>, ActivateError> {
        let found = self.queues.len();
        if found != expected {
            let device = device.to_owned();
            return Err(ActivateError::QueueCount {
                device,
                expected,
                found,
            });
        }
        let context = RingContext {
            mem: self.mem,
            interrupt: self.interrupt,
            counters: Arc::clone(counters),
            acked_features: self.acked_features,
        };
        let queues = self.queues.into_iter();
        Ok(queues
            .map(|queue| Ring::new(queue, context.clone()))
            .collect())
    }
}

/// Whether a device has served all that waited for it.
#[must_use = "a device with more to do is not notified again: its queue has to be processed once more"]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Nothing waits any more; the next notification brings the next work.
    Done,
    /// It stopped at its limit for one turn: others are served, then the same queue again, without a notification.
    More,
}

/// What a device has that can be seen without a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sight {
    /// Buffers in a queue, for [`VirtioDevice::process_queue`].
    Queue(usize),
    /// What the host has done, for [`VirtioDevice::process_backend`].
    Backend,
}

/// A virtio device behind any transport.
///
/// ```text
///          activate                 deactivate
///   Idle ------------> Active ------------------> Idle        (save: Idle only)
/// ```
///
/// The transport owns nothing of the device: queues move in by [`activate`](Self::activate) and come back by
/// [`deactivate`](Self::deactivate). All methods are called from one thread, the control loop.
pub trait VirtioDevice: Send + fmt::Debug {
    /// Its id in the VM's configuration.
    fn id(&self) -> &str;

    /// What it counts.
    fn counters(&self) -> &Arc<Counters>;

    /// What it is.
    fn kind(&self) -> DeviceKind;

    /// Feature bits offered, `VIRTIO_F_VERSION_1` included.
    fn features(&self) -> u64;

    /// The largest size of each queue, a power of two.
    fn queue_sizes(&self) -> &[u16];

    /// Device-specific configuration, little-endian (virtio 1.2 §5.x.4). Reads past the end give zeros.
    fn config(&self) -> &[u8];

    /// In place of [`config`](Self::config), for a device whose configuration changes while its driver works, or is written
    /// by it. Most have none.
    fn live_config(&self) -> Option<&Arc<LiveConfig>> {
        None
    }

    /// Takes `env.queues` to work on. What already waits in them is served when the caller processes each queue once
    /// ([`rung`](Self::rung), [`process_queue`](Self::process_queue)), as it does after a notification: in bounded turns.
    ///
    /// # Errors
    /// The device stays idle and the transport sets DEVICE_NEEDS_RESET (virtio 1.2 §2.1).
    fn activate(&mut self, env: Activation) -> Result<(), ActivateError>;

    /// Carries out all that the driver has asked for so far and that waits for the host, however long that takes: before
    /// the machine is saved or ends. `gives_up` is asked now and then; once true, the rest is left to
    /// [`deactivate`](Self::deactivate).
    fn finish(&mut self, gives_up: &dyn Fn() -> bool);

    /// Finishes or cancels all I/O, then returns the queues in index order. Must not fail. An idle device returns
    /// none.
    fn deactivate(&mut self) -> Vec<Queue>;

    /// The driver has put buffers into queue `index`. An idle device, or an index without a queue, does nothing.
    ///
    /// Serves a bounded number of requests; see [`Progress`].
    ///
    /// # Errors
    /// Only failures of the host; what a guest does wrong ends as a status byte or DEVICE_NEEDS_RESET.
    fn process_queue(&mut self, index: usize) -> Result<Progress, HostFault>;

    /// A descriptor that becomes readable when the host side has something for the guest (a tap), level-triggered.
    fn backend_fd(&self) -> Option<BorrowedFd<'_>>;

    /// Whether [`backend_fd`](Self::backend_fd) is to be watched now: not while idle, nor while the guest has given
    /// no buffers to put the data in, nor when the host side is gone. To be asked after every other call.
    ///
    /// Not to be watched means out of the epoll set: a descriptor in it always reports EPOLLERR.
    fn wants_backend(&self) -> bool;

    /// [`backend_fd`](Self::backend_fd) is readable. Serves a bounded number of frames; the descriptor stays readable
    /// while there are more.
    ///
    /// # Errors
    /// As for [`process_queue`](Self::process_queue).
    fn process_backend(&mut self) -> Result<(), HostFault>;

    /// When all queues are to be processed without a notification: a rate limiter holds something up until then, a turn was
    /// not enough, or a time that a protocol sets has come. To be asked after every other call. It stays until
    /// [`rung`](Self::rung), whatever is processed meanwhile.
    fn wake_at(&self) -> Option<Instant> {
        None
    }

    /// Whether the host works on something that the driver has asked for, and that it is told of by
    /// [`backend_fd`](Self::backend_fd). False for a device at which there is nothing to [`look`](Self::look).
    fn is_under_way(&self) -> bool {
        false
    }

    /// All queues are about to be processed, without a notification: what [`wake_at`](Self::wake_at) has told is forgotten, as far as
    /// its time has come. Nowhere else is it: a queue that is processed by itself says nothing of what waits in another.
    fn rung(&mut self) {}

    /// The caller is going to [`look`](Self::look) instead of waiting to be notified: the driver need not do so. False for a device
    /// at which there is nothing to look.
    fn begin_looking(&mut self) -> bool {
        false
    }

    /// Tells `found` of all that could be served now, by what is in memory alone.
    fn look(&mut self, _found: &mut dyn FnMut(Sight)) {}

    /// The caller is going to wait: asks the driver to notify again. The caller looks once more, for what has come meanwhile.
    fn end_looking(&mut self) {}

    /// What a snapshot keeps of the device, its queues apart. Called while idle.
    fn save(&self) -> DeviceState;
}
