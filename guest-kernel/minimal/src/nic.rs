//! A network device as smoltcp wants it.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::sync::atomic::{Ordering, fence};

use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;
use virtio_drivers::Error;
use virtio_drivers::device::net::VirtIONetRaw;
use virtio_drivers::transport::Transport as _;

use crate::batched::{Batched, Doorbell};
use crate::offload;
use crate::virtio::Identity;

/// Buffers in each direction.
const QUEUE_SIZE: usize = 32;
/// `virtio_net_hdr` with `num_buffers` (virtio 1.2 §5.1.6).
const HEADER_BYTES: usize = 12;
const ETHERNET_HEADER_BYTES: usize = 14;
/// Where the device tells none.
const MTU_DEFAULT: u16 = 1500;
/// `VIRTIO_NET_F_MTU` (virtio 1.2 §5.1.3).
const FEATURE_MTU: u64 = 1 << 3;
/// `mtu` in the configuration (virtio 1.2 §5.1.4).
const MTU_AT: usize = 10;
/// Of a peer that says less (RFC 9293 §3.7.1, for IPv4).
const SEGMENT_BYTES_MIN: u16 = 536;
/// Of buffers: a frame of the usual size with its header fits, and two of them fill a page.
const BUFFER_BYTES_MIN: usize = 2048;

type Buffer = [u8];
type Driver = VirtIONetRaw<Identity, Batched, QUEUE_SIZE>;

/// Who computes checksums and cuts TCP into segments.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// The TCP/IP stack.
    Own,
    /// The device, if it offers all of that. Buffers are then large, and so are frames.
    Offloaded,
}

/// The device, its driver and its buffers.
pub struct Nic(RefCell<Inner>);

struct Inner {
    driver: Driver,
    doorbell: Doorbell,
    /// Buffers lent to the device, by the token of their request.
    receiving: [Option<Box<Buffer>>; QUEUE_SIZE],
    sending: [Option<Box<Buffer>>; QUEUE_SIZE],
    spare: Vec<Box<Buffer>>,
    dropped: u64,
    /// Of the largest frame on the network, without the device's header.
    mtu_frame_bytes: usize,
    /// Of what is to be cut.
    cut: offload::Cut,
    /// See [`Work::Offloaded`].
    is_offloaded: bool,
    /// Of a buffer.
    buffer_bytes: usize,
}

impl Nic {
    /// Sets up the device and lends it buffers for receiving.
    pub fn new(mut transport: Batched, work: Work) -> Result<Self, Error> {
        let doorbell = transport.doorbell();
        let mtu = match transport.accept(FEATURE_MTU) {
            true => transport.read_config_space(MTU_AT)?,
            false => MTU_DEFAULT,
        };
        let is_offloaded = work == Work::Offloaded && transport.accept(offload::FEATURES);
        let cuts_datagrams = is_offloaded && transport.accept(offload::DATAGRAMS);
        let cut = offload::Cut {
            segment_bytes: mtu.saturating_sub(offload::SEGMENT_HEADERS_BYTES),
            datagram_bytes: cuts_datagrams
                .then(|| mtu.saturating_sub(offload::DATAGRAM_HEADERS_BYTES)),
        };
        let mtu_frame_bytes = ETHERNET_HEADER_BYTES + usize::from(mtu);
        let frame_bytes = match is_offloaded {
            true => offload::FRAME_BYTES_MAX,
            false => mtu_frame_bytes,
        };
        let mut inner = Inner {
            driver: Driver::new(transport)?,
            doorbell,
            receiving: [const { None }; QUEUE_SIZE],
            sending: [const { None }; QUEUE_SIZE],
            spare: Vec::new(),
            dropped: 0,
            mtu_frame_bytes,
            cut,
            is_offloaded,
            buffer_bytes: BUFFER_BYTES_MIN.max(HEADER_BYTES + frame_bytes),
        };
        for _ in 0..QUEUE_SIZE {
            let buffer = inner.fresh_buffer();
            inner.lend(buffer);
        }
        inner.doorbell.ring();
        inner.driver.disable_interrupts();
        Ok(Self(RefCell::new(inner)))
    }

