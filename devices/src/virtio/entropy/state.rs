//! Saved form of the entropy source.

use serde::{Deserialize, Serialize};

/// Saved entropy source, version 1: it has no state of its own. Never edit: add `EntropyStateV2`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct EntropyStateV1 {}
