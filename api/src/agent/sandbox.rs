//! Sandboxes: microVMs that the agent has started.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Body of `POST /sandboxes`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SandboxSpec {
    /// Name of an image of the agent, or `sha256:` and 64 hexadecimal digits.
    pub image: String,
    /// 1–64 letters, digits and `-`. No two sandboxes that have not ended have the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Arguments of the guest; they replace those in the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub args: Option<Vec<String>>,
    /// Variables of the guest's environment, beside those in the image.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Whatever the client wants to find it by: at most 64.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Networks, as `lightv run --net` takes them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub net: Vec<String>,
    /// Whether it must have vsock. The image decides whether it does; its socket is the sandbox's own.
    #[serde(default)]
    pub vsock: bool,
    /// Whether it may come from a pool.
    #[serde(default)]
    pub warm: WarmUse,
}

/// Body of `POST /sandboxes/{id}/fork`, or none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ForkSandboxSpec {
    /// 1–64 letters, digits and `-`. No two sandboxes that have not ended have the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Whatever the client wants to find it by: at most 64.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Other taps, or networks in user space, for its interfaces, as `lightv fork --net` takes them. A tap is one machine's alone,
    /// so an interface on a tap needs another one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub net: Vec<String>,
}

/// Whether a sandbox may be a VM that is ready already.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum WarmUse {
    /// A process of its own is started.
    Never,
    /// It comes from the image's pool if one is ready there.
    #[default]
    Prefer,
    /// It comes from the image's pool, or is refused.
    Require,
}

/// What a sandbox does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum SandboxState {
    /// Its process is being started; its creation has not been answered.
    Starting,
    /// It runs.
    Running,
    /// It stands still.
    Paused,
    /// Its process is gone.
    Ended,
}

impl SandboxState {
    /// As it is written.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Ended => "ended",
        }
    }
}

/// A sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Sandbox {
    /// 16 hexadecimal digits, chosen by the agent.
    pub id: String,
    /// Its name, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The image, as it was named.
    pub image: String,
    /// `sha256:` and 64 hexadecimal digits: the bytes that it was started from.
    pub digest: String,
    /// What it does.
    pub state: SandboxState,
    /// Its process; `None` before there is one, and after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Whether it came from a pool.
    pub warm: bool,
    /// Whether its process is in a jail of its own (docs/jail.md).
    #[serde(default)]
    pub jailed: bool,
    /// Guest memory in MiB.
    pub memory_mib: u64,
    /// The microVM's own REST API (docs/api.md).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub api_socket: Option<PathBuf>,
    /// The socket of its vsock, if the image has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub vsock_socket: Option<PathBuf>,
    /// What the client wants to find it by.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// When it was asked for, in milliseconds since 1970.
    pub created_unix_ms: u64,
    /// From the request to the running VM, in microseconds; `None` while it starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_us: Option<u64>,
    /// When its end was seen, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_unix_ms: Option<u64>,
    /// Exit status of its process (docs/exit-codes.md); `None` when it ended while no agent ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<u8>,
    /// Why it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_reason: Option<String>,
}

/// Body of `POST /sandboxes/{id}/stop`, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StopSpec {
    /// Seconds until it is killed: 0–86,400.
    #[serde(default = "default_stop_time_s")]
    pub time_s: u32,
}

impl Default for StopSpec {
    fn default() -> Self {
        let time_s = default_stop_time_s();
        Self { time_s }
    }
}

const fn default_stop_time_s() -> u32 {
    10
}
