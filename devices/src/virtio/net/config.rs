//! Features, configuration and address of a network card (virtio 1.2 §5.1.3, §5.1.4).

use std::fmt;
use std::str::FromStr;

/// Feature bits of virtio-net.
pub mod feature {
    /// The device finishes checksums of frames from the guest.
    pub const CSUM: u64 = 1 << 0;
    /// The guest takes frames whose checksum is not finished.
    pub const GUEST_CSUM: u64 = 1 << 1;
    /// The configuration has an MTU.
    pub const MTU: u64 = 1 << 3;
    /// The configuration has an address.
    pub const MAC: u64 = 1 << 5;
    /// The guest takes TCP over IPv4 in large pieces.
    pub const GUEST_TSO4: u64 = 1 << 7;
    /// The guest takes TCP over IPv6 in large pieces.
    pub const GUEST_TSO6: u64 = 1 << 8;
    /// The device takes TCP over IPv4 in large pieces.
    pub const HOST_TSO4: u64 = 1 << 11;
    /// The device takes TCP over IPv6 in large pieces.
    pub const HOST_TSO6: u64 = 1 << 12;
    /// A frame for the guest may be spread over several chains.
    pub const MRG_RXBUF: u64 = 1 << 15;
    /// There is a control queue.
    pub const CTRL_VQ: u64 = 1 << 17;
    /// There are several pairs of queues.
    pub const MQ: u64 = 1 << 22;
    /// The guest takes several UDP datagrams over IPv4 in one piece.
    pub const GUEST_USO4: u64 = 1 << 54;
    /// The guest takes several UDP datagrams over IPv6 in one piece.
    pub const GUEST_USO6: u64 = 1 << 55;
    /// The device takes several UDP datagrams in one piece.
    pub const HOST_USO: u64 = 1 << 56;
    /// Checksums, and all that cut TCP.
    pub const TSO: u64 = CSUM | GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | HOST_TSO4 | HOST_TSO6;
    /// All that cut UDP.
    pub const USO: u64 = GUEST_USO4 | GUEST_USO6 | HOST_USO;
}

/// Least MTU that IPv4 allows.
pub const MTU_MIN: u16 = 68;

/// What the host can do of a guest's work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Offloads {
    /// Nothing: each frame is sent and received as it is on the wire.
    None,
    /// Checksums, and cutting TCP.
    Tcp,
    /// UDP too.
    TcpAndUdp,
}

/// What a card with so many pairs of queues offers.
pub(super) const fn features(mtu: Option<u16>, pairs: usize, offloads: Offloads) -> u64 {
    let several = if pairs > 1 {
        feature::CTRL_VQ | feature::MQ
    } else {
        0
    };
    let mtu = if mtu.is_some() { feature::MTU } else { 0 };
    let offloads = match offloads {
        Offloads::None => 0,
        Offloads::Tcp => feature::TSO,
        Offloads::TcpAndUdp => feature::TSO | feature::USO,
    };
    crate::virtio::feature::COMMON | feature::MAC | feature::MRG_RXBUF | several | offloads | mtu
}

/// `struct virtio_net_config` up to `mtu`: address at 0, `max_virtqueue_pairs` at 8, MTU at 10; what belongs to features not
/// offered is 0.
pub(super) fn config_space(mac: MacAddress, mtu: Option<u16>, pairs: usize) -> [u8; 12] {
    let [a, b, c, d, e, f] = mac.0;
    let pairs = if pairs > 1 { pairs } else { 0 };
    let [few, many] = u16::try_from(pairs).unwrap_or(u16::MAX).to_le_bytes();
    let [low, high] = mtu.unwrap_or(0).to_le_bytes();
    [a, b, c, d, e, f, 0, 0, few, many, low, high]
}

/// An Ethernet address of a card: not all zeros, not a group's.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct MacAddress([u8; 6]);

