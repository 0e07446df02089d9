//! What a start changes of a stored configuration: `--disk`, `--net`, `--env`, `--memory`, arguments.

use std::path::PathBuf;

use lightv_api::config::{DriveSpec, RunSpec, VmSpec};
use lightv_api::contract::cpu::{CpuConfig, CpuSpec};
use lightv_api::contract::machine::{HugePages, MachineSpec};
use lightv_api::contract::net::NetHost;
use lightv_api::contract::tuning::TuningSpec;
use lightv_api::contract::vsock::VsockSpec;
use lightv_devices::virtio::vsock::GUEST_CIDS;

use crate::cmdline;
use crate::config::{ConfigFault, ConfigFaults};
use crate::net_override::NetOverride;

/// The changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// They were asked for by the REST API, which has other names for them than the command line.
    pub is_from_api: bool,
    /// New paths by drive id.
    pub disks: Vec<(String, PathBuf)>,
    /// New files for deltas by drive id.
    pub deltas: Vec<(String, PathBuf)>,
    /// New taps, and addresses for guests with LightV's agent.
    pub nets: Vec<NetOverride>,
    /// Another path for the socket of vsock.
    pub vsock: Option<PathBuf>,
    /// Environment added, or replaced by name.
    pub env: Vec<(String, String)>,
    /// Arguments, if any were given: they replace the stored ones.
    pub args: Option<Vec<String>>,
    /// What the CPU is to be, if anybody has said it. Not for a boot.
    pub cpu: Option<CpuSpec>,
    /// RAM in MiB.
    pub memory_mib: Option<u64>,
    /// Number of vCPUs.
    pub vcpus: Option<u64>,
    /// A Linux kernel is not given options for software KVM.
    pub no_software_kvm_options: bool,
    /// What RAM is made of.
    pub huge_pages: Option<HugePages>,
    /// How the host runs the machine.
    pub tuning: TuningSpec,
    /// Kernel command line added before a stand-alone `--`.
    pub append: Option<String>,
}

impl Overrides {
    /// What the RAM of `machine` is then made of, as far as that is said.
    #[must_use]
    pub fn pages_of(&self, machine: &MachineSpec) -> HugePages {
        self.huge_pages.unwrap_or(machine.huge_pages)
    }

    fn tune(&self, machine: &mut MachineSpec) {
        machine.huge_pages = self.pages_of(machine);
        if self.tuning != TuningSpec::default() {
            let stored = machine.tuning.take().unwrap_or_default();
            machine.tuning = Some(self.tuning.clone().over(stored));
        }
    }

    /// What disks, deltas, networks and vsock are called where they came from.
    const fn fields(&self) -> [&'static str; 4] {
        if self.is_from_api {
            [
                "drive_overrides",
                "drive_overrides.overlay_path",
                "network_overrides",
                "vsock_override",
            ]
        } else {
            ["--disk", "--delta", "--net", "--vsock"]
        }
    }

    /// Changes `spec`. `is_restore`: RAM, vCPUs and command line are those of the snapshot.
    ///
    /// # Errors
    /// Ids that the configuration does not have, and what a restore cannot change.
    pub fn apply(self, spec: &mut VmSpec, is_restore: bool) -> Result<(), ConfigFaults> {
        let mut faults = Vec::new();
        self.tune(&mut spec.machine_config);
        let [disk_field, delta_field, net_field, vsock_field] = self.fields();
        for (id, path) in self.disks {
            match spec.drives.iter_mut().find(|drive| drive.drive_id == id) {
                Some(drive) => {
                    drive.path_on_host = path;
                    drive.in_image = None;
                }
                None => faults.push(unknown(
                    disk_field,
                    &id,
                    spec.drives.iter().map(|drive| &drive.drive_id),
                )),
            }
        }
        for (id, path) in self.deltas {
            faults.extend(apply_delta(delta_field, &id, path, spec));
        }
        for net in self.nets {
            faults.extend(other_queues(net_field, &net, spec).filter(|_| is_restore));
            faults.extend(apply_net(net_field, net, spec));
        }
        if let Some(path) = self.vsock {
            match &mut spec.vsock {
                Some(vsock) => vsock.uds_path = path,
                None if spec.exec.is_some() => spec.vsock = Some(vsock_of_exec(path)),
                None => faults.push(no_vsock(vsock_field)),
            }
        }
        if is_restore {
            faults.extend(self.cpu.and_then(|cpu| other_cpu(cpu, spec)));
            faults.extend(self.memory_mib.map(|mib| fixed("--memory", mib)));
            faults.extend(self.vcpus.map(|count| fixed("--vcpus", count)));
            faults.extend(self.append.as_ref().map(|text| fixed("--append", text)));
        } else {
            spec.machine_config.mem_size_mib =
                self.memory_mib.unwrap_or(spec.machine_config.mem_size_mib);
            spec.machine_config.vcpu_count = self.vcpus.unwrap_or(spec.machine_config.vcpu_count);
            if let (true, Some(boot)) = (self.no_software_kvm_options, &mut spec.boot_source) {
                boot.software_kvm_options = Some(false);
            }
            if let (Some(text), Some(boot)) = (&self.append, &mut spec.boot_source) {
                let args = boot
                    .boot_args
                    .clone()
                    .unwrap_or_else(|| lightv_api::config::DEFAULT_BOOT_ARGS.into());
                boot.boot_args = Some(cmdline::append(&args, text));
            }
        }
        if !self.env.is_empty() || self.args.is_some() {
            let run = spec.run.get_or_insert_with(RunSpec::default);
            run.env.extend(self.env);
            if let Some(args) = self.args {
                run.args = args;
            }
        }
        if faults.is_empty() {
            Ok(())
        } else {
            Err(ConfigFaults(faults))
        }
    }
}

