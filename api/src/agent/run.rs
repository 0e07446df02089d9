//! Messages of the run socket, by which `lightv run` is served from a pool: one connection a run, one JSON text a message.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Name of the run socket in the runtime directory.
pub const RUN_SOCKET_NAME: &str = "agent-run.sock";

/// Bytes of a message at the most.
pub const RUN_MESSAGE_BYTES_MAX: usize = 128 << 10;

/// The first message of a client; standard input, output and error go with it (SCM_RIGHTS).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunRequest {
    /// Name of an image of the agent, `sha256:…`, or an absolute path: the run is granted if these very bytes have a VM ready.
    pub image: String,
    /// Arguments of the guest; they replace those in the image.
    #[serde(default)]
    pub args: Option<Vec<String>>,
    /// Variables of the guest's environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
}

/// A later message of a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunSignal {
    /// Number of a signal for the VM.
    pub signal: i32,
}

/// A message of the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum RunAnswer {
    /// It runs.
    Running {
        /// Id of the sandbox.
        sandbox: String,
        /// Its process.
        pid: u32,
        /// Always `true`: a run that no VM is ready for is refused.
        warm: bool,
    },
    /// It does not.
    Refused {
        /// Why not.
        refused: String,
        /// What to exit with, unless the client goes on alone.
        exit_code: u8,
        /// Whether the guest may have begun: then nobody runs it again.
        #[serde(default)]
        begun: bool,
    },
    /// It has ended.
    Ended {
        /// Exit status.
        ended: u8,
    },
}
