//! `hotplug/memory`, in the configuration file `memory-hotplug`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Memory that can be given to a running guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MemoryHotplugSpec {
    /// All that can be given, in MiB; whole slots.
    pub total_size_mib: u64,
    /// Size of a slot in MiB: 128 or more, whole blocks.
    #[serde(default = "default_slot_mib")]
    #[schema(minimum = 128)]
    pub slot_size_mib: u64,
    /// Size of a block in MiB: a power of two, 2 or more.
    #[serde(default = "default_block_mib")]
    #[schema(minimum = 2)]
    pub block_size_mib: u64,
}

const fn default_slot_mib() -> u64 {
    128
}

const fn default_block_mib() -> u64 {
    2
}

/// `PATCH /hotplug/memory`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MemoryHotplugPatch {
    /// What the guest is to have of it, in MiB; whole blocks.
    pub requested_size_mib: u64,
}

/// `GET /hotplug/memory`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MemoryHotplugStatus {
    /// See [`MemoryHotplugSpec::block_size_mib`].
    pub block_size_mib: u64,
    /// See [`MemoryHotplugSpec::total_size_mib`].
    pub total_size_mib: u64,
    /// See [`MemoryHotplugSpec::slot_size_mib`].
    pub slot_size_mib: u64,
    /// What the guest has taken, in MiB.
    pub plugged_size_mib: u64,
    /// What it is to have, in MiB.
    pub requested_size_mib: u64,
}
