//! Addresses, routes, and that others on the link learn of them.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use lightv_contract::agent::InterfaceSpec;

use crate::arp;
use crate::message::{plain, say};
use crate::netlink::{self, Requests};
use crate::sys::socket;

/// The loopback interface's number, in every network namespace.
const LOOPBACK: u32 = 1;
/// `errno` of what is so already.
const EXISTS: i32 = 17;

/// An address that an interface has.
#[derive(Debug)]
struct Given {
    index: u32,
    address: Ipv4Addr,
    prefix: u8,
    gateway: Option<Ipv4Addr>,
    /// Of an interface that has one.
    hardware: Option<[u8; 6]>,
}

/// The guest's network.
#[derive(Debug)]
pub struct Network {
    route: OwnedFd,
    /// For announcements; only when there is something to announce.
    packet: Option<OwnedFd>,
    given: Vec<Given>,
}

impl Network {
    /// Brings the loopback interface up, and gives the others their addresses. What does not work is said, and the program
    /// runs without.
    ///
    /// # Errors
    /// When the kernel has no route netlink.
    pub fn start(interfaces: &[InterfaceSpec]) -> io::Result<Self> {
        let mut network = Self {
            route: socket::open_route()?,
            packet: None,
            given: Vec::new(),
        };
        let mut requests = Requests::default();
        requests.bring_up(LOOPBACK);
        network.give(interfaces, requests);
        Ok(network)
    }

    /// Takes all addresses away that were given, and gives these.
    pub fn change(&mut self, interfaces: &[InterfaceSpec]) {
        let mut requests = Requests::default();
        for old in self.given.drain(..) {
            requests.delete_address(old.index, old.address, old.prefix);
        }
        self.give(interfaces, requests);
    }

    fn give(&mut self, interfaces: &[InterfaceSpec], mut requests: Requests) {
        for spec in interfaces {
            match resolve(spec) {
                Ok(given) => self.given.push(given),
                Err(error) => say(format_args!(
                    "no network on {}: {}",
                    spec.interface,
                    plain(&error)
                )),
            }
        }
        for given in &self.given {
            requests.bring_up(given.index);
            requests.add_address(given.index, given.address, given.prefix);
            if let Some(gateway) = given.gateway {
                requests.add_default_route(given.index, gateway);
            }
        }
        if let Err(error) = self.request(&requests) {
            say(format_args!("network: {}", plain(&error)));
        }
        if self.packet.is_none() && !self.given.is_empty() {
            self.packet = socket::open_packet().ok();
        }
    }

    /// The kernel carries requests out before `send` returns, and answers those that failed.
    fn request(&self, requests: &Requests) -> io::Result<()> {
        socket::send(&self.route, requests.as_bytes())?;
        let mut answers = [0; 4096];
        while let Ok(length) = socket::receive(&self.route, &mut answers) {
            let errors = netlink::errors(answers.get(..length).unwrap_or_default());
            let failed = errors.into_iter().find(|(_, errno)| *errno != EXISTS);
            if let Some((_, errno)) = failed {
                return Err(io::Error::from_raw_os_error(errno));
            }
        }
        Ok(())
    }

    /// Tells everybody on the link that the addresses are here: a restored guest may be on another link than the saved one.
    pub fn announce(&self) {
        let Some(packet) = &self.packet else {
            return;
        };
        for given in &self.given {
            if let (Some(hardware), Ok(index)) = (given.hardware, i32::try_from(given.index)) {
                let frame = arp::announcement(hardware, given.address);
                // ENETDOWN: a program has taken the interface down, so there is nobody to tell.
                let _ = socket::send_frame(packet, index, &frame);
            }
        }
    }
}

/// `spec` in numbers.
fn resolve(spec: &InterfaceSpec) -> io::Result<Given> {
    let folder = format!("/sys/class/net/{}", spec.interface);
    let index = fs::read_to_string(format!("{folder}/ifindex"))
        .map_err(|_| io::Error::other("there is no such interface"))?;
    let index = index.trim_end().parse().map_err(io::Error::other)?;
    let (address, prefix) = parse_address(&spec.address)
        .ok_or_else(|| io::Error::other(format!("{} is no address", spec.address)))?;
    let gateway = spec.gateway.as_deref();
    let gateway = gateway
        .map(str::parse)
        .transpose()
        .map_err(|_| io::Error::other("the gateway is no IPv4 address"))?;
    let hardware = fs::read_to_string(format!("{folder}/address")).ok();
    Ok(Given {
        index,
        address,
        prefix,
        gateway,
        hardware: hardware.and_then(|text| arp::parse_hardware(&text)),
    })
}

/// `10.0.0.2/24`.
fn parse_address(text: &str) -> Option<(Ipv4Addr, u8)> {
    let (address, prefix) = text.split_once('/')?;
    let prefix = prefix.parse().ok().filter(|prefix| *prefix <= 32)?;
    Some((address.parse().ok()?, prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_prefix() {
        let address = Ipv4Addr::new(10, 0, 0, 2);
        assert_eq!(parse_address("10.0.0.2/24"), Some((address, 24)));
        for text in ["10.0.0.2", "10.0.0.2/33", "10.0.0/8", "::1/64", "10.0.0.2/"] {
            assert_eq!(parse_address(text), None, "{text}");
        }
    }
}
