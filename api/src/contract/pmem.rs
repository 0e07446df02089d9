//! `pmem`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::limiter::RateLimiter;

/// A file that the guest sees as persistent memory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PmemSpec {
    /// Letters, digits and `_`, at most 64; unique.
    pub id: String,
    /// The file.
    #[schema(value_type = String)]
    pub path_on_host: PathBuf,
    /// Whether it holds the root file system.
    #[serde(default)]
    pub root_device: bool,
    /// Whether the guest may only read.
    #[serde(default)]
    pub read_only: bool,
    /// How often the guest may flush.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}

/// `PATCH /pmem/{id}`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PmemPatch {
    /// The device.
    pub id: String,
    /// Other limits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}
