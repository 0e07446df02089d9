//! What a running monitor says of itself in the runtime directory (docs/runtime-directory.md).

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A monitor that runs, or did when it wrote this.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmRecord {
    /// The machine's name; several may have the same.
    pub id: String,
    /// Process id.
    pub pid: u32,
    /// Inode of `/proc/self/ns/pid`: in which name space that id is.
    pub pid_namespace: u64,
    /// When the process started, in clock ticks since the host's boot (field 22 of `/proc/PID/stat`): with it, another
    /// process that has come to the same id is told apart.
    pub start_ticks: u64,
    /// The REST API's socket, if it is served.
    pub api_socket: Option<PathBuf>,
    /// The socket of its vsock, if it was known when this was written: a client of the REST API may name another later.
    #[serde(default)]
    pub vsock_socket: Option<PathBuf>,
    /// Image, configuration or snapshot that it was started with; `None` for one that was configured by requests.
    pub source: Option<PathBuf>,
    /// Where the guest's output goes, if it was started in the background.
    pub log: Option<PathBuf>,
    /// When it was started, in seconds since 1970.
    pub started_unix_s: u64,
    /// Version of LightV.
    pub version: String,
}
