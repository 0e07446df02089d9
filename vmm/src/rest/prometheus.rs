//! What [`metrics`](crate::metrics) counts, for Prometheus. Names and units by its rules; docs/metrics.md has the table.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use lightv_devices::histogram::{BOUNDS_US, HistogramSnapshot};
use lightv_devices::virtio::device::DeviceKind;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

use crate::device_set::DeviceMeter;
use crate::exits::ExitKind;
use crate::lock::lock;
use crate::metrics::{self, MachineMeters, Metrics, Timed};

/// Reads all of it at each scrape.
#[derive(Debug)]
pub(super) struct Machine;

/// A metric without its values.
#[derive(Clone, Copy)]
struct Metric {
    name: &'static str,
    help: &'static str,
    unit: Option<&'static Unit>,
}

const fn metric(name: &'static str, help: &'static str) -> Metric {
    Metric {
        name,
        help,
        unit: None,
    }
}

const fn with_unit(name: &'static str, help: &'static str, unit: &'static Unit) -> Metric {
    Metric {
        name,
        help,
        unit: Some(unit),
    }
}

const SECONDS: &Unit = &Unit::Seconds;
const BYTES: &Unit = &Unit::Bytes;

type Labels<'a> = &'a [(&'a str, &'a str)];

impl Collector for Machine {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let metrics = metrics::get();
        let mut out = Out(&mut encoder);
        encode_starts(&mut out, metrics)?;
        encode_operations(&mut out, metrics)?;
        encode_process(&mut out)?;
        match metrics.machine() {
            Some(machine) => encode_machine(&mut out, &machine),
            None => Ok(()),
        }
    }
}

