//! A virtio-mmio transport that rings a queue's doorbell once for many requests.
//!
//! A notification leaves the guest: 4 to 50 µs, against about 2 µs for all else that a frame costs here. The drivers of
//! `virtio-drivers` notify after each request, so this transport only notes that, and [`Doorbell::ring`] does it.
//!
//! `VIRTIO_F_EVENT_IDX` is hidden from a driver whose notifications are collected: with it the queues of `virtio-drivers` notify for
//! each request, whatever the device wants, and cannot do without interrupts while they are polled.
//!
//! Of a driver that waits for the device after a notification, it rings at once, and can have the CPU sleep meanwhile ([`Nap`]).

use alloc::rc::Rc;
use core::cell::Cell;

use virtio_drivers::transport::mmio::MmioTransport;
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{PhysAddr, Result};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::mmio::Window;
use crate::shim;

/// `QueueNotify` (virtio 1.2 §4.2.2).
const QUEUE_NOTIFY: usize = 0x050;
const INTERRUPT_STATUS: usize = 0x060;
const INTERRUPT_ACK: usize = 0x064;
/// `VIRTIO_F_EVENT_IDX` (virtio 1.2 §6).
const FEATURE_EVENT_IDX: u64 = 1 << 29;
/// Queues that a device may have here: the bits of [`Doorbell::due`].
const QUEUES_MAX: u16 = 32;

/// The notifications that are due.
#[derive(Clone)]
pub struct Doorbell {
    registers: Window,
    /// A bit for each queue.
    due: Rc<Cell<u32>>,
}

impl Doorbell {
    /// Notifies the device of every queue that has new requests.
    pub fn ring(&self) {
        let due = self.due.take();
        if due == 0 {
            return;
        }
        for queue in (0..QUEUES_MAX).filter(|queue| due & 1 << queue != 0) {
            self.registers.write(QUEUE_NOTIFY, u32::from(queue));
        }
    }
}

/// What is done after a notification by whose answer the driver goes on. It looks for it again and again: on a host whose CPUs are
/// all taken, that time is taken from the device.
#[derive(Clone)]
pub struct Nap {
    queue: u16,
    is_wanted: Rc<Cell<bool>>,
}

impl Nap {
    /// Has the CPU sleep from the next notification on, until the device's interrupt.
    pub fn begin(&self) {
        self.is_wanted.set(true);
    }
}

/// The transport.
pub struct Batched {
    inner: MmioTransport<'static>,
    doorbell: Doorbell,
    /// Features that the driver does not know of, and that its user has accepted.
    accepted: u64,
    /// Of a driver that waits.
    nap: Option<Nap>,
}

impl Batched {
    /// Wraps the transport of the device whose registers are at `registers`.
    pub fn new(inner: MmioTransport<'static>, registers: Window) -> Self {
        Self {
            inner,
            doorbell: Doorbell {
                registers,
                due: Rc::default(),
            },
            accepted: 0,
            nap: None,
        }
    }

    /// The same for a driver that waits for the device after each request of `queue`. Gives what has the CPU sleep then.
    pub fn waiting(inner: MmioTransport<'static>, registers: Window, queue: u16) -> (Self, Nap) {
        let nap = Nap {
            queue,
            is_wanted: Rc::default(),
        };
        let transport = Self {
            nap: Some(nap.clone()),
            ..Self::new(inner, registers)
        };
        (transport, nap)
    }

    /// Accepts features that the driver does not know of, besides what it accepts later. True if the device offers them.
    pub fn accept(&mut self, features: u64) -> bool {
        let offers = self.inner.read_device_features() & features == features;
        if offers {
            self.accepted |= features;
        }
        offers
    }

    /// What rings for the queues of this transport.
    pub fn doorbell(&self) -> Doorbell {
        self.doorbell.clone()
    }
}

impl Transport for Batched {
    fn notify(&mut self, queue: u16) {
        debug_assert!(queue < QUEUES_MAX);
        let due = &self.doorbell.due;
        due.set(due.get() | 1 << queue);
        let Some(nap) = &self.nap else {
            return;
        };
        let sleeps = nap.queue == queue && nap.is_wanted.get();
        if sleeps {
            let registers = self.doorbell.registers;
            let status: u32 = registers.read(INTERRUPT_STATUS);
            registers.write(INTERRUPT_ACK, status);
        }
        self.doorbell.ring();
        if sleeps {
            // What woke it may be something else: the driver looks.
            shim::wait();
        }
    }

    fn device_type(&self) -> DeviceType {
        self.inner.device_type()
    }

    fn read_device_features(&mut self) -> u64 {
        let features = self.inner.read_device_features();
        match self.nap {
            Some(_) => features,
            None => features & !FEATURE_EVENT_IDX,
        }
    }

    fn write_driver_features(&mut self, driver_features: u64) {
        self.inner
            .write_driver_features(driver_features | self.accepted);
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.inner.max_queue_size(queue)
    }

    fn get_status(&self) -> DeviceStatus {
        self.inner.get_status()
    }

    fn set_status(&mut self, status: DeviceStatus) {
        self.inner.set_status(status);
    }

    fn set_guest_page_size(&mut self, guest_page_size: u32) {
        self.inner.set_guest_page_size(guest_page_size);
    }

    fn requires_legacy_layout(&self) -> bool {
        self.inner.requires_legacy_layout()
    }

    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver_area: PhysAddr,
        device_area: PhysAddr,
    ) {
        self.inner
            .queue_set(queue, size, descriptors, driver_area, device_area);
    }

    fn queue_unset(&mut self, queue: u16) {
        self.inner.queue_unset(queue);
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.inner.queue_used(queue)
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        self.inner.ack_interrupt()
    }

    fn read_config_generation(&self) -> u32 {
        self.inner.read_config_generation()
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T> {
        self.inner.read_config_space(offset)
    }

    fn write_config_space<T: IntoBytes + Immutable>(
        &mut self,
        offset: usize,
        value: T,
    ) -> Result<()> {
        self.inner.write_config_space(offset, value)
    }
}
