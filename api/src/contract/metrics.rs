//! `metrics`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Where metrics are written, once a minute and when asked. Unknown fields are passed over, as in Firecracker.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MetricsSpec {
    /// A file or FIFO.
    #[schema(value_type = String)]
    pub metrics_path: PathBuf,
    /// Whether each line says the machine's id.
    #[serde(default)]
    pub emit_id: bool,
    /// What each line says beside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub properties: Option<BTreeMap<String, String>>,
}
