//! What of the contract this version of LightV does not offer yet: one list, from which a line goes when a feature
//! comes. The configuration file and the REST API refuse by it, with the same words.

use crate::config::VmSpec;
use crate::contract::drive::DriveSpec;
use crate::contract::machine::MachineSpec;

/// Something of the contract that a machine can have or lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is named like its resource or field")]
pub enum Feature {
    Vsock,
    Balloon,
    MemoryHotplug,
    Pmem,
    VhostUser,
    Smt,
}

/// What this version lacks.
pub const NOT_OFFERED: &[Feature] = &[
    Feature::MemoryHotplug,
    Feature::Pmem,
    Feature::VhostUser,
    Feature::Smt,
];

/// A feature that was asked for, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// What.
    pub feature: Feature,
    /// The field, as a path in the configuration's JSON: `drives[1].io_engine`.
    pub field: String,
    /// What stands there.
    pub found: String,
    /// What may stand there without the feature.
    pub allowed: &'static str,
}

const NOTHING: &str = "nothing: this version of LightV does not offer it";

impl std::fmt::Display for Asked {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            field,
            found,
            allowed,
            ..
        } = self;
        write!(out, "{field} is {found}; allowed: {allowed}")
    }
}

impl Asked {
    /// `field` is set, and it should not be.
    #[must_use]
    pub fn set(feature: Feature, field: &str) -> Self {
        Self {
            feature,
            field: field.to_owned(),
            found: "set".to_owned(),
            allowed: NOTHING,
        }
    }
}

/// Which features of `lacking` the machine `spec` asks for, in the order of its fields.
#[must_use]
pub fn missing(spec: &VmSpec, lacking: &[Feature]) -> Vec<Asked> {
    let mut list = List(Vec::new());
    let VmSpec {
        boot_source: _,
        machine_config,
        drives,
        network_interfaces: _,
        entropy: _,
        console: _,
        exec,
        run: _,
        vsock,
        balloon,
        mmds_config: _,
        cpu_config: _,
        logger: _,
        metrics: _,
        pmem,
        memory_hotplug,
    } = spec;
    list.set(Feature::Vsock, "vsock", vsock.is_some());
    list.set(Feature::Vsock, "exec", exec.is_some());
    list.set(Feature::Balloon, "balloon", balloon.is_some());
    let hotplug = memory_hotplug.is_some();
    list.set(Feature::MemoryHotplug, "memory-hotplug", hotplug);
    let pmem = pmem.as_ref().is_some_and(|list| !list.is_empty());
    list.set(Feature::Pmem, "pmem", pmem);
    list.machine(machine_config);
    for (index, drive) in drives.iter().enumerate() {
        list.drive(index, drive);
    }
    list.0.retain(|asked| lacking.contains(&asked.feature));
    list.0
}

struct List(Vec<Asked>);

impl List {
    fn set(&mut self, feature: Feature, field: &str, is_set: bool) {
        if is_set {
            self.0.push(Asked::set(feature, field));
        }
    }

    fn value(&mut self, feature: Feature, field: String, found: String, allowed: &'static str) {
        self.0.push(Asked {
            feature,
            field,
            found,
            allowed,
        });
    }

    fn machine(&mut self, machine: &MachineSpec) {
        if machine.smt {
            let field = "machine-config.smt".to_owned();
            let allowed = "false: this version of LightV shows each vCPU as a core";
            self.value(Feature::Smt, field, "true".to_owned(), allowed);
        }
    }

    fn drive(&mut self, index: usize, drive: &DriveSpec) {
        let at = |field: &str| format!("drives[{index}].{field}");
        if drive.socket.is_some() {
            self.0.push(Asked::set(Feature::VhostUser, &at("socket")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(json: &str, lacking: &[Feature]) -> Vec<String> {
        let spec = serde_json::from_str(json).expect("the JSON of a test is well-formed");
        let missing = missing(&spec, lacking).into_iter();
        missing.map(|asked| asked.field).collect()
    }

    #[test]
    fn only_what_is_lacking_is_named() {
        let json = r#"{"vsock":{"guest_cid":3,"uds_path":"u"},"machine-config":{"smt":true,"huge_pages":"2M"},
            "drives":[{"drive_id":"a","path_on_host":"p"},
                {"drive_id":"b","path_on_host":"p","socket":"s"}]}"#;
        let all = ["machine-config.smt", "drives[1].socket"];
        assert_eq!(fields(json, NOT_OFFERED), all);
        assert_eq!(fields(json, &[Feature::Vsock]), ["vsock"]);
        assert_eq!(fields(json, &[]), [""; 0]);
    }

    #[test]
    fn defaults_written_out_ask_for_nothing() {
        let json = r#"{"pmem":[],"balloon":null,
            "machine-config":{"smt":false,"cpu_template":"None","huge_pages":"None"},
            "drives":[{"drive_id":"a","path_on_host":"p","io_engine":"Sync","discard":false}]}"#;
        assert_eq!(fields(json, NOT_OFFERED), [""; 0]);
    }
}
