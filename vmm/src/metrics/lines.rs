//! Firecracker's metrics: a JSON object a line, every 60 seconds and when somebody asks, what was counted since the line
//! before.
//!
//! Groups and names are Firecracker's, those of devices and operations that there are none of too: its clients decode all
//! of them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lightv_api::contract::metrics::MetricsSpec;
use lightv_devices::counters::CountersSnapshot;
use lightv_devices::histogram::Histogram;
use lightv_devices::virtio::device::DeviceKind;
use serde_json::{Map, Value, json};

use super::balloon;
use super::{MachineMeters, Timed, get};
use crate::at_end;
use crate::device_set::DeviceMeter;
use crate::exits::ExitKind;
use crate::lock::lock;
use crate::sandbox::violation;
use crate::sink::LineSink;
use crate::sys::process::wall_clock_ns;

/// From one line to the next.
const INTERVAL: Duration = Duration::from_secs(60);

/// Why metrics are not written.
#[derive(Debug, thiserror::Error)]
#[error("Cannot open the metrics file {}", path.display())]
pub struct OpenMetricsError {
    path: PathBuf,
    #[source]
    cause: std::io::Error,
}

struct Lines {
    sink: LineSink,
    emit_id: bool,
    properties: BTreeMap<String, String>,
    id: String,
    /// What was counted at the line before.
    before: Value,
    next: Instant,
}

static LINES: Mutex<Option<Lines>> = Mutex::new(None);

/// How many requests of one route there were, and how many of them were refused.
pub type RouteCounts = BTreeMap<(&'static str, &'static str), (u64, u64)>;

/// Gives the API's own counts; there are none without an API.
static API_COUNTS: Mutex<Option<Box<dyn Fn() -> RouteCounts + Send>>> = Mutex::new(None);

/// Has the counts of the API in the lines too.
pub fn set_api_counts(counts: impl Fn() -> RouteCounts + Send + 'static) {
    *lock(&API_COUNTS) = Some(Box::new(counts));
}

/// Writes lines to the file or FIFO of `spec` from now on, for the machine called `id`.
///
/// # Errors
/// [`OpenMetricsError`].
pub fn open(spec: &MetricsSpec, id: &str) -> Result<(), OpenMetricsError> {
    let sink = LineSink::open(&spec.metrics_path).map_err(|cause| OpenMetricsError {
        path: spec.metrics_path.clone(),
        cause,
    })?;
    *lock(&LINES) = Some(Lines {
        sink,
        emit_id: spec.emit_id,
        properties: spec.properties.clone().unwrap_or_default(),
        id: id.to_owned(),
        before: Value::Null,
        next: Instant::now() + INTERVAL,
    });
    at_end::register(|| {
        flush();
    });
    Ok(())
}

/// Writes a line now. False when there is nowhere to write to.
pub fn flush() -> bool {
    let mut lines = lock(&LINES);
    let Some(lines) = &mut *lines else {
        return false;
    };
    lines.next = Instant::now() + INTERVAL;
    let now = totals();
    let mut line = since(&now, &lines.before);
    add_extremes(&mut line);
    line.insert(
        "utc_timestamp_ms".into(),
        (wall_clock_ns() / 1_000_000).into(),
    );
    if lines.emit_id {
        line.insert("id".into(), lines.id.clone().into());
    }
    for (name, value) in &lines.properties {
        // A property never hides a group.
        line.entry(name.clone())
            .or_insert_with(|| value.clone().into());
    }
    let mut text = serde_json::to_vec(&line).unwrap_or_default();
    text.push(b'\n');
    if lines.sink.write(&text) {
        lines.before = now;
    } else {
        // What was counted comes with the next line.
        get().lines_dropped.fetch_add(1, Ordering::Relaxed);
    }
    true
}

