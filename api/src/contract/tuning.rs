//! `machine-config.tuning`: LightV's own.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How the host runs a machine, which the guest does not see (docs/presets.md). All is optional; what is not said is as without
/// the field, or as the preset has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TuningSpec {
    /// A set of the settings below, and of `huge_pages`; those that are said besides are as they are said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub optimize: Option<Preset>,
    /// The CPU of the host to which each vCPU is held, by the vCPU's number. Not part of an image or a snapshot.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<String, u32>)]
    pub pin_vcpus: BTreeMap<u8, u32>,
    /// The CPU of the host to which the thread is held that does the devices' work. Not part of an image or a snapshot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pin_control: Option<u32>,
    /// Microseconds for which KVM keeps a CPU for a vCPU that waits, before it lets it go: 0–10,000. KVM's own when not said
    /// (`/sys/module/kvm/parameters/halt_poll_ns`).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 10000)]
    pub halt_poll_us: Option<u32>,
    /// Microseconds for which the loop looks at most for the next request of a disk, after short waits for one, before it sleeps:
    /// 0–10,000. 200 when not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 10000)]
    pub disk_poll_us: Option<u32>,
    /// Of a restore. `true`: the pages that the working set names get memory in advance, and files of guest memory are read
    /// ahead. `false`: neither. Not said: the first alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefetch: Option<bool>,
    /// Milliseconds of nothing to do after which memory that only the start needed goes back to the host: 0–3,600,000. 1000
    /// when not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 3_600_000)]
    pub give_back_after_ms: Option<u32>,
}

/// What a machine is to be good at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum Preset {
    /// It starts soon.
    Startup,
    /// It answers soon and computes fast.
    Performance,
    /// There are many of it.
    Concurrency,
}

impl TuningSpec {
    /// These settings, and where they say nothing those of `under`.
    #[must_use]
    pub fn over(self, under: Self) -> Self {
        Self {
            optimize: self.optimize.or(under.optimize),
            pin_vcpus: match self.pin_vcpus.is_empty() {
                true => under.pin_vcpus,
                false => self.pin_vcpus,
            },
            pin_control: self.pin_control.or(under.pin_control),
            halt_poll_us: self.halt_poll_us.or(under.halt_poll_us),
            disk_poll_us: self.disk_poll_us.or(under.disk_poll_us),
            prefetch: self.prefetch.or(under.prefetch),
            give_back_after_ms: self.give_back_after_ms.or(under.give_back_after_ms),
        }
    }

    /// What of it is true of other hosts too: all but which CPU is which. `None` if that is nothing.
    #[must_use]
    pub fn without_cpus(self) -> Option<Self> {
        let rest = Self {
            pin_vcpus: BTreeMap::new(),
            pin_control: None,
            ..self
        };
        (rest != Self::default()).then_some(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuning(json: &str) -> TuningSpec {
        serde_json::from_str(json).expect("the JSON of a test is well-formed")
    }

    #[test]
    fn what_is_said_later_stands_and_the_rest_stays() {
        let stored = tuning(r#"{"optimize":"Startup","halt_poll_us":5,"pin_vcpus":{"0":1}}"#);
        let now = tuning(r#"{"halt_poll_us":0,"disk_poll_us":50,"pin_control":0}"#);
        let expected = r#"{"optimize":"Startup","pin_vcpus":{"0":1},"pin_control":0,"halt_poll_us":0,"disk_poll_us":50}"#;
        let found = now.over(stored);
        assert_eq!(serde_json::to_string(&found).expect("JSON"), expected);
        let kept = found.without_cpus().expect("a preset is left");
        assert_eq!(
            kept,
            tuning(r#"{"optimize":"Startup","halt_poll_us":0,"disk_poll_us":50}"#)
        );
        assert_eq!(tuning(r#"{"pin_control":1}"#).without_cpus(), None);
    }

    #[test]
    fn unknown_settings_and_presets_are_refused() {
        for json in [
            r#"{"turbo":true}"#,
            r#"{"optimize":"Speed"}"#,
            r#"{"pin_vcpus":{"x":1}}"#,
        ] {
            assert!(serde_json::from_str::<TuningSpec>(json).is_err(), "{json}");
        }
    }
}
