//! What can be configured, until the machine is started.

use lightv_api::config::{BootSource, DriveSpec, EntropySpec, MachineSpec, NetSpec, VmSpec};
use lightv_api::contract::balloon::BalloonSpec;
use lightv_api::contract::cpu::{CpuConfig, CpuSpec};
use lightv_api::contract::instance::InstanceState;
use lightv_api::contract::logger::LoggerSpec;
use lightv_api::contract::machine::{CpuTemplate, MachinePatch};
use lightv_api::contract::memory_hotplug::MemoryHotplugSpec;
use lightv_api::contract::metrics::MetricsSpec;
use lightv_api::contract::mmds::MmdsConfig;
use lightv_api::contract::pmem::PmemSpec;
use lightv_api::contract::serial::SerialSpec;
use lightv_api::contract::vsock::VsockSpec;
use lightv_api::fault::{Area, Fault};
use lightv_api::offer::missing;
use lightv_api::request::Reply;

use super::{Controller, files, rules};
use crate::machine::{Change, Machine, Output, Part};
use crate::service::Answer;

/// What a started machine is told that could take a device only on PCI.
pub(super) const NO_PCI: &str = "PCI is not enabled";

impl<M: Machine> Controller<M> {
    pub(super) fn put_boot_source(&mut self, boot: &BootSource) -> Answer {
        let area = Area::BootSource;
        let spec = VmSpec {
            boot_source: Some(boot.clone()),
            ..self.not_started()?
        };
        files::check_readable(&boot.kernel_image_path)
            .map_err(|fault| area.fault(format!("The kernel file cannot be opened: {fault}")))?;
        if let Some(initrd) = &boot.initrd_path {
            files::check_readable(initrd).map_err(|fault| {
                area.fault(format!(
                    "The initrd file cannot be opened due to invalid path or invalid permissions. {fault}"
                ))
            })?;
        }
        self.keep_part(area, Part::BootSource, spec)
    }

    pub(super) fn put_machine(&mut self, machine: MachineSpec) -> Answer {
        let mut spec = self.not_started()?;
        forget_cpu(&mut spec, machine.cpu_template);
        let machine = spec.machine_config.replaced_by(machine);
        self.keep_machine(spec, machine)
    }

    pub(super) fn patch_machine(&mut self, patch: &MachinePatch) -> Answer {
        let mut spec = self.not_started()?;
        forget_cpu(&mut spec, patch.cpu_template);
        let machine = spec.machine_config.patched(patch);
        self.keep_machine(spec, machine)
    }

    fn keep_machine(&mut self, mut spec: VmSpec, machine: MachineSpec) -> Answer {
        let area = Area::Machine;
        rules::machine(&machine).map_err(|fault| area.fault(fault))?;
        spec.machine_config = machine;
        rules::memory_with_balloon(&spec).map_err(|fault| area.fault(fault))?;
        self.keep_part(area, Part::Machine, spec)
    }

    pub(super) fn put_cpu(&mut self, cpu: CpuSpec) -> Answer {
        let mut spec = self.not_started()?;
        spec.cpu_config = Some(CpuConfig::Spec(cpu));
        spec.machine_config.cpu_template = None;
        // Goes with a snapshot too: it is not for a boot alone.
        self.agree(Area::Cpu, Part::Cpu, &spec)?;
        self.view.0.lock().spec = spec;
        Ok(Reply::Done)
    }

    pub(super) fn put_drive(&mut self, drive: &DriveSpec) -> Answer {
        let area = Area::Drive;
        let mut spec = self.changeable(area)?;
        put_by_id(&mut spec.drives, drive.clone(), |drive| &drive.drive_id);
        // The guest finds the root first; the others stay in order.
        spec.drives.sort_by_key(|drive| !drive.is_root_device);
        rules::drive(&spec, drive).map_err(|fault| area.fault(fault))?;
        if drive.socket.is_none() {
            // What is under an overlay is only read.
            let is_read = drive.is_read_only || drive.overlay.is_some();
            files::check_disk(&drive.path_on_host, is_read).map_err(|fault| {
                area.fault(format!("Unable to create the block device: {fault}"))
            })?;
        }
        self.keep_part(area, Part::Drive(&drive.drive_id), spec)
    }

    pub(super) fn put_pmem(&mut self, pmem: &PmemSpec) -> Answer {
        let area = Area::Pmem;
        let mut spec = self.changeable(area)?;
        let list = spec.pmem.get_or_insert_default();
        put_by_id(list, pmem.clone(), |pmem| &pmem.id);
        rules::one_root(&spec).map_err(|fault| area.fault(fault))?;
        self.keep_part(area, Part::Pmem(&pmem.id), spec)
    }

    pub(super) fn put_net(&mut self, net: &NetSpec) -> Answer {
        let area = Area::Network;
        let mut spec = self.changeable(area)?;
        rules::net(&spec, net).map_err(|fault| area.fault(fault))?;
        put_by_id(&mut spec.network_interfaces, net.clone(), |net| {
            &net.iface_id
        });
        self.keep_part(area, Part::Net(&net.iface_id), spec)
    }

