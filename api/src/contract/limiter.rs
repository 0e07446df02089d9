//! Limits of what a device may transfer.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How many tokens there are, and how fast they come back. A size or time of 0 means: no limit.
///
/// Unlike other bodies, it may hold fields that nobody knows: so it is in Firecracker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenBucket {
    /// Tokens in a full bucket: bytes or operations.
    pub size: u64,
    /// Time in which an empty bucket becomes full, in ms.
    pub refill_time: u64,
    /// Tokens that are there once more, at the beginning. Default: 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub one_time_burst: Option<u64>,
}

/// What limits a device. In a `PATCH`, a bucket that is absent stays as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RateLimiter {
    /// Bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<TokenBucket>,
    /// Operations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ops: Option<TokenBucket>,
}

impl RateLimiter {
    /// This limiter, with the buckets that `patch` names in place of its own.
    #[must_use]
    pub fn patched(self, patch: Self) -> Self {
        Self {
            bandwidth: patch.bandwidth.or(self.bandwidth),
            ops: patch.ops.or(self.ops),
        }
    }
}

/// `limiter` with the buckets that `patch` names in place of its own; without a patch, as it is.
#[must_use]
pub fn patched(limiter: Option<RateLimiter>, patch: Option<RateLimiter>) -> Option<RateLimiter> {
    match patch {
        Some(patch) => Some(limiter.unwrap_or_default().patched(patch)),
        None => limiter,
    }
}
