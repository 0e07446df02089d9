//! How the host runs a machine: presets, and the single settings over them (docs/presets.md).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lightv_api::config::{MachineSpec, VmSpec};
use lightv_api::contract::machine::HugePages;
use lightv_api::contract::tuning::{Preset, TuningSpec};

use super::{ConfigFault, ConfigFaults, Faults, MachineConfig};
use crate::arch::VcpuId;
use crate::limits;
use crate::sys::mapping::Pages;

/// How long a vCPU of a machine that is to answer soon is polled for, and the loop looks for its disks: as long as a direct request
/// of 1 MiB takes. KVM's own is 200 at most.
const PERFORMANCE_POLL_US: u32 = 1000;
/// How long the loop looks for a disk's next request, at most: as long as KVM does for a vCPU that halts.
pub const DISK_POLL_US: u32 = 200;
/// After so long of nothing to do a machine of many gives memory back.
const CONCURRENCY_GIVE_BACK_MS: u32 = 100;

/// What is done in advance for a restored guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prefetch {
    /// Nothing.
    None,
    /// The pages that it is known to write get memory.
    WorkingSet,
    /// That, and files of its memory are read ahead.
    WithFiles,
}

/// All settings, with those that a preset chose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tuning {
    preset: Option<Preset>,
    /// What RAM is made of.
    pub pages: Pages,
    /// CPUs of the host by vCPU.
    pub vcpu_cpus: BTreeMap<VcpuId, u32>,
    /// CPU of the host of the loop's thread.
    pub control_cpu: Option<u32>,
    /// How long KVM polls for a vCPU that waits, in microseconds; as long as it likes if not said.
    pub halt_poll_us: Option<u32>,
    /// How long the loop looks for a disk's next request before it sleeps, at most, in microseconds; never if 0.
    pub disk_poll_us: u32,
    /// What is done in advance.
    pub prefetch: Prefetch,
    /// How long the loop is idle before it gives back what the start needed.
    pub give_back_after: Duration,
}

/// What a preset puts in the place of what is not said.
#[must_use]
pub fn of_preset(preset: Preset) -> (TuningSpec, HugePages) {
    let single = TuningSpec::default();
    match preset {
        Preset::Startup => (
            TuningSpec {
                prefetch: Some(true),
                ..single
            },
            HugePages::None,
        ),
        Preset::Performance => (
            TuningSpec {
                halt_poll_us: Some(PERFORMANCE_POLL_US),
                disk_poll_us: Some(PERFORMANCE_POLL_US),
                ..single
            },
            HugePages::Transparent,
        ),
        Preset::Concurrency => (
            TuningSpec {
                disk_poll_us: Some(0),
                prefetch: Some(false),
                give_back_after_ms: Some(CONCURRENCY_GIVE_BACK_MS),
                ..single
            },
            HugePages::None,
        ),
    }
}

pub(super) fn prove(spec: &VmSpec, faults: &mut Faults) -> Tuning {
    let machine = &spec.machine_config;
    let said = machine.tuning.clone().unwrap_or_default();
    prove_numbers(&said, machine.vcpu_count, faults);
    let tuning = Tuning::of(machine);
    if tuning.pages == Pages::Large {
        if !machine.mem_size_mib.is_multiple_of(2) {
            let allowed = "an even number: machine-config.huge_pages is `2M`";
            faults.add("machine-config.mem_size_mib", machine.mem_size_mib, allowed);
        }
        if spec.balloon.is_some() {
            let allowed = "None, Transparent: a balloon gives back pages of 4 KiB";
            faults.add("machine-config.huge_pages", "`2M`", allowed);
        }
    }
    tuning
}

fn prove_numbers(said: &TuningSpec, vcpus: u64, faults: &mut Faults) {
    let field = |name: &str| format!("machine-config.tuning.{name}");
    for vcpu in said.pin_vcpus.keys() {
        if u64::from(*vcpu) >= vcpus {
            let allowed = match vcpus {
                0 | 1 => "0: there is one vCPU".to_owned(),
                more => format!("0–{}: there are {more} vCPUs", more - 1),
            };
            faults.add(field("pin_vcpus"), format!("for vCPU {vcpu}"), allowed);
        }
    }
    let most = limits::POLL_US_MAX;
    for (name, said) in [
        ("halt_poll_us", said.halt_poll_us),
        ("disk_poll_us", said.disk_poll_us),
    ] {
        if let Some(us) = said.filter(|us| *us > most) {
            faults.add(field(name), us, format!("0–{most}"));
        }
    }
    let most = limits::GIVE_BACK_MS_MAX;
    if let Some(ms) = said.give_back_after_ms.filter(|ms| *ms > most) {
        faults.add(field("give_back_after_ms"), ms, format!("0–{most}"));
    }
}

impl MachineConfig {
    /// How the host runs it.
    #[must_use]
    pub const fn tuning(&self) -> &Tuning {
        &self.tuning
    }

