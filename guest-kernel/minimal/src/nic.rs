//! A network device as smoltcp wants it.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use core::cell::RefCell;

use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;
use virtio_drivers::Error;
use virtio_drivers::transport::Transport;
use virtio_drivers::transport::mmio::MmioTransport;

use crate::frame_queue::{Buffer, FrameQueue, Way};
use crate::offload;
use crate::virtio::negotiate;

/// Buffers for frames to come. Those of a device that cuts are 64 KiB each, and are filled in turn: more would be out of the caches
/// by the time that they are read.
const RECEIVE_BUFFERS: usize = 32;
/// Frames that are sent and not yet taken. With more, a guest that sends datagrams only has more of them lost where they arrive.
const SEND_BUFFERS: usize = 32;
/// Of [`SEND_BUFFERS`]: so many have been taken before who waits for that goes on, so that it is not woken for each.
const SEND_AGAIN: usize = SEND_BUFFERS / 2;
/// `virtio_net_hdr` with `num_buffers` (virtio 1.2 §5.1.6).
const HEADER_BYTES: usize = 12;
const ETHERNET_HEADER_BYTES: usize = 14;
/// Where the device tells none.
const MTU_DEFAULT: u16 = 1500;
/// `VIRTIO_F_VERSION_1` (virtio 1.2 §6).
const FEATURE_VERSION_1: u64 = 1 << 32;
/// `VIRTIO_NET_F_MTU` and `VIRTIO_NET_F_MAC` (virtio 1.2 §5.1.3).
const FEATURE_MTU: u64 = 1 << 3;
const FEATURE_MAC: u64 = 1 << 5;
/// `mac` and `mtu` in the configuration (virtio 1.2 §5.1.4).
const MAC_AT: usize = 0;
const MTU_AT: usize = 10;
/// Of a peer that says less (RFC 9293 §3.7.1, for IPv4).
const SEGMENT_BYTES_MIN: u16 = 536;
/// Of buffers: a frame of the usual size with its header fits, and two of them fill a page.
const BUFFER_BYTES_MIN: usize = 2048;

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
    transport: MmioTransport<'static>,
    mac: [u8; 6],
    receiving: FrameQueue<RECEIVE_BUFFERS>,
    sending: FrameQueue<SEND_BUFFERS>,
    /// Buffers that the device does not have.
    spare: Vec<Box<Buffer>>,
    /// There was no room for a frame to be sent.
    is_full: bool,
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
    pub fn new(mut transport: MmioTransport<'static>, work: Work) -> Result<Self, Error> {
        let features = negotiate(&mut transport, |offered| {
            let all_of = |features| match offered & features == features {
                true => features,
                false => 0,
            };
            let offload = match work {
                Work::Offloaded => all_of(offload::FEATURES),
                Work::Own => 0,
            };
            let datagrams = match offload {
                0 => 0,
                _ => all_of(offload::DATAGRAMS),
            };
            offered & (FEATURE_VERSION_1 | FEATURE_MAC | FEATURE_MTU) | offload | datagrams
        });
        let has = |accepted| features & accepted == accepted;
        let is_offloaded = has(offload::FEATURES);
        let cuts_datagrams = has(offload::DATAGRAMS);
        let mac = transport.read_config_space(MAC_AT)?;
        let mtu = match has(FEATURE_MTU) {
            true => transport.read_config_space(MTU_AT)?,
            false => MTU_DEFAULT,
        };
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
        let receiving = FrameQueue::new(&mut transport, Way::Receive)?;
        let sending = FrameQueue::new(&mut transport, Way::Send)?;
        transport.finish_init();
        let mut inner = Inner {
            transport,
            mac,
            receiving,
            sending,
            spare: Vec::new(),
            is_full: false,
            mtu_frame_bytes,
            cut,
            is_offloaded,
            buffer_bytes: BUFFER_BYTES_MIN.max(HEADER_BYTES + frame_bytes),
        };
        for _ in 0..RECEIVE_BUFFERS {
            let buffer = inner.fresh_buffer();
            inner.lend(buffer);
        }
        inner.ring();
        Ok(Self(RefCell::new(inner)))
    }

    /// The device's hardware address.
    pub fn mac(&self) -> [u8; 6] {
        self.0.borrow().mac
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

    /// Tells the device of all frames sent and buffers lent since the last time, unless it looks by itself.
    pub fn notify(&mut self) {
        self.0.get_mut().ring();
    }

    /// Has the device interrupt when there is something to go on with. Look once more before going to sleep.
    pub fn ask_for_interrupts(&mut self) {
        let inner = self.0.get_mut();
        inner.receiving.set_interrupts(true);
        // Of frames that have been sent nobody wants to know as long as more can be.
        inner.sending.set_interrupts(inner.is_full);
        inner.transport.ack_interrupt();
    }

    /// Has the device interrupt no more: who is awake looks. An interrupt costs both sides many times what a look does.
    pub fn refuse_interrupts(&mut self) {
        let inner = self.0.get_mut();
        inner.receiving.set_interrupts(false);
        inner.sending.set_interrupts(false);
    }

    /// There was no room for a frame to be sent: the device has many to take first.
    pub fn is_full(&self) -> bool {
        self.0.borrow().is_full
    }

    /// A frame has come, or frames can be sent again after there was no room.
    pub fn has_frame(&mut self) -> bool {
        let inner = self.0.get_mut();
        inner.receiving.has_done() || inner.has_room_again()
    }
}

impl Inner {
    /// A buffer for any frame. What no frame reaches of it is not touched.
    fn fresh_buffer(&self) -> Box<Buffer> {
        vec![0; self.buffer_bytes].into_boxed_slice()
    }

    /// Lends the device a buffer for receiving.
    fn lend(&mut self, buffer: Box<Buffer>) {
        let len = buffer.len();
        if let Err(buffer) = self.receiving.lend(buffer, len) {
            self.spare.push(buffer);
        }
    }

    /// Rings for the queues of which the device does not know all.
    fn ring(&mut self) {
        self.receiving.ring(&mut self.transport);
        self.sending.ring(&mut self.transport);
    }

    /// A received frame: the buffer, and the length of the frame after the header. A damaged one is none.
    fn received(&mut self) -> Option<(Box<Buffer>, usize)> {
        let (mut buffer, written) = self.receiving.take()?;
        let frame_bytes = written.checked_sub(HEADER_BYTES);
        if frame_bytes.is_some() && (!self.is_offloaded || self.look_at(&mut buffer[..written])) {
            return Some(buffer).zip(frame_bytes);
        }
        self.lend(buffer);
        None
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
        while let Some((buffer, _)) = self.sending.take() {
            self.spare.push(buffer);
        }
    }

    /// A buffer can be sent now.
    fn can_send(&mut self) -> bool {
        self.reclaim();
        self.is_full = self.sending.room() == 0;
        !self.is_full
    }

    /// Many can be sent now, after none could.
    fn has_room_again(&mut self) -> bool {
        if self.is_full {
            self.reclaim();
            self.is_full = self.sending.room() < SEND_AGAIN;
            return !self.is_full;
        }
        false
    }

    /// Sends `len` bytes after the header. The buffer stays where it is.
    fn send(&mut self, buffer: Box<Buffer>, len: usize) {
        if let Err(buffer) = self.sending.lend(buffer, HEADER_BYTES + len) {
            self.spare.push(buffer);
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
        capabilities.max_burst_size = Some(RECEIVE_BUFFERS);
        capabilities
    }
}
