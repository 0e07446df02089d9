//! `mmds-config`: by which interfaces, and how, the guest reaches the metadata service.

use std::net::Ipv4Addr;

use lightv_api::contract::mmds::{MmdsConfig as MmdsSpec, MmdsVersion};
use lightv_devices::mmds::{DEFAULT_ADDRESS, MmdsOptions, Version};

use super::{Faults, NetConfig};

/// The metadata service of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MmdsConfig {
    /// Ids of the interfaces that reach it.
    interfaces: Vec<String>,
    /// How it is reached.
    options: MmdsOptions,
}

impl MmdsConfig {
    /// How interface `id` reaches it, if it does.
    #[must_use]
    pub fn options_of(&self, id: &str) -> Option<MmdsOptions> {
        let is_named = self.interfaces.iter().any(|known| known == id);
        is_named.then_some(self.options)
    }
}

/// Proves `spec` on a machine with the interfaces `nets`.
pub(super) fn prove(spec: &MmdsSpec, nets: &[NetConfig], faults: &mut Faults) -> MmdsConfig {
    let field = "mmds-config.network_interfaces";
    let ids: Vec<&str> = nets.iter().map(|net| net.id.as_str()).collect();
    if spec.network_interfaces.is_empty() {
        faults.add(field, "empty", "ids of network-interfaces, one or more");
    }
    for (index, id) in spec.network_interfaces.iter().enumerate() {
        if !ids.contains(&id.as_str()) {
            let allowed = match ids.is_empty() {
                true => "nothing: there are no network-interfaces".to_owned(),
                false => format!("ids of network-interfaces: {}", ids.join(", ")),
            };
            faults.add(format!("{field}[{index}]"), format!("`{id}`"), allowed);
        }
    }
    let address = spec.ipv4_address.unwrap_or(DEFAULT_ADDRESS);
    if !is_usable(address) {
        faults.add(
            "mmds-config.ipv4_address",
            address,
            "a link-local address: 169.254.1.0–169.254.254.255",
        );
    }
    MmdsConfig {
        interfaces: spec.network_interfaces.clone(),
        options: MmdsOptions {
            version: match spec.version {
                MmdsVersion::V1 => Version::V1,
                MmdsVersion::V2 => Version::V2,
            },
            address,
            imds_compat: spec.imds_compat,
        },
    }
}

/// RFC 3927 §2.1 keeps the first and the last 256 link-local addresses for later.
const fn is_usable(address: Ipv4Addr) -> bool {
    let [_, _, third, _] = address.octets();
    address.is_link_local() && third != 0 && third != 255
}
