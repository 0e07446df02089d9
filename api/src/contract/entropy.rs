//! `entropy`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::limiter::RateLimiter;

/// A source of random bytes for the guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EntropySpec {
    /// What the guest may take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}
