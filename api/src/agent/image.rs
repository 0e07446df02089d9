//! Images of the agent's store.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Body of `PUT /images/{name}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageSpec {
    /// An image file (`.lv`) of this host, as an absolute path. It is copied.
    #[schema(value_type = String)]
    pub path: PathBuf,
}

/// A name, and the image that it leads to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StoredImage {
    /// 1–64 letters, digits, `.`, `_` and `-`, the first a letter or digit.
    pub name: String,
    /// `sha256:` and 64 hexadecimal digits.
    pub digest: String,
    /// Length of the file in bytes.
    pub bytes: u64,
    /// Guest memory in MiB.
    pub memory_mib: u64,
    /// Whether its machine has vsock.
    pub vsock: bool,
    /// When the name was set, in milliseconds since 1970.
    pub set_unix_ms: u64,
}
