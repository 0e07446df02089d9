//! A network device as smoltcp wants it.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::cell::RefCell;

use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;
use virtio_drivers::Error;
use virtio_drivers::device::net::VirtIONetRaw;

use crate::batched::{Batched, Doorbell};
use crate::virtio::Identity;

/// Buffers in each direction.
const QUEUE_SIZE: usize = 32;
/// `virtio_net_hdr` with `num_buffers` (virtio 1.2 §5.1.6).
const HEADER_BYTES: usize = 12;
/// Ethernet header and 1500 bytes.
const FRAME_BYTES_MAX: usize = 1514;
/// Header and frame, rounded up.
const BUFFER_BYTES: usize = 2048;

type Buffer = [u8; BUFFER_BYTES];
type Driver = VirtIONetRaw<Identity, Batched, QUEUE_SIZE>;

/// The device, its driver and its buffers.
pub struct Nic(RefCell<Inner>);

struct Inner {
    driver: Driver,
    doorbell: Doorbell,
    /// Buffers lent to the device, by the token of their request.
    receiving: [Option<Box<Buffer>>; QUEUE_SIZE],
    sending: [Option<Box<Buffer>>; QUEUE_SIZE],
    #[expect(
        clippy::vec_box,
        reason = "a buffer that the device uses must not move"
    )]
    spare: Vec<Box<Buffer>>,
    dropped: u64,
}

impl Nic {
    /// Sets up the device and lends it buffers for receiving.
    pub fn new(transport: Batched) -> Result<Self, Error> {
        let doorbell = transport.doorbell();
        let mut inner = Inner {
            driver: Driver::new(transport)?,
            doorbell,
            receiving: [const { None }; QUEUE_SIZE],
            sending: [const { None }; QUEUE_SIZE],
            spare: Vec::new(),
            dropped: 0,
        };
        for _ in 0..QUEUE_SIZE {
            inner.lend(zeroed());
        }
        inner.doorbell.ring();
        Ok(Self(RefCell::new(inner)))
    }

    /// The device's hardware address.
    pub fn mac(&self) -> [u8; 6] {
        self.0.borrow().driver.mac_address()
    }

    /// Tells the device of all frames sent and buffers lent since the last time.
    pub fn notify(&self) {
        self.0.borrow().doorbell.ring();
    }

    /// Acknowledges interrupts. Look for frames once more before going to sleep.
    pub fn acknowledge(&self) {
        self.0.borrow_mut().driver.ack_interrupt();
    }

    /// A frame has come, or a buffer has been sent and can be used again while all are in use.
    pub fn has_frame(&self) -> bool {
        self.0.borrow().driver.poll_receive().is_some()
    }
}

fn zeroed() -> Box<Buffer> {
    // SAFETY: all bytes zero is a valid array of bytes.
    unsafe { Box::new_zeroed().assume_init() }
}

impl Inner {
    /// Lends the device a buffer for receiving.
    fn lend(&mut self, mut buffer: Box<Buffer>) {
        // SAFETY: the buffer is kept in `receiving` until the device gives the token back.
        match unsafe { self.driver.receive_begin(&mut buffer[..]) } {
            Ok(token) => self.receiving[usize::from(token)] = Some(buffer),
            Err(_) => self.spare.push(buffer),
        }
    }

    /// A received frame: the buffer, and the length of the frame after the header.
    fn received(&mut self) -> Option<(Box<Buffer>, usize)> {
        let token = self.driver.poll_receive()?;
        let mut buffer = self.receiving.get_mut(usize::from(token))?.take()?;
        // SAFETY: the buffer of this token.
        match unsafe { self.driver.receive_complete(token, &mut buffer[..]) } {
            Ok((_, len)) => Some((buffer, len.min(BUFFER_BYTES - HEADER_BYTES))),
            Err(_) => {
                self.dropped += 1;
                self.lend(buffer);
                None
            }
        }
    }

    /// Takes back the buffers that have been sent.
    fn reclaim(&mut self) {
        while let Some(token) = self.driver.poll_transmit() {
            let Some(buffer) = self
                .sending
                .get_mut(usize::from(token))
                .and_then(Option::take)
            else {
                return;
            };
            // SAFETY: the buffer of this token.
            if unsafe { self.driver.transmit_complete(token, &buffer[..]) }.is_err() {
                self.dropped += 1;
            }
            self.spare.push(buffer);
        }
    }

    /// A buffer can be sent now.
    fn can_send(&mut self) -> bool {
        self.reclaim();
        self.driver.can_send()
    }

    /// Sends `len` bytes after the header. The driver copies only descriptors, so the buffer stays where it is.
    fn send(&mut self, buffer: Box<Buffer>, len: usize) {
        // SAFETY: the buffer is kept in `sending` until the device gives the token back.
        match unsafe { self.driver.transmit_begin(&buffer[..HEADER_BYTES + len]) } {
            Ok(token) => self.sending[usize::from(token)] = Some(buffer),
            Err(_) => {
                self.dropped += 1;
                self.spare.push(buffer);
            }
        }
    }
}

/// A received frame.
pub struct Received<'a> {
    nic: &'a RefCell<Inner>,
    buffer: Box<Buffer>,
    len: usize,
}

/// Leave to send one frame.
pub struct Sending<'a>(&'a RefCell<Inner>);

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        let result = f(&self.buffer[HEADER_BYTES..HEADER_BYTES + self.len]);
        self.nic.borrow_mut().lend(self.buffer);
        result
    }
}

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut buffer = self.0.borrow_mut().spare.pop().unwrap_or_else(zeroed);
        buffer[..HEADER_BYTES].fill(0);
        let result = f(&mut buffer[HEADER_BYTES..HEADER_BYTES + len]);
        self.0.borrow_mut().send(buffer, len);
        result
    }
}

impl Device for Nic {
    type RxToken<'a> = Received<'a>;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received<'_>, Sending<'_>)> {
        let inner = self.0.get_mut();
        if !inner.can_send() {
            return None;
        }
        let (buffer, len) = inner.received()?;
        Some((
            Received {
                nic: &self.0,
                buffer,
                len,
            },
            Sending(&self.0),
        ))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sending<'_>> {
        self.0.get_mut().can_send().then_some(Sending(&self.0))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = FRAME_BYTES_MAX;
        capabilities.max_burst_size = Some(QUEUE_SIZE);
        capabilities
    }
}