/// How long the loop may sleep before [`flush_if_due`]; `None` when nothing is written.
#[must_use]
pub fn time_to_flush() -> Option<Duration> {
    let lines = lock(&LINES);
    let next = lines.as_ref().map(|lines| lines.next)?;
    // Rounded up: the loop waits in whole milliseconds.
    let left = next.saturating_duration_since(Instant::now());
    Some(left + Duration::from_millis(1))
}

/// Writes a line if it is time.
pub fn flush_if_due() {
    let is_due = lock(&LINES)
        .as_ref()
        .is_some_and(|lines| Instant::now() >= lines.next);
    if is_due {
        flush();
    }
}

/// Groups whose numbers are not counts, but what is or was last.
const ABSOLUTE: [&str; 2] = ["api_server", "latencies_us"];

/// `now` less `before`, group by group.
fn since(now: &Value, before: &Value) -> Map<String, Value> {
    let groups = now.as_object().into_iter().flatten();
    let difference = groups.map(|(name, group)| {
        let old = before.get(name);
        let group = match old {
            Some(old) if !ABSOLUTE.contains(&name.as_str()) => less(group, old),
            _ => group.clone(),
        };
        (name.clone(), group)
    });
    difference.collect()
}

fn less(now: &Value, before: &Value) -> Value {
    match now {
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| {
                (
                    name.clone(),
                    less(value, before.get(name).unwrap_or(&Value::Null)),
                )
            })
            .collect::<Map<_, _>>()
            .into(),
        Value::Number(_) => {
            let number = |value: &Value| value.as_u64().unwrap_or(0);
            number(now).saturating_sub(number(before)).into()
        }
        other => other.clone(),
    }
}

fn load(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// A time as Firecracker sums it up; shortest and longest are added when the line is written.
fn aggregate(times: &Histogram) -> Value {
    json!({"min_us": 0, "max_us": 0, "sum_us": times.snapshot().sum_ns / 1000})
}

fn totals() -> Value {
    let metrics = get();
    let machine = metrics.machine();
    let mut groups = Map::new();
    let mut add = |name: &str, group: Value| drop(groups.insert(name.to_owned(), group));
    add("api_server", api_server());
    add("latencies_us", latencies());
    add("logger", logger());
    add_api(&mut add);
    add("seccomp", json!({"num_faults": violation::count()}));
    add_absent(&mut add);
    let none = Vec::new();
    let devices = machine.as_ref().map_or(&none, |machine| &machine.devices);
    add_devices(devices, &mut add);
    add("vcpu", vcpu(machine.as_ref()));
    if let Some(kvm) = machine.as_ref().and_then(kvm) {
        add("kvm", kvm);
    }
    add("uart", uart(machine.as_ref()));
    add("mmds", mmds(machine.as_ref()));
    add(
        "i8042",
        json!({"error_count": 0, "missed_read_count": 0, "missed_write_count": 0, "read_count": 0, "reset_count": 0, "write_count": 0}),
    );
    let events: u64 = devices
        .iter()
        .map(|device| device.counters.snapshot().requests)
        .sum();
    add("vmm", json!({"device_events": events, "panic_count": 0}));
    groups.into()
}

fn api_server() -> Value {
    let start = lock(&get().start).clone().unwrap_or_default();
    json!({
        "process_startup_time_us": whole(start.total_us),
        "process_startup_time_cpu_us": get().startup_cpu_us.load(Ordering::Relaxed),
        "sync_response_fails": 0,
        "sync_vmm_send_timeout_count": 0,
    })
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "microseconds of a start: neither negative nor beyond 2^63"
)]
fn whole(us: f64) -> u64 {
    us.max(0.0) as u64
}

fn latencies() -> Value {
    let metrics = get();
    let last = |timed: &Timed| load(&timed.last_us);
    json!({
        "full_create_snapshot": last(&metrics.save_full),
        "diff_create_snapshot": last(&metrics.save_diff),
        "load_snapshot": last(&metrics.load),
        "pause_vm": last(&metrics.pause),
        "resume_vm": last(&metrics.resume),
        "vmm_full_create_snapshot": last(&metrics.save_full),
        "vmm_diff_create_snapshot": last(&metrics.save_diff),
        "vmm_load_snapshot": last(&metrics.load),
        "vmm_pause_vm": last(&metrics.pause),
        "vmm_resume_vm": last(&metrics.resume),
    })
}