/// Why a text or six bytes are no address of a card.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseMacError {
    /// Not six groups of two hexadecimal digits with colons between.
    #[error(
        "A MAC address is six pairs of hexadecimal digits with colons between, like 06:00:ac:10:00:02"
    )]
    Form,
    /// The address of a group of cards (bit 0 of the first byte), as the broadcast address is.
    #[error("A MAC address of a card cannot be a multicast or broadcast address")]
    Multicast,
    /// All zeros.
    #[error("A MAC address of a card cannot be all zeros")]
    Zero,
}

impl MacAddress {
    /// The address with these bytes.
    ///
    /// # Errors
    /// [`ParseMacError::Multicast`], [`ParseMacError::Zero`].
    pub const fn new(bytes: [u8; 6]) -> Result<Self, ParseMacError> {
        let [first, ..] = bytes;
        if first & 1 != 0 {
            return Err(ParseMacError::Multicast);
        }
        if u64::from_be_bytes([
            0, 0, bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5],
        ]) == 0
        {
            return Err(ParseMacError::Zero);
        }
        Ok(Self(bytes))
    }

    /// An address for the interface `id` that asks for none: the same for the same id, and locally administered.
    #[must_use]
    pub fn from_id(id: &str) -> Self {
        // FNV-1a, 64 bits: it has to spread, not to resist.
        let hash = id.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        let [a, b, c, d, e, ..] = hash.to_le_bytes();
        Self([0x06, a, b, c, d, e])
    }

    /// Its bytes, first group first.
    #[must_use]
    pub const fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for MacAddress {
    type Err = ParseMacError;

    fn from_str(text: &str) -> Result<Self, ParseMacError> {
        let mut bytes = [0; 6];
        let mut groups = text.split(':');
        for byte in &mut bytes {
            let group = groups.next().ok_or(ParseMacError::Form)?;
            // `from_str_radix` would take a sign.
            if group.len() != 2 || !group.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(ParseMacError::Form);
            }
            *byte = u8::from_str_radix(group, 16).map_err(|_| ParseMacError::Form)?;
        }
        if groups.next().is_some() {
            return Err(ParseMacError::Form);
        }
        Self::new(bytes)
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_six_pairs_of_digits_are_an_address() {
        let good: MacAddress = "06:00:aC:10:00:02".parse().unwrap();
        assert_eq!(good.bytes(), [6, 0, 0xac, 0x10, 0, 2]);
        assert_eq!(good.to_string(), "06:00:ac:10:00:02");
        for text in [
            "",
            "+1:02:03:04:05:06",
            "02:03:04:05:06",
            "02:03:04:05:06:07:08",
            "02-03-04-05-06-07",
            "2:3:4:5:6:7",
            "002:03:04:05:06:07",
            "02:03:04:05:06:0g",
            "02:03:04:05:06:07:",
            ":02:03:04:05:06:07",
            " 02:03:04:05:06:07",
            "02:03:04:05:06:ä",
        ] {
            assert_eq!(
                text.parse::<MacAddress>(),
                Err(ParseMacError::Form),
                "{text:?}"
            );
        }
    }

    #[test]
    fn group_and_zero_addresses_are_refused() {
        for text in ["ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01"] {
            assert_eq!(
                text.parse::<MacAddress>(),
                Err(ParseMacError::Multicast),
                "{text}"
            );
        }
        assert_eq!(
            "00:00:00:00:00:00".parse::<MacAddress>(),
            Err(ParseMacError::Zero)
        );
    }

    #[test]
    fn default_addresses_are_stable_local_and_differ() {
        let [eth0, eth1] = ["eth0", "eth1"].map(MacAddress::from_id);
        assert_eq!(eth0, MacAddress::from_id("eth0"));
        assert_ne!(eth0, eth1);
        for mac in [eth0, eth1] {
            assert_eq!(mac.bytes()[0] & 3, 2, "local, not multicast");
            assert_eq!(MacAddress::new(mac.bytes()), Ok(mac));
        }
    }
}
