//! What the process says of itself.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The release of Firecracker whose API this is. Clients parse it, and ask for what it has.
pub const FIRECRACKER_VERSION: &str = "1.17.0";

/// Whose API this is. Clients compare it.
pub const APP_NAME: &str = "Firecracker";

/// `GET /`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InstanceInfo {
    /// The machine's name.
    pub id: String,
    /// What it is doing.
    pub state: InstanceState,
    /// `1.17.0`: the release of Firecracker whose API this is.
    pub vmm_version: String,
    /// `Firecracker`: whose API this is.
    pub app_name: String,
    /// LightV's own: its version.
    pub lightv_version: String,
}

/// What a machine is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum InstanceState {
    /// It is being configured.
    #[default]
    #[serde(rename = "Not started")]
    NotStarted,
    /// Its vCPUs run.
    Running,
    /// Its vCPUs stand still.
    Paused,
}

impl std::fmt::Display for InstanceState {
    /// As in the JSON.
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self {
            Self::NotStarted => "Not started",
            Self::Running => "Running",
            Self::Paused => "Paused",
        })
    }
}

/// `GET /version`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VersionInfo {
    /// `1.17.0`: the release of Firecracker whose API this is.
    pub firecracker_version: String,
    /// LightV's own: its version.
    pub lightv_version: String,
}