/// Another file for a delta that is in one.
fn apply_delta(field: &str, id: &str, path: PathBuf, spec: &mut VmSpec) -> Option<ConfigFault> {
    let has_file = |drive: &&mut DriveSpec| {
        let overlay = drive.overlay.as_ref();
        overlay.is_some_and(|overlay| overlay.path.is_some())
    };
    let mut drives = spec.drives.iter_mut().filter(has_file);
    if let Some(drive) = drives.find(|drive| drive.drive_id == id) {
        drive.overlay.get_or_insert_default().path = Some(path);
        return None;
    }
    let drives = spec.drives.iter_mut().filter(has_file);
    let known: Vec<&str> = drives.map(|drive| drive.drive_id.as_str()).collect();
    let allowed = match known.as_slice() {
        [] => "nothing: no drive has its delta in a file (overlay.path)".to_owned(),
        known => known.join(", "),
    };
    Some(ConfigFault {
        field: field.to_owned(),
        found: format!("for `{id}`"),
        allowed,
    })
}

/// Another tap, and another address where the guest has an agent that takes it.
fn apply_net(field: &str, change: NetOverride, spec: &mut VmSpec) -> Option<ConfigFault> {
    let NetOverride {
        id,
        host,
        address,
        queues,
    } = change;
    let is_user = matches!(host, NetHost::User(_));
    let ids = || spec.network_interfaces.iter().map(|net| &net.iface_id);
    let Some(index) = ids().position(|known| *known == id) else {
        return Some(unknown(field, &id, ids()));
    };
    if let Some(net) = spec.network_interfaces.get_mut(index) {
        net.set_host(host);
        net.num_queues = queues.or(net.num_queues);
    }
    let address = address?;
    let Some(agent) = spec.run.as_mut().and_then(|run| run.agent.as_mut()) else {
        // The address is not asked for, but the one that such a network has: it gives it by DHCP too.
        if is_user {
            return None;
        }
        return Some(ConfigFault {
            field: field.to_owned(),
            found: format!("an address for `{id}`"),
            allowed: "none: the guest has no LightV agent that could take it; leave `ip=` out"
                .to_owned(),
        });
    };
    let told = address.for_agent(index);
    agent.network.retain(|old| old.interface != told.interface);
    agent.network.push(told);
    None
}

/// The number of queue pairs of a snapshot's interface is part of its state. Who says the same again may do so.
fn other_queues(field: &str, change: &NetOverride, spec: &VmSpec) -> Option<ConfigFault> {
    let mut nets = spec.network_interfaces.iter();
    let saved = nets.find(|net| net.iface_id == change.id)?;
    let saved = saved.num_queues.unwrap_or(1);
    let asked = change.queues.filter(|asked| *asked != saved)?;
    Some(fixed(
        &format!("queues of {field}"),
        format!("{asked} for `{}`, which was saved with {saved}", change.id),
    ))
}

/// The CPU of a snapshot is part of its state. Who says the same again, or nothing, may do so.
fn other_cpu(asked: CpuSpec, spec: &VmSpec) -> Option<ConfigFault> {
    let is_nothing = asked == CpuSpec::default();
    let is_same = spec.cpu_config == Some(CpuConfig::Spec(asked));
    (!is_nothing && !is_same).then(|| ConfigFault {
        field: "cpu-config".to_owned(),
        found: "set, to something else than in the snapshot".to_owned(),
        allowed: "nothing, or the same: a snapshot goes on with the CPU that it was booted with"
            .to_owned(),
    })
}

