//! A microVM as the user asks for it: the JSON of `lightv-vmm --config FILE`.
//!
//! Keys, names and defaults are those of Firecracker's configuration file, and the types are those of the REST
//! contract ([`crate::contract`]). What LightV does not offer yet is decoded all the same, so that it can be refused
//! by name ([`crate::offer`]) instead of being ignored. Nothing is checked here beyond types and unknown fields;
//! `lightv-vmm` proves the rest before it builds anything.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use lightv_contract::agent::{AgentSpec, InterfaceSpec, Ready, Writable};

use crate::contract::balloon::BalloonSpec;
pub use crate::contract::boot_source::{BootSource, DEFAULT_BOOT_ARGS};
use crate::contract::cpu::CpuConfig;
pub use crate::contract::drive::DriveSpec;
pub use crate::contract::entropy::EntropySpec;
use crate::contract::logger::LoggerSpec;
pub use crate::contract::machine::MachineSpec;
use crate::contract::memory_hotplug::MemoryHotplugSpec;
use crate::contract::metrics::MetricsSpec;
use crate::contract::mmds::MmdsConfig;
pub use crate::contract::net::NetSpec;
use crate::contract::pmem::PmemSpec;
use crate::contract::vsock::VsockSpec;

/// Top level of the configuration file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct VmSpec {
    /// What is booted. Required for a boot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot_source: Option<BootSource>,
    /// CPUs and memory.
    #[serde(default)]
    pub machine_config: MachineSpec,
    /// Disks, in the order in which the guest finds them; the root disk is moved to the front.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drives: Vec<DriveSpec>,
    /// Network interfaces, in the order in which the guest finds them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub network_interfaces: Vec<NetSpec>,
    /// A source of random bytes for the guest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entropy: Option<EntropySpec>,
    /// LightV's own: a console for the guest's standard streams and terminal. Without it there is the serial port alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub console: Option<ConsoleSpec>,
    /// LightV's own: programs can be started in the running guest, by its agent (docs/exec.md). A machine without `vsock` gets
    /// one for it, whose socket lies in the runtime directory: each run has its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exec: Option<ExecSpec>,
    /// LightV's own: what the guest learns of this run from the control device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<RunSpec>,
    /// Sockets between guest and host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vsock: Option<VsockSpec>,
    /// A device by which the guest gives memory back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub balloon: Option<BalloonSpec>,
    /// How guests reach the metadata service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mmds_config: Option<MmdsConfig>,
    /// What is changed of the CPU that the guest sees.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_config: Option<CpuConfig>,
    /// What is logged, and where.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logger: Option<LoggerSpec>,
    /// Where metrics are written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics: Option<MetricsSpec>,
    /// Files that the guest sees as persistent memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pmem: Option<Vec<PmemSpec>>,
    /// Memory that can be given to a running guest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_hotplug: Option<MemoryHotplugSpec>,
}

/// `console`: LightV's own addition. Nothing is to be chosen yet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsoleSpec {}

/// `exec`: LightV's own addition. Nothing is to be chosen yet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecSpec {}

/// `run`: LightV's own addition. Arguments, environment and the agent's orders together are at most 61,440
/// bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RunSpec {
    /// Arguments of this run.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Environment of this run.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// What LightV's agent in a Linux guest is to do. Without it, the guest's init gets arguments and environment and does
    /// with them what it likes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentSpec>,
}