fn logger() -> Value {
    json!({
        "missed_metrics_count": load(&get().lines_dropped),
        "metrics_fails": 0,
        "missed_log_count": crate::log::dropped(),
        "log_fails": 0,
    })
}

/// Fields of the groups of requests, and the route that each counts.
const REQUESTS: &[(&str, &str, &str, &[&str])] = &[
    ("get_api_requests", "GET", "instance_info", &["/"]),
    (
        "get_api_requests",
        "GET",
        "machine_cfg",
        &["/machine-config"],
    ),
    ("get_api_requests", "GET", "mmds", &["/mmds"]),
    ("get_api_requests", "GET", "vmm_version", &["/version"]),
    (
        "get_api_requests",
        "GET",
        "hotplug_memory",
        &["/hotplug/memory"],
    ),
    ("put_api_requests", "PUT", "actions", &["/actions"]),
    ("put_api_requests", "PUT", "boot_source", &["/boot-source"]),
    ("put_api_requests", "PUT", "drive", &["/drives/{id}"]),
    ("put_api_requests", "PUT", "logger", &["/logger"]),
    (
        "put_api_requests",
        "PUT",
        "machine_cfg",
        &["/machine-config"],
    ),
    ("put_api_requests", "PUT", "cpu_cfg", &["/cpu-config"]),
    ("put_api_requests", "PUT", "metrics", &["/metrics"]),
    (
        "put_api_requests",
        "PUT",
        "network",
        &["/network-interfaces/{id}"],
    ),
    (
        "put_api_requests",
        "PUT",
        "mmds",
        &["/mmds", "/mmds/config"],
    ),
    ("put_api_requests", "PUT", "vsock", &["/vsock"]),
    ("put_api_requests", "PUT", "pmem", &["/pmem/{id}"]),
    ("put_api_requests", "PUT", "serial", &["/serial"]),
    (
        "put_api_requests",
        "PUT",
        "hotplug_memory",
        &["/hotplug/memory"],
    ),
    ("patch_api_requests", "PATCH", "drive", &["/drives/{id}"]),
    (
        "patch_api_requests",
        "PATCH",
        "network",
        &["/network-interfaces/{id}"],
    ),
    (
        "patch_api_requests",
        "PATCH",
        "machine_cfg",
        &["/machine-config"],
    ),
    ("patch_api_requests", "PATCH", "mmds", &["/mmds"]),
    ("patch_api_requests", "PATCH", "pmem", &["/pmem/{id}"]),
    (
        "patch_api_requests",
        "PATCH",
        "hotplug_memory",
        &["/hotplug/memory"],
    ),
];

fn add_api(add: &mut impl FnMut(&str, Value)) {
    let counts = lock(&API_COUNTS).as_ref().map(|counts| counts());
    let counts = counts.unwrap_or_default();
    let mut groups: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for (group, method, name, routes) in REQUESTS {
        let found = routes
            .iter()
            .filter_map(|route| counts.get(&(*method, *route)));
        let (requests, refusals) =
            found.fold((0, 0), |sum, count| (sum.0 + count.0, sum.1 + count.1));
        let fields = groups.entry(group).or_default();
        fields.insert(format!("{name}_count"), requests.into());
        if *method != "GET" {
            fields.insert(format!("{name}_fails"), refusals.into());
        }
    }
    for (name, group) in groups {
        add(name, group.into());
    }
}

