//! Saved form of a network card.

use serde::{Deserialize, Serialize};

use crate::fault::RestoreDeviceError;
use crate::virtio::net::config::{MTU_MIN, MacAddress};

/// Saved virtio-net, version 1. Never edit: add `NetStateV2` and a `From` of this.
///
/// The name of the tap is not part of it: a restore is told which one to use. Frames that wait in the tap are lost, as
/// on any network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetStateV1 {
    /// Address that the guest was told.
    pub mac: [u8; 6],
    /// MTU that the guest was told.
    pub mtu: Option<u16>,
}

/// Saved virtio-net, version 2. Never edit: add `NetStateV3` and a `From` of this.
///
/// A card whose driver uses one queue pair is saved as version 1, which says as much.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetStateV2 {
    /// Address that the guest was told.
    pub mac: [u8; 6],
    /// MTU that the guest was told.
    pub mtu: Option<u16>,
    /// Queue pairs that the driver uses.
    pub active_pairs: u16,
}

impl From<NetStateV1> for NetStateV2 {
    fn from(state: NetStateV1) -> Self {
        let NetStateV1 { mac, mtu } = state;
        Self {
            mac,
            mtu,
            active_pairs: 1,
        }
    }
}

impl NetStateV2 {
    /// The same as version 1, if that can say it.
    #[must_use]
    pub fn as_v1(&self) -> Option<NetStateV1> {
        let Self {
            mac,
            mtu,
            active_pairs,
        } = *self;
        (active_pairs == 1).then_some(NetStateV1 { mac, mtu })
    }

    /// The address, if a card can have it, and the MTU.
    pub(super) fn check(&self, id: &str) -> Result<(MacAddress, Option<u16>), RestoreDeviceError> {
        let mac = MacAddress::new(self.mac).map_err(|_| RestoreDeviceError::Mac {
            device: id.to_owned(),
        })?;
        match self.mtu {
            Some(mtu) if mtu < MTU_MIN => Err(RestoreDeviceError::Mtu {
                device: id.to_owned(),
                mtu,
            }),
            mtu => Ok((mac, mtu)),
        }
    }
}
