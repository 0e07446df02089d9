//! What a network interface may be connected to.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use lightv_api::config::NetSpec;
use lightv_api::contract::net::{self, UserNet};
use lightv_devices::limits::NET_QUEUE_PAIRS_MAX;

use super::{Faults, NetConfig};
use crate::limits;

/// What an interface is connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetHost {
    /// The tap of this name.
    Tap(String),
    /// An inherited descriptor of a tap: 3 or more.
    Fd(i32),
    /// A network in user space.
    User(UserNetConfig),
}

/// A network in user space.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UserNetConfig {
    /// Ports that lead to the guest; no two of the host's are the same.
    pub publish: Vec<Publish>,
    /// Whether the guest reaches the host's loopback.
    pub host_loopback: bool,
}

/// The protocol of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// `/tcp`, and without a word.
    Tcp,
    /// `/udp`.
    Udp,
}

/// A port of the host that leads to one of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Publish {
    /// Of which address of the host; of all, if none is said.
    pub address: Option<Ipv4Addr>,
    /// Its port: not 0.
    pub port: u16,
    /// The guest's port: not 0.
    pub guest_port: u16,
    /// Of both.
    pub protocol: Protocol,
}

/// Text that is no [`Publish`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected publish=[ADDRESS:]PORT:GUEST_PORT[/udp] with ports of 1–65535 and an IPv4 address"
)]
pub struct BadPublish;

impl FromStr for Publish {
    type Err = BadPublish;

    fn from_str(text: &str) -> Result<Self, BadPublish> {
        let (ports, protocol) = match text.split_once('/') {
            None => (text, Protocol::Tcp),
            Some((ports, "tcp")) => (ports, Protocol::Tcp),
            Some((ports, "udp")) => (ports, Protocol::Udp),
            Some(_) => return Err(BadPublish),
        };
        let port = |text: &str| {
            let is_number = text.bytes().all(|digit| digit.is_ascii_digit());
            let port = text.parse().ok().filter(|port| is_number && *port != 0);
            port.ok_or(BadPublish)
        };
        let (address, port_text, guest) = match *ports.split(':').collect::<Vec<_>>() {
            [port, guest] => (None, port, guest),
            [address, port, guest] => {
                let address = address.parse().map_err(|_| BadPublish)?;
                (Some(address), port, guest)
            }
            _ => return Err(BadPublish),
        };
        Ok(Self {
            address,
            port: port(port_text)?,
            guest_port: port(guest)?,
            protocol,
        })
    }
}

impl fmt::Display for Publish {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(address) = self.address {
            write!(out, "{address}:")?;
        }
        write!(out, "{}:{}", self.port, self.guest_port)?;
        out.write_str(match self.protocol {
            Protocol::Tcp => "",
            Protocol::Udp => "/udp",
        })
    }
}

impl Publish {
    /// Whether both want the same port of the host.
    fn clashes(&self, other: &Self) -> bool {
        let is_same_address = self.address == other.address
            || [self.address, other.address]
                .iter()
                .any(|address| address.is_none_or(|address| address.is_unspecified()));
        self.port == other.port && self.protocol == other.protocol && is_same_address
    }
}

/// What the interface number `index` is connected to; `before` are those before it.
pub(super) fn prove_host(
    index: usize,
    spec: &NetSpec,
    before: &[NetConfig],
    faults: &mut Faults,
) -> Option<NetHost> {
    let field = |name: &str| format!("network-interfaces[{index}].{name}");
    let is_taken = |host: &NetHost| before.iter().any(|net| net.host == *host);
    match spec.host() {
        net::NetHost::Tap(name) => {
            let host = NetHost::Tap(name.clone());
            if is_taken(&host) {
                let allowed = "a tap that no other interface has";
                faults.add(field("host_dev_name"), &name, allowed);
            }
            Some(host)
        }
        net::NetHost::Fd(number) => {
            let host = NetHost::Fd(number);
            if number < limits::INHERITED_FD_MIN {
                let allowed = "3 or more: 0, 1 and 2 are the standard streams";
                faults.add(field("host_fd"), number, allowed);
            } else if is_taken(&host) {
                let allowed = "a descriptor that no other interface has";
                faults.add(field("host_fd"), number, allowed);
            }
            Some(host)
        }
        net::NetHost::User(user) => {
            let user = prove_user(&field("user.publish"), &user, before, faults)?;
            Some(NetHost::User(user))
        }
    }
}

