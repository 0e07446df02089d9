//! Where the time of a start went: what `lightv-vmm --timings` writes.

use std::collections::BTreeMap;

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
    /// What it has touched, if that was counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub touched: Option<Touched>,
}

/// A named moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Mark {
    /// What had just been done; `idle`: the thread had nothing to do until then.
    pub name: String,
    /// The thread that did it: `main`, `control`, `vcpu-N`.
    #[serde(default)]
    pub thread: String,
    /// Microseconds since the first line of `main`.
    pub at_us: f64,
}

/// What a start has touched, up to the guest's first byte: with `--profile`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Touched {
    /// Page faults of the process in each step, `spawn` first; the last step's end with the process, and are not in it.
    pub faults: Vec<StepFaults>,
    /// vCPUs' exits that came to the monitor, by reason and address.
    pub exits: Vec<ExitsAt>,
    /// KVM's own counters by KVM's names; empty where KVM does not tell them.
    pub kvm: BTreeMap<String, u64>,
    /// Pages of guest RAM; `None` where the kernel does not tell.
    pub pages: Option<PagesTouched>,
}

/// Page faults of one step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepFaults {
    /// Its name, as in metrics.
    pub step: String,
    /// How many, with and without the host reading a file.
    pub faults: u64,
}

/// Exits at one address.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExitsAt {
    /// As in metrics: `mmio_read`, `mmio_write`, `io_in`, `io_out`, `system_event`, `interrupted`, `failed`.
    pub reason: String,
    /// Guest-physical address, or port; `None` where there is none, and for all that came after the first 256.
    pub address: Option<u64>,
    /// What is there.
    pub place: String,
    /// How many there were.
    pub count: u64,
    /// How long they were served, in microseconds in all.
    pub us: f64,
}

/// Pages of guest RAM, of 4 KiB each.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PagesTouched {
    /// Mapped and as in the image: read, or beside a page that was read.
    pub read: u64,
    /// Written; after a boot, touched.
    pub written: u64,
    /// The longest stretches of such pages, by address.
    pub runs: Vec<PageRun>,
}

/// Pages beside each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageRun {
    /// Guest-physical address of the first.
    pub address: u64,
    /// How many.
    pub pages: u64,
    /// Whether they were written.
    pub is_written: bool,
}
