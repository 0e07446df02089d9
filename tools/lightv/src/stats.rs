//! What microVMs take of the host, and what they have moved: read from the kernel, and asked of their monitors.

use std::time::{Duration, Instant};

use lightv_api::runtime::VmRecord;
use lightv_api_client::Client;
use lightv_bench::process;
use lightv_vmm::inspect;
use serde::Serialize;

use crate::metrics_text::samples;
use crate::vms;

/// A microVM at one moment.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Stats {
    pub(crate) id: String,
    pub(crate) pid: u32,
    /// Processor time of all threads since the last look, in percent of one core.
    pub(crate) cpu_percent: f64,
    #[serde(flatten)]
    pub(crate) taken: Taken,
}

/// What a microVM has of the host, and has moved, at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Taken {
    /// Resident memory, the guest's included, in KiB.
    pub(crate) resident_kib: u64,
    pub(crate) threads: usize,
    #[serde(flatten)]
    pub(crate) details: Option<Details>,
    /// `None` where no REST API is served, or it does not answer.
    pub(crate) moved: Option<Moved>,
}

/// What root alone is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Details {
    /// The monitor's own memory, its share of what several processes have, in KiB.
    pub(crate) own_kib: u64,
    /// The guest's memory that the host holds, its share of what clones have together, in KiB.
    pub(crate) guest_kib: u64,
    /// Of the guest's memory, what this microVM alone has, in KiB.
    pub(crate) guest_private_kib: u64,
    pub(crate) open_files: usize,
}

/// Totals since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Moved {
    pub(crate) disk_read_bytes: u64,
    pub(crate) disk_written_bytes: u64,
    pub(crate) net_received_bytes: u64,
    pub(crate) net_sent_bytes: u64,
    /// Times that vCPUs left the guest, for whatever reason; 0 where KVM does not tell (before Linux 5.14).
    pub(crate) exits: u64,
}

/// Processor time of a microVM at one moment.
#[derive(Debug, Clone)]
pub(crate) struct Look {
    pub(crate) vm: VmRecord,
    at: Instant,
    cpu: Duration,
}

impl Look {
    /// `None` when it has ended.
    pub(crate) fn at(vm: VmRecord) -> Option<Self> {
        let cpu = process::cpu(vm.pid).ok()?;
        let at = Instant::now();
        Some(Self { vm, at, cpu })
    }

    /// Processor time since the look `before` at the same microVM, in percent of one core.
    pub(crate) fn cpu_percent_since(&self, before: &Self) -> f64 {
        let seconds = (self.at - before.at).as_secs_f64();
        let cpu = self.cpu.saturating_sub(before.cpu).as_secs_f64();
        hundredths(cpu / seconds.max(f64::EPSILON) * 100.0)
    }

    /// What it takes, and has taken since this look; `None` when it has ended.
    pub(crate) fn stats(&self) -> Option<Stats> {
        let now = Self::at(self.vm.clone())?;
        Some(Stats {
            id: self.vm.id.clone(),
            pid: self.vm.pid,
            cpu_percent: now.cpu_percent_since(self),
            taken: Taken::of(self.vm.pid, vms::asker(&self.vm).as_ref())?,
        })
    }
}

impl Taken {
    /// That of process `pid`, whose monitor `asker` asks; `None` when it has ended.
    pub(crate) fn of(pid: u32, asker: Option<&Client>) -> Option<Self> {
        let usage = inspect::usage(pid).ok()?;
        Some(Self {
            resident_kib: usage.resident_kib,
            threads: usage.threads,
            details: usage.details.map(|details| Details {
                own_kib: details.memory.own_pss_kib,
                guest_kib: details.memory.guest_pss_kib,
                guest_private_kib: details.memory.guest_private_kib,
                open_files: details.open_files,
            }),
            moved: asker.and_then(Moved::asked),
        })
    }
}

impl Moved {
    /// What the monitor says.
    fn asked(asker: &Client) -> Option<Self> {
        let answer = asker.call("GET", "/metrics", None).ok()?;
        (answer.status == 200).then(|| Self::of(&answer.body))
    }

    /// Sums up a monitor's metrics (docs/metrics.md).
    fn of(metrics: &str) -> Self {
        let mut moved = Self::default();
        for sample in samples(metrics) {
            let label = |name| sample.label(name).unwrap_or_default();
            let total = match sample.name {
                "lightv_device_transferred_bytes_total" => {
                    match (label("kind"), label("direction")) {
                        ("block", "from_guest") => &mut moved.disk_written_bytes,
                        ("block", _) => &mut moved.disk_read_bytes,
                        ("net", "from_guest") => &mut moved.net_sent_bytes,
                        ("net", _) => &mut moved.net_received_bytes,
                        _ => continue,
                    }
                }
                "lightv_kvm_vcpu_events_total" if label("event") == "exits" => &mut moved.exits,
                _ => continue,
            };
            *total = total.saturating_add(sample.whole());
        }
        moved
    }
}

fn hundredths(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_moved_is_the_sum_over_devices_of_a_kind() {
        let line = |device, kind, direction, bytes| {
            format!(
                "lightv_device_transferred_bytes_total{{device=\"{device}\",kind=\"{kind}\",direction=\"{direction}\"}} {bytes}\n"
            )
        };
        let text = [
            "# TYPE lightv_device_transferred_bytes counter\n".to_owned(),
            line("a", "block", "to_guest", 1),
            line("b", "block", "to_guest", 2),
            line("a", "block", "from_guest", 4),
            line("eth0", "net", "to_guest", 8),
            line("eth0", "net", "from_guest", 16),
            line("rng", "entropy", "to_guest", 32),
            "lightv_kvm_vcpu_events_total{event=\"exits\"} 64\n".to_owned(),
            "lightv_kvm_vcpu_events_total{event=\"halt_exits\"} 128\n".to_owned(),
            "# EOF\n".to_owned(),
        ];
        let expected = Moved {
            disk_read_bytes: 3,
            disk_written_bytes: 4,
            net_received_bytes: 8,
            net_sent_bytes: 16,
            exits: 64,
        };
        assert_eq!(Moved::of(&text.concat()), expected);
        assert_eq!(Moved::of(""), Moved::default());
    }
}