/// How many pairs of queues interface number `index`, on `host`, has.
pub(super) fn prove_pairs(
    index: usize,
    spec: &NetSpec,
    host: &NetHost,
    faults: &mut Faults,
) -> u16 {
    let count = spec.num_queues.unwrap_or(1);
    let field = format!("network-interfaces[{index}].num_queues");
    if !(1..=NET_QUEUE_PAIRS_MAX).contains(&count) {
        faults.add(field, count, format!("1–{NET_QUEUE_PAIRS_MAX}"));
    } else if count > 1 {
        let allowed = match host {
            NetHost::Tap(_) => return count,
            NetHost::Fd(_) => "1 for a host_fd, which is one queue of a tap",
            NetHost::User(_) => "1 for a network in user space, which is one stream of frames",
        };
        faults.add(field, count, allowed);
    }
    count
}

fn prove_user(
    field: &str,
    user: &UserNet,
    before: &[NetConfig],
    faults: &mut Faults,
) -> Option<UserNetConfig> {
    if user.publish.len() > limits::PUBLISHED_PORTS_MAX {
        let found = format!("{} ports", user.publish.len());
        let allowed = format!("at most {}", limits::PUBLISHED_PORTS_MAX);
        faults.add(field, found, allowed);
        return None;
    }
    let mut publish: Vec<Publish> = Vec::with_capacity(user.publish.len());
    let others = before.iter().filter_map(|net| match &net.host {
        NetHost::User(user) => Some(&user.publish),
        _ => None,
    });
    let taken: Vec<Publish> = others.flatten().copied().collect();
    for (index, text) in user.publish.iter().enumerate() {
        let field = format!("{field}[{index}]");
        match text.parse::<Publish>() {
            Ok(port)
                if publish
                    .iter()
                    .chain(&taken)
                    .any(|other| other.clashes(&port)) =>
            {
                let allowed = "a port of the host that is published once";
                faults.add(field, format!("`{text}`"), allowed);
            }
            Ok(port) => publish.push(port),
            Err(_) => faults.add(
                field,
                format!("`{text}`"),
                "[ADDRESS:]PORT:GUEST_PORT[/udp], with ports of 1–65535 and an IPv4 address",
            ),
        }
    }
    Some(UserNetConfig {
        publish,
        host_loopback: user.host_loopback,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_and_printed_the_same() {
        for text in [
            "8080:80",
            "127.0.0.1:8080:80",
            "53:53/udp",
            "10.0.0.1:1:65535/udp",
        ] {
            assert_eq!(text.parse::<Publish>().unwrap().to_string(), text);
        }
        assert_eq!("1:2/tcp".parse::<Publish>().unwrap().to_string(), "1:2");
    }

    #[test]
    fn what_is_no_port_is_refused() {
        for text in [
            "",
            "80",
            ":80",
            "80:",
            "0:80",
            "80:0",
            "80:65536",
            "+1:2",
            "1:2/sctp",
            "1:2/",
            "x:1:2",
            "::1:1:2",
            "1.2.3.4:1",
            "1:2:3:4",
        ] {
            assert_eq!(text.parse::<Publish>(), Err(BadPublish), "{text}");
        }
    }

    #[test]
    fn all_addresses_clash_with_each() {
        let publish = |text: &str| text.parse::<Publish>().unwrap();
        for (one, other, clashes) in [
            ("80:80", "80:81", true),
            ("80:80", "127.0.0.1:80:80", true),
            ("0.0.0.0:80:80", "127.0.0.1:80:80", true),
            ("127.0.0.2:80:80", "127.0.0.1:80:80", false),
            ("80:80", "80:80/udp", false),
            ("80:80", "81:80", false),
        ] {
            assert_eq!(
                publish(one).clashes(&publish(other)),
                clashes,
                "{one} {other}"
            );
            assert_eq!(
                publish(other).clashes(&publish(one)),
                clashes,
                "{other} {one}"
            );
        }
    }
}
