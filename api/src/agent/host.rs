//! `GET /`: the agent itself, and its host.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The answer to `GET /`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AgentInfo {
    /// Version of LightV.
    pub lightv_version: String,
    /// The agent's process.
    pub pid: u32,
    /// When it was started, in milliseconds since 1970.
    pub started_unix_ms: u64,
    /// Its folder.
    #[schema(value_type = String)]
    pub state_folder: PathBuf,
    /// Whether each sandbox that it starts is in a jail of its own (`--jail`).
    #[serde(default)]
    pub jails: bool,
    /// How many there are.
    pub counts: AgentCounts,
    /// How many there may be.
    pub limits: AgentLimits,
    /// The host.
    pub host: HostInfo,
}

/// How many there are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AgentCounts {
    /// Names of images.
    pub images: u64,
    /// Sandboxes that are being started.
    pub starting: u64,
    /// Sandboxes that run.
    pub running: u64,
    /// Sandboxes that stand still.
    pub paused: u64,
    /// Sandboxes that have ended and are remembered.
    pub ended: u64,
    /// Pools.
    pub pools: u64,
    /// Programs that were started in guests by `POST /sandboxes/{id}/exec` and run.
    #[serde(default)]
    pub programs: u64,
    /// Guest memory of those that have not ended, in MiB.
    pub memory_mib: u64,
}

/// How many there may be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AgentLimits {
    /// Sandboxes that have not ended.
    pub sandboxes: u64,
    /// Guest memory of those, in MiB; `None`: as much as the host gives.
    pub memory_mib: Option<u64>,
    /// Requests that are being carried out, starts above all.
    pub requests: u64,
    /// Programs in guests.
    #[serde(default)]
    pub programs: u64,
    /// Connections.
    pub connections: u64,
}

/// The host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HostInfo {
    /// Its processors.
    pub cpus: u64,
    /// Its memory, in MiB.
    pub memory_mib: u64,
    /// Its memory that could be used, in MiB.
    pub available_mib: u64,
}
