//! `machine-config`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::tuning::TuningSpec;

/// CPUs and memory.
///
/// `PUT /machine-config` must give the number of vCPUs and the memory, as in Firecracker; a configuration file may leave
/// them out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MachineSpec {
    /// Number of vCPUs, 1–32.
    #[schema(required = true, minimum = 1, maximum = 32)]
    pub vcpu_count: u64,
    /// Guest RAM in MiB.
    #[schema(required = true, minimum = 1)]
    pub mem_size_mib: u64,
    /// Whether vCPUs are presented as hyper-threads of shared cores. This version refuses `true`.
    pub smt: bool,
    /// One of Firecracker's CPU templates. A `PUT` without it keeps the one that was set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_template: Option<CpuTemplate>,
    /// Whether pages that the guest writes are noted, for differential snapshots.
    pub track_dirty_pages: bool,
    /// What guest memory is made of.
    pub huge_pages: HugePages,
    /// LightV's own. Whether the guest reads the registers of its devices as memory, without leaving (docs/api.md). `true`
    /// unless said otherwise, and then not shown.
    #[serde(skip_serializing_if = "is_true")]
    pub register_pages: bool,
    /// LightV's own. How the host runs the machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tuning: Option<TuningSpec>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
const fn is_true(value: &bool) -> bool {
    *value
}

impl Default for MachineSpec {
    fn default() -> Self {
        Self {
            vcpu_count: 1,
            mem_size_mib: 128,
            smt: false,
            cpu_template: None,
            track_dirty_pages: false,
            huge_pages: HugePages::None,
            register_pages: true,
            tuning: None,
        }
    }
}

impl MachineSpec {
    /// What a machine of this kind is after `PUT` of `new`.
    #[must_use]
    pub fn replaced_by(&self, mut new: Self) -> Self {
        new.cpu_template = new.cpu_template.or(self.cpu_template);
        new
    }

    /// What a machine of this kind is after `PATCH` of `patch`.
    #[must_use]
    pub fn patched(&self, patch: &MachinePatch) -> Self {
        Self {
            vcpu_count: patch.vcpu_count.unwrap_or(self.vcpu_count),
            mem_size_mib: patch.mem_size_mib.unwrap_or(self.mem_size_mib),
            smt: patch.smt.unwrap_or(self.smt),
            cpu_template: patch.cpu_template.or(self.cpu_template),
            track_dirty_pages: patch.track_dirty_pages.unwrap_or(self.track_dirty_pages),
            huge_pages: patch.huge_pages.unwrap_or(self.huge_pages),
            register_pages: patch.register_pages.unwrap_or(self.register_pages),
            tuning: patch.tuning.clone().or_else(|| self.tuning.clone()),
        }
    }
}

/// `PATCH /machine-config`: what is to change, at least one thing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MachinePatch {
    /// See [`MachineSpec::vcpu_count`].
    #[schema(minimum = 1, maximum = 32)]
    pub vcpu_count: Option<u64>,
    /// See [`MachineSpec::mem_size_mib`].
    #[schema(minimum = 1)]
    pub mem_size_mib: Option<u64>,
    /// See [`MachineSpec::smt`].
    pub smt: Option<bool>,
    /// See [`MachineSpec::cpu_template`].
    pub cpu_template: Option<CpuTemplate>,
    /// See [`MachineSpec::track_dirty_pages`].
    pub track_dirty_pages: Option<bool>,
    /// See [`MachineSpec::huge_pages`].
    pub huge_pages: Option<HugePages>,
    /// See [`MachineSpec::register_pages`].
    pub register_pages: Option<bool>,
    /// See [`MachineSpec::tuning`]; it replaces the whole.
    pub tuning: Option<TuningSpec>,
}

/// Firecracker's CPU templates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum CpuTemplate {
    /// For C3 instances.
    C3,
    /// For T2 instances.
    T2,
    /// T2, and Intel's Skylake looks like Cascade Lake.
    T2S,
    /// Cascade Lake looks like T2.
    T2CL,
    /// AMD's Milan looks like T2CL.
    T2A,
    /// For Neoverse V1.
    V1N1,
    /// The host's CPU as it is.
    None,
}

/// What guest memory is made of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum HugePages {
    /// Pages of 4 KiB.
    #[default]
    None,
    /// Pages of 4 KiB, which the kernel may join.
    Transparent,
    /// Pages of 2 MiB from the kernel's pool.
    #[serde(rename = "2M")]
    Hugetlbfs2M,
}
