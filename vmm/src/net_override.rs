//! `--net` as it is typed: `ID=TAP[,ip=ADDRESS/PREFIX[,gw=ADDRESS][,dns=ADDRESS]…][,queues=N]`, `ID=fd=N` with the same but queues,
//! or `ID=user[,publish=[ADDRESS:]PORT:GUEST_PORT[/udp]]…[,host-loopback]`; without `ID=` for `eth0`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use lightv_api::config::InterfaceSpec;
use lightv_api::contract::net::{NetHost, NetworkOverride, UserNet};

use crate::config::{BadPublish, Publish};
use crate::limits;
use crate::user_net;

/// Id of the interface when only its tap is named.
const DEFAULT_INTERFACE: &str = "eth0";

/// What an interface of the machine is connected to, and what the guest is told of its address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetOverride {
    /// Id of the interface; `eth0` when it was left out.
    pub id: String,
    /// The host's end.
    pub host: NetHost,
    /// What the guest is told.
    pub address: Option<NetAddress>,
    /// Number of queue pairs, if it was said.
    pub queues: Option<u16>,
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
    #[error("expected TAP, user or fd=N, or one of them after ID=")]
    NotIdTap,
    /// Text that is no descriptor.
    #[error("{0:?} is no number of a descriptor of 3 or more")]
    NotFd(String),
    /// Text that is no port to publish.
    #[error(transparent)]
    Publish(#[from] BadPublish),
    /// An option of another kind of network.
    #[error("{0} is for --net user")]
    OnlyUser(&'static str),
    /// An option of taps by name.
    #[error("{0} is for a tap by its name")]
    OnlyTap(&'static str),
    /// Text that is no number.
    #[error("queues is a number of queue pairs, not {0:?}")]
    NotQueues(String),
    /// An address for a network that has its own.
    #[error("{0} is not for --net user: its guest has {address}/{prefix}, gateway {gateway}, name server {dns}",
        address = user_net::GUEST, prefix = user_net::PREFIX, gateway = user_net::GATEWAY, dns = user_net::NAME_SERVER)]
    NotUser(&'static str),
    /// An option that does not exist.
    #[error(
        "unknown option {0:?}; there are ip, gw, dns and queues, and for user publish and host-loopback"
    )]
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
        let (id, host) = match first.split_once('=') {
            Some(("fd", _)) | None => (DEFAULT_INTERFACE, first),
            Some(pair) => pair,
        };
        if id.is_empty() || host.is_empty() {
            return Err(NetFault::NotIdTap);
        }
        let (parts, queues) = take_queues(parts)?;
        let is_tap = host != "user" && !host.starts_with("fd=");
        if queues.is_some() && !is_tap {
            return Err(NetFault::OnlyTap("queues"));
        }
        let (host, address) = match host.strip_prefix("fd=") {
            _ if host == "user" => parse_user(&parts)?,
            None => (NetHost::Tap(host.to_owned()), parse_address(&parts)?),
            Some(number) => {
                let fd = number.parse().ok();
                let fd = fd.filter(|fd| *fd >= limits::INHERITED_FD_MIN);
                let fd = fd.ok_or_else(|| NetFault::NotFd(number.into()))?;
                (NetHost::Fd(fd), parse_address(&parts)?)
            }
        };
        Ok(Self {
            id: id.to_owned(),
            host,
            address,
            queues,
        })
    }
}

/// The number of queue pairs, and the options that are not it.
fn take_queues<'a>(
    options: impl Iterator<Item = &'a str>,
) -> Result<(Vec<&'a str>, Option<u16>), NetFault> {
    let (mut others, mut queues) = (Vec::new(), None);
    for option in options {
        match option.split_once('=') {
            Some(("queues", count)) => {
                let count = count
                    .parse()
                    .map_err(|_| NetFault::NotQueues(count.into()))?;
                queues = Some(count);
            }
            _ => others.push(option),
        }
    }
    Ok((others, queues))
}

/// What stands after a tap.
fn parse_address(options: &[&str]) -> Result<Option<NetAddress>, NetFault> {
    let (mut network, mut gateway, mut dns) = (None, None, Vec::new());
    for option in options {
        match option.split_once('=') {
            Some(("ip", value)) => network = Some(parse_network(value)?),
            Some(("gw", value)) => gateway = Some(parse_ipv4(value)?),
            Some(("dns", value)) => {
                dns.push(value.parse().map_err(|_| NetFault::NotIp(value.into()))?);
            }
            Some(("publish", _)) => return Err(NetFault::OnlyUser("publish")),
            None if *option == "host-loopback" => return Err(NetFault::OnlyUser("host-loopback")),
            _ => return Err(NetFault::UnknownOption((*option).into())),
        }
    }
    if network.is_none() && (gateway.is_some() || !dns.is_empty()) {
        return Err(NetFault::NoAddress);
    }
    Ok(network.map(|(address, prefix)| NetAddress {
        address,
        prefix,
        gateway,
        dns,
    }))
}