    /// The device's hardware address.
    pub fn mac(&self) -> [u8; 6] {
        self.0.borrow().driver.mac_address()
    }

    /// Data of a datagram of UDP that can be sent: of a frame, or of many if the device cuts.
    pub fn datagram_bytes_max(&self) -> usize {
        let inner = self.0.borrow();
        let frame_bytes = match inner.cut.datagram_bytes {
            Some(_) => offload::FRAME_BYTES_MAX,
            None => inner.mtu_frame_bytes,
        };
        let headers = ETHERNET_HEADER_BYTES + usize::from(offload::DATAGRAM_HEADERS_BYTES);
        frame_bytes.saturating_sub(headers)
    }

    /// Tells the device of all frames sent and buffers lent since the last time.
    pub fn notify(&self) {
        self.0.borrow().doorbell.ring();
    }

    /// Has the device interrupt from now on, and acknowledges what it has said before. Look for frames once more before going to
    /// sleep.
    pub fn ask_for_interrupts(&self) {
        let mut inner = self.0.borrow_mut();
        inner.driver.enable_interrupts();
        // The device sees the wish, or what it has done before is seen after this.
        fence(Ordering::SeqCst);
        inner.driver.ack_interrupt();
    }

    /// Has the device interrupt no more: who is awake looks. An interrupt takes both sides many times what a look does.
    pub fn refuse_interrupts(&self) {
        self.0.borrow_mut().driver.disable_interrupts();
    }

    /// A frame has come, or a buffer has been sent and can be used again while all are in use.
    pub fn has_frame(&self) -> bool {
        let mut inner = self.0.borrow_mut();
        let can_go_on = !inner.driver.can_send() && inner.driver.poll_transmit().is_some();
        can_go_on || inner.driver.poll_receive().is_some()
    }
}

impl Inner {
    /// A buffer for any frame. What no frame reaches of it is not touched.
    fn fresh_buffer(&self) -> Box<Buffer> {
        vec![0; self.buffer_bytes].into_boxed_slice()
    }

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
            Ok((_, len)) => {
                let len = len.min(buffer.len() - HEADER_BYTES);
                if self.is_offloaded && !self.look_at(&mut buffer[..HEADER_BYTES + len]) {
                    self.dropped += 1;
                    self.lend(buffer);
                    return None;
                }
                Some((buffer, len))
            }
            Err(_) => {
                self.dropped += 1;
                self.lend(buffer);
                None
            }
        }
    }

    /// Does for a received frame what the stack does not do any more. False if it is damaged.
    fn look_at(&mut self, frame: &mut [u8]) -> bool {
        let (header, frame) = frame.split_at_mut(HEADER_BYTES);
        let is_right = offload::is_right(header, frame);
        if is_right && let Some(limit) = offload::hide_segment_limit(frame) {
            // There is one peer with large segments at a time, or else the least limit counts.
            let limit = limit.max(SEGMENT_BYTES_MIN);
            self.cut.segment_bytes = self.cut.segment_bytes.min(limit);
        }
        is_right
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
        let spare = self.0.borrow_mut().spare.pop();
        let mut buffer = spare.unwrap_or_else(|| self.0.borrow().fresh_buffer());
        let (header, rest) = buffer.split_at_mut(HEADER_BYTES);
        header.fill(0);
        let frame = &mut rest[..len];
        let result = f(frame);
        let mut inner = self.0.borrow_mut();
        if inner.is_offloaded {
            offload::ask(header, frame, inner.cut);
        }
        inner.send(buffer, len);
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
        let inner = self.0.borrow();
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = inner.mtu_frame_bytes;
        if inner.is_offloaded {
            offload::declare(&mut capabilities);
        }
        capabilities.max_burst_size = Some(QUEUE_SIZE);
        capabilities
    }
}
