//! What a microVM that runs tells of its start, and of what it has done since.

use std::collections::BTreeMap;

use lightv_api::timings::{ExitsAt, StartTimings};

use super::spans::{ends, spans};
use super::{DeviceProfile, Profile, STEPS, StepProfile};
use crate::metrics_text::{Sample, samples};

/// The profile of the microVM `id`, whose monitor answers `metrics` (docs/metrics.md). Nothing was counted for it alone: steps
/// and marks of its start, exits by reason.
pub(crate) fn profile(id: &str, metrics: &str) -> Profile {
    let all: Vec<Sample<'_>> = samples(metrics).collect();
    let of = |name: &'static str| all.iter().filter(move |sample| sample.name == name);
    let one = |name, label, value| {
        let mut found = of(name).filter(|sample| sample.label(label) == Some(value));
        found.next().map(|sample| sample.value)
    };
    let step = |name| one("lightv_start_step_seconds", "step", name).map(|seconds| seconds * 1e6);
    let timings = StartTimings {
        image_load_us: step("image_load").unwrap_or(0.0),
        sandbox_us: step("sandbox").unwrap_or(0.0),
        resources_us: step("resources").unwrap_or(0.0),
        process_us: step("process").unwrap_or(0.0),
        ..StartTimings::default()
    };
    let has_started = step("process").is_some();
    let way = of("lightv_starts_total").find(|sample| sample.value > 0.0);
    let exits = of("lightv_vcpu_exits_total").filter(|sample| sample.value > 0.0);
    let exits = exits.map(|sample| {
        let reason = sample.label("reason").unwrap_or_default();
        let seconds = one("lightv_vcpu_exit_duration_seconds_sum", "reason", reason);
        ExitsAt {
            reason: reason.to_owned(),
            address: None,
            place: String::new(),
            count: sample.whole(),
            us: seconds.unwrap_or(0.0) * 1e6,
        }
    });
    let kvm = of("lightv_kvm_vcpu_events_total").filter_map(|sample| {
        let event = sample.label("event")?.to_owned();
        Some((event, sample.whole()))
    });
    Profile {
        subject: id.to_owned(),
        way: way
            .and_then(|sample| sample.label("way"))
            .unwrap_or("-")
            .to_owned(),
        starts: usize::from(has_started),
        total_us: ends(&timings)[3],
        steps: if has_started {
            steps(&timings)
        } else {
            Vec::new()
        },
        spans: if has_started {
            spans(&[timings])
        } else {
            Vec::new()
        },
        system_calls: None,
        exits: exits.collect(),
        kvm: kvm.collect(),
        pages: None,
        devices: devices(&all),
    }
}

fn steps(timings: &StartTimings) -> Vec<StepProfile> {
    let mut start_us = 0.0;
    let steps = STEPS.into_iter().skip(1).zip(ends(timings));
    let steps = steps.map(|(name, end_us)| {
        let start_us = std::mem::replace(&mut start_us, end_us);
        let length = end_us - start_us;
        StepProfile {
            name,
            start_us,
            end_us,
            median_us: length,
            min_us: length,
            max_us: length,
            system_calls: None,
            faults: None,
        }
    });
    steps.collect()
}

fn devices(all: &[Sample<'_>]) -> Vec<DeviceProfile> {
    let mut devices: BTreeMap<&str, DeviceProfile> = BTreeMap::new();
    for sample in all {
        let Some(id) = sample.label("device") else {
            continue;
        };
        let device = devices.entry(id).or_insert_with(|| DeviceProfile {
            device: id.to_owned(),
            kind: String::new(),
            requests: 0,
            bytes: 0,
            interrupts: 0,
        });
        if let Some(kind) = sample.label("kind") {
            kind.clone_into(&mut device.kind);
        }
        let total = match sample.name {
            "lightv_device_requests_total" => &mut device.requests,
            "lightv_device_transferred_bytes_total" => &mut device.bytes,
            "lightv_device_interrupts_total" => &mut device.interrupts,
            _ => continue,
        };
        *total = total.saturating_add(sample.whole());
    }
    devices.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_made_of_what_is_counted_anyway() {
        let metrics = "\
lightv_starts_total{way=\"boot\"} 0
lightv_starts_total{way=\"restore\"} 1
lightv_start_step_seconds{step=\"image_load\"} 0.0001
lightv_start_step_seconds{step=\"sandbox\"} 0.0002
lightv_start_step_seconds{step=\"resources\"} 0.0003
lightv_start_step_seconds{step=\"process\"} 0.0004
lightv_vcpu_exits_total{reason=\"mmio_write\"} 4
lightv_vcpu_exits_total{reason=\"io_in\"} 0
lightv_vcpu_exit_duration_seconds_sum{reason=\"mmio_write\"} 0.00001
lightv_kvm_vcpu_events_total{event=\"exits\"} 90
lightv_device_requests_total{device=\"d\",kind=\"block\"} 7
lightv_device_transferred_bytes_total{device=\"d\",kind=\"block\",direction=\"to_guest\"} 512
lightv_device_transferred_bytes_total{device=\"d\",kind=\"block\",direction=\"from_guest\"} 1024
";
        let profile = profile("web", metrics);
        assert_eq!((profile.way.as_str(), profile.starts), ("restore", 1));
        assert!((profile.total_us - 1000.0).abs() < 0.01, "{profile:?}");
        let names: Vec<&str> = profile.steps.iter().map(|step| step.name).collect();
        assert_eq!(names, ["image_load", "sandbox", "resources", "process"]);
        assert_eq!(profile.exits.len(), 1);
        assert_eq!(
            (profile.exits[0].count, profile.exits[0].us.round()),
            (4, 10.0)
        );
        assert_eq!(profile.kvm["exits"], 90);
        assert_eq!(
            (profile.devices[0].requests, profile.devices[0].bytes),
            (7, 1536)
        );
        let silent = super::profile("web", "");
        assert!(silent.steps.is_empty() && silent.spans.is_empty());
    }
}
