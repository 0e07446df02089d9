//! The header before each frame (virtio 1.2 §5.1.6), read once and checked.

use crate::fault::GuestFault;
use crate::limits::FRAME_BYTES_MAX;
use crate::virtio::net::config::feature;

/// Bytes of `struct virtio_net_hdr` with `num_buffers`.
pub(super) const HEADER_BYTES: usize = 12;
/// Where `num_buffers` stands in it.
pub(super) const NUM_BUFFERS_AT: u64 = 10;
/// Bytes of an Ethernet header: what is shorter is no frame.
pub(super) const ETHERNET_BYTES: u64 = 14;

/// `flags`: the checksum from `csum_start` on is to be put at `csum_offset`.
const NEEDS_CSUM: u8 = 1;
/// `gso_type`: not segmented.
const GSO_NONE: u8 = 0;
/// `gso_type`: TCP over IPv4.
const GSO_TCPV4: u8 = 1;
/// `gso_type`: TCP over IPv6.
const GSO_TCPV6: u8 = 4;
/// `gso_type`: datagrams of UDP, over either.
const GSO_UDP_L4: u8 = 5;

/// A header of the guest's that agrees with itself, its frame, and the accepted features.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TransmitHeader([u8; HEADER_BYTES]);

impl TransmitHeader {
    /// Checks `header` of a frame of `frame_bytes` (without the header).
    ///
    /// Flags without meaning here are dropped, and so is `num_buffers`, which a driver sets to 0 (§5.1.6.2.1).
    ///
    /// # Errors
    /// [`GuestFault::BadFrame`].
    pub(super) const fn check(
        header: [u8; HEADER_BYTES],
        frame_bytes: u64,
        acked_features: u64,
    ) -> Result<Self, GuestFault> {
        let [flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1, _, _] = header;
        let header_bytes = u16::from_le_bytes([h0, h1]) as u64;
        let gso_bytes = u16::from_le_bytes([g0, g1]);
        let csum_start = u16::from_le_bytes([s0, s1]) as u64;
        let csum_offset = u16::from_le_bytes([o0, o1]) as u64;
        let needs_csum = flags & NEEDS_CSUM != 0;
        // The checksum has two bytes.
        let csum_end = csum_start.saturating_add(csum_offset).saturating_add(2);
        let csum_is_good =
            !needs_csum || (acked_features & feature::CSUM != 0 && csum_end <= frame_bytes);
        let gso_is_good = match gso_type {
            GSO_NONE => true,
            GSO_TCPV4 => acked_features & feature::HOST_TSO4 != 0 && gso_bytes != 0 && needs_csum,
            GSO_TCPV6 => acked_features & feature::HOST_TSO6 != 0 && gso_bytes != 0 && needs_csum,
            GSO_UDP_L4 => acked_features & feature::HOST_USO != 0 && gso_bytes != 0 && needs_csum,
            _ => false,
        };
        let length_is_good = frame_bytes >= ETHERNET_BYTES
            && frame_bytes <= (FRAME_BYTES_MAX as u64).saturating_sub(HEADER_BYTES as u64)
            && header_bytes <= frame_bytes;
        if !(csum_is_good && gso_is_good && length_is_good) {
            return Err(GuestFault::BadFrame);
        }
        let flags = flags & NEEDS_CSUM;
        Ok(Self([
            flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1, 0, 0,
        ]))
    }

    /// Whether a checksum of the frame is left to the device.
    pub(super) const fn needs_csum(&self) -> bool {
        self.0[0] & NEEDS_CSUM != 0
    }

    /// As the tap takes it.
    pub(super) const fn bytes(&self) -> &[u8; HEADER_BYTES] {
        &self.0
    }
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;
