//! `vm`: pause, resume, and the whole configuration.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::balloon::BalloonSpec;
use super::boot_source::BootSource;
use super::cpu::CpuSpec;
use super::drive::DriveSpec;
use super::entropy::EntropySpec;
use super::logger::LoggerSpec;
use super::machine::MachineSpec;
use super::memory_hotplug::MemoryHotplugSpec;
use super::metrics::MetricsSpec;
use super::mmds::MmdsConfig;
use super::net::NetSpec;
use super::pmem::PmemSpec;
use super::vsock::VsockSpec;

/// `PATCH /vm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmStatePatch {
    /// What the machine is to do.
    pub state: VmState,
}

/// What a started machine can be told to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum VmState {
    /// Stand still.
    Paused,
    /// Go on.
    Resumed,
}

/// `GET /vm/config`: what was configured, by Firecracker's keys; `logger`, `metrics` and `cpu-config` until the start. What was not
/// configured is `null`, or an empty list.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the types say what they are")]
pub struct FullConfig {
    pub balloon: Option<BalloonSpec>,
    pub drives: Vec<DriveSpec>,
    pub boot_source: Option<BootSource>,
    pub cpu_config: Option<CpuSpec>,
    pub logger: Option<LoggerSpec>,
    pub machine_config: MachineSpec,
    pub metrics: Option<MetricsSpec>,
    pub mmds_config: Option<MmdsConfig>,
    pub network_interfaces: Vec<NetSpec>,
    pub vsock: Option<VsockSpec>,
    pub entropy: Option<EntropySpec>,
    pub pmem: Vec<PmemSpec>,
    pub memory_hotplug: Option<MemoryHotplugSpec>,
}