/// What a machine has for `exec` alone, with a socket that is named.
fn vsock_of_exec(uds_path: PathBuf) -> VsockSpec {
    VsockSpec {
        guest_cid: *GUEST_CIDS.start(),
        uds_path,
        vsock_id: None,
    }
}

fn no_vsock(field: &str) -> ConfigFault {
    ConfigFault {
        field: field.to_owned(),
        found: "set".to_owned(),
        allowed: "nothing: the machine has no vsock".to_owned(),
    }
}

fn unknown<'a>(field: &str, id: &str, known: impl Iterator<Item = &'a String>) -> ConfigFault {
    let known: Vec<&str> = known.map(String::as_str).collect();
    let allowed = if known.is_empty() {
        "nothing: the machine has none".to_owned()
    } else {
        known.join(", ")
    };
    ConfigFault {
        field: field.to_owned(),
        found: format!("for `{id}`"),
        allowed,
    }
}

fn fixed(field: &str, value: impl std::fmt::Display) -> ConfigFault {
    ConfigFault {
        field: field.to_owned(),
        found: value.to_string(),
        allowed:
            "nothing for a restore, which goes on as the machine was saved; use --cold to boot anew"
                .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> VmSpec {
        serde_json::from_str(
            r#"{"boot-source":{"kernel_image_path":"k","boot_args":"a -- b"},
                "drives":[{"drive_id":"root","path_on_host":"old"}],
                "network-interfaces":[{"iface_id":"eth0","host_dev_name":"tap0"}],
                "run":{"args":["x"],"env":{"A":"1","B":"2"}}}"#,
        )
        .unwrap()
    }

    #[test]
    fn paths_taps_and_environment_are_replaced_by_name() {
        let mut changed = spec();
        let overrides = Overrides {
            disks: vec![("root".into(), "new".into())],
            nets: vec!["eth0=tap9".parse().unwrap()],
            env: vec![("B".into(), "3".into()), ("C".into(), "4".into())],
            args: Some(vec![]),
            ..Overrides::default()
        };
        overrides.apply(&mut changed, true).unwrap();
        assert_eq!(changed.drives[0].path_on_host, PathBuf::from("new"));
        assert_eq!(
            changed.network_interfaces[0].host(),
            NetHost::Tap("tap9".into())
        );
        let run = changed.run.unwrap();
        assert!(run.args.is_empty());
        assert_eq!(
            run.env.into_iter().map(|(k, v)| k + &v).collect::<Vec<_>>(),
            ["A1", "B3", "C4"]
        );
    }

    #[test]
    fn unknown_ids_are_refused_with_those_that_exist() {
        let overrides = Overrides {
            disks: vec![("data".into(), "p".into())],
            ..Overrides::default()
        };
        let text = overrides.apply(&mut spec(), true).unwrap_err().to_string();
        assert!(text.contains("`data`") && text.contains("root"), "{text}");
    }

    #[test]
    fn only_a_delta_in_a_file_gets_another_file() {
        let overrides = Overrides {
            deltas: vec![("root".into(), "new.delta".into())],
            ..Overrides::default()
        };
        for overlay in [r#"{}"#, r#"{"path":"old.delta"}"#] {
            let mut spec = spec();
            spec.drives[0].overlay = serde_json::from_str(overlay).unwrap();
            let applied = overrides.clone().apply(&mut spec, true);
            let path = spec.drives[0].overlay.clone().unwrap().path;
            if let Err(faults) = applied {
                let text = faults.to_string();
                assert!(text.starts_with("--delta is for `root`"), "{text}");
                assert_eq!(path, None);
            } else {
                assert_eq!(path, Some("new.delta".into()));
            }
        }
        let text = overrides.apply(&mut spec(), true).unwrap_err().to_string();
        assert!(text.contains("no drive has its delta in a file"), "{text}");
    }

    #[test]
    fn an_address_goes_to_the_agent_or_is_refused() {
        let overrides = Overrides {
            nets: vec!["eth0=tap9,ip=10.0.0.3/24,gw=10.0.0.1".parse().unwrap()],
            ..Overrides::default()
        };
        let refused = overrides.clone().apply(&mut spec(), true);
        let text = refused.unwrap_err().to_string();
        assert!(text.contains("agent"), "{text}");
        let mut with_agent = spec();
        let run = with_agent.run.as_mut().unwrap();
        run.agent = Some(
            serde_json::from_str(r#"{"network":[{"interface":"eth0","address":"10.0.0.2/24"}]}"#)
                .unwrap(),
        );
        overrides.apply(&mut with_agent, true).unwrap();
        let told = &with_agent.run.unwrap().agent.unwrap().network;
        assert_eq!(told.len(), 1);
        assert_eq!(told[0].address, "10.0.0.3/24");
        assert_eq!(told[0].gateway.as_deref(), Some("10.0.0.1"));
    }

    #[test]
    fn a_snapshot_keeps_its_queue_pairs_and_a_boot_does_not() {
        let apply = |queues: &str, is_restore| {
            let overrides = Overrides {
                nets: vec![format!("eth0=tap9{queues}").parse().unwrap()],
                ..Overrides::default()
            };
            let mut spec = spec();
            spec.network_interfaces[0].num_queues = Some(2);
            let applied = overrides.apply(&mut spec, is_restore);
            let applied = applied.map_err(|faults| faults.to_string());
            applied.map(|()| spec.network_interfaces[0].num_queues)
        };
        for is_restore in [true, false] {
            assert_eq!(apply("", is_restore), Ok(Some(2)));
            assert_eq!(apply(",queues=2", is_restore), Ok(Some(2)));
        }
        assert_eq!(apply(",queues=4", false), Ok(Some(4)));
        let refused = apply(",queues=1", true).unwrap_err();
        assert!(
            refused.starts_with("queues of --net is 1 for `eth0`, which was saved with 2"),
            "{refused}"
        );
    }

    #[test]
    fn a_snapshot_keeps_its_cpu() {
        let cpu: CpuSpec = serde_json::from_str(r#"{"kvm_capabilities":["121"]}"#).unwrap();
        let check = |asked: &CpuSpec, saved: Option<&CpuSpec>| {
            let overrides = Overrides {
                cpu: Some(asked.clone()),
                ..Overrides::default()
            };
            let mut spec = spec();
            spec.cpu_config = saved.cloned().map(CpuConfig::Spec);
            overrides.apply(&mut spec, true).map_err(|e| e.to_string())
        };
        let nothing = CpuSpec::default();
        assert_eq!(check(&cpu, Some(&cpu)), Ok(()));
        assert_eq!(check(&nothing, Some(&cpu)), Ok(()));
        assert_eq!(check(&nothing, None), Ok(()));
        for saved in [None, Some(&nothing)] {
            let refused = check(&cpu, saved).unwrap_err();
            assert!(refused.starts_with("cpu-config is set"), "{refused}");
        }
    }

    #[test]
    fn only_a_machine_with_vsock_gets_another_socket() {
        let overrides = Overrides {
            is_from_api: true,
            vsock: Some("b.sock".into()),
            ..Overrides::default()
        };
        let refused = overrides.clone().apply(&mut spec(), true).unwrap_err();
        assert!(
            refused.to_string().starts_with("vsock_override is set"),
            "{refused}"
        );
        let mut changed = spec();
        changed.vsock = serde_json::from_str(r#"{"guest_cid":5,"uds_path":"a.sock"}"#).unwrap();
        overrides.clone().apply(&mut changed, true).unwrap();
        let vsock = changed.vsock.unwrap();
        assert_eq!(vsock.uds_path, PathBuf::from("b.sock"));
        assert_eq!(vsock.guest_cid, 5);
        let mut changed = spec();
        changed.exec = serde_json::from_str("{}").unwrap();
        overrides.apply(&mut changed, true).unwrap();
        assert_eq!(changed.vsock.unwrap().uds_path, PathBuf::from("b.sock"));
    }

    #[test]
    fn a_restore_keeps_memory_and_a_boot_does_not() {
        let overrides = Overrides {
            memory_mib: Some(64),
            append: Some("c".into()),
            ..Overrides::default()
        };
        let text = overrides
            .clone()
            .apply(&mut spec(), true)
            .unwrap_err()
            .to_string();
        assert!(
            text.contains("--memory is 64") && text.contains("--cold"),
            "{text}"
        );
        let mut changed = spec();
        overrides.apply(&mut changed, false).unwrap();
        assert_eq!(changed.machine_config.mem_size_mib, 64);
        assert_eq!(changed.boot_source.unwrap().boot_args.unwrap(), "a c -- b");
    }
}
