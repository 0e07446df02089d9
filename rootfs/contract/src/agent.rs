//! The agent's orders: `run.agent` of the configuration, and, as JSON, of the control device.

use serde::{Deserialize, Serialize};

/// What the agent is to do. The program is `entrypoint` followed by the arguments of the run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AgentSpec {
    /// First words of the program's command line. Arguments of the run follow; together at least one word.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// Folder that the program starts in; made if it is absent. Default: `/`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// Who runs the program: `user`, `uid`, `user:group`, `uid:gid`; names are those of the guest's `/etc/passwd` and
    /// `/etc/group`. Default: root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Host name, 1–63 bytes. Default: `lightv`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Addresses of the network interfaces.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub network: Vec<InterfaceSpec>,
    /// When the machine is ready to be saved.
    #[serde(skip_serializing_if = "Ready::is_default")]
    pub ready: Ready,
    /// Where the program's writes go when the root file system is read-only.
    #[serde(skip_serializing_if = "Writable::is_default")]
    pub writable: Writable,
}

/// An interface of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InterfaceSpec {
    /// Its name in the guest: `eth0` is the first of the machine's interfaces.
    pub interface: String,
    /// IPv4 address and prefix length: `10.0.0.2/24`.
    pub address: String,
    /// IPv4 address of the default route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    /// Name servers, for `/etc/resolv.conf`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<String>,
}

/// When the machine is ready to be saved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ready {
    /// The program is loaded, with its libraries, and stands before its own first instruction.
    #[default]
    Exec,
    /// The program says when: it reads [`crate::READY_PATH`] to its end.
    Doorbell,
    /// Something in the guest listens on this TCP port, 1–65,535.
    Listen(u16),
}

/// Where the program's writes go when the root file system is read-only.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Writable {
    /// To memory, up to half of it.
    #[default]
    Memory,
    /// To memory, up to so many MiB.
    MemoryMib(u32),
    /// To the first ext4 of this block device of the guest (`/dev/vdb`): they outlive the run.
    Disk(String),
    /// Nowhere: the root file system stays read-only; `/run` and `/tmp` are in memory.
    Nowhere,
}

impl Ready {
    /// Whether this is what an absent field means.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Writable {
    /// Whether this is what an absent field means.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}