fn vcpu(machine: Option<&MachineMeters>) -> Value {
    let exits = |kind| machine.map_or(0, |machine| machine.bus.counters().exits(kind));
    let times = |kind| {
        machine.map_or(json!({"min_us": 0, "max_us": 0, "sum_us": 0}), |machine| {
            machine
                .bus
                .counters()
                .exit_times(kind)
                .map_or(Value::Null, aggregate)
        })
    };
    json!({
        "exit_io_in": exits(ExitKind::IoIn),
        "exit_io_out": exits(ExitKind::IoOut),
        "exit_mmio_read": exits(ExitKind::MmioRead),
        "exit_mmio_write": exits(ExitKind::MmioWrite),
        "failures": exits(ExitKind::Failed),
        "kvmclock_ctrl_fails": 0,
        "exit_io_in_agg": times(ExitKind::IoIn),
        "exit_io_out_agg": times(ExitKind::IoOut),
        "exit_mmio_read_agg": times(ExitKind::MmioRead),
        "exit_mmio_write_agg": times(ExitKind::MmioWrite),
    })
}

/// Not a group of Firecracker's. It is left out where KVM does not tell its counters.
fn kvm(machine: &MachineMeters) -> Option<Value> {
    let mut group: Map<String, Value> = machine
        .kvm_counters()?
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.into()))
        .collect();
    group.insert("user_exits".into(), machine.user_exits().into());
    Some(group.into())
}

fn uart(machine: Option<&MachineMeters>) -> Value {
    let serial = machine.map(|machine| machine.bus.serial().counters().snapshot());
    let serial = serial.unwrap_or_default();
    json!({
        "error_count": serial.bytes_lost,
        "flush_count": 0,
        "missed_read_count": 0,
        "missed_write_count": serial.bytes_lost,
        "read_count": serial.bytes_read,
        "write_count": serial.bytes_written,
        "rate_limiter_dropped_bytes": 0,
    })
}

fn mmds(machine: Option<&MachineMeters>) -> Value {
    let counts = machine.map(|machine| machine.mmds.counts());
    let counts = counts.unwrap_or_default();
    json!({
        "rx_accepted": counts.rx_accepted,
        "rx_accepted_err": counts.rx_accepted_err,
        "rx_accepted_unusual": counts.rx_accepted_unusual,
        "rx_bad_eth": counts.rx_bad_eth,
        "rx_invalid_token": counts.rx_invalid_token,
        "rx_no_token": counts.rx_no_token,
        "rx_count": counts.rx_count,
        "tx_bytes": counts.tx_bytes,
        "tx_count": counts.tx_count,
        "tx_errors": counts.tx_errors,
        "tx_frames": counts.tx_frames,
        "connections_created": counts.connections_created,
        "connections_destroyed": counts.connections_destroyed,
    })
}

fn add_devices(devices: &[DeviceMeter], add: &mut impl FnMut(&str, Value)) {
    for (kind, name, group) in [
        (
            DeviceKind::Block,
            "block",
            block as fn(&[&DeviceMeter]) -> Value,
        ),
        (DeviceKind::Net, "net", net),
    ] {
        let of_kind: Vec<&DeviceMeter> = devices
            .iter()
            .filter(|device| device.kind == kind)
            .collect();
        add(name, group(&of_kind));
        for device in of_kind {
            add(&format!("{name}_{}", device.id), group(&[device]));
        }
    }
    let entropy = devices
        .iter()
        .filter(|device| device.kind == DeviceKind::Entropy);
    add("entropy", entropy_group(&entropy.collect::<Vec<_>>()));
    let balloon = devices
        .iter()
        .find(|device| device.kind == DeviceKind::Balloon);
    add("balloon", balloon::group(balloon));
    add("vsock", super::vsock::group(devices));
}

fn sum(devices: &[&DeviceMeter], field: impl Fn(&CountersSnapshot) -> u64) -> u64 {
    let snapshots = devices.iter().map(|device| device.counters.snapshot());
    snapshots.map(|snapshot| field(&snapshot)).sum()
}

fn times(devices: &[&DeviceMeter], of: impl Fn(&DeviceMeter) -> &Histogram) -> Value {
    let sums = devices.iter().map(|device| of(device).snapshot().sum_ns);
    json!({"min_us": 0, "max_us": 0, "sum_us": sums.sum::<u64>() / 1000})
}

