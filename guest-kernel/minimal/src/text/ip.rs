//! The guest's IPv4 address, as the Linux parameter `ip=` or as LightV's own short form.

use core::net::Ipv4Addr;

/// An address with its network and the way out of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ipv4Setup {
    /// Address of the guest.
    pub address: Ipv4Addr,
    /// Length of the network prefix, 0–32.
    pub prefix: u8,
    /// Router, if there is one.
    pub gateway: Option<Ipv4Addr>,
}

impl Ipv4Setup {
    /// `CLIENT:SERVER:GATEWAY:NETMASK:HOST:DEVICE:AUTOCONF` (Linux Documentation/admin-guide/nfs/nfsroot.rst). All but
    /// the client may be empty or missing; without a netmask the prefix is 24.
    pub fn from_linux(text: &str) -> Option<Self> {
        let mut fields = text.split(':');
        let address = fields.next()?.parse().ok()?;
        let _server = fields.next();
        let gateway = optional(fields.next())?;
        let netmask = optional(fields.next())?;
        Some(Self {
            address,
            prefix: netmask.map_or(Some(24), prefix_of)?,
            gateway,
        })
    }

    /// `a.b.c.d/prefix[,gateway]`.
    pub fn from_short(text: &str) -> Option<Self> {
        let (network, gateway) = match text.split_once(',') {
            Some((network, gateway)) => (network, Some(gateway.parse().ok()?)),
            None => (text, None),
        };
        let (address, prefix) = network.split_once('/')?;
        let prefix = prefix.parse().ok().filter(|&prefix| prefix <= 32)?;
        Some(Self {
            address: address.parse().ok()?,
            prefix,
            gateway,
        })
    }
}

/// `None`: malformed. `Some(None)`: not given.
fn optional(field: Option<&str>) -> Option<Option<Ipv4Addr>> {
    match field {
        None | Some("") => Some(None),
        Some(text) => text.parse().ok().map(Some),
    }
}

fn prefix_of(netmask: Ipv4Addr) -> Option<u8> {
    let bits = netmask.to_bits();
    let prefix = bits.leading_ones();
    (prefix + bits.trailing_zeros().min(32 - prefix) == 32).then_some(u8::try_from(prefix).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setup(address: [u8; 4], prefix: u8, gateway: Option<[u8; 4]>) -> Option<Ipv4Setup> {
        let gateway = gateway.map(Ipv4Addr::from);
        Some(Ipv4Setup {
            address: address.into(),
            prefix,
            gateway,
        })
    }

    #[test]
    fn linux_form() {
        for (text, want) in [
            (
                "172.16.0.2::172.16.0.1:255.255.255.252::eth0:off",
                setup([172, 16, 0, 2], 30, Some([172, 16, 0, 1])),
            ),
            ("10.0.0.2", setup([10, 0, 0, 2], 24, None)),
            ("10.0.0.2:::0.0.0.0", setup([10, 0, 0, 2], 0, None)),
            ("10.0.0.2:::255.255.255.255", setup([10, 0, 0, 2], 32, None)),
            ("10.0.0.2:::255.0.255.0", None),
            ("10.0.0.2::x", None),
            ("dhcp", None),
            ("", None),
        ] {
            assert_eq!(Ipv4Setup::from_linux(text), want, "{text:?}");
        }
    }

    #[test]
    fn short_form() {
        for (text, want) in [
            ("10.1.2.3/8", setup([10, 1, 2, 3], 8, None)),
            (
                "10.1.2.3/30,10.1.2.1",
                setup([10, 1, 2, 3], 30, Some([10, 1, 2, 1])),
            ),
            ("10.1.2.3", None),
            ("10.1.2.3/33", None),
            ("10.1.2.3/8,", None),
            ("10.1.2/8", None),
        ] {
            assert_eq!(Ipv4Setup::from_short(text), want, "{text:?}");
        }
    }
}
