//! The answer to who asks for the service's MAC address (RFC 826).

use std::net::Ipv4Addr;

use smoltcp::wire::{ArpOperation, ArpPacket, ArpRepr, EthernetAddress};

use super::link::MAC;

/// Bytes of an ARP packet about IPv4 over Ethernet.
const PACKET_BYTES: usize = 28;

/// The answer to the ARP packet at the start of `packet`, if it asks for the MAC address of `address`.
pub(super) fn reply(packet: &[u8], address: Ipv4Addr) -> Option<[u8; PACKET_BYTES]> {
    let packet = ArpPacket::new_checked(packet).ok()?;
    let ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr,
        source_protocol_addr,
        target_protocol_addr,
        ..
    } = ArpRepr::parse(&packet).ok()?
    else {
        return None;
    };
    if target_protocol_addr != address {
        return None;
    }
    let reply = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: EthernetAddress(MAC),
        source_protocol_addr: address,
        target_hardware_addr: source_hardware_addr,
        target_protocol_addr: source_protocol_addr,
    };
    let mut bytes = [0; PACKET_BYTES];
    reply.emit(&mut ArpPacket::new_unchecked(&mut bytes[..]));
    Some(bytes)
}
