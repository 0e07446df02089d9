//! Where the time of a start went: what `lightv-vmm --timings` writes.

use serde::{Deserialize, Serialize};

/// The four steps of a start that LightV makes promises about, in order.
///
/// All times are microseconds of `CLOCK_MONOTONIC`. A step ends where the next begins.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StartTimings {
    /// `restore` or `boot`.
    pub way: String,
    /// From the caller's stamp (`--started-at-ns`, or else the start of `main`) to the first line of `main`.
    pub spawn_us: f64,
    /// `image load` (restore: the image is open and checked; boot: the configuration is proved).
    pub image_load_us: f64,
    /// `sandbox`: limits set, KVM's VM with memory and interrupt controller exists.
    pub sandbox_us: f64,
    /// `resources`: disks and taps open, devices and vCPUs in their state.
    pub resources_us: f64,
    /// `process`: from the start of the vCPU threads to the first byte that guest user code gave out.
    pub process_us: f64,
    /// Sum of the four steps.
    pub sum_us: f64,
    /// `spawn` and the four steps.
    pub total_us: f64,
    /// Stamps inside the steps, in order.
    pub marks: Vec<Mark>,
}

/// A named moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Mark {
    /// What had just been done.
    pub name: String,
    /// Microseconds since the first line of `main`.
    pub at_us: f64,
}
