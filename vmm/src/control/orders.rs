//! Orders of the REST API. They come one after the other; one that comes while vCPUs are on their way out of the guest
//! waits until they are there.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lightv_api::event::Happening;
use lightv_devices::virtio::block::Disk;

use super::phase::{DiskChange, LiveTarget, Phase, Purpose, SaveFor};
use super::{Control, gives_up};
use crate::buttons::{self, Button};
use crate::config::limiter::LimitsPatch;
use crate::export;
use crate::feed;
use crate::limits;
use crate::orders::{BalloonOrder, Order, OrderError, OrderReply};
use crate::save::disk_paths;

impl Control {
    /// Carries out `order`, or begins to; the answer goes to `reply`.
    pub(super) fn serve_order(&mut self, order: Order, reply: OrderReply) {
        if matches!(self.phase, Phase::Parking { .. } | Phase::Capturing { .. }) {
            self.waiting.push_back((order, reply));
            return;
        }
        let is_paused = matches!(self.phase, Phase::Paused { .. });
        let done = match order {
            Order::Pause if !is_paused => return self.park_all(Purpose::Pause(Some(reply))),
            Order::ReplaceDisk { id, path } => match self.open_disk(id, path) {
                Ok(change) if is_paused => self.replace_disk(change),
                Ok(change) => return self.park_all(Purpose::ReplaceDisk(change, reply)),
                Err(error) => Err(error),
            },
            Order::ResetOverlay { id } if is_paused => self.reset_overlay(&id),
            Order::ResetOverlay { id } => {
                return self.park_all(Purpose::ResetOverlay(id, reply));
            }
            Order::ExportDisk { id, path } if is_paused => self.export_disk(&id, &path),
            Order::ExportDisk { .. } => Err(OrderError::new("the machine is running")),
            Order::Save(target) if is_paused => {
                self.begin_capture(SaveFor::Order(target, reply));
                return;
            }
            Order::Save(target) if target.is_live => {
                return self.begin_live(LiveTarget::Save(target), reply);
            }
            Order::Save(_) => Err(OrderError::new("the machine is running")),
            Order::Fork(target) => return self.begin_live(LiveTarget::Fork(target), reply),
            Order::Pause => Ok(()),
            Order::Resume => {
                self.resume();
                Ok(())
            }
            Order::ChangeLimits(patch) => self.change_limits(&patch),
            Order::PressCtrlAltDel => {
                buttons::press(&self.machine, Button::CtrlAltDel).map_err(OrderError::new)
            }
            Order::Balloon(order) => self.order_balloon(&order),
        };
        let _ = reply.send(done);
    }

    /// Carries out what had to wait.
    pub(super) fn serve_waiting(&mut self) {
        while matches!(self.phase, Phase::Running | Phase::Paused { .. }) {
            let Some((order, reply)) = self.waiting.pop_front() else {
                return;
            };
            self.settle_sides();
            self.serve_order(order, reply);
        }
    }

    /// All vCPUs are parked: stops the devices too. What the guest has printed and nobody reads stays in its queues.
    pub(super) fn enter_pause(&mut self) {
        let until = Instant::now() + Duration::from_millis(limits::PAUSE_OUTPUT_MS);
        let gives_up = || gives_up() || Instant::now() >= until;
        let devices = self.machine.devices.pause(&gives_up);
        self.phase = Phase::Paused { devices };
    }

    fn resume(&mut self) {
        if let Phase::Paused { .. } = self.phase {
            self.phase = Phase::Running;
            self.machine.devices.resume();
            feed::publish(|| Happening::Resumed);
            self.release_parked();
        }
    }

    fn order_balloon(&mut self, order: &BalloonOrder) -> Result<(), OrderError> {
        let done = self.machine.devices.order_balloon(order);
        done.map_err(OrderError::new)?;
        match order {
            BalloonOrder::SetAmount { mib } => self.machine.config.set_balloon_amount(*mib),
            BalloonOrder::SetPollingInterval { seconds } => {
                self.machine.config.set_balloon_interval(*seconds);
            }
            // A look changes nothing, and hinting is no part of the configuration.
            BalloonOrder::GetStats(_) | BalloonOrder::GetHinting(_) => return Ok(()),
            BalloonOrder::StartHinting { .. } | BalloonOrder::StopHinting => {}
        }
        if let Phase::Paused { .. } = self.phase {
            // A save keeps what the balloon is now.
            self.enter_pause();
        }
        Ok(())
    }

    /// The disk at `path`, for drive `id` and with its rights.
    fn open_disk(&self, id: String, path: PathBuf) -> Result<DiskChange, OrderError> {
        let mut drives = self.machine.config.drives().iter();
        let Some(drive) = drives.find(|drive| drive.id == id) else {
            return Err(OrderError::new("Device not found"));
        };
        let disk = Disk::open(&path, drive.read_only).map_err(OrderError::new)?;
        let before = self.machine.devices.disk(&id);
        // The loop waits for nobody.
        let locked = disk.locked(&path, before, Duration::ZERO);
        let mut disk = locked.map_err(OrderError::new)?;
        if drive.discard {
            disk = disk.with_discard();
        }
        if drive.direct {
            disk = disk.into_direct().map_err(OrderError::new)?;
        }
        Ok(DiskChange { id, path, disk })
    }

    /// The machine stands still, and its devices: nothing is written meanwhile.
    fn export_disk(&self, id: &str, path: &Path) -> Result<(), OrderError> {
        let disk = self.machine.devices.disk(id);
        let disk = disk.ok_or_else(|| OrderError::new("Device not found"))?;
        export::export(disk, path, &disk_paths(&self.machine.config)).map_err(OrderError::new)
    }

    /// All vCPUs are parked: no register front is locked by one that waits for us.
    pub(super) fn reset_overlay(&mut self, id: &str) -> Result<(), OrderError> {
        let done = self.machine.devices.reset_overlay(id);
        if let Phase::Paused { .. } = self.phase {
            // A save keeps what the driver has still to be told.
            self.enter_pause();
        }
        match done.map_err(OrderError::new)? {
            true => Ok(()),
            false => Err(OrderError::new("Device not found")),
        }
    }

    fn change_limits(&mut self, patch: &LimitsPatch) -> Result<(), OrderError> {
        if !self.machine.devices.change_limits(patch) {
            return Err(OrderError::new("Device not found"));
        }
        self.machine.config.change_limits(patch);
        Ok(())
    }

    /// All vCPUs are parked: no register front is locked by one that waits for us.
    pub(super) fn replace_disk(&mut self, change: DiskChange) -> Result<(), OrderError> {
        let DiskChange { id, path, disk } = change;
        if !self.machine.devices.replace_disk(&id, disk) {
            return Err(OrderError::new("Device not found"));
        }
        if let Some(number) = self.machine.config.replace_disk(&id, &path) {
            self.machine.devices.forget_stored(number);
        }
        if let Phase::Paused { .. } = self.phase {
            // A save keeps what the disk is now.
            self.enter_pause();
        }
        Ok(())
    }
}