fn block(devices: &[&DeviceMeter]) -> Value {
    json!({
        "activate_fails": 0,
        "cfg_fails": 0,
        "no_avail_buffer": 0,
        "event_fails": 0,
        "execute_fails": sum(devices, |device| device.host_faults),
        "invalid_reqs_count": sum(devices, |device| device.guest_faults),
        "flush_count": sum(devices, |device| device.flushes),
        "discard_count": sum(devices, |device| device.discards),
        "queue_event_count": sum(devices, |device| device.requests),
        "rate_limiter_event_count": sum(devices, |device| device.throttled_from_guest),
        "update_count": 0,
        "update_fails": 0,
        "read_bytes": sum(devices, |device| device.bytes_to_guest),
        "write_bytes": sum(devices, |device| device.bytes_from_guest),
        "read_count": sum(devices, |device| device.reads),
        "write_count": sum(devices, |device| device.writes),
        "read_agg": times(devices, |device| device.counters.read_time()),
        "write_agg": times(devices, |device| device.counters.write_time()),
        "rate_limiter_throttled_events": sum(devices, |device| device.throttled_from_guest),
        "io_engine_throttled_events": 0,
        "remaining_reqs_count": 0,
    })
}

fn net(devices: &[&DeviceMeter]) -> Value {
    json!({
        "activate_fails": 0,
        "cfg_fails": 0,
        "mac_address_updates": 0,
        "no_rx_avail_buffer": 0,
        "no_tx_avail_buffer": 0,
        "event_fails": 0,
        "rx_queue_event_count": 0,
        "rx_event_rate_limiter_count": sum(devices, |device| device.throttled_to_guest),
        "rx_partial_writes": 0,
        "rx_rate_limiter_throttled": sum(devices, |device| device.throttled_to_guest),
        "rx_tap_event_count": sum(devices, |device| device.reads),
        "rx_bytes_count": sum(devices, |device| device.bytes_to_guest),
        "rx_packets_count": sum(devices, |device| device.reads),
        "rx_fails": sum(devices, |device| device.frames_dropped_to_guest),
        "rx_count": sum(devices, |device| device.reads),
        "tap_read_fails": 0,
        "tap_write_fails": sum(devices, |device| device.host_faults),
        "tap_write_agg": times(devices, |device| device.counters.write_time()),
        "tx_bytes_count": sum(devices, |device| device.bytes_from_guest),
        "tx_malformed_frames": sum(devices, |device| device.guest_faults),
        "tx_fails": sum(devices, |device| device.frames_dropped_from_guest),
        "tx_count": sum(devices, |device| device.writes),
        "tx_packets_count": sum(devices, |device| device.writes),
        "tx_partial_reads": 0,
        "tx_queue_event_count": 0,
        "tx_rate_limiter_event_count": sum(devices, |device| device.throttled_from_guest),
        "tx_rate_limiter_throttled": sum(devices, |device| device.throttled_from_guest),
        "tx_spoofed_mac_count": 0,
        "tx_remaining_reqs_count": 0,
    })
}

fn entropy_group(devices: &[&DeviceMeter]) -> Value {
    json!({
        "activate_fails": 0,
        "entropy_event_fails": sum(devices, |device| device.guest_faults),
        "entropy_event_count": sum(devices, |device| device.requests),
        "entropy_bytes": sum(devices, |device| device.bytes_to_guest),
        "host_rng_fails": sum(devices, |device| device.host_faults),
        "entropy_rate_limiter_throttled": sum(devices, |device| device.throttled_from_guest),
        "rate_limiter_event_count": sum(devices, |device| device.throttled_from_guest),
    })
}

