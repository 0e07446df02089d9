//! A block device: one request at a time, sleeping until it is done.

use virtio_drivers::Error;
use virtio_drivers::device::blk::{BlkReq, BlkResp, VirtIOBlk};
use virtio_drivers::transport::mmio::MmioTransport;

use crate::shim;
use crate::time;
use crate::virtio::Identity;

/// Bytes of a sector, the unit of addresses (virtio 1.2 §5.2.4).
pub const SECTOR_BYTES: usize = 512;
/// How long a request is polled for before the CPU sleeps, in time stamp counter ticks: about 40 µs. Going to sleep and
/// waking costs 20 µs on software KVM.
const POLL_TICKS: u64 = 100_000;

/// The device and its driver.
pub struct Disk(VirtIOBlk<Identity, MmioTransport<'static>>);

impl Disk {
    /// Sets up the device.
    pub fn new(transport: MmioTransport<'static>) -> Result<Self, Error> {
        VirtIOBlk::new(transport).map(Self)
    }

    /// Size in sectors.
    pub fn capacity_sectors(&self) -> u64 {
        self.0.capacity()
    }

    /// The device says that it cannot be written.
    pub fn read_only(&self) -> bool {
        self.0.readonly()
    }

    /// Name of the device.
    pub fn id(&mut self, id: &mut [u8; 20]) -> Result<usize, Error> {
        self.0.device_id(id)
    }

    /// Waits until everything written before is on the disk.
    pub fn flush(&mut self) -> Result<(), Error> {
        self.0.flush()
    }

    /// Reads whole sectors from `sector` on.
    pub fn read(&mut self, sector: usize, data: &mut [u8]) -> Result<(), Error> {
        let (mut request, mut response) = (BlkReq::default(), BlkResp::default());
        // SAFETY: request, data and response are not touched until complete_read_blocks below, before they go away.
        let token = unsafe {
            self.0
                .read_blocks_nb(sector, &mut request, data, &mut response)
        }?;
        self.wait();
        // SAFETY: the buffers of this token.
        unsafe {
            self.0
                .complete_read_blocks(token, &request, data, &mut response)
        }
    }

    /// Writes whole sectors from `sector` on.
    pub fn write(&mut self, sector: usize, data: &[u8]) -> Result<(), Error> {
        let (mut request, mut response) = (BlkReq::default(), BlkResp::default());
        // SAFETY: request, data and response are not touched until complete_write_blocks below, before they go away.
        let token = unsafe {
            self.0
                .write_blocks_nb(sector, &mut request, data, &mut response)
        }?;
        self.wait();
        // SAFETY: the buffers of this token.
        unsafe {
            self.0
                .complete_write_blocks(token, &request, data, &mut response)
        }
    }

    /// Until the one request in flight is done.
    fn wait(&mut self) {
        let start = time::ticks();
        while self.0.peek_used().is_none() {
            if time::ticks().saturating_sub(start) < POLL_TICKS {
                core::hint::spin_loop();
                continue;
            }
            // Acknowledge before looking once more: an interrupt from now on ends the sleep.
            self.0.ack_interrupt();
            if self.0.peek_used().is_none() {
                shim::wait();
            }
        }
    }
}
