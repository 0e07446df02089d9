//! What the process says of itself beside its standard streams: log and metrics.

use std::sync::Arc;

use lightv_api::config::VmSpec;
use lightv_api::contract::logger::LoggerSpec;
use lightv_api::contract::metrics::MetricsSpec;

use crate::kvm_stats::VcpuStats;
use crate::log::{self, LogError};
use crate::machine::Machine;
use crate::metrics::{self, MachineMeters, OpenMetricsError};

/// Where it is said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outputs {
    /// The log.
    pub logger: Option<LoggerSpec>,
    /// The metrics file.
    pub metrics: Option<MetricsSpec>,
}

/// Why it cannot be said.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each is named like what it is about")]
pub enum OutputError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Metrics(#[from] OpenMetricsError),
}

impl Outputs {
    /// What a configuration file names.
    #[must_use]
    pub fn of(spec: &VmSpec) -> Self {
        Self {
            logger: spec.logger.clone(),
            metrics: spec.metrics.clone(),
        }
    }

    /// Opens them for the machine called `id`.
    ///
    /// # Errors
    /// [`OutputError`].
    pub fn open(&self, id: &str) -> Result<(), OutputError> {
        if let Some(spec) = &self.logger {
            log::configure(spec, id)?;
        }
        if let Some(spec) = &self.metrics {
            metrics::open(spec, id)?;
        }
        Ok(())
    }
}

/// Has the counters of `machine` in the metrics. Its vCPUs do not run yet.
pub fn attach(machine: &Machine) {
    // An older KVM has no such counters: then nothing is said of them.
    let kvm_stats: Result<Vec<_>, _> = machine.vcpus.iter().map(VcpuStats::of).collect();
    metrics::get().attach(MachineMeters {
        bus: Arc::clone(&machine.bus),
        devices: machine.devices.meters(),
        mmds: machine.mmds.clone(),
        ram_bytes: machine.config.ram_bytes(),
        vcpus: machine.config.vcpus(),
        kvm_stats: Arc::new(kvm_stats.unwrap_or_default()),
    });
}