/// Groups of what LightV does not have: their zeros are true.
const ABSENT: &[(&str, &[&str])] = &[
    (
        "deprecated_api",
        &["deprecated_http_api_calls", "deprecated_cmd_line_api_calls"],
    ),
    ("interrupts", &["triggers", "config_updates"]),
    (
        "memory_hotplug",
        &[
            "activate_fails",
            "queue_event_fails",
            "queue_event_count",
            "plug_count",
            "plug_bytes",
            "plug_fails",
            "unplug_count",
            "unplug_bytes",
            "unplug_fails",
            "unplug_discard_fails",
            "unplug_all_count",
            "unplug_all_fails",
            "state_count",
            "state_fails",
        ],
    ),
    (
        "pmem",
        &[
            "activate_fails",
            "cfg_fails",
            "event_fails",
            "queue_event_count",
            "rate_limiter_event_count",
            "rate_limiter_throttled_events",
        ],
    ),
    (
        "signals",
        &[
            "sigbus", "sigsegv", "sigxfsz", "sigxcpu", "sigpipe", "sighup", "sigill",
        ],
    ),
];

fn add_absent(add: &mut impl FnMut(&str, Value)) {
    for (name, fields) in ABSENT {
        let zeros = fields
            .iter()
            .map(|field| ((*field).to_owned(), Value::from(0)));
        add(name, zeros.collect::<Map<_, _>>().into());
    }
}

/// Puts the shortest and the longest times since the line before into `line`.
fn add_extremes(line: &mut Map<String, Value>) {
    let Some(machine) = get().machine() else {
        return;
    };
    let mut set = |group: &str, field: &str, times: &Histogram| {
        let extremes = times.take_extremes();
        if let Some(aggregate) = line.get_mut(group).and_then(|group| group.get_mut(field)) {
            aggregate["min_us"] = (extremes.min_ns / 1000).into();
            aggregate["max_us"] = (extremes.max_ns / 1000).into();
        }
    };
    for (kind, field) in [
        (ExitKind::IoIn, "exit_io_in_agg"),
        (ExitKind::IoOut, "exit_io_out_agg"),
        (ExitKind::MmioRead, "exit_mmio_read_agg"),
        (ExitKind::MmioWrite, "exit_mmio_write_agg"),
    ] {
        if let Some(times) = machine.bus.counters().exit_times(kind) {
            set("vcpu", field, times);
        }
    }
    for device in &machine.devices {
        match device.kind {
            DeviceKind::Block => {
                let group = format!("block_{}", device.id);
                set(&group, "read_agg", device.counters.read_time());
                set(&group, "write_agg", device.counters.write_time());
            }
            DeviceKind::Net => {
                let group = format!("net_{}", device.id);
                set(&group, "tap_write_agg", device.counters.write_time());
            }
            DeviceKind::Console | DeviceKind::Entropy | DeviceKind::Balloon | DeviceKind::Vsock => {
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_what_was_counted_since_the_one_before() {
        let before = json!({"a": {"n": 3, "t": {"sum_us": 5}}, "latencies_us": {"x": 9}});
        let now = json!({"a": {"n": 7, "t": {"sum_us": 5}, "new": 2}, "latencies_us": {"x": 4}, "b": {"m": 1}});
        let expected = json!({"a": {"n": 4, "t": {"sum_us": 0}, "new": 2}, "latencies_us": {"x": 4}, "b": {"m": 1}});
        assert_eq!(Value::from(since(&now, &before)), expected);
        assert_eq!(Value::from(since(&now, &Value::Null)), now);
    }

    #[test]
    fn all_groups_of_the_contract_are_there_without_a_machine() {
        let found = totals();
        for group in [
            "api_server",
            "balloon",
            "block",
            "net",
            "pmem",
            "entropy",
            "vsock",
            "vcpu",
            "uart",
            "i8042",
            "mmds",
            "latencies_us",
            "logger",
            "get_api_requests",
            "put_api_requests",
            "patch_api_requests",
            "seccomp",
            "signals",
            "interrupts",
            "memory_hotplug",
            "vmm",
            "deprecated_api",
        ] {
            assert!(found[group].is_object(), "{group}: {found}");
        }
    }
}
