//! `network-interfaces`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::limiter::RateLimiter;

/// A network interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NetSpec {
    /// Letters, digits and `_`, at most 64; unique.
    pub iface_id: String,
    /// Name of a tap device: 1–15 bytes. Created if it is absent and the process may.
    pub host_dev_name: String,
    /// MAC address, `aa:bb:cc:dd:ee:ff`; not multicast. Default: made from the interface's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guest_mac: Option<String>,
    /// Offered to the guest: 68–65,535 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 68, maximum = 65535)]
    pub mtu: Option<u64>,
    /// What the guest may receive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RateLimiter>,
    /// What the guest may send.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RateLimiter>,
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
