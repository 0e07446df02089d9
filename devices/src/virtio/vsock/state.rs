//! Saved form of the socket device.

use serde::{Deserialize, Serialize};

use crate::fault::RestoreDeviceError;
use crate::limits::{VSOCK_CONNECTIONS_MAX, VSOCK_REPLIES_MAX};
use crate::virtio::vsock::packet::Pair;

/// Saved socket device, version 1. Never edit: add `VsockStateV2` and a `From` of this.
///
/// Sockets of the host cannot be saved, so connections end with a restore. Their ports are kept: the guest is told of each
/// that it has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockStateV1 {
    /// The guest's context id.
    pub guest_cid: u32,
    /// A driver has started the device.
    pub has_driver: bool,
    /// The host's port of the next connection to the guest.
    pub next_host_port: u32,
    /// Connections that the guest has, or may still believe to have.
    pub connections: Vec<PortPairV1>,
}

/// Ports of a saved connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortPairV1 {
    /// The guest's.
    pub guest: u32,
    /// The host's.
    pub host: u32,
}

/// Ports that the host gives to its connections: from 2^30 on, as in Firecracker, far from those of services.
pub(super) const HOST_PORTS: std::ops::RangeInclusive<u32> = (1 << 30)..=(1 << 31) - 1;

impl VsockStateV1 {
    /// Looks whether a device with `guest_cid` can have brought it about.
    pub(super) fn check(&self, id: &str, guest_cid: u32) -> Result<(), RestoreDeviceError> {
        if self.guest_cid != guest_cid {
            return Err(RestoreDeviceError::GuestCid {
                device: id.to_owned(),
                saved: self.guest_cid,
                found: guest_cid,
            });
        }
        let is_possible = self.connections.len() <= STATE_CONNECTIONS_MAX
            && (self.has_driver || self.connections.is_empty())
            && HOST_PORTS.contains(&self.next_host_port);
        if is_possible {
            Ok(())
        } else {
            Err(RestoreDeviceError::Connections {
                device: id.to_owned(),
            })
        }
    }
}

/// Connections, those that had ended before an earlier restore, and answers that the guest had not taken.
pub(super) const STATE_CONNECTIONS_MAX: usize = 2 * VSOCK_CONNECTIONS_MAX + VSOCK_REPLIES_MAX;

impl From<Pair> for PortPairV1 {
    fn from(pair: Pair) -> Self {
        let Pair { guest, host } = pair;
        Self { guest, host }
    }
}

impl From<PortPairV1> for Pair {
    fn from(pair: PortPairV1) -> Self {
        let PortPairV1 { guest, host } = pair;
        Self { guest, host }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_that_no_guest_brings_about_are_refused() {
        let pair = PortPairV1 { guest: 1, host: 2 };
        let good = VsockStateV1 {
            guest_cid: 3,
            has_driver: true,
            next_host_port: 1 << 30,
            connections: vec![pair; 2],
        };
        assert_eq!(good.check("vsock", 3), Ok(()));
        assert!(good.check("vsock", 4).is_err(), "another cid");
        for bad in [
            VsockStateV1 {
                has_driver: false,
                ..good.clone()
            },
            VsockStateV1 {
                next_host_port: 1024,
                ..good.clone()
            },
            VsockStateV1 {
                connections: vec![pair; STATE_CONNECTIONS_MAX + 1],
                ..good
            },
        ] {
            assert!(bad.check("vsock", 3).is_err(), "{bad:?}");
        }
    }
}