fn load(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

fn encode_starts(out: &mut Out<'_, '_>, metrics: &Metrics) -> fmt::Result {
    let labels = |way| [("way", way)];
    let starts = metric("starts", "Machines that were started");
    out.counters(
        starts,
        &[
            (&labels("boot"), load(&metrics.boots)),
            (&labels("restore"), load(&metrics.restores)),
        ],
    )?;
    let failures = metric("start_failures", "Machines that could not be started");
    out.counters(
        failures,
        &[
            (&labels("boot"), load(&metrics.boot_failures)),
            (&labels("restore"), load(&metrics.restore_failures)),
        ],
    )?;
    let Some(start) = lock(&metrics.start).clone() else {
        return Ok(());
    };
    let step = |name| [("step", name)];
    let help = "Where the time of the start went, from the first line of main or from the request to the guest's first byte";
    out.gauges(
        with_unit("start_step", help, SECONDS),
        &[
            (&step("image_load"), start.image_load_us / 1e6),
            (&step("sandbox"), start.sandbox_us / 1e6),
            (&step("resources"), start.resources_us / 1e6),
            (&step("process"), start.process_us / 1e6),
        ],
    )
}

fn encode_operations(out: &mut Out<'_, '_>, metrics: &Metrics) -> fmt::Result {
    let Metrics {
        pause,
        resume,
        save_full,
        save_diff,
        save_live,
        live_pause,
        fork,
        load: loads,
        ..
    } = metrics;
    let operations: [(&str, &Timed); 8] = [
        ("pause", pause),
        ("resume", resume),
        ("snapshot_full", save_full),
        ("snapshot_diff", save_diff),
        ("snapshot_live", save_live),
        ("snapshot_live_pause", live_pause),
        ("fork", fork),
        ("snapshot_load", loads),
    ];
    let help = "Time of what was done with the machine, from the order to its end";
    let mut times = out.metric(
        with_unit("operation_duration", help, SECONDS),
        MetricType::Histogram,
    )?;
    for (name, timed) in operations {
        let labels: Labels<'_> = &[("operation", name)];
        histogram(times.encode_family(&labels)?, &timed.times.snapshot())?;
    }
    let lines = metric(
        "metrics_lines_dropped",
        "Lines of the metrics file that nobody read in time",
    );
    out.counter(lines, load(&metrics.lines_dropped))?;
    let lines = metric(
        "log_lines_dropped",
        "Lines of the log that nobody read in time",
    );
    out.counter(lines, crate::log::dropped())
}

#[expect(clippy::cast_precision_loss, reason = "no host has 2^52 bytes")]
fn encode_process(out: &mut Out<'_, '_>) -> fmt::Result {
    let memory = metrics::memory_use();
    let kind = |name| [("kind", name)];
    let help = "Memory of the process, guest memory included: all of it, and of it its own, pages of files, shared memory";
    out.gauges(
        with_unit("memory", help, BYTES),
        &[
            (&kind("resident"), memory.resident() as f64),
            (&kind("anonymous"), memory.anonymous as f64),
            (&kind("file"), memory.file as f64),
            (&kind("shared"), memory.shared as f64),
        ],
    )?;
    let help = "Processor time by thread, a vCPU's guest included";
    let mut cpu = out.metric(with_unit("cpu", help, SECONDS), MetricType::Counter)?;
    for thread in metrics::thread_times() {
        let labels: Labels<'_> = &[("thread", &thread.name)];
        cpu.encode_family(&labels)?
            .encode_counter::<NoLabelSet, f64, u64>(&thread.seconds, None)?;
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "no host has 2^52 bytes")]
fn encode_machine(out: &mut Out<'_, '_>, machine: &MachineMeters) -> fmt::Result {
    let ram = with_unit("guest_memory", "RAM of the guest", BYTES);
    out.gauges(ram, &[(&[], machine.ram_bytes as f64)])?;
    let vcpus = metric("vcpus", "vCPUs of the guest");
    out.gauges(vcpus, &[(&[], f64::from(machine.vcpus))])?;
    let counters = machine.bus.counters();
    let mut exits = out.metric(
        metric("vcpu_exits", "Times that vCPUs left the guest"),
        MetricType::Counter,
    )?;
    for (kind, name) in ExitKind::ALL {
        let labels: Labels<'_> = &[("reason", name)];
        count(exits.encode_family(&labels)?, counters.exits(kind))?;
    }
    if let Some(counters) = machine.kvm_counters() {
        let help = "KVM's own counters of the vCPUs, by KVM's names";
        let mut kvm = out.metric(metric("kvm_vcpu_events", help), MetricType::Counter)?;
        for (name, value) in counters {
            let labels: Labels<'_> = &[("event", name)];
            count(kvm.encode_family(&labels)?, value)?;
        }
    }
    let help = "Time that an access of a vCPU was served";
    let mut times = out.metric(
        with_unit("vcpu_exit_duration", help, SECONDS),
        MetricType::Histogram,
    )?;
    for (kind, name) in ExitKind::ALL {
        if let Some(found) = counters.exit_times(kind) {
            let labels: Labels<'_> = &[("reason", name)];
            histogram(times.encode_family(&labels)?, &found.snapshot())?;
        }
    }
    let help = "Accesses and doorbells of the guest that mean nothing";
    out.counters(
        metric("unknown_accesses", help),
        &[
            (&[("space", "mmio")], load(&counters.unknown_mmio)),
            (&[("space", "port")], load(&counters.unknown_ports)),
            (&[("space", "doorbell")], load(&counters.unknown_doorbells)),
            (&[("space", "print")], load(&counters.bad_prints)),
        ],
    )?;
    encode_mmds(out, machine)?;
    encode_devices(out, &machine.devices)
}

fn encode_mmds(out: &mut Out<'_, '_>, machine: &MachineMeters) -> fmt::Result {
    let now = machine.mmds.counts();
    out.counters(
        metric("mmds_frames", "Frames to and from the metadata service"),
        &[
            (&[("direction", "from_guest")], now.rx_accepted),
            (&[("direction", "to_guest")], now.tx_frames),
        ],
    )?;
    out.counters(
        metric(
            "mmds_refused_frames",
            "Frames to the metadata service that it could not read",
        ),
        &[
            (&[("reason", "malformed")], now.rx_accepted_err),
            (&[("reason", "protocol")], now.rx_accepted_unusual),
        ],
    )?;
    out.counters(
        metric(
            "mmds_tokenless_requests",
            "Requests to the metadata service without a valid token",
        ),
        &[
            (&[("token", "none")], now.rx_no_token),
            (&[("token", "invalid")], now.rx_invalid_token),
        ],
    )?;
    out.counters(
        metric(
            "mmds_connections",
            "Connections to the metadata service that guests began",
        ),
        &[(&[], now.connections_created)],
    )
}

const fn kind_name(kind: DeviceKind) -> &'static str {
    match kind {
        DeviceKind::Net => "net",
        DeviceKind::Block => "block",
        DeviceKind::Console => "console",
        DeviceKind::Entropy => "entropy",
        DeviceKind::Balloon => "balloon",
        DeviceKind::Vsock => "vsock",
    }
}

fn encode_devices(out: &mut Out<'_, '_>, devices: &[DeviceMeter]) -> fmt::Result {
    for (name, help, field) in DEVICE_COUNTERS {
        let mut found = out.metric(metric(name, help), MetricType::Counter)?;
        for device in devices {
            let labels: Labels<'_> = &[("device", &device.id), ("kind", kind_name(device.kind))];
            count(
                found.encode_family(&labels)?,
                field(&device.counters.snapshot()),
            )?;
        }
    }
    encode_device_bytes(out, devices)?;
    encode_device_operations(out, devices)
}

type Field = fn(&lightv_devices::counters::CountersSnapshot) -> u64;

