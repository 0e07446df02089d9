//! What a pool, its templates and their machines say to each other (docs/pool.md): each a packet of JSON on a socket of
//! type SOCK_SEQPACKET.
//!
//! ```text
//!   pool --TemplateOrder--> template --TemplateAnswer--> pool      a socket for each template
//!   pool --Assignment-----> machine  --MachineNews-----> pool      a socket for each machine
//! ```

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What a template is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum TemplateOrder {
    /// To make a machine.
    Fork,
}

/// What a template answers; the first without being asked, when its image is proved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TemplateAnswer {
    /// It can make machines.
    Ready,
    /// A machine is being made, by a process of its own. The packet has two descriptors: the machine's socket, and the
    /// process's pidfd.
    Forked {
        /// Process id.
        pid: u32,
    },
    /// There is none. A template that was not ready ends.
    Refused(Refusal),
}

/// Why something was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// In words.
    pub text: String,
    /// The exit status of a run that ends by it ([`crate::exit`]).
    pub exit_code: u8,
}

/// What a machine that is ready is given to run. The packet has three descriptors: its standard streams.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Assignment {
    /// Name of the machine: 1–64 letters, digits and `-`.
    pub id: String,
    /// Arguments; `None`: the template's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub args: Option<Vec<String>>,
    /// Environment, added to the template's, or replaced by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<(String, String)>,
    /// Where the REST API is served. Only of a template that was started for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_socket: Option<PathBuf>,
    /// The machine ends when the pool's end of its socket is closed. Else it goes on without.
    #[serde(default)]
    pub ends_with_pool: bool,
}

/// What a machine says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MachineNews {
    /// It waits for an assignment.
    Ready,
    /// It runs.
    Running,
    /// It could not be made, and ends; or the assignment was refused, and it waits for another.
    Refused(Refusal),
    /// It has ended, and its process ends with this exit status.
    Ended(u8),
}
