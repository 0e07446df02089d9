//! What the monitor counts of itself and of its machine, once for Prometheus and once for Firecracker's clients.
//!
//! One per process, like the machine. Devices and bus have their own counters, which are read when somebody asks; nothing
//! here stands on the way of a start that nobody measures.

mod balloon;
mod lines;
mod process;
mod vsock;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use lightv_api::timings::StartTimings;
use lightv_devices::histogram::Histogram;
use lightv_devices::mmds::Mmds;

pub use self::lines::{
    OpenMetricsError, RouteCounts, flush, flush_if_due, open, set_api_counts, time_to_flush,
};
pub(crate) use self::process::kib_of;
pub use self::process::{MemoryUse, ThreadTime, memory_use, thread_times};

use crate::bus::Bus;
use crate::device_set::DeviceMeter;
use crate::exits::ExitKind;
use crate::kvm_stats::VcpuStats;
use crate::lock::lock;

/// All of it.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Machines that were booted.
    pub boots: AtomicU64,
    /// Machines that were restored.
    pub restores: AtomicU64,
    /// Boots that failed.
    pub boot_failures: AtomicU64,
    /// Restores that failed.
    pub restore_failures: AtomicU64,
    /// From the order to the answer.
    pub pause: Timed,
    /// From the order to the answer.
    pub resume: Timed,
    /// Full snapshots.
    pub save_full: Timed,
    /// Differential snapshots.
    pub save_diff: Timed,
    /// Snapshots of machines that ran on, until they were written.
    pub save_live: Timed,
    /// How long such a machine stood still.
    pub live_pause: Timed,
    /// Forks, until others could begin.
    pub fork: Timed,
    /// Loads of snapshots.
    pub load: Timed,
    /// Lines of metrics that were left out: nobody read them in time.
    pub lines_dropped: AtomicU64,
    /// Processor time until the API was served, in microseconds.
    pub startup_cpu_us: AtomicU64,
    /// Where the time of the start went, once the guest has given something out.
    pub start: Mutex<Option<StartTimings>>,
    machine: Mutex<Option<MachineMeters>>,
}

/// How long something takes, and how long it took last.
#[derive(Debug, Default)]
pub struct Timed {
    /// All times.
    pub times: Histogram,
    /// The last one in microseconds.
    pub last_us: AtomicU64,
}

impl Timed {
    /// Counts what began at `began` and is done now.
    pub fn record_since(&self, began: Instant) {
        let ns = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.times.record(ns);
        self.last_us.store(ns / 1000, Ordering::Relaxed);
    }
}

/// Counters of a machine that was built.
#[derive(Debug, Clone)]
pub struct MachineMeters {
    /// The vCPUs' accesses and exits.
    pub bus: Arc<Bus>,
    /// Devices in the order of their places.
    pub devices: Vec<DeviceMeter>,
    /// The metadata service.
    pub mmds: Mmds,
    /// Guest RAM in bytes.
    pub ram_bytes: u64,
    /// Number of vCPUs.
    pub vcpus: u8,
    /// KVM's own counters of each vCPU; none where KVM has none.
    pub kvm_stats: Arc<Vec<VcpuStats>>,
}

impl MachineMeters {
    /// KVM's own counters by KVM's names, over all vCPUs; `None` where KVM does not tell them.
    #[must_use]
    pub fn kvm_counters(&self) -> Option<BTreeMap<&'static str, u64>> {
        let mut sums = BTreeMap::new();
        for stats in self.kvm_stats.iter() {
            for (name, value) in stats.read().ok()? {
                *sums.entry(name).or_default() += value;
            }
        }
        (!sums.is_empty()).then_some(sums)
    }

    /// How often a vCPU came back to the monitor.
    #[must_use]
    pub fn user_exits(&self) -> u64 {
        let counters = self.bus.counters();
        ExitKind::ALL
            .iter()
            .map(|(kind, _)| counters.exits(*kind))
            .sum()
    }
}

static METRICS: OnceLock<Metrics> = OnceLock::new();

/// This process's.
#[must_use]
pub fn get() -> &'static Metrics {
    METRICS.get_or_init(Metrics::default)
}

impl Metrics {
    /// There is a machine.
    pub fn attach(&self, machine: MachineMeters) {
        *lock(&self.machine) = Some(machine);
    }

    /// The machine's counters, if there is one.
    #[must_use]
    pub fn machine(&self) -> Option<MachineMeters> {
        lock(&self.machine).clone()
    }
}

/// Keeps where the time of the start went.
pub fn note_start(timings: &StartTimings) {
    *lock(&get().start) = Some(timings.clone());
}

/// Adds one.
pub fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
