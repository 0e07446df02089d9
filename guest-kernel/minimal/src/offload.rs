//! What the device does of a frame's work where the command line asks for it: checksums, and cutting TCP into segments
//! (virtio 1.2 §5.1.6).
//!
//! smoltcp knows of devices that cut only where it is built with IPv6 too, which is 50 kB of every image. So it is told of
//! large frames, and of a peer that takes large segments ([`hide_segment_limit`]); the device cuts to the peer's limit.

use smoltcp::phy::{Checksum, DeviceCapabilities};
use smoltcp::wire::{
    EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, TcpPacket, UdpPacket, checksum,
};

/// `VIRTIO_NET_F_CSUM`, `_GUEST_CSUM`, `_GUEST_TSO4` and `_HOST_TSO4` (§5.1.3).
pub const FEATURES: u64 = 1 << 0 | 1 << 1 | 1 << 7 | 1 << 11;
/// `VIRTIO_NET_F_GUEST_USO4`, `_GUEST_USO6` and `_HOST_USO` (virtio 1.3 §5.1.3), which not every host has: Linux leaves UDP whole
/// for guests that take it of both protocols.
pub const DATAGRAMS: u64 = 1 << 54 | 1 << 55 | 1 << 56;
const ETHERNET_HEADER_BYTES: u16 = 14;
/// Ethernet header and the largest IPv4 packet.
pub const FRAME_BYTES_MAX: usize = 14 + 65_535;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM` (§5.1.6).
const NEEDS_CSUM: u8 = 1;
/// `VIRTIO_NET_HDR_F_DATA_VALID`.
const DATA_VALID: u8 = 2;
/// `VIRTIO_NET_HDR_GSO_TCPV4`.
const GSO_TCPV4: u8 = 1;
/// `VIRTIO_NET_HDR_GSO_UDP_L4`.
const GSO_UDP_L4: u8 = 5;
/// Of a UDP header.
const UDP_HEADER_BYTES: u16 = 8;
/// Where the checksum stands in a TCP and a UDP header.
const TCP_CHECKSUM_AT: u16 = 16;
const UDP_CHECKSUM_AT: u16 = 6;
/// Of a TCP header without options.
const TCP_HEADER_BYTES: usize = 20;
/// Data in the largest IPv4 packet of TCP.
const SEGMENT_BYTES_MAX: u16 = u16::MAX - SEGMENT_HEADERS_BYTES;
/// IPv4 and UDP headers without options.
pub const DATAGRAM_HEADERS_BYTES: u16 = 28;
/// IPv4 and TCP headers without options.
pub const SEGMENT_HEADERS_BYTES: u16 = 40;

/// Tells the TCP/IP stack what it need not do.
pub fn declare(capabilities: &mut DeviceCapabilities) {
    capabilities.checksum.tcp = Checksum::None;
    capabilities.checksum.udp = Checksum::None;
    capabilities.max_transmission_unit = FRAME_BYTES_MAX;
}

/// How the device cuts what is too long for the network.
#[derive(Clone, Copy)]
pub struct Cut {
    /// Data of a segment of TCP.
    pub segment_bytes: u16,
    /// Data of a datagram of UDP, if the device cuts those.
    pub datagram_bytes: Option<u16>,
}

/// Asks the device, in a header of zeroes, for the checksum of a frame of TCP or UDP, and to cut it if it is too long.
pub fn ask(header: &mut [u8], frame: &mut [u8], cut: Cut) {
    let Some((packet, transport_bytes)) = transport(frame) else {
        return;
    };
    let (source, target, protocol) = (packet.src_addr(), packet.dst_addr(), packet.next_header());
    let start = ETHERNET_HEADER_BYTES + u16::from(packet.header_len());
    let transport_len = u32::try_from(transport_bytes).unwrap_or(0);
    // The device goes on from the sum over the pseudo-header.
    let sum = checksum::pseudo_header_v4(&source, &target, protocol, transport_len);
    let transport = &mut frame[usize::from(start)..];
    let (checksum_at, transport_header) = match protocol {
        IpProtocol::Tcp => {
            let mut packet = TcpPacket::new_unchecked(transport);
            packet.set_checksum(sum);
            (TCP_CHECKSUM_AT, u16::from(packet.header_len()))
        }
        _ => {
            UdpPacket::new_unchecked(transport).set_checksum(sum);
            (UDP_CHECKSUM_AT, UDP_HEADER_BYTES)
        }
    };
    header[0] = NEEDS_CSUM;
    let headers = start + transport_header;
    let (kind, piece_bytes) = match protocol {
        IpProtocol::Tcp => (GSO_TCPV4, Some(cut.segment_bytes)),
        _ => (GSO_UDP_L4, cut.datagram_bytes),
    };
    if let Some(piece_bytes) = piece_bytes
        && frame.len() > usize::from(headers) + usize::from(piece_bytes)
    {
        header[1] = kind;
        header[4..6].copy_from_slice(&piece_bytes.to_le_bytes());
    }
    header[2..4].copy_from_slice(&headers.to_le_bytes());
    header[6..8].copy_from_slice(&start.to_le_bytes());
    header[8..10].copy_from_slice(&checksum_at.to_le_bytes());
}

/// Whether what nobody has checked yet is right. The stack does not look any more.
pub fn is_right(header: &[u8], frame: &[u8]) -> bool {
    if header[0] & (NEEDS_CSUM | DATA_VALID) != 0 {
        return true;
    }
    let Some((packet, _)) = transport(frame) else {
        return true;
    };
    let (source, target) = (packet.src_addr().into(), packet.dst_addr().into());
    match packet.next_header() {
        IpProtocol::Tcp => TcpPacket::new_checked(packet.payload())
            .is_ok_and(|packet| packet.verify_checksum(&source, &target)),
        _ => UdpPacket::new_checked(packet.payload())
            .is_ok_and(|packet| packet.verify_checksum(&source, &target)),
    }
}

/// The largest segment that a peer takes, if `frame` says one: it is replaced by the largest there is.
pub fn hide_segment_limit(frame: &mut [u8]) -> Option<u16> {
    let (packet, _) = transport(frame)?;
    let start = usize::from(ETHERNET_HEADER_BYTES) + usize::from(packet.header_len());
    let is_tcp = packet.next_header() == IpProtocol::Tcp;
    let segment = TcpPacket::new_checked(frame.get_mut(start..)?).ok()?;
    if !is_tcp || !segment.syn() {
        return None;
    }
    let header_len = usize::from(segment.header_len());
    let mut options = frame.get_mut(start + TCP_HEADER_BYTES..start + header_len)?;
    loop {
        // RFC 9293 §3.1: the end, a filler, or a kind with its length.
        let len = match *options {
            [] | [0, ..] => return None,
            [1, ..] => 1,
            [2, 4, high, low, ..] => {
                options[2..4].copy_from_slice(&SEGMENT_BYTES_MAX.to_be_bytes());
                return Some(u16::from_be_bytes([high, low]));
            }
            [_, len, ..] => usize::from(len.max(2)),
            [_] => return None,
        };
        options = options.get_mut(len..)?;
    }
}

/// The IPv4 packet in a frame of TCP or UDP, and the bytes after its header.
fn transport(frame: &[u8]) -> Option<(Ipv4Packet<&[u8]>, usize)> {
    let frame = EthernetFrame::new_checked(frame).ok()?;
    if frame.ethertype() != EthernetProtocol::Ipv4 {
        return None;
    }
    let packet = Ipv4Packet::new_checked(frame.payload()).ok()?;
    let is_known = matches!(packet.next_header(), IpProtocol::Tcp | IpProtocol::Udp);
    let bytes = packet.payload().len();
    is_known.then_some((packet, bytes))
}