    pub(super) fn put_vsock(&mut self, vsock: VsockSpec) -> Answer {
        let mut spec = self.not_started()?;
        if vsock.guest_cid < 3 || vsock.guest_cid == u32::MAX {
            return Err(Area::Vsock.fault(rules::RuleFault::GuestCid(vsock.guest_cid)));
        }
        spec.vsock = Some(vsock);
        self.keep_part(Area::Vsock, Part::Vsock, spec)
    }

    pub(super) fn put_balloon(&mut self, balloon: BalloonSpec) -> Answer {
        let spec = VmSpec {
            balloon: Some(balloon),
            ..self.not_started()?
        };
        rules::balloon(&spec).map_err(|fault| Area::Balloon.fault(fault))?;
        self.keep_part(Area::Balloon, Part::Balloon, spec)
    }

    pub(super) fn put_entropy(&mut self, entropy: EntropySpec) -> Answer {
        let spec = VmSpec {
            entropy: Some(entropy),
            ..self.not_started()?
        };
        self.keep_part(Area::Entropy, Part::Entropy, spec)
    }

    pub(super) fn put_mmds_config(&mut self, config: MmdsConfig) -> Answer {
        let mut spec = self.not_started()?;
        rules::mmds(&spec, &config).map_err(|fault| Area::MmdsConfig.fault(fault))?;
        spec.mmds_config = Some(config);
        self.keep_part(Area::MmdsConfig, Part::MmdsConfig, spec)
    }

    pub(super) fn put_memory_hotplug(&mut self, hotplug: MemoryHotplugSpec) -> Answer {
        let mut spec = self.not_started()?;
        rules::memory_hotplug(&hotplug).map_err(|fault| Area::MemoryHotplug.fault(fault))?;
        spec.memory_hotplug = Some(hotplug);
        self.keep_part(Area::MemoryHotplug, Part::MemoryHotplug, spec)
    }

    pub(super) fn put_serial(&mut self, serial: &SerialSpec) -> Answer {
        self.not_started()?;
        let set = self.machine.set_output(Output::Serial(serial));
        super::done(Area::Serial, set)
    }

    pub(super) fn put_logger(&mut self, logger: LoggerSpec) -> Answer {
        let mut spec = self.not_started()?;
        // What a later request leaves out stays as it is.
        let known = spec.logger.unwrap_or_default();
        let logger = LoggerSpec {
            log_path: logger.log_path.or(known.log_path),
            level: logger.level.or(known.level),
            show_level: logger.show_level.or(known.show_level),
            show_log_origin: logger.show_log_origin.or(known.show_log_origin),
            module: logger.module.or(known.module),
            format: logger.format.or(known.format),
        };
        spec.logger = Some(logger.clone());
        self.keep_output(Area::Logger, spec, Output::Logger(&logger))
    }

    pub(super) fn put_metrics(&mut self, metrics: &MetricsSpec) -> Answer {
        let mut spec = self.not_started()?;
        if spec.metrics.is_some() {
            return Err(Area::Metrics.fault("Reinitialization of metrics not allowed."));
        }
        spec.metrics = Some(metrics.clone());
        self.keep_output(Area::Metrics, spec, Output::Metrics(metrics))
    }

    fn keep_output(&mut self, area: Area, spec: VmSpec, output: Output<'_>) -> Answer {
        self.refuse_missing(area, &spec)?;
        let set = self.machine.set_output(output);
        set.map_err(|refusal| area.fault(refusal))?;
        self.view.0.lock().spec = spec;
        Ok(Reply::Done)
    }

    /// Keeps `spec`, of which `part` is new, if all agree.
    fn keep_part(&mut self, area: Area, part: Part<'_>, spec: VmSpec) -> Answer {
        self.agree(area, part, &spec)?;
        self.is_for_boot = true;
        self.view.0.lock().spec = spec;
        Ok(Reply::Done)
    }

    fn agree(&mut self, area: Area, part: Part<'_>, spec: &VmSpec) -> Result<(), Fault> {
        self.refuse_missing(area, spec)?;
        let admitted = self.machine.admit(Change { part, spec });
        admitted.map_err(|refusal| area.fault(refusal))
    }

    /// Refuses what this version does not offer. What is there already was not refused, so it is the new part.
    pub(super) fn refuse_missing(&self, area: Area, spec: &VmSpec) -> Result<(), Fault> {
        match missing(spec, self.lacking).first() {
            Some(asked) => Err(area.fault(asked)),
            None => Ok(()),
        }
    }

    /// The configuration, for a device that could be plugged into a started machine if it had PCI.
    fn changeable(&self, area: Area) -> Result<VmSpec, Fault> {
        let configured = self.view.0.lock();
        match configured.state {
            InstanceState::NotStarted => Ok(configured.spec.clone()),
            InstanceState::Running | InstanceState::Paused => Err(area.fault(NO_PCI)),
        }
    }
}

/// Of `cpu-config` and a template the later one holds.
fn forget_cpu(spec: &mut VmSpec, template: Option<CpuTemplate>) {
    if template.is_some() {
        spec.cpu_config = None;
    }
}

/// Puts `item` in the place of the one with its id, or at the end.
fn put_by_id<T>(list: &mut Vec<T>, item: T, id: impl Fn(&T) -> &String) {
    match list.iter_mut().find(|known| id(known) == id(&item)) {
        Some(known) => *known = item,
        None => list.push(item),
    }
}
