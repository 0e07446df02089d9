//! A virtio-mmio transport that can have the CPU sleep after a notification.
//!
//! It is for a driver that waits for the device after each request, and looks for its answer again and again: on a host whose CPUs are
//! all taken, that time is taken from the device.

use alloc::rc::Rc;
use core::cell::Cell;

use virtio_drivers::transport::mmio::MmioTransport;
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{PhysAddr, Result};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::shim;

/// Whether the CPU sleeps after a notification.
#[derive(Clone, Default)]
pub struct Nap(Rc<Cell<bool>>);

impl Nap {
    /// Has the CPU sleep from the next notification on, until the device's interrupt.
    pub fn begin(&self) {
        self.0.set(true);
    }
}

/// The transport.
pub struct Napping {
    inner: MmioTransport<'static>,
    /// The queue by whose notifications the CPU sleeps.
    queue: u16,
    nap: Nap,
}

impl Napping {
    /// Wraps a transport. Gives what has the CPU sleep after a notification of `queue`.
    pub fn new(inner: MmioTransport<'static>, queue: u16) -> (Self, Nap) {
        let nap = Nap::default();
        let transport = Self {
            inner,
            queue,
            nap: nap.clone(),
        };
        (transport, nap)
    }
}

impl Transport for Napping {
    fn notify(&mut self, queue: u16) {
        let sleeps = self.queue == queue && self.nap.0.get();
        if sleeps {
            self.inner.ack_interrupt();
        }
        self.inner.notify(queue);
        if sleeps {
            // What woke it may be something else: the driver looks.
            shim::wait();
        }
    }

    fn device_type(&self) -> DeviceType {
        self.inner.device_type()
    }

    fn read_device_features(&mut self) -> u64 {
        self.inner.read_device_features()
    }

    fn write_driver_features(&mut self, driver_features: u64) {
        self.inner.write_driver_features(driver_features);
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
