//! `cpu-config`, and `machine-config.cpu_template`.

use std::collections::BTreeSet;
use std::fmt;

use lightv_api::config::VmSpec;
use lightv_api::contract::cpu::{
    Bitmap, Capability, CpuConfig, CpuSpec, CpuidModifier, CpuidRegister, MsrModifier,
};
use lightv_api::contract::machine::CpuTemplate as Template;

use super::Faults;
use crate::arch::host::cpu_template::{
    CpuChanges, CpuTemplate, CpuidChange, LeafId, MsrChange, Named, Register,
};
use crate::arch::host::msr;
use crate::limits;

/// All flags of an entry of CPUID that KVM has.
const FLAGS_MAX: u32 = 7;

/// Proves what `spec` changes of the CPU. Whether this host's KVM and processor can do it is known at the start.
pub(super) fn prove(spec: &VmSpec, faults: &mut Faults) -> Option<CpuTemplate> {
    let named = spec.machine_config.cpu_template;
    let named = named.filter(|template| *template != Template::None);
    let Some(config) = &spec.cpu_config else {
        return prove_named(named?, faults).map(CpuTemplate::Named);
    };
    if let Some(template) = named {
        faults.add(
            "machine-config.cpu_template",
            format!("`{template:?}`"),
            "None: cpu-config says what the CPU is",
        );
    }
    match config {
        CpuConfig::Spec(spec) => Some(CpuTemplate::Own(prove_own(spec, faults))),
        CpuConfig::File(_) => {
            faults.add(
                "cpu-config",
                "the path of a file",
                "an object: only a configuration file may name a file",
            );
            None
        }
    }
}

fn prove_named(template: Template, faults: &mut Faults) -> Option<Named> {
    match template {
        Template::C3 => Some(Named::C3),
        Template::T2 => Some(Named::T2),
        Template::T2S => Some(Named::T2s),
        Template::T2CL => Some(Named::T2cl),
        Template::T2A => Some(Named::T2a),
        Template::V1N1 => {
            faults.add(
                "machine-config.cpu_template",
                "`V1N1`",
                "C3, T2, T2S, T2CL, T2A, None: V1N1 is for Arm processors",
            );
            None
        }
        Template::None => None,
    }
}

fn prove_own(spec: &CpuSpec, faults: &mut Faults) -> CpuChanges {
    CpuChanges {
        capabilities: prove_capabilities(&spec.kvm_capabilities, faults),
        cpuid: prove_cpuid(&spec.cpuid_modifiers, faults),
        msrs: prove_msrs(&spec.msr_modifiers, faults),
    }
}

/// LightV has no list of capabilities that could be shortened: one with `!` is one that it does not ask for anyway.
fn prove_capabilities(asked: &[Capability], faults: &mut Faults) -> Vec<u32> {
    let mut seen = BTreeSet::new();
    for (index, capability) in asked.iter().enumerate() {
        if !seen.insert(capability.number()) {
            faults.add(
                format!("cpu-config.kvm_capabilities[{index}]"),
                capability.number(),
                "a capability that is not named twice",
            );
        }
    }
    let needed = asked.iter().filter(|capability| capability.is_needed());
    needed.map(Capability::number).collect()
}

fn prove_cpuid(modifiers: &[CpuidModifier], faults: &mut Faults) -> Vec<CpuidChange> {
    let mut leaves = BTreeSet::new();
    let mut changes = Vec::new();
    for (index, modifier) in modifiers.iter().enumerate() {
        let at = Place("cpuid_modifiers", index);
        let leaf = LeafId {
            leaf: modifier.leaf.value(),
            subleaf: modifier.subleaf.value(),
            flags: modifier.flags,
        };
        if !leaves.insert((leaf.leaf, leaf.subleaf)) {
            faults.add(at.to_string(), leaf, "a leaf that no other modifier has");
        }
        if leaf.flags > FLAGS_MAX {
            let allowed = format!("0–{FLAGS_MAX}: KVM's flags of the entry");
            faults.add(format!("{at}.flags"), leaf.flags, allowed);
        }
        let mut registers = Vec::new();
        for (number, change) in modifier.modifiers.iter().enumerate() {
            let register = register_of(change.register);
            let at = format!("{at}.modifiers[{number}]");
            if registers.contains(&register) {
                let allowed = "a register that the leaf's other modifiers do not have";
                faults.add(format!("{at}.register"), register, allowed);
            }
            registers.push(register);
            let (mask, value) = prove_bits(&format!("{at}.bitmap"), &change.bitmap, faults);
            changes.push(CpuidChange {
                leaf,
                register,
                mask,
                value,
            });
        }
    }
    changes
}

