//! `actions`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `PUT /actions`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ActionSpec {
    /// What is to be done.
    pub action_type: Action,
}

/// What can be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum Action {
    /// Start the machine that was configured.
    InstanceStart,
    /// Write the metrics now.
    FlushMetrics,
    /// Press Ctrl-Alt-Del.
    SendCtrlAltDel,
}
