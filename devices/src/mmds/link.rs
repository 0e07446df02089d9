//! The wire between TCP and the guest: one packet on its way in, some frames on their way out.
//!
//! TCP sees IP packets. The MAC address of an answer is that from which the guest's own packets came, so the service asks
//! for none and keeps no ARP table.

use std::collections::VecDeque;
use std::net::Ipv4Addr;

use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, Ipv4Packet};

use super::counters::count;
use super::service::Mmds;
use crate::limits::{MMDS_FRAMES_WAITING_MAX, MMDS_NEIGHBOURS_MAX};

/// The service's MAC address, on every interface: Firecracker's.
pub(super) const MAC: [u8; 6] = [0x06, 0x01, 0x23, 0x45, 0x67, 0x01];
/// Bytes of an Ethernet header.
pub(super) const ETHERNET_BYTES: usize = 14;
/// Bytes of a packet: what every Ethernet takes. A guest with a smaller MTU says so when it connects.
const PACKET_BYTES_MAX: usize = 1500;

/// The wire.
#[derive(Debug)]
pub(super) struct Link {
    mmds: Mmds,
    incoming: Option<Vec<u8>>,
    outgoing: VecDeque<Vec<u8>>,
    neighbours: VecDeque<(Ipv4Addr, [u8; 6])>,
}

impl Link {
    pub(super) fn new(mmds: Mmds) -> Self {
        Self {
            mmds,
            incoming: None,
            outgoing: VecDeque::new(),
            neighbours: VecDeque::new(),
        }
    }

    /// Puts a packet on the wire, for TCP.
    pub(super) fn set_incoming(&mut self, packet: &[u8]) {
        self.incoming = Some(packet.to_vec());
    }

    /// Takes away a packet that TCP has not taken. True if there was one.
    pub(super) fn drop_incoming(&mut self) -> bool {
        self.incoming.take().is_some()
    }

    /// `address` is behind `mac`, until more others are known than are kept.
    pub(super) fn learn(&mut self, address: Ipv4Addr, mac: [u8; 6]) {
        if self.mac_of(address) == Some(mac) {
            return;
        }
        self.neighbours.retain(|(known, _)| *known != address);
        if self.neighbours.len() >= MMDS_NEIGHBOURS_MAX {
            self.neighbours.pop_front();
        }
        self.neighbours.push_back((address, mac));
    }

    fn mac_of(&self, address: Ipv4Addr) -> Option<[u8; 6]> {
        let mut known = self.neighbours.iter();
        known.find_map(|(known, mac)| (*known == address).then_some(*mac))
    }

    /// Whether one more frame can wait.
    pub(super) fn has_room(&self) -> bool {
        self.outgoing.len() < MMDS_FRAMES_WAITING_MAX
    }

    /// Frames that wait for the guest.
    #[cfg(test)]
    pub(super) fn waiting_frames(&self) -> usize {
        self.outgoing.len()
    }

    /// Sends `payload` to `mac`. Lost when too many frames wait.
    pub(super) fn send(&mut self, mac: [u8; 6], ethertype: EthernetProtocol, payload: &[u8]) {
        let counters = self.mmds.counters();
        if self.outgoing.len() >= MMDS_FRAMES_WAITING_MAX {
            count(&counters.tx_errors);
            return;
        }
        count(&counters.tx_count);
        let mut frame = vec![0; ETHERNET_BYTES];
        let header = EthernetRepr {
            src_addr: EthernetAddress(MAC),
            dst_addr: EthernetAddress(mac),
            ethertype,
        };
        header.emit(&mut EthernetFrame::new_unchecked(&mut frame[..]));
        frame.extend_from_slice(payload);
        self.outgoing.push_back(frame);
    }

    /// The frame that the guest is to be given next.
    pub(super) fn next_frame(&self) -> Option<&[u8]> {
        self.outgoing.front().map(Vec::as_slice)
    }

    /// That frame is done with.
    pub(super) fn forget_frame(&mut self) {
        self.outgoing.pop_front();
    }
}

/// A packet for TCP.
pub(super) struct Incoming(Vec<u8>);

/// Leave to send one packet.
pub(super) struct Outgoing<'a>(&'a mut Link);

impl RxToken for Incoming {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

impl TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, bytes: usize, write: F) -> R {
        let mut packet = vec![0; bytes];
        let result = write(&mut packet);
        // One that the guest has not heard from for so long is not answered.
        if let Ok(read) = Ipv4Packet::new_checked(&packet[..])
            && let Some(mac) = self.0.mac_of(read.dst_addr())
        {
            self.0.send(mac, EthernetProtocol::Ipv4, &packet);
        }
        result
    }
}

impl Device for Link {
    type RxToken<'a> = Incoming;
    type TxToken<'a> = Outgoing<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Incoming, Outgoing<'_>)> {
        // Every packet may have an answer.
        if !self.has_room() {
            return None;
        }
        let packet = self.incoming.take()?;
        Some((Incoming(packet), Outgoing(self)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Outgoing<'_>> {
        self.has_room().then_some(Outgoing(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = PACKET_BYTES_MAX;
        // A driver may leave it to the device; where it does not, it was looked at before.
        capabilities.checksum.tcp = Checksum::Tx;
        capabilities
    }
}
