//! What can be done with the devices of a started machine.

use lightv_api::config::VmSpec;
use lightv_api::contract::balloon::{BalloonPatch, BalloonStatsPatch};
use lightv_api::contract::drive::{DrivePatch, OverlayOrder};
use lightv_api::contract::instance::InstanceState;
use lightv_api::contract::limiter::patched;
use lightv_api::contract::net::NetPatch;
use lightv_api::contract::pmem::PmemPatch;
use lightv_api::fault::{Area, Fault};
use lightv_api::request::Reply;

use super::before_start::NO_PCI;
use super::{Controller, files};
use crate::machine::{DeviceCall, Machine};
use crate::service::Answer;

impl<M: Machine> Controller<M> {
    pub(super) fn patch_drive(&mut self, patch: &DrivePatch) -> Answer {
        let area = Area::Drive;
        let fault = |cause: &str| {
            area.fault(format!(
                "Unable to patch the block device: {cause} Please verify the request arguments."
            ))
        };
        let mut spec = self.started_spec()?;
        let mut drives = spec.drives.iter_mut();
        let Some(drive) = drives.find(|drive| drive.drive_id == patch.drive_id) else {
            return Err(fault("Device not found"));
        };
        let is_empty = patch.path_on_host.is_none() && patch.rate_limiter.is_none();
        // Without anything, a vhost-user disk reads its configuration again.
        if is_empty != drive.socket.is_some() {
            return Err(fault(match drive.socket {
                Some(_) => "A vhost-user drive has neither path_on_host nor rate_limiter.",
                None => "Neither path_on_host nor rate_limiter is given.",
            }));
        }
        if let Some(path) = &patch.path_on_host {
            if drive.overlay.is_some() {
                return Err(fault(
                    "path_on_host cannot change under an overlay, which belongs to the disk that it has.",
                ));
            }
            files::check_disk(path, drive.is_read_only)
                .map_err(|cause| fault(&format!("{cause}.")))?;
            drive.path_on_host.clone_from(path);
        }
        drive.rate_limiter = patched(drive.rate_limiter, patch.rate_limiter);
        self.update(area, spec, DeviceCall::PatchDrive(patch))
    }

    pub(super) fn order_overlay(&mut self, id: &str, order: &OverlayOrder) -> Answer {
        let area = Area::Drive;
        let state = self.started()?;
        let spec = self.started_spec()?;
        let Some(drive) = spec.drives.iter().find(|drive| drive.drive_id == id) else {
            return Err(area.fault("Unable to change the overlay: Device not found"));
        };
        if drive.overlay.is_none() {
            return Err(area.fault(format!("Drive {id} has no overlay.")));
        }
        if let (OverlayOrder::Export { .. }, InstanceState::Running) = (order, state) {
            return Err(area.fault("Cannot export a disk while its machine runs: pause it."));
        }
        self.call(area, DeviceCall::OrderOverlay(id, order))
    }

    pub(super) fn patch_net(&mut self, patch: &NetPatch) -> Answer {
        let area = Area::Network;
        let mut spec = self.started_spec()?;
        let mut nets = spec.network_interfaces.iter_mut();
        let Some(net) = nets.find(|net| net.iface_id == patch.iface_id) else {
            let cause = "Unable to update the network device: Device not found";
            return Err(area.fault(cause));
        };
        net.rx_rate_limiter = patched(net.rx_rate_limiter, patch.rx_rate_limiter);
        net.tx_rate_limiter = patched(net.tx_rate_limiter, patch.tx_rate_limiter);
        self.update(area, spec, DeviceCall::PatchNet(patch))
    }

    pub(super) fn patch_pmem(&mut self, patch: &PmemPatch) -> Answer {
        let area = Area::Pmem;
        let mut spec = self.started_spec()?;
        let mut list = spec.pmem.iter_mut().flatten();
        let Some(pmem) = list.find(|pmem| pmem.id == patch.id) else {
            return Err(area.fault("Unable to update the pmem device: Device not found"));
        };
        pmem.rate_limiter = patched(pmem.rate_limiter, patch.rate_limiter);
        self.update(area, spec, DeviceCall::PatchPmem(patch))
    }

    pub(super) fn patch_balloon(&mut self, patch: BalloonPatch) -> Answer {
        let mut spec = self.started_spec()?;
        let Some(balloon) = &mut spec.balloon else {
            return Err(no_balloon());
        };
        balloon.amount_mib = patch.amount_mib;
        super::rules::balloon(&spec).map_err(|fault| Area::Balloon.fault(fault))?;
        self.update(Area::Balloon, spec, DeviceCall::PatchBalloon(patch))
    }

    pub(super) fn patch_balloon_stats(&mut self, patch: BalloonStatsPatch) -> Answer {
        let mut spec = self.started_spec()?;
        let Some(balloon) = &mut spec.balloon else {
            return Err(no_balloon());
        };
        let interval = &mut balloon.stats_polling_interval_s;
        if (*interval == 0) != (patch.stats_polling_interval_s == 0) {
            let cause = "Statistics cannot be enabled/disabled after activation.";
            return Err(Area::Balloon.fault(cause));
        }
        *interval = patch.stats_polling_interval_s;
        self.update(Area::Balloon, spec, DeviceCall::PatchBalloonStats(patch))
    }

    /// Something about the balloon that its configuration does not keep.
    pub(super) fn ask_balloon(&mut self, call: DeviceCall<'_>) -> Answer {
        if self.started_spec()?.balloon.is_none() {
            return Err(no_balloon());
        }
        self.call(Area::Balloon, call)
    }

    /// Something about memory that can be plugged.
    pub(super) fn ask_memory(&mut self, call: DeviceCall<'_>) -> Answer {
        if self.started_spec()?.memory_hotplug.is_none() {
            let cause = "Cannot find the memory device: Device not found";
            return Err(Area::InternalVmm.fault(cause));
        }
        self.call(Area::MemoryHotplug, call)
    }

    /// Devices on virtio-mmio stay until the end.
    pub(super) fn delete(&self, area: Area, id: &str) -> Answer {
        self.started()?;
        Err(area.fault(format!("Cannot unplug {id}: {NO_PCI}")))
    }

    /// Does `call`, and keeps `spec`, which is the machine after it.
    fn update(&mut self, area: Area, spec: VmSpec, call: DeviceCall<'_>) -> Answer {
        self.refuse_missing(area, &spec)?;
        self.call(area, call)?;
        self.view.0.lock().spec = spec;
        Ok(Reply::Done)
    }

    fn call(&mut self, area: Area, call: DeviceCall<'_>) -> Answer {
        let done = self.machine.device(call);
        done.map_err(|refusal| area.fault(refusal))
    }

    fn started_spec(&self) -> Result<VmSpec, Fault> {
        self.started()?;
        Ok(self.view.0.lock().spec.clone())
    }
}

fn no_balloon() -> Fault {
    Area::InternalVmm.fault("Cannot find the balloon: Device not found")
}
