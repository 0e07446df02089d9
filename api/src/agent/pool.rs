//! Pools: VMs of an image that are ready to be given work.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Body of `PUT /pools/{image}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PoolSpec {
    /// VMs that are kept ready at the least: 0–4096.
    #[serde(default = "default_min")]
    pub min: u32,
    /// At the most: 1–4096, and not less than `min`. Between them the pool follows demand.
    #[serde(default = "default_max")]
    pub max: u32,
    /// How it is filled.
    #[serde(default)]
    pub refill: RefillSpec,
}

/// How a pool is filled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RefillSpec {
    /// VMs that are made ready at the same time: 1–64.
    #[serde(default = "default_parallel")]
    pub parallel: u32,
}

impl Default for PoolSpec {
    fn default() -> Self {
        Self {
            min: default_min(),
            max: default_max(),
            refill: RefillSpec::default(),
        }
    }
}

impl Default for RefillSpec {
    fn default() -> Self {
        let parallel = default_parallel();
        Self { parallel }
    }
}

const fn default_min() -> u32 {
    1
}

const fn default_max() -> u32 {
    16
}

const fn default_parallel() -> u32 {
    1
}

/// A pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Pool {
    /// Name of the image.
    pub image: String,
    /// The bytes that its VMs are made of.
    pub digest: String,
    /// VMs that are kept ready at the least.
    pub min: u32,
    /// At the most.
    pub max: u32,
    /// VMs that are ready.
    pub ready: u32,
    /// VMs that are to be ready, by demand.
    pub target: u32,
    /// VMs that are being made.
    pub starting: u32,
    /// Sandboxes that came from it since the agent has started.
    pub served: u64,
    /// Sandboxes of its image that found none ready.
    pub missed: u64,
    /// The process that they are forked from, if it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template_pid: Option<u32>,
    /// Why it has no VM ready, if that is a fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
}
