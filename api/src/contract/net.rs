//! `network-interfaces`.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::ToSchema;

use super::limiter::RateLimiter;

/// A network interface: on a tap, as in Firecracker, or with LightV's own `host_fd` or `user` in its place.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct NetSpec {
    /// Letters, digits and `_`, at most 64; unique.
    pub iface_id: String,
    /// Name of a tap device: 1–15 bytes. Created if it is absent and the process may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_dev_name: Option<String>,
    /// LightV's own: an open tap that the monitor has inherited from whoever started it, by its number: 3 or more. Attached
    /// with IFF_VNET_HDR.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 3)]
    pub host_fd: Option<i32>,
    /// LightV's own: a network in user space, by passt. Needs no privileges.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<UserNet>,
    /// MAC address, `aa:bb:cc:dd:ee:ff`; not multicast. Default: made from the interface's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guest_mac: Option<String>,
    /// Offered to the guest: 68–65,535 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 68, maximum = 65535)]
    pub mtu: Option<u64>,
    /// LightV's own: number of queue pairs, 1–8, 1 unless said otherwise. Linux uses as many as it has vCPUs. More than one need a
    /// tap by name, made with multi_queue if it is not made by the monitor.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 8)]
    pub num_queues: Option<u16>,
    /// What the guest may receive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RateLimiter>,
    /// What the guest may send.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RateLimiter>,
}

/// A network in user space: the guest has the address 10.0.2.15/24, the route 10.0.2.2 and the name server 10.0.2.3, and
/// reaches what the monitor's user reaches.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UserNet {
    /// Ports of the host that lead to the guest, each `[ADDRESS:]PORT:GUEST_PORT[/udp]`; without ADDRESS, of all its IPv4
    /// addresses. At most 64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub publish: Vec<String>,
    /// Whether the guest reaches the host's own 127.0.0.1, as 10.0.2.2. Default: no.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub host_loopback: bool,
}

/// What an interface is connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetHost {
    /// The tap of this name.
    Tap(String),
    /// An inherited descriptor of a tap.
    Fd(i32),
    /// A network in user space.
    User(UserNet),
}

impl fmt::Display for NetHost {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tap(name) => out.write_str(name),
            Self::Fd(number) => write!(out, "fd={number}"),
            Self::User(user) => {
                out.write_str("user")?;
                for port in &user.publish {
                    write!(out, ",publish={port}")?;
                }
                out.write_str(if user.host_loopback {
                    ",host-loopback"
                } else {
                    ""
                })
            }
        }
    }
}

/// The three fields of which an interface has one.
struct HostFields<'a>(&'a Option<String>, &'a Option<i32>, &'a Option<UserNet>);

impl HostFields<'_> {
    fn check<E: serde::de::Error>(&self) -> Result<(), E> {
        let Self(name, fd, user) = self;
        match u8::from(name.is_some()) + u8::from(fd.is_some()) + u8::from(user.is_some()) {
            0 => Err(E::custom(
                "missing field `host_dev_name` (or `host_fd`, or `user`)",
            )),
            1 => Ok(()),
            _ => Err(E::custom(
                "an interface has only one of `host_dev_name`, `host_fd` and `user`",
            )),
        }
    }

    fn host(&self) -> NetHost {
        let Self(name, fd, user) = self;
        match (name, fd, user) {
            (_, _, Some(user)) => NetHost::User(user.clone()),
            (_, Some(fd), _) => NetHost::Fd(*fd),
            (name, _, _) => NetHost::Tap(name.as_deref().unwrap_or_default().to_owned()),
        }
    }
}

impl NetSpec {
    /// What it is connected to.
    #[must_use]
    pub fn host(&self) -> NetHost {
        HostFields(&self.host_dev_name, &self.host_fd, &self.user).host()
    }

    /// Connects it to something else.
    pub fn set_host(&mut self, host: NetHost) {
        (self.host_dev_name, self.host_fd, self.user) = match host {
            NetHost::Tap(name) => (Some(name), None, None),
            NetHost::Fd(number) => (None, Some(number), None),
            NetHost::User(user) => (None, None, Some(user)),
        };
    }
}

impl<'de> Deserialize<'de> for NetSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // The function that was derived, by `remote`.
        let spec = Self::deserialize(deserializer)?;
        HostFields(&spec.host_dev_name, &spec.host_fd, &spec.user).check::<D::Error>()?;
        Ok(spec)
    }
}

impl Serialize for NetSpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}

/// Another host's end for an interface. Unknown fields are passed over, as in Firecracker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(remote = "Self")]
pub struct NetworkOverride {
    /// Which interface.
    pub iface_id: String,
    /// Its tap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_dev_name: Option<String>,
    /// LightV's own: as of a network interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 3)]
    pub host_fd: Option<i32>,
    /// LightV's own: as of a network interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<UserNet>,
}

impl NetworkOverride {
    /// For the interface `iface_id`.
    #[must_use]
    pub fn new(iface_id: String, host: NetHost) -> Self {
        let mut spec = NetSpec::default();
        spec.set_host(host);
        Self {
            iface_id,
            host_dev_name: spec.host_dev_name,
            host_fd: spec.host_fd,
            user: spec.user,
        }
    }

    /// What the interface is connected to.
    #[must_use]
    pub fn host(&self) -> NetHost {
        HostFields(&self.host_dev_name, &self.host_fd, &self.user).host()
    }
}

impl<'de> Deserialize<'de> for NetworkOverride {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let change = Self::deserialize(deserializer)?;
        HostFields(&change.host_dev_name, &change.host_fd, &change.user).check::<D::Error>()?;
        Ok(change)
    }
}

impl Serialize for NetworkOverride {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}

/// `PATCH /network-interfaces/{id}`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NetPatch {
    /// The interface.
    pub iface_id: String,
    /// Other limits of what the guest may receive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RateLimiter>,
    /// Other limits of what the guest may send.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RateLimiter>,
}
