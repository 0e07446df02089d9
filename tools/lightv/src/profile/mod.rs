//! `lightv profile`: where the time of a start went, and what it touched.
//!
//! [`measure`] starts an image again and again, and once under strace ([`system_calls`]); [`running`] asks a microVM that
//! runs. Both give a [`Profile`], which [`text`], [`page`] and serde write down.

pub(crate) mod measure;
pub(crate) mod page;
pub(crate) mod running;
mod spans;
pub(crate) mod system_calls;
pub(crate) mod text;

use std::collections::BTreeMap;

use lightv_api::timings::{ExitsAt, PagesTouched};
use serde::Serialize;

pub(crate) use self::spans::Span;
pub(crate) use self::system_calls::SystemCall;

/// The four steps of a start, with what came before them, in order; names are those of metrics.
pub(crate) const STEPS: [&str; 5] = ["spawn", "image_load", "sandbox", "resources", "process"];
/// In its place: what came after the guest's first byte.
pub(crate) const AFTER: &str = "after";

/// What was found out. Times are in microseconds; of several starts they are medians.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Profile {
    /// The image, or the microVM.
    pub(crate) subject: String,
    /// `restore` or `boot`.
    pub(crate) way: String,
    /// Starts that were measured; 1 of a microVM that runs.
    pub(crate) starts: usize,
    /// From the spawn to the guest's first byte.
    pub(crate) total_us: f64,
    pub(crate) steps: Vec<StepProfile>,
    /// What threads did when; the first line of `main` is 0.
    pub(crate) spans: Vec<Span>,
    /// `None` where they were not counted.
    pub(crate) system_calls: Option<Traced>,
    /// Exits to the monitor.
    pub(crate) exits: Vec<ExitsAt>,
    /// KVM's own counters, up to the guest's first byte; of a microVM that runs, up to now.
    pub(crate) kvm: BTreeMap<String, u64>,
    /// Pages of guest RAM up to the guest's first byte.
    pub(crate) pages: Option<PagesTouched>,
    /// Of a microVM that runs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) devices: Vec<DeviceProfile>,
}

/// One of [`STEPS`].
#[derive(Debug, Clone, Serialize)]
pub(crate) struct StepProfile {
    pub(crate) name: &'static str,
    /// Where it begins and ends, from the first line of `main`.
    pub(crate) start_us: f64,
    pub(crate) end_us: f64,
    /// How long it is: not the time between the two, where starts differ.
    pub(crate) median_us: f64,
    pub(crate) min_us: f64,
    pub(crate) max_us: f64,
    pub(crate) system_calls: Option<u64>,
    /// Page faults of the process; the last step's end with the process.
    pub(crate) faults: Option<u64>,
}

/// A start under strace.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Traced {
    /// How long that took, from the spawn to the first byte.
    pub(crate) total_us: f64,
    pub(crate) calls: Vec<SystemCall>,
}

/// What a device has done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct DeviceProfile {
    pub(crate) device: String,
    pub(crate) kind: String,
    pub(crate) requests: u64,
    pub(crate) bytes: u64,
    pub(crate) interrupts: u64,
}

/// The value in the middle; of an even number the lower one of the two, so that it was measured. 0 of none.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len().saturating_sub(1) / 2;
    values.get(middle).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_was_measured() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0]), 1.0);
        assert_eq!(median(Vec::new()), 0.0);
    }
}
