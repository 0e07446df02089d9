//! What the control loop is told by the vCPUs: a closed list.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use virtio_queue::Queue;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::arch::VcpuId;
use crate::orders::{Order, OrderReply};
use crate::snapshot::vcpu_state::{VcpuStateError, VcpuStateV1};

/// Why a vCPU will not run any more, and with it the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopReason {
    /// The guest gave its exit status by the control device.
    GuestExit(u8),
    /// The guest rang `PANIC`, or said by pvpanic or a KVM system event that it panics.
    GuestPanic,
    /// The guest asked for a reset (i8042, which is ACPI's reset register too), or for power-off or reset by a KVM system
    /// event.
    Reset,
    /// The guest asked for power-off by ACPI's sleep control register.
    PowerOff,
    /// The CPU shut down: a triple fault.
    TripleFault {
        /// Registers, in words.
        registers: String,
    },
    /// KVM cannot go on.
    KvmError {
        /// What happened, with registers and instruction bytes where they are known.
        text: String,
    },
}

/// What a vCPU thread asks of the device that the loop owns. The vCPU waits for the answer.
#[derive(Debug)]
pub enum DeviceCall {
    /// DRIVER_OK: the device gets its queues. The answer is whether it took them.
    Activate {
        /// The queues, in index order.
        queues: Vec<Queue>,
        /// Features that the driver accepted.
        acked_features: u64,
        /// Where the answer goes.
        reply: Sender<bool>,
    },
    /// Reset: the device gives its queues back before the answer.
    Reset {
        /// Where the answer goes.
        reply: Sender<bool>,
    },
}

/// What a vCPU tells the loop.
#[derive(Debug)]
pub enum Event {
    /// The guest rang `READY` while a save was wanted there; the vCPU is about to park.
    Ready,
    /// The vCPU is out of the guest, its last exit completed, and waits for a command.
    Parked(VcpuId),
    /// The vCPU's state, as asked for.
    Captured(VcpuId, Result<Box<VcpuStateV1>, VcpuStateError>),
    /// The vCPU will not run any more.
    Stopped(VcpuId, StopReason),
    /// A call to the device with this place in the device set.
    Device(usize, DeviceCall),
    /// The guest has given out its first byte, and a report of the start is wanted.
    FirstOutput,
    /// The REST API wants something.
    Order(Order, OrderReply),
}

/// The vCPUs' end of the loop's channel.
#[derive(Debug, Clone)]
pub struct EventSender {
    channel: Sender<Event>,
    wake: Arc<EventFd>,
}

/// The loop's end.
#[derive(Debug)]
pub struct EventReceiver {
    channel: Receiver<Event>,
    wake: Arc<EventFd>,
}

/// A new channel; the receiver has a descriptor for epoll.
///
/// # Errors
/// The kernel's, when there are no descriptors left.
pub fn event_channel() -> io::Result<(EventSender, EventReceiver)> {
    let (sender, receiver) = channel();
    let wake = Arc::new(EventFd::new(EFD_NONBLOCK)?);
    let sender = EventSender {
        channel: sender,
        wake: Arc::clone(&wake),
    };
    Ok((
        sender,
        EventReceiver {
            channel: receiver,
            wake,
        },
    ))
}

impl EventSender {
    /// Tells the loop. A loop that has ended is no error: the process is about to end too.
    pub fn send(&self, event: Event) {
        if self.channel.send(event).is_ok() {
            // Fails only when the counter is full, and then the loop is awake anyway.
            let _ = self.wake.write(1);
        }
    }
}

impl EventReceiver {
    /// The descriptor that becomes readable with the first event.
    #[must_use]
    pub fn wake_fd(&self) -> &EventFd {
        &self.wake
    }

    /// The next event, without waiting.
    #[must_use]
    pub fn next(&self) -> Option<Event> {
        self.channel.try_recv().ok()
    }

    /// Makes the descriptor readable again: there may be more.
    pub fn wake(&self) {
        // Fails only when the counter is full, and then it is readable.
        let _ = self.wake.write(1);
    }

    /// Clears the descriptor; events that come later set it again.
    pub fn clear(&self) {
        let _ = self.wake.read();
    }
}
