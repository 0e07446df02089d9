//! Finding the virtio devices that the command line names, and giving their drivers memory.

use alloc::alloc::{alloc_zeroed, dealloc};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::alloc::Layout;
use core::ptr::NonNull;
use core::sync::atomic::{Ordering, fence};

use guest_text::cmdline::{Cmdline, MmioDevice};
use virtio_drivers::device::rng::VirtIORng;
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::mmio::MmioTransport;
use virtio_drivers::transport::{DeviceStatus, DeviceType, Transport};
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

use crate::apic;
use crate::balloon::Balloon;
use crate::blk::Disk;
use crate::boot::to_usize;
use crate::eprintln;
use crate::mmio::Window;
use crate::nic::{Nic, Work};
use crate::vsock::Sockets;

/// Physical addresses are virtual addresses, and all memory can be reached by devices.
#[derive(Debug)]
pub struct Identity;

/// From reset to FEATURES_OK (virtio 1.2 §3.1.1) with the features that `accept` takes of those offered. Gives them.
pub fn negotiate(transport: &mut impl Transport, accept: impl FnOnce(u64) -> u64) -> u64 {
    let begun = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER;
    transport.set_status(DeviceStatus::empty());
    transport.set_status(begun);
    let features = accept(transport.read_device_features());
    transport.write_driver_features(features);
    transport.set_status(begun | DeviceStatus::FEATURES_OK);
    features
}

/// Tells the device of what was added to queue `index`, unless it looks by itself. For queues without `VIRTIO_F_EVENT_IDX`.
pub fn ring<const SIZE: usize>(
    queue: &VirtQueue<Identity, SIZE>,
    transport: &mut impl Transport,
    index: u16,
) {
    // The device sees what was added, or its wish is seen here: that of a device that is about to wait. The queue has no such fence.
    fence(Ordering::SeqCst);
    if queue.should_notify() {
        transport.notify(index);
    }
}

fn pages_layout(pages: usize) -> Layout {
    Layout::from_size_align(pages * PAGE_SIZE, PAGE_SIZE).expect("a queue is a few pages")
}

// SAFETY: dma_alloc gives zeroed pages that nothing else uses, at the address it says, until dma_dealloc.
unsafe impl Hal for Identity {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        // SAFETY: queues are never of size 0.
        let start = unsafe { alloc_zeroed(pages_layout(pages)) };
        let start = NonNull::new(start).expect("RAM for a virtqueue");
        (start.as_ptr() as PhysAddr, start)
    }

    unsafe fn dma_dealloc(_: PhysAddr, start: NonNull<u8>, pages: usize) -> i32 {
        // SAFETY: the caller gives back what dma_alloc gave, with the same number of pages.
        unsafe { dealloc(start.as_ptr(), pages_layout(pages)) };
        0
    }

    unsafe fn mmio_phys_to_virt(address: PhysAddr, _: usize) -> NonNull<u8> {
        NonNull::new(to_usize(address) as *mut u8).expect("no device at address 0")
    }

    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        buffer.cast::<u8>().as_ptr() as PhysAddr
    }

    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}
}

/// The driver of an entropy device.
pub type Entropy = VirtIORng<Identity, MmioTransport<'static>>;

/// The devices there are, in the order of the command line. They live as long as the guest: dropping a driver would
/// reset its device, register by register.
#[derive(Default)]
pub struct Devices {
    /// Block devices.
    pub disks: Vec<&'static mut Disk>,
    /// Where their registers are.
    pub disk_places: Vec<MmioDevice>,
    /// The first network device.
    pub nic: Option<&'static mut Nic>,
    /// The memory balloon.
    pub balloon: Option<&'static mut Balloon>,
    /// The first source of randomness.
    pub entropy: Option<&'static mut Entropy>,
    /// The socket device.
    pub sockets: Option<&'static mut Sockets>,
}

impl Devices {
    /// Sets up the devices that `cmdline` names. One that does not work is reported and left out.
    pub fn find(cmdline: Cmdline<'_>) -> Self {
        let mut devices = Self::default();
        for place in cmdline.mmio_devices() {
            let header = NonNull::new(place.base as *mut _);
            // SAFETY: the command line says that a device's registers are there; nothing else uses them.
            let found = header.map(|header| unsafe { MmioTransport::new(header, place.len) });
            let Some(Ok(transport)) = found else { continue };
            if let Err(error) = devices.add(transport, place, cmdline) {
                eprintln!("virtio device at {:#x}: {error}", place.base);
            }
        }
        devices
    }

    fn add(
        &mut self,
        transport: MmioTransport<'static>,
        place: MmioDevice,
        cmdline: Cmdline<'_>,
    ) -> Result<(), virtio_drivers::Error> {
        // SAFETY: `find` has found the device's registers there; nothing else but its driver uses them.
        let registers = unsafe { Window::new(place.base, place.len) };
        match transport.device_type() {
            DeviceType::Block => {
                self.disks.push(leak(Disk::new(transport)?));
                self.disk_places.push(place);
            }
            DeviceType::Network if self.nic.is_none() => {
                let work = match cmdline.value("net.offload") {
                    Some("on") => Work::Offloaded,
                    _ => Work::Own,
                };
                self.nic = Some(leak(Nic::new(transport, work)?));
            }
            DeviceType::EntropySource if self.entropy.is_none() => {
                self.entropy = Some(leak(Entropy::new(transport)?));
            }
            DeviceType::MemoryBalloon if self.balloon.is_none() => {
                self.balloon = Some(leak(Balloon::new(transport)?));
            }
            DeviceType::Socket if self.sockets.is_none() => {
                self.sockets = Some(leak(Sockets::new(transport, registers)?));
            }
            // Dropping the transport resets the device.
            _ => return Ok(()),
        }
        if !apic::enable_line(place.line) {
            eprintln!(
                "virtio device at {:#x}: no interrupt line {}",
                place.base, place.line
            );
        }
        Ok(())
    }
}

fn leak<T>(driver: T) -> &'static mut T {
    Box::leak(Box::new(driver))
}