    /// Takes the CPUs that the process has into account: see [`Tuning::place`].
    ///
    /// # Errors
    /// Which of the named ones it may not use.
    pub fn place(
        &mut self,
        own: &BTreeSet<u32>,
        online: Option<usize>,
    ) -> Result<(), ConfigFaults> {
        let placed = self.tuning.place(own, online, self.vcpus);
        placed.map_err(ConfigFaults)
    }
}

impl Tuning {
    fn of(machine: &MachineSpec) -> Self {
        let said = machine.tuning.clone().unwrap_or_default();
        let preset = said.optimize;
        let (under, pages) = preset.map_or_else(Default::default, of_preset);
        let all = said.over(under);
        let pages = match machine.huge_pages {
            HugePages::None => pages,
            other => other,
        };
        Self {
            preset,
            pages: match pages {
                HugePages::None => Pages::Small,
                HugePages::Transparent => Pages::Joined,
                HugePages::Hugetlbfs2M => Pages::Large,
            },
            vcpu_cpus: all.pin_vcpus,
            control_cpu: all.pin_control,
            halt_poll_us: all.halt_poll_us,
            disk_poll_us: all.disk_poll_us.unwrap_or(DISK_POLL_US),
            prefetch: match all.prefetch {
                None => Prefetch::WorkingSet,
                Some(true) => Prefetch::WithFiles,
                Some(false) => Prefetch::None,
            },
            give_back_after: all
                .give_back_after_ms
                .map_or(Duration::from_millis(limits::SETTLED_AFTER_MS), |ms| {
                    Duration::from_millis(ms.into())
                }),
        }
    }

    /// Whether it depends on which CPUs the process has.
    #[must_use]
    pub fn asks_for_cpus(&self) -> bool {
        let is_pinned = !self.vcpu_cpus.is_empty() || self.control_cpu.is_some();
        is_pinned || self.preset == Some(Preset::Performance)
    }

    /// Proves that the named CPUs are among `own`, those that the process may use. With the preset for performance, and none
    /// named, a process that was given CPUs of its own, fewer than the host has `online` and one or more a vCPU, has each vCPU on
    /// one of them, in order, and the loop on the next, if there is one.
    ///
    /// # Errors
    /// A fault for each that it may not use.
    pub fn place(
        &mut self,
        own: &BTreeSet<u32>,
        online: Option<usize>,
        vcpus: u8,
    ) -> Result<(), Vec<ConfigFault>> {
        let named = self.vcpu_cpus.iter().map(|(vcpu, cpu)| {
            let field = "machine-config.tuning.pin_vcpus";
            (field, format!("CPU {cpu} for vCPU {vcpu}"), cpu)
        });
        let control = self.control_cpu.iter().map(|cpu| {
            let field = "machine-config.tuning.pin_control";
            (field, format!("CPU {cpu}"), cpu)
        });
        let faults: Vec<ConfigFault> = named
            .chain(control)
            .filter(|(.., cpu)| !own.contains(cpu))
            .map(|(field, found, _)| ConfigFault {
                field: field.to_owned(),
                found,
                allowed: format!("CPUs that this process may use: {}", list(own)),
            })
            .collect();
        if !faults.is_empty() {
            return Err(faults);
        }
        let is_named = !self.vcpu_cpus.is_empty() || self.control_cpu.is_some();
        let has_its_own = online.is_some_and(|online| own.len() < online);
        if self.preset == Some(Preset::Performance)
            && !is_named
            && has_its_own
            && own.len() >= usize::from(vcpus)
        {
            let mut cpus = own.iter().copied();
            self.vcpu_cpus = (0..vcpus).zip(cpus.by_ref()).collect();
            self.control_cpu = cpus.next();
        }
        Ok(())
    }

    /// What the preset, if there is one, has come to: a line.
    #[must_use]
    pub fn describe(&self) -> Option<String> {
        let preset = match self.preset? {
            Preset::Startup => "startup",
            Preset::Performance => "performance",
            Preset::Concurrency => "concurrency",
        };
        let pages = match self.pages {
            Pages::Small => "None",
            Pages::Joined => "Transparent",
            Pages::Large => "2M",
        };
        let prefetch = match self.prefetch {
            Prefetch::None => "false",
            Prefetch::WorkingSet => "working set",
            Prefetch::WithFiles => "true",
        };
        let halt_poll = self
            .halt_poll_us
            .map_or_else(|| "KVM's".to_owned(), |us| us.to_string());
        let pins = self.vcpu_cpus.iter();
        let pins: Vec<String> = pins.map(|(vcpu, cpu)| format!("{vcpu}={cpu}")).collect();
        let pins = match pins.as_slice() {
            [] => "none".to_owned(),
            pins => pins.join(","),
        };
        let control = self
            .control_cpu
            .map_or_else(|| "none".to_owned(), |cpu| cpu.to_string());
        Some(format!(
            "optimized for {preset}: huge_pages={pages} halt_poll_us={halt_poll} disk_poll_us={} \
             prefetch={prefetch} give_back_after_ms={} pin_vcpus={pins} pin_control={control}",
            self.disk_poll_us,
            self.give_back_after.as_millis()
        ))
    }
}

