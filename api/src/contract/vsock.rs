//! `vsock`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Sockets between guest and host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VsockSpec {
    /// The guest's address, 3 or more.
    #[schema(minimum = 3)]
    pub guest_cid: u32,
    /// Unix socket by which the host connects; that of a guest's connection to port N is `<uds_path>_N`.
    #[schema(value_type = String)]
    pub uds_path: PathBuf,
    /// Deprecated, and without effect.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(deprecated)]
    pub vsock_id: Option<String>,
}
