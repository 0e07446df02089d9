//! `GET /stats`: the agent's figures in JSON, for whoever draws them. What grows is told as it is since the agent's start.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::host::{AgentCounts, AgentLimits};

/// The answer to `GET /stats`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AgentStats {
    /// Version of LightV.
    pub lightv_version: String,
    /// The host's name.
    pub host_name: String,
    /// The agent's clock, in milliseconds since 1970.
    pub now_unix_ms: u64,
    /// When the agent was started, in milliseconds since 1970. Another value: what grows has begun anew.
    pub started_unix_ms: u64,
    /// How many there are.
    pub counts: AgentCounts,
    /// How many there may be.
    pub limits: AgentLimits,
    /// Sandboxes that were started.
    pub starts: StartCounts,
    /// How long that took.
    pub start_times: TimeCounts,
    /// What the host has, and is busy with.
    pub host: HostUsage,
    /// What each sandbox that has not ended takes of it.
    pub usage: Vec<SandboxUsage>,
}

/// Sandboxes that were started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StartCounts {
    /// From a pool.
    pub warm: u64,
    /// As a process of their own.
    pub cold: u64,
    /// Not: the request was right, and nothing came of it.
    pub failed: u64,
}

/// How often something took how long.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TimeCounts {
    /// Microseconds, in rising order.
    pub bounds_us: Vec<u64>,
    /// Each the number of those that took at most the bound at its place, and more than the one before. The last number,
    /// which has no bound, is that of those above all bounds.
    pub counts: Vec<u64>,
}

/// What the host has, and is busy with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HostUsage {
    /// Its processors.
    pub cpus: u64,
    /// Time that they were busy since the host's boot, together, in milliseconds.
    pub cpu_busy_ms: u64,
    /// Its memory in bytes.
    pub memory_bytes: u64,
    /// Memory that could be used, in bytes.
    pub memory_available_bytes: u64,
}

/// What a sandbox takes of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SandboxUsage {
    /// Its id.
    pub id: String,
    /// Processor time of its process, guest included, in milliseconds.
    pub cpu_ms: u64,
    /// Memory that is neither a file's nor shared, the guest's included, in bytes.
    pub memory_bytes: u64,
}
