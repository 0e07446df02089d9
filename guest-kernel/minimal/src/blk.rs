//! A block device: one request at a time, sleeping until it is done.

use virtio_drivers::Error;
use virtio_drivers::device::blk::{BlkReq, BlkResp, VirtIOBlk};
use virtio_drivers::transport::mmio::MmioTransport;

use crate::patience::Patience;
use crate::shim;
use crate::virtio::Identity;

/// Bytes of a sector, the unit of addresses (virtio 1.2 §5.2.4).
pub const SECTOR_BYTES: usize = 512;

/// The device and its driver.
pub struct Disk {
    driver: VirtIOBlk<Identity, MmioTransport<'static>>,
    patience: Patience,
}

impl Disk {
    /// Sets up the device.
    pub fn new(transport: MmioTransport<'static>) -> Result<Self, Error> {
        Ok(Self {
            driver: VirtIOBlk::new(transport)?,
            patience: Patience::new(),
        })
    }

    /// Size in sectors.
    pub fn capacity_sectors(&self) -> u64 {
        self.driver.capacity()
    }

    /// The device says that it cannot be written.
    pub fn read_only(&self) -> bool {
        self.driver.readonly()
    }

    /// Name of the device.
    pub fn id(&mut self, id: &mut [u8; 20]) -> Result<usize, Error> {
        self.driver.device_id(id)
    }

    /// Waits until everything written before is on the disk.
    pub fn flush(&mut self) -> Result<(), Error> {
        self.driver.flush()
    }

    /// Reads whole sectors from `sector` on.
    pub fn read(&mut self, sector: usize, data: &mut [u8]) -> Result<(), Error> {
        let (mut request, mut response) = (BlkReq::default(), BlkResp::default());
        // SAFETY: request, data and response are not touched until complete_read_blocks below, before they go away.
        let token = unsafe {
            self.driver
                .read_blocks_nb(sector, &mut request, data, &mut response)
        }?;
        self.wait();
        // SAFETY: the buffers of this token.
        unsafe {
            self.driver
                .complete_read_blocks(token, &request, data, &mut response)
        }
    }

    /// Writes whole sectors from `sector` on.
    pub fn write(&mut self, sector: usize, data: &[u8]) -> Result<(), Error> {
        let (mut request, mut response) = (BlkReq::default(), BlkResp::default());
        // SAFETY: request, data and response are not touched until complete_write_blocks below, before they go away.
        let token = unsafe {
            self.driver
                .write_blocks_nb(sector, &mut request, data, &mut response)
        }?;
        self.wait();
        // SAFETY: the buffers of this token.
        unsafe {
            self.driver
                .complete_write_blocks(token, &request, data, &mut response)
        }
    }

    /// Until the one request in flight is done.
    fn wait(&mut self) {
        let driver = &mut self.driver;
        while !self.patience.look(|| driver.peek_used().is_some()) {
            // Acknowledge before looking once more: an interrupt from now on ends the sleep.
            driver.ack_interrupt();
            if driver.peek_used().is_none() {
                shim::wait();
                self.patience.note_sleep();
            }
        }
    }
}
