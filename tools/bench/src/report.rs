//! The result of a benchmark: one JSON object, whatever was measured.

use lightv_api::host::HostReport;
use serde::{Deserialize, Serialize};

use crate::stats::Sample;

/// All that one run of one benchmark found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Name of the benchmark, for example `start`.
    pub bench: String,
    /// Where it ran. Numbers of two hosts, or of two runs, are not compared.
    pub host: Host,
    /// What was measured, in the order of each round.
    pub cases: Vec<Case>,
}

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
        min: round(sample.min()),
        p50: round(sample.percentile(50)),
        p99: round(sample.percentile(99)),
        max: round(sample.max()),
        reference: (*reference).to_owned(),
        ratio: (sample.percentile(50) / reference_p50 * 1000.0).round() / 1000.0,
    };
    samples.iter().map(case).collect()
}

/// A tenth of a microsecond is all that a clock read tells.
fn round(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
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
            cases,
        };
        let expected = "{\"bench\":\"start\",\
            \"host\":{\"kernel\":\"6\",\"cpu\":\"c\",\"cores\":2,\"kvm\":\"software\"},\
            \"cases\":[{\"name\":\"floor\",\"unit\":\"us\",\"n\":1,\"min\":1.0,\"p50\":1.0,\"p99\":1.0,\
            \"reference\":\"floor\",\"ratio\":1.0}]}";
        assert_eq!(
            serde_json::to_string(&report).expect("plain data"),
            expected
        );
    }
}
