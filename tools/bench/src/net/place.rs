//! Where the network is measured: a name space of this process's own, with taps and the loopback.
//!
//! It has no name: the kernel removes it, and the taps with it, when the last process in it has ended, however that was.

use std::fs;
use std::io;
use std::net::Ipv4Addr;

use crate::sys::link::{self, Links};

/// A network between the host and a guest. Networks and addresses are those for measurements (RFC 2544 appendix C.2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wire {
    /// Name of the tap.
    pub tap: &'static str,
    /// MTU of tap and guest.
    pub mtu: u16,
    /// Address of the tap.
    pub host: Ipv4Addr,
    /// Address of the guest.
    pub guest: Ipv4Addr,
}

/// Netmask of a wire's network.
pub const NETMASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 0);

/// With the MTU of Ethernet.
pub const USUAL: Wire = Wire {
    tap: "bench0",
    mtu: 1500,
    host: Ipv4Addr::new(198, 18, 0, 1),
    guest: Ipv4Addr::new(198, 18, 0, 2),
};

/// With the largest MTU of a tap: 65,535 bytes without the Ethernet header.
pub const LARGE: Wire = Wire {
    tap: "bench1",
    mtu: 65_521,
    host: Ipv4Addr::new(198, 18, 1, 1),
    guest: Ipv4Addr::new(198, 18, 1, 2),
};

/// Why there is no such place.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// No name space.
    #[error(
        "Cannot make a network name space: run as root or with CAP_SYS_ADMIN and CAP_NET_ADMIN, or allow user name spaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns)"
    )]
    NameSpace(#[source] io::Error),
    /// No tap.
    #[error(
        "Cannot make the tap {tap}: it needs {} and CAP_NET_ADMIN in its name space",
        link::TUN_PATH
    )]
    Tap {
        /// Its name.
        tap: &'static str,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// TCP is not to be had so.
    #[error("Cannot have TCP with the congestion control {name}; allowed here: {allowed}")]
    Congestion {
        /// What was wanted.
        name: String,
        /// What a name space may have.
        allowed: String,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// An interface without an MTU, an address, or not up.
    #[error("Cannot {what} of interface {name}: it needs CAP_NET_ADMIN in its name space")]
    Interface {
        /// What was to be set.
        what: &'static str,
        /// Of which.
        name: &'static str,
        /// Why.
        #[source]
        cause: io::Error,
    },
}

/// Moves the calling thread, and all processes and threads that it starts, to a place with both wires. Users without rights
/// need it to be the only thread. True if the taps can leave UDP whole.
///
/// # Errors
/// [`PlaceError`].
pub fn enter() -> Result<bool, PlaceError> {
    link::leave_network().map_err(PlaceError::NameSpace)?;
    let links = Links::open().map_err(PlaceError::NameSpace)?;
    let failed = |what, name| move |cause| PlaceError::Interface { what, name, cause };
    let up = |name| links.set_up(name).map_err(failed("set the state", name));
    up("lo")?;
    let mut has_uso = true;
    for Wire { tap, mtu, host, .. } in [USUAL, LARGE] {
        has_uso &= link::make_tap(tap).map_err(|cause| PlaceError::Tap { tap, cause })?;
        let set = links.set_mtu(tap, mtu);
        set.map_err(failed("set the MTU", tap))?;
        let set = links.set_address(tap, host);
        set.map_err(failed("set the address", tap))?;
        let set = links.set_netmask(tap, NETMASK);
        set.map_err(failed("set the netmask", tap))?;
        up(tap)?;
    }
    Ok(has_uso)
}

/// Sets TCP's congestion control to `wanted`, if one is, in the name space to which [`enter`] has brought the calling thread. Gives the
/// name of the one that holds, if the kernel tells it (Documentation/networking/ip-sysctl.rst, `tcp_congestion_control`).
///
/// # Errors
/// [`PlaceError::Congestion`].
pub fn congestion(wanted: Option<&str>) -> Result<Option<String>, PlaceError> {
    if let Some(name) = wanted {
        fs::write(sysctl("tcp_congestion_control"), name).map_err(|cause| {
            let allowed = told("tcp_allowed_congestion_control");
            PlaceError::Congestion {
                name: name.to_owned(),
                allowed: allowed.unwrap_or_else(|| "not known".to_owned()),
                cause,
            }
        })?;
    }
    Ok(told("tcp_congestion_control"))
}

fn told(name: &str) -> Option<String> {
    let text = fs::read_to_string(sysctl(name)).ok()?;
    Some(text.trim().to_owned())
}

/// Each name space has its own.
fn sysctl(name: &str) -> String {
    format!("/proc/sys/net/ipv4/{name}")
}