const fn register_of(register: CpuidRegister) -> Register {
    match register {
        CpuidRegister::Eax => Register::Eax,
        CpuidRegister::Ebx => Register::Ebx,
        CpuidRegister::Ecx => Register::Ecx,
        CpuidRegister::Edx => Register::Edx,
    }
}

/// Which bits of a register of 32 bits are chosen, and what they are to be.
fn prove_bits(field: &str, bitmap: &Bitmap, faults: &mut Faults) -> (u32, u32) {
    let width = bitmap.width();
    if width > 32 {
        faults.add(field, format!("{width} bits"), "at most 32 bits");
    }
    let (mask, value) = bitmap.mask_and_value();
    let low = |bits: u64| u32::try_from(bits).unwrap_or_default();
    (low(mask), low(value))
}

fn prove_msrs(modifiers: &[MsrModifier], faults: &mut Faults) -> Vec<MsrChange> {
    if modifiers.len() > limits::CPU_MSR_CHANGES_MAX {
        faults.add(
            "cpu-config.msr_modifiers",
            format!("{} modifiers", modifiers.len()),
            format!("at most {}", limits::CPU_MSR_CHANGES_MAX),
        );
    }
    let mut seen = BTreeSet::new();
    let mut changes = Vec::with_capacity(modifiers.len());
    for (number, modifier) in modifiers.iter().enumerate() {
        let at = Place("msr_modifiers", number);
        let index = modifier.addr.value();
        let mut refuse =
            |allowed: &str| faults.add(format!("{at}.addr"), format!("{index:#x}"), allowed);
        if !seen.insert(index) {
            refuse("a register that no other modifier has");
        }
        if !msr::keeps_its_value(index) {
            refuse(
                "a register that keeps what is written to it: no clock, and no order to store one",
            );
        }
        let (mask, value) = modifier.bitmap.mask_and_value();
        changes.push(MsrChange { index, mask, value });
    }
    changes
}

