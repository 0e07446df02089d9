//! Which frames of a network card are the service's, and what becomes of them.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use smoltcp::wire::{
    EthernetAddress, EthernetProtocol, IpAddress, IpProtocol, Ipv4Packet, TcpPacket,
};

use super::arp;
use super::counters::{add, count};
use super::link::ETHERNET_BYTES;
use super::service::{Mmds, MmdsOptions};
use super::stack::Stack;
use crate::limits::{MMDS_FRAME_BYTES_MAX, MMDS_PAUSE_MS, MMDS_STUCK_PAUSE_MS};

/// Bytes of a frame by which it is told whose it is: Ethernet header and ARP packet, or IPv4 header.
pub(crate) const PEEK_BYTES: usize = 42;
const ETHERTYPE_AT: usize = 12;
const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];
const MAC_BYTES: usize = 6;
/// Destination of an IPv4 packet in its frame.
const IPV4_TO_AT: usize = ETHERNET_BYTES + 16;

/// The way of a network card's frames to the service and back.
#[derive(Debug)]
pub(crate) struct Detour {
    mmds: Mmds,
    options: MmdsOptions,
    /// Made when the guest asks for the service.
    stack: Option<Box<Stack>>,
}

/// A frame that was taken.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TakenFrame<'a> {
    /// It, without virtio header.
    pub(crate) bytes: &'a [u8],
    /// Its TCP checksum is left to the device.
    pub(crate) is_without_checksum: bool,
}

impl Detour {
    pub(crate) const fn new(mmds: Mmds, options: MmdsOptions) -> Self {
        Self {
            mmds,
            options,
            stack: None,
        }
    }

    /// Whether a frame that begins with `head` is the service's: an IPv4 packet to its address, or an ARP request for it.
    /// `head` has [`PEEK_BYTES`], or fewer if the frame has.
    pub(crate) fn takes(&self, head: &[u8]) -> bool {
        let address = self.options.address;
        match field(head, ETHERTYPE_AT) {
            Some(ETHERTYPE_IPV4) => field(head, IPV4_TO_AT) == Some(address.octets()),
            Some(ETHERTYPE_ARP) => head
                .get(ETHERNET_BYTES..)
                .is_some_and(|packet| arp::reply(packet, address).is_some()),
            _ => false,
        }
    }

    /// The guest has sent what is no frame.
    pub(crate) fn note_bad(&self) {
        count(&self.mmds.counters().rx_bad_eth);
    }

    /// A frame of the service's is longer than is read.
    pub(crate) fn note_too_long(&self) {
        count(&self.mmds.counters().rx_accepted);
        count(&self.mmds.counters().rx_accepted_err);
    }

    /// Whether a frame of `bytes` is read.
    pub(crate) const fn reads(bytes: usize) -> bool {
        bytes <= MMDS_FRAME_BYTES_MAX
    }

    /// Reads a frame that [`takes`](Self::takes) has said is the service's.
    pub(crate) fn accept(&mut self, frame: TakenFrame<'_>) {
        let counters = self.mmds.counters();
        count(&counters.rx_accepted);
        let Some((mac, ethertype, payload)) = split(frame.bytes) else {
            count(&counters.rx_accepted_err);
            return;
        };
        if ethertype == ETHERTYPE_ARP {
            let reply = arp::reply(payload, self.options.address);
            if let Some(reply) = reply {
                let link = &mut self.stack().link;
                link.send(mac, EthernetProtocol::Arp, &reply);
            }
            return;
        }
        match segment(payload, frame.is_without_checksum) {
            Segment::Tcp(from) if from != self.options.address => {
                let stack = self.stack();
                stack.link.learn(from, mac);
                stack.receive(payload, Instant::now());
            }
            Segment::Unusual => count(&counters.rx_accepted_unusual),
            Segment::Tcp(_) | Segment::Malformed => count(&counters.rx_accepted_err),
        }
    }

    fn stack(&mut self) -> &mut Stack {
        let (mmds, options) = (&self.mmds, self.options);
        self.stack
            .get_or_insert_with(|| Box::new(Stack::new(mmds.clone(), options)))
    }

    /// Reads and answers requests, as far as frames can wait. True if anything was moved.
    pub(crate) fn serve(&mut self) -> bool {
        self.stack
            .as_mut()
            .is_some_and(|stack| stack.serve(Instant::now()))
    }

    /// The frame that the guest is to be given next.
    pub(crate) fn next_frame(&self) -> Option<&[u8]> {
        self.stack.as_ref()?.link.next_frame()
    }

    /// The guest was given that frame.
    pub(crate) fn note_given(&mut self) {
        let counters = self.mmds.counters();
        count(&counters.tx_frames);
        add(
            &counters.tx_bytes,
            self.next_frame().map_or(0, <[u8]>::len) as u64,
        );
        self.forget_frame();
    }

    /// The guest has no buffers for that frame, and will have none.
    pub(crate) fn note_lost(&mut self) {
        count(&self.mmds.counters().tx_errors);
        self.forget_frame();
    }

    fn forget_frame(&mut self) {
        if let Some(stack) = &mut self.stack {
            stack.link.forget_frame();
        }
    }

    /// When it has to be served again at the latest, if the guest does nothing.
    pub(crate) fn deadline(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let is_stuck = self.next_frame().is_some();
        let pause_ms = if is_stuck {
            MMDS_STUCK_PAUSE_MS
        } else {
            MMDS_PAUSE_MS
        };
        let earliest = now.checked_add(Duration::from_millis(pause_ms))?;
        let wanted = self.stack.as_mut()?.deadline(now)?;
        Some(wanted.max(earliest))
    }
}

/// `N` bytes of `head` from `at` on.
fn field<const N: usize>(head: &[u8], at: usize) -> Option<[u8; N]> {
    head.get(at..)?.first_chunk().copied()
}

/// MAC address of the sender, kind and contents of a frame. A sender that is a group has no answer.
fn split(frame: &[u8]) -> Option<([u8; 6], [u8; 2], &[u8])> {
    let mac: [u8; 6] = field(frame, MAC_BYTES)?;
    let ethertype = field(frame, ETHERTYPE_AT)?;
    let payload = frame.get(ETHERNET_BYTES..)?;
    EthernetAddress(mac)
        .is_unicast()
        .then_some((mac, ethertype, payload))
}

enum Segment {
    /// Of TCP, from this address.
    Tcp(Ipv4Addr),
    /// Of another protocol, or a part of a packet.
    Unusual,
    Malformed,
}

/// What `packet` is. Where the guest has made checksums, they have to be right.
fn segment(packet: &[u8], is_without_checksum: bool) -> Segment {
    let Ok(packet) = Ipv4Packet::new_checked(packet) else {
        return Segment::Malformed;
    };
    if packet.version() != 4 || !packet.verify_checksum() {
        return Segment::Malformed;
    }
    let is_whole = !packet.more_frags() && packet.frag_offset() == 0;
    if packet.next_header() != IpProtocol::Tcp || !is_whole {
        return Segment::Unusual;
    }
    let Ok(segment) = TcpPacket::new_checked(packet.payload()) else {
        return Segment::Malformed;
    };
    let (from, to) = (packet.src_addr(), packet.dst_addr());
    let is_right = is_without_checksum
        || segment.verify_checksum(&IpAddress::Ipv4(from), &IpAddress::Ipv4(to));
    if is_right {
        Segment::Tcp(from)
    } else {
        Segment::Malformed
    }
}

#[cfg(test)]
#[path = "detour_tests.rs"]
mod tests;