/// What stands after `user`.
fn parse_user(options: &[&str]) -> Result<(NetHost, Option<NetAddress>), NetFault> {
    let mut user = UserNet::default();
    for option in options {
        match option.split_once('=') {
            Some(("publish", value)) => {
                user.publish.push(value.parse::<Publish>()?.to_string());
            }
            None if *option == "host-loopback" => user.host_loopback = true,
            Some(("ip", _)) => return Err(NetFault::NotUser("ip")),
            Some(("gw", _)) => return Err(NetFault::NotUser("gw")),
            Some(("dns", _)) => return Err(NetFault::NotUser("dns")),
            _ => return Err(NetFault::UnknownOption((*option).into())),
        }
    }
    let address = NetAddress {
        address: user_net::GUEST,
        prefix: user_net::PREFIX,
        gateway: Some(user_net::GATEWAY),
        dns: vec![IpAddr::V4(user_net::NAME_SERVER)],
    };
    Ok((NetHost::User(user), Some(address)))
}

fn parse_network(text: &str) -> Result<(Ipv4Addr, u32), NetFault> {
    let (address, prefix) = text.split_once('/').ok_or(NetFault::NotNetwork)?;
    let prefix = prefix.parse().ok().filter(|prefix| *prefix <= 32);
    Ok((parse_ipv4(address)?, prefix.ok_or(NetFault::NotNetwork)?))
}

fn parse_ipv4(text: &str) -> Result<Ipv4Addr, NetFault> {
    text.parse().map_err(|_| NetFault::NotIpv4(text.into()))
}

impl NetOverride {
    /// The same for a load of a snapshot, which takes nothing but the host's end; `None` when more is said.
    #[must_use]
    pub fn of_load(&self) -> Option<NetworkOverride> {
        let is_host_alone = self.address.is_none() && self.queues.is_none();
        // A network in user space has one address, which is the guest's already.
        let is_user = matches!(self.host, NetHost::User(_));
        (is_host_alone || is_user).then(|| NetworkOverride::new(self.id.clone(), self.host.clone()))
    }
}

impl fmt::Display for NetOverride {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}={}", self.id, self.host)?;
        if let Some(queues) = self.queues {
            write!(out, ",queues={queues}")?;
        }
        let (Some(address), NetHost::Tap(_) | NetHost::Fd(_)) = (&self.address, &self.host) else {
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
            "lan=fd=3,ip=10.0.0.2/24",
            "lan=tap7,queues=2,ip=10.0.0.2/24",
            "lan=tap7,queues=8",
            "eth0=user",
            "lan=user,publish=8080:80,publish=127.0.0.1:53:53/udp,host-loopback",
        ] {
            let net: NetOverride = text.parse().expect(text);
            assert_eq!(net.to_string(), text);
        }
        let net: NetOverride = "tap7".parse().expect("a tap");
        assert_eq!(net.to_string(), "eth0=tap7");
        let net: NetOverride = "fd=12".parse().expect("a descriptor");
        assert_eq!((net.id.as_str(), net.host), ("eth0", NetHost::Fd(12)));
        let net: NetOverride = "user".parse().expect("a network in user space");
        let address = net.address.expect("an address").for_agent(0);
        assert_eq!(address.address, "10.0.2.15/24");
        assert_eq!(address.gateway.as_deref(), Some("10.0.2.2"));
        assert_eq!(address.dns, ["10.0.2.3"]);
    }

    #[test]
    fn a_load_takes_the_hosts_end_alone() {
        let of_load = |text: &str| text.parse::<NetOverride>().expect(text).of_load();
        for (text, id) in [
            ("lan=tap7", "lan"),
            ("fd=3", "eth0"),
            ("user,publish=80:80", "eth0"),
        ] {
            let load = of_load(text).expect(text);
            let expected = text.parse::<NetOverride>().expect(text).host;
            assert_eq!((load.iface_id.as_str(), load.host()), (id, expected));
        }
        for text in ["tap7,ip=10.0.0.2/24", "tap7,queues=2"] {
            assert_eq!(of_load(text), None, "{text}");
        }
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
            ("tap0,publish=1:2", NetFault::OnlyUser("publish")),
            ("fd=3,host-loopback", NetFault::OnlyUser("host-loopback")),
            ("fd=2", NetFault::NotFd("2".into())),
            ("tap0,queues=x", NetFault::NotQueues("x".into())),
            ("tap0,queues", NetFault::UnknownOption("queues".into())),
            ("fd=3,queues=2", NetFault::OnlyTap("queues")),
            ("user,queues=1", NetFault::OnlyTap("queues")),
            ("lan=fd=x", NetFault::NotFd("x".into())),
            ("user,ip=10.0.0.2/24", NetFault::NotUser("ip")),
            ("user,publish=80", NetFault::Publish(BadPublish)),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse::<NetOverride>(), Err(expected), "{text}");
        }
    }
}
