//! `--net` as it is typed: `ID=TAP[,ip=ADDRESS/PREFIX[,gw=ADDRESS][,dns=ADDRESS]…]`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use lightv_api::config::InterfaceSpec;

/// Id of the interface when only its tap is named.
const DEFAULT_INTERFACE: &str = "eth0";

/// A tap for an interface of the machine, and what the guest is told of its address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetOverride {
    /// Id of the interface; `eth0` when it was left out.
    pub id: String,
    /// Name of the tap.
    pub tap: String,
    /// What the guest is told.
    pub address: Option<NetAddress>,
}

/// What a guest is told of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetAddress {
    /// Its address.
    pub address: Ipv4Addr,
    /// Length of the network's prefix, 0–32.
    pub prefix: u32,
    /// The default route.
    pub gateway: Option<Ipv4Addr>,
    /// Name servers.
    pub dns: Vec<IpAddr>,
}

/// Why a text was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetFault {
    /// No tap, or an empty id.
    #[error("expected ID=TAP or TAP")]
    NotIdTap,
    /// An option that does not exist.
    #[error("unknown option {0:?}; there are ip, gw and dns")]
    UnknownOption(String),
    /// Text that is no address.
    #[error("{0:?} is no IPv4 address")]
    NotIpv4(String),
    /// Text that is no address.
    #[error("{0:?} is no IP address")]
    NotIp(String),
    /// An address without the length of its network's prefix, or with an impossible one.
    #[error("expected ip=ADDRESS/PREFIX with a prefix of 0–32")]
    NotNetwork,
    /// A gateway or name server for an interface without an address.
    #[error("gw and dns need ip")]
    NoAddress,
}

impl FromStr for NetOverride {
    type Err = NetFault;

    fn from_str(text: &str) -> Result<Self, NetFault> {
        let mut parts = text.split(',');
        let first = parts.next().unwrap_or_default();
        let (id, tap) = first.split_once('=').unwrap_or((DEFAULT_INTERFACE, first));
        if id.is_empty() || tap.is_empty() {
            return Err(NetFault::NotIdTap);
        }
        let (mut network, mut gateway, mut dns) = (None, None, Vec::new());
        for option in parts {
            match option.split_once('=') {
                Some(("ip", value)) => network = Some(parse_network(value)?),
                Some(("gw", value)) => gateway = Some(parse_ipv4(value)?),
                Some(("dns", value)) => {
                    dns.push(value.parse().map_err(|_| NetFault::NotIp(value.into()))?);
                }
                _ => return Err(NetFault::UnknownOption(option.into())),
            }
        }
        if network.is_none() && (gateway.is_some() || !dns.is_empty()) {
            return Err(NetFault::NoAddress);
        }
        let address = network.map(|(address, prefix)| NetAddress {
            address,
            prefix,
            gateway,
            dns,
        });
        Ok(Self {
            id: id.to_owned(),
            tap: tap.to_owned(),
            address,
        })
    }
}

fn parse_network(text: &str) -> Result<(Ipv4Addr, u32), NetFault> {
    let (address, prefix) = text.split_once('/').ok_or(NetFault::NotNetwork)?;
    let prefix = prefix.parse().ok().filter(|prefix| *prefix <= 32);
    Ok((parse_ipv4(address)?, prefix.ok_or(NetFault::NotNetwork)?))
}

fn parse_ipv4(text: &str) -> Result<Ipv4Addr, NetFault> {
    text.parse().map_err(|_| NetFault::NotIpv4(text.into()))
}

impl fmt::Display for NetOverride {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}={}", self.id, self.tap)?;
        let Some(address) = &self.address else {
            return Ok(());
        };
        write!(out, ",ip={}/{}", address.address, address.prefix)?;
        if let Some(gateway) = address.gateway {
            write!(out, ",gw={gateway}")?;
        }
        address
            .dns
            .iter()
            .try_for_each(|server| write!(out, ",dns={server}"))
    }
}

impl NetAddress {
    /// The same for LightV's agent, about the guest's interface `eth{index}`.
    #[must_use]
    pub fn for_agent(&self, index: usize) -> InterfaceSpec {
        InterfaceSpec {
            interface: format!("eth{index}"),
            address: format!("{}/{}", self.address, self.prefix),
            gateway: self.gateway.map(|gateway| gateway.to_string()),
            dns: self.dns.iter().map(IpAddr::to_string).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_parsed_is_printed_the_same() {
        for text in [
            "eth0=tap7",
            "lan=tap7,ip=10.0.0.2/24",
            "lan=tap7,ip=10.0.0.2/24,gw=10.0.0.1",
            "lan=tap7,ip=10.0.0.2/24,gw=10.0.0.1,dns=1.1.1.1,dns=fd00::1",
        ] {
            let net: NetOverride = text.parse().expect(text);
            assert_eq!(net.to_string(), text);
        }
        let net: NetOverride = "tap7".parse().expect("a tap");
        assert_eq!((net.id.as_str(), net.tap.as_str()), ("eth0", "tap7"));
    }

    #[test]
    fn bad_texts_are_refused_by_name() {
        let cases = [
            ("", NetFault::NotIdTap),
            ("eth0=", NetFault::NotIdTap),
            ("=tap0", NetFault::NotIdTap),
            ("tap0,gw=10.0.0.1", NetFault::NoAddress),
            ("tap0,dns=10.0.0.1", NetFault::NoAddress),
            ("tap0,ip=10.0.0.2", NetFault::NotNetwork),
            ("tap0,ip=10.0.0.2/33", NetFault::NotNetwork),
            ("tap0,ip=10.0.0/8", NetFault::NotIpv4("10.0.0".into())),
            ("tap0,ip=10.0.0.2/8,dns=x", NetFault::NotIp("x".into())),
            ("tap0,mtu=1", NetFault::UnknownOption("mtu=1".into())),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse::<NetOverride>(), Err(expected), "{text}");
        }
    }
}
