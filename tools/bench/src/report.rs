//! The result of a benchmark: one JSON object, whatever was measured.

use std::collections::BTreeMap;

use lightv_api::host::HostReport;
use serde::{Deserialize, Serialize};

use crate::guest::Exits;
use crate::stats::Sample;

/// All that one run of one benchmark found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Name of the benchmark, for example `start`.
    pub bench: String,
    /// Where it ran. Numbers of two hosts, or of two runs, are not compared.
    pub host: Host,
    /// What else the numbers depend on, by its name.
    #[serde(default, skip_serializing_if = "Settings::is_empty")]
    pub settings: Settings,
    /// What was measured, in the order of each round.
    pub cases: Vec<Case>,
}

impl Report {
    /// Where it ran, and with what, in words.
    #[must_use]
    pub fn place(&self) -> String {
        let host = &self.host;
        let settings = self.settings.iter();
        let settings: String = settings
            .map(|(name, value)| format!(", {name} {value}"))
            .collect();
        format!(
            "{}, {} cores, Linux {}, {} KVM{settings}",
            host.cpu, host.cores, host.kernel, host.kvm
        )
    }
}

/// Settings of the host or of the benchmark, by their names.
pub type Settings = BTreeMap<String, String>;

/// The host of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Kernel release.
    pub kernel: String,
    /// CPU model.
    pub cpu: String,
    /// Cores online.
    pub cores: u32,
    /// `hardware`, `software` or `none`.
    pub kvm: String,
}

impl From<&HostReport> for Host {
    fn from(report: &HostReport) -> Self {
        Self {
            kernel: report.kernel.clone(),
            cpu: report.cpu.clone(),
            cores: report.cores,
            kvm: report.kvm.clone(),
        }
    }
}

/// One thing that was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Case {
    /// Name, unique in the report.
    pub name: String,
    /// Unit of the numbers, for example `us`.
    pub unit: String,
    /// How many values.
    pub n: usize,
    /// Smallest value.
    pub min: f64,
    /// Median.
    pub p50: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Largest value: for the table only, one disturbance of the host decides it.
    #[serde(skip)]
    pub max: f64,
    /// Name of the case that this one is compared with.
    pub reference: String,
    /// `p50` over the reference's `p50`.
    pub ratio: f64,
}

/// What was counted of exits for each of what `unit` names: `NAME.exits` in all, `NAME.exits.user` back to the monitor. Nothing
/// where KVM does not tell.
#[must_use]
pub(crate) fn exits(name: &str, unit: &str, exits: &[Exits]) -> Vec<Case> {
    let mut found = Vec::new();
    let mut add = |suffix: &str, of: fn(&Exits) -> f64| {
        if let Some(sample) = Sample::new(exits.iter().map(of).collect()) {
            found.extend(cases(unit, &[(&format!("{name}{suffix}"), sample)]));
        }
    };
    add(".exits", |exits| exits.all);
    add(".exits.user", |exits| exits.user);
    found
}

/// Sums up `samples`; the last one is the reference of all.
#[must_use]
pub fn cases(unit: &str, samples: &[(&str, Sample)]) -> Vec<Case> {
    let Some((reference, reference_sample)) = samples.last() else {
        return Vec::new();
    };
    let reference_p50 = reference_sample.percentile(50);
    let case = |(name, sample): &(&str, Sample)| Case {
        name: (*name).to_owned(),
        unit: unit.to_owned(),
        n: sample.count(),
        min: round(sample.min(), unit),
        p50: round(sample.percentile(50), unit),
        p99: round(sample.percentile(99), unit),
        max: round(sample.max(), unit),
        reference: (*reference).to_owned(),
        ratio: ratio(sample.percentile(50), reference_p50),
    };
    samples.iter().map(case).collect()
}

/// Nothing is as much as nothing: a case without any exit is no more than its reference.
fn ratio(value: f64, reference: f64) -> f64 {
    if value.total_cmp(&reference).is_eq() {
        return 1.0;
    }
    thousandths(value / reference)
}

/// A tenth of a microsecond is all that a clock read tells. Exits and processor time for a request or a GB may be few.
fn round(value: f64, unit: &str) -> f64 {
    match unit {
        "us" | "MB/s" | "KiB" => (value * 10.0).round() / 10.0,
        _ => thousandths(value),
    }
}

fn thousandths(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_over_the_median_of_the_last() {
        let sample = |values: &[f64]| Sample::new(values.to_vec()).expect("numbers");
        let cases = cases(
            "us",
            &[
                ("run", sample(&[2.0, 3.0, 9.0])),
                ("floor", sample(&[1.5, 2.0, 2.0])),
            ],
        );
        let found: Vec<(&str, &str, f64)> = cases
            .iter()
            .map(|case| (case.name.as_str(), case.reference.as_str(), case.ratio))
            .collect();
        assert_eq!(found, [("run", "floor", 1.5), ("floor", "floor", 1.0)]);
    }

    #[test]
    fn small_numbers_keep_what_they_tell() {
        for (unit, expected) in [("us", 0.0), ("exits/request", 0.012), ("s/GB", 0.012)] {
            let sample = Sample::new(vec![0.0123]).expect("a number");
            let found = cases(unit, &[("a", sample)]);
            assert_eq!((found[0].p50, found[0].ratio), (expected, 1.0), "{unit}");
        }
        let none = Sample::new(vec![0.0]).expect("a number");
        assert_eq!(cases("exits/MB", &[("a", none)])[0].ratio, 1.0);
    }

    #[test]
    fn json_has_the_documented_keys() {
        let host = Host {
            kernel: "6".into(),
            cpu: "c".into(),
            cores: 2,
            kvm: "software".into(),
        };
        let cases = cases(
            "us",
            &[("floor", Sample::new(vec![1.0]).expect("a number"))],
        );
        let report = Report {
            bench: "start".into(),
            host,
            settings: Settings::from([("a".into(), "b".into())]),
            cases,
        };
        let place = "c, 2 cores, Linux 6, software KVM, a b";
        assert_eq!(report.place(), place);
        let expected = "{\"bench\":\"start\",\
            \"host\":{\"kernel\":\"6\",\"cpu\":\"c\",\"cores\":2,\"kvm\":\"software\"},\"settings\":{\"a\":\"b\"},\
            \"cases\":[{\"name\":\"floor\",\"unit\":\"us\",\"n\":1,\"min\":1.0,\"p50\":1.0,\"p99\":1.0,\
            \"reference\":\"floor\",\"ratio\":1.0}]}";
        assert_eq!(
            serde_json::to_string(&report).expect("plain data"),
            expected
        );
    }
}
