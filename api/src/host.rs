//! What `lightv-vmm --check-host` prints as JSON, and what `lightv doctor` shows.

use serde::{Deserialize, Serialize};

/// The host as LightV finds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostReport {
    /// `hardware`, `software` or `none`.
    pub kvm: String,
    /// Kernel release.
    pub kernel: String,
    /// CPU model.
    pub cpu: String,
    /// Cores online.
    pub cores: u32,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// What was checked, in order.
    pub checks: Vec<HostCheck>,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostCheck {
    /// What was looked at.
    pub name: String,
    /// What it means for LightV.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do about it; empty when there is nothing to do.
    pub remedy: String,
}

/// What a check means for LightV.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// VMs run, but something is slower or missing.
    Warning,
    /// No VM can run.
    Failure,
}