const DEVICE_COUNTERS: [(&str, &str, Field); 9] = [
    (
        "device_requests",
        "Chains of descriptors that devices took from their queues",
        |now| now.requests,
    ),
    (
        "device_guest_faults",
        "Mistakes of the guest's drivers",
        |now| now.guest_faults,
    ),
    (
        "device_host_faults",
        "Failures of the host that devices met",
        |now| now.host_faults,
    ),
    (
        "device_needs_resets",
        "Times that devices gave up on their drivers",
        |now| now.needs_resets,
    ),
    (
        "device_resets",
        "Times that drivers reset their devices",
        |now| now.resets,
    ),
    (
        "device_ignored_accesses",
        "Accesses to registers of devices that mean nothing",
        |now| now.ignored_accesses,
    ),
    (
        "device_interrupts",
        "Interrupts that devices raised",
        |now| now.interrupts,
    ),
    (
        "device_dropped_frames",
        "Frames of the network that were dropped",
        |now| now.frames_dropped_to_guest + now.frames_dropped_from_guest,
    ),
    (
        "device_throttled",
        "Times that devices waited for their rate limiters",
        |now| now.throttled_to_guest + now.throttled_from_guest,
    ),
];

fn encode_device_bytes(out: &mut Out<'_, '_>, devices: &[DeviceMeter]) -> fmt::Result {
    let help = "Data that devices moved";
    let mut bytes = out.metric(
        with_unit("device_transferred", help, BYTES),
        MetricType::Counter,
    )?;
    for device in devices {
        let now = device.counters.snapshot();
        for (direction, value) in [
            ("to_guest", now.bytes_to_guest),
            ("from_guest", now.bytes_from_guest),
        ] {
            let kind = kind_name(device.kind);
            let labels: Labels<'_> = &[
                ("device", &device.id),
                ("kind", kind),
                ("direction", direction),
            ];
            count(bytes.encode_family(&labels)?, value)?;
        }
    }
    Ok(())
}

fn encode_device_operations(out: &mut Out<'_, '_>, devices: &[DeviceMeter]) -> fmt::Result {
    let mut operations = out.metric(
        metric("device_operations", "Operations that devices carried out"),
        MetricType::Counter,
    )?;
    for device in devices {
        let now = device.counters.snapshot();
        for (operation, value) in [
            ("read", now.reads),
            ("write", now.writes),
            ("flush", now.flushes),
            ("discard", now.discards),
        ] {
            let labels: Labels<'_> = &[("device", &device.id), ("operation", operation)];
            count(operations.encode_family(&labels)?, value)?;
        }
    }
    let help = "Time that the host took for an operation of a device";
    let mut times = out.metric(
        with_unit("device_operation_duration", help, SECONDS),
        MetricType::Histogram,
    )?;
    for device in devices {
        let counters = &device.counters;
        let all = [
            ("read", counters.read_time()),
            ("write", counters.write_time()),
            ("flush", counters.flush_time()),
        ];
        let measured = match device.kind {
            DeviceKind::Block => all.get(..),
            DeviceKind::Net => all.get(1..2),
            DeviceKind::Console | DeviceKind::Entropy | DeviceKind::Balloon | DeviceKind::Vsock => {
                None
            }
        };
        for (operation, found) in measured.unwrap_or_default() {
            let labels: Labels<'_> = &[("device", &device.id), ("operation", operation)];
            histogram(times.encode_family(&labels)?, &found.snapshot())?;
        }
    }
    Ok(())
}

/// Where metrics are written.
struct Out<'a, 'b>(&'a mut DescriptorEncoder<'b>);

impl Out<'_, '_> {
    fn metric(
        &mut self,
        metric: Metric,
        kind: MetricType,
    ) -> Result<MetricEncoder<'_>, fmt::Error> {
        self.0
            .encode_descriptor(metric.name, metric.help, metric.unit, kind)
    }

    fn counter(&mut self, metric: Metric, value: u64) -> fmt::Result {
        let found = self.metric(metric, MetricType::Counter)?;
        count(found, value)
    }

    fn counters(&mut self, metric: Metric, values: &[(Labels<'_>, u64)]) -> fmt::Result {
        let mut found = self.metric(metric, MetricType::Counter)?;
        for (labels, value) in values {
            count(found.encode_family(labels)?, *value)?;
        }
        Ok(())
    }

    fn gauges(&mut self, metric: Metric, values: &[(Labels<'_>, f64)]) -> fmt::Result {
        let mut found = self.metric(metric, MetricType::Gauge)?;
        for (labels, value) in values {
            if labels.is_empty() {
                found.encode_gauge(value)?;
            } else {
                found.encode_family(labels)?.encode_gauge(value)?;
            }
        }
        Ok(())
    }
}

fn count(mut metric: MetricEncoder<'_>, value: u64) -> fmt::Result {
    metric.encode_counter::<NoLabelSet, u64, u64>(&value, None)
}

#[expect(clippy::cast_precision_loss, reason = "2^52 ns are 52 days")]
fn histogram(mut metric: MetricEncoder<'_>, found: &HistogramSnapshot) -> fmt::Result {
    let bounds = BOUNDS_US.iter().map(|us| *us as f64 / 1e6);
    let buckets: Vec<(f64, u64)> = bounds.chain([f64::MAX]).zip(found.buckets).collect();
    metric.encode_histogram::<NoLabelSet>(found.sum_ns as f64 / 1e9, found.count(), &buckets, None)
}