/// An element of a list of `cpu-config`.
#[derive(Clone, Copy)]
struct Place(&'static str, usize);

impl fmt::Display for Place {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(list, index) = self;
        write!(out, "cpu-config.{list}[{index}]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: &str) -> (Option<CpuTemplate>, Vec<String>) {
        let spec: VmSpec = serde_json::from_str(json).expect("the JSON of a test is well-formed");
        let mut faults = Faults::default();
        let proved = prove(&spec, &mut faults);
        (proved, faults.0.into_iter().map(|f| f.field).collect())
    }

    fn faults_of(cpu: &str) -> Vec<String> {
        check(&format!(r#"{{"cpu-config":{cpu}}}"#)).1
    }

    #[test]
    fn a_configuration_becomes_masks_and_values() {
        let json = r#"{"cpu-config":{"kvm_capabilities":["121","!56"],
            "cpuid_modifiers":[{"leaf":"0x7","subleaf":"0","flags":1,
                "modifiers":[{"register":"ebx","bitmap":"0b1_x0"},{"register":"edx","bitmap":"0bx"}]}],
            "msr_modifiers":[{"addr":"0x10a","bitmap":"0b0x"}]}}"#;
        let leaf = LeafId {
            leaf: 7,
            subleaf: 0,
            flags: 1,
        };
        let expected = CpuChanges {
            capabilities: vec![121],
            cpuid: vec![
                CpuidChange {
                    leaf,
                    register: Register::Ebx,
                    mask: 0b101,
                    value: 0b100,
                },
                CpuidChange {
                    leaf,
                    register: Register::Edx,
                    mask: 0,
                    value: 0,
                },
            ],
            msrs: vec![MsrChange {
                index: 0x10a,
                mask: 0b10,
                value: 0,
            }],
        };
        let (proved, faults) = check(json);
        assert_eq!(faults, [""; 0]);
        assert_eq!(proved, Some(CpuTemplate::Own(expected)));
    }

    #[test]
    fn every_bit_of_a_register_can_be_chosen() {
        let (bits_32, bits_64) = ("1".repeat(32), "0".repeat(64));
        let json = format!(
            r#"{{"cpu-config":{{"cpuid_modifiers":[{{"leaf":"1","subleaf":"0","flags":0,
                "modifiers":[{{"register":"eax","bitmap":"0b{bits_32}"}}]}}],
                "msr_modifiers":[{{"addr":"1","bitmap":"0b{bits_64}"}}]}}}}"#
        );
        let (proved, faults) = check(&json);
        assert_eq!(faults, [""; 0]);
        let Some(CpuTemplate::Own(changes)) = proved else {
            panic!("{proved:?}");
        };
        assert_eq!((changes.cpuid[0].mask, changes.cpuid[0].value), (!0, !0));
        assert_eq!((changes.msrs[0].mask, changes.msrs[0].value), (!0, 0));
    }

    #[test]
    fn what_is_named_twice_is_refused() {
        let leaf = r#"{"leaf":"0x1","subleaf":"0x0","flags":0,"modifiers":[]}"#;
        assert_eq!(
            faults_of(&format!(r#"{{"cpuid_modifiers":[{leaf},{leaf}]}}"#)),
            ["cpu-config.cpuid_modifiers[1]"]
        );
        let eax = r#"{"register":"eax","bitmap":"0b1"}"#;
        assert_eq!(
            faults_of(&format!(
                r#"{{"cpuid_modifiers":[{{"leaf":"1","subleaf":"0","flags":0,"modifiers":[{eax},{eax}]}}]}}"#
            )),
            ["cpu-config.cpuid_modifiers[0].modifiers[1].register"]
        );
        let msr = |addr: &str| format!(r#"{{"addr":"{addr}","bitmap":"0b1"}}"#);
        assert_eq!(
            faults_of(&format!(
                r#"{{"msr_modifiers":[{},{}]}}"#,
                msr("0x10a"),
                msr("266")
            )),
            ["cpu-config.msr_modifiers[1].addr"]
        );
        for pair in [r#"["121","121"]"#, r#"["121","!121"]"#] {
            assert_eq!(
                faults_of(&format!(r#"{{"kvm_capabilities":{pair}}}"#)),
                ["cpu-config.kvm_capabilities[1]"]
            );
        }
    }

    #[test]
    fn what_is_out_of_range_is_refused() {
        let long = "x".repeat(33);
        assert_eq!(
            faults_of(&format!(
                r#"{{"cpuid_modifiers":[{{"leaf":"1","subleaf":"0","flags":8,"modifiers":[{{"register":"ecx","bitmap":"0b{long}"}}]}}]}}"#
            )),
            [
                "cpu-config.cpuid_modifiers[0].flags",
                "cpu-config.cpuid_modifiers[0].modifiers[0].bitmap"
            ]
        );
        for addr in ["0x10", "0x11", "0x4b564d00", "0x6e0"] {
            assert_eq!(
                faults_of(&format!(
                    r#"{{"msr_modifiers":[{{"addr":"{addr}","bitmap":"0b1"}}]}}"#
                )),
                ["cpu-config.msr_modifiers[0].addr"],
                "{addr}"
            );
        }
        let many: Vec<String> = (0..257)
            .map(|index| format!(r#"{{"addr":"0x{:x}","bitmap":"0b1"}}"#, 0x1000 + index))
            .collect();
        assert_eq!(
            faults_of(&format!(r#"{{"msr_modifiers":[{}]}}"#, many.join(","))),
            ["cpu-config.msr_modifiers"]
        );
    }

    #[test]
    fn a_template_has_a_name_or_is_ones_own() {
        let named = |name: &str| {
            let (proved, faults) = check(&format!(
                r#"{{"machine-config":{{"cpu_template":"{name}"}}}}"#
            ));
            assert_eq!(faults, [""; 0], "{name}");
            proved
        };
        assert_eq!(named("None"), None);
        for (name, expected) in [
            ("C3", Named::C3),
            ("T2", Named::T2),
            ("T2S", Named::T2s),
            ("T2CL", Named::T2cl),
            ("T2A", Named::T2a),
        ] {
            assert_eq!(named(name), Some(CpuTemplate::Named(expected)));
            assert_eq!(expected.name(), name);
        }
        let field = ["machine-config.cpu_template"];
        let json = r#"{"machine-config":{"cpu_template":"V1N1"}}"#;
        assert_eq!(check(json), (None, field.map(String::from).to_vec()));
        let both = r#"{"machine-config":{"cpu_template":"T2"},"cpu-config":{}}"#;
        assert_eq!(check(both).1, field);
        let none = r#"{"machine-config":{"cpu_template":"None"},"cpu-config":{}}"#;
        assert_eq!(check(none).1, [""; 0]);
    }

    #[test]
    fn a_path_is_for_configuration_files() {
        assert_eq!(faults_of(r#""cpu.json""#), ["cpu-config"]);
    }
}