/// Numbers with their neighbours together: `0–3, 8`.
fn list(cpus: &BTreeSet<u32>) -> String {
    let mut parts: Vec<(u32, u32)> = Vec::new();
    for &cpu in cpus {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == cpu => *last = cpu,
            _ => parts.push((cpu, cpu)),
        }
    }
    let text = |(first, last): &(u32, u32)| match first == last {
        true => first.to_string(),
        false => format!("{first}–{last}"),
    };
    parts.iter().map(text).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: u64 = 1 << 40;

    fn proved(machine: &str) -> Result<Tuning, String> {
        let spec = serde_json::from_str(&format!(r#"{{"machine-config":{machine}}}"#)).unwrap();
        let config = MachineConfig::prove(spec, HOST).map_err(|faults| faults.to_string())?;
        Ok(config.tuning().clone())
    }

    fn refused(machine: &str, field: &str) {
        let text = proved(machine).unwrap_err();
        assert!(
            text.starts_with(&format!("machine-config.{field} ")),
            "{text}"
        );
    }

    #[test]
    fn a_preset_stands_where_nothing_else_is_said() {
        let plain = proved("{}").unwrap();
        assert_eq!((plain.pages, plain.halt_poll_us), (Pages::Small, None));
        assert_eq!(plain.prefetch, Prefetch::WorkingSet);
        assert_eq!(plain.give_back_after, Duration::from_secs(1));
        assert_eq!(plain.disk_poll_us, DISK_POLL_US);
        assert_eq!(plain.describe(), None);
        let many = proved(r#"{"tuning":{"optimize":"Concurrency"}}"#).unwrap();
        assert_eq!((many.halt_poll_us, many.prefetch), (None, Prefetch::None));
        assert_eq!(many.disk_poll_us, 0);
        let own = r#"{"tuning":{"optimize":"Concurrency","halt_poll_us":7,"prefetch":true}}"#;
        let own = proved(own).unwrap();
        assert_eq!(
            (own.halt_poll_us, own.prefetch),
            (Some(7), Prefetch::WithFiles)
        );
        assert_eq!(own.give_back_after, many.give_back_after);
        let fast = proved(r#"{"tuning":{"optimize":"Performance"}}"#).unwrap();
        assert_eq!(fast.pages, Pages::Joined);
        let fast = r#"{"huge_pages":"2M","tuning":{"optimize":"Performance"}}"#;
        assert_eq!(proved(fast).unwrap().pages, Pages::Large);
    }

    #[test]
    fn what_cannot_be_is_refused_by_its_field() {
        refused(
            r#"{"vcpu_count":2,"tuning":{"pin_vcpus":{"2":0}}}"#,
            "tuning.pin_vcpus",
        );
        refused(
            r#"{"tuning":{"halt_poll_us":10001}}"#,
            "tuning.halt_poll_us",
        );
        refused(
            r#"{"tuning":{"disk_poll_us":10001}}"#,
            "tuning.disk_poll_us",
        );
        let late = r#"{"tuning":{"give_back_after_ms":3600001}}"#;
        refused(late, "tuning.give_back_after_ms");
        refused(r#"{"huge_pages":"2M","mem_size_mib":129}"#, "mem_size_mib");
        let spec = r#"{"machine-config":{"huge_pages":"2M"},
            "balloon":{"amount_mib":0,"deflate_on_oom":false}}"#;
        let refused = MachineConfig::prove(serde_json::from_str(spec).unwrap(), HOST);
        let text = refused.unwrap_err().to_string();
        assert!(text.starts_with("machine-config.huge_pages "), "{text}");
    }

    #[test]
    fn cpus_are_those_of_the_process() {
        let own: BTreeSet<u32> = [0, 1, 2, 5].into();
        let place = |machine: &str, online| {
            let mut tuning = proved(machine).unwrap();
            let placed = tuning.place(&own, online, 2);
            placed.map(|()| {
                (
                    tuning.vcpu_cpus.into_iter().collect::<Vec<_>>(),
                    tuning.control_cpu,
                )
            })
        };
        let named = r#"{"vcpu_count":2,"tuning":{"pin_vcpus":{"1":5},"pin_control":0}}"#;
        assert_eq!(place(named, Some(4)), Ok((vec![(1, 5)], Some(0))));
        let missing = r#"{"tuning":{"pin_vcpus":{"0":4},"pin_control":3}}"#;
        let faults = place(missing, Some(4)).unwrap_err();
        assert_eq!(faults.len(), 2);
        assert!(
            faults[0].to_string().ends_with("may use: 0–2, 5"),
            "{}",
            faults[0]
        );
        let fast = r#"{"vcpu_count":2,"tuning":{"optimize":"Performance"}}"#;
        assert_eq!(place(fast, Some(8)), Ok((vec![(0, 0), (1, 1)], Some(2))));
        // All that the host has are not its own.
        for online in [Some(4), None] {
            assert_eq!(place(fast, online), Ok((vec![], None)));
        }
    }
}
