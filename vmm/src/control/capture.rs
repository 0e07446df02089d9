//! Parking the vCPUs, taking their state, and saving it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lightv_api::event::Happening;

use super::phase::{Phase, Purpose, SaveFor};
use super::{Control, Ending, KICK_INTERVAL, SaveFailure, SaveMoment, gives_up};
use crate::arch::VcpuId;
use crate::arch::host::msr;
use crate::feed;
use crate::limits;
use crate::orders::OrderError;
use crate::report;
use crate::save::{save, save_apart};
use crate::snapshot::saved::SavedDevices;
use crate::snapshot::vcpu_state::{VcpuStateError, VcpuStateV1};

impl Control {
    /// Takes all vCPUs out of the guest, if they run.
    pub(super) fn park_all(&mut self, purpose: Purpose) {
        if matches!(self.phase, Phase::Running) {
            let now = Instant::now();
            self.phase = Phase::Parking {
                deadline: now + Duration::from_millis(limits::PAUSE_TIMEOUT_MS),
                next_kick: now + KICK_INTERVAL,
                purpose,
            };
            for vcpu in &self.vcpus {
                vcpu.ask_to_park();
            }
        }
    }

    /// A signal can be lost between a thread's start and its first entry; so those that have not parked are asked
    /// again until the time is over.
    pub(super) fn kick_again(&mut self) -> Option<Ending> {
        let Phase::Parking {
            deadline,
            next_kick,
            ..
        } = &mut self.phase
        else {
            return None;
        };
        let now = Instant::now();
        if now >= *deadline {
            return self.give_up_parking();
        }
        if now >= *next_kick {
            *next_kick = now + KICK_INTERVAL;
            for (id, vcpu) in (0_u32..).zip(&self.vcpus) {
                if self.parked & (1 << id) == 0 {
                    vcpu.ask_to_park();
                }
            }
        }
        None
    }

    fn give_up_parking(&mut self) -> Option<Ending> {
        let Phase::Parking { purpose, .. } = std::mem::replace(&mut self.phase, Phase::Running)
        else {
            return None;
        };
        let reply = match purpose {
            Purpose::Plan => return self.finish_plan(Err(SaveFailure::ParkTimeout)),
            Purpose::Pause(reply) => reply,
            Purpose::SaveLive(save) => Some(save.reply),
            Purpose::ReplaceDisk(_, reply) | Purpose::ResetOverlay(_, reply) => Some(reply),
        };
        self.release_parked();
        if let Some(reply) = reply {
            let _ = reply.send(Err(OrderError::new(SaveFailure::ParkTimeout)));
        }
        None
    }

    pub(super) fn note_parked(&mut self, id: VcpuId) -> Option<Ending> {
        let all = u32::MAX >> (u32::BITS - u32::try_from(self.vcpus.len()).unwrap_or(u32::BITS));
        self.parked |= 1 << u32::from(id);
        match self.phase {
            Phase::Parking { .. } if self.parked == all => {}
            Phase::Parking { .. } | Phase::Capturing { .. } | Phase::Paused { .. } => return None,
            // It parks for something that was given up.
            Phase::Running => {
                self.release_parked();
                return None;
            }
        }
        let Phase::Parking { purpose, .. } = std::mem::replace(&mut self.phase, Phase::Running)
        else {
            return None;
        };
        match purpose {
            Purpose::Plan => return self.begin_capture(SaveFor::Plan),
            Purpose::Pause(reply) => {
                self.enter_pause();
                // One that began so has said it.
                if let Some(reply) = reply {
                    feed::publish(|| Happening::Paused);
                    let _ = reply.send(Ok(()));
                }
            }
            Purpose::SaveLive(save) => return self.begin_capture(SaveFor::Live(save)),
            Purpose::ReplaceDisk(change, reply) => {
                let done = self.replace_disk(change);
                self.release_parked();
                let _ = reply.send(done);
            }
            Purpose::ResetOverlay(id, reply) => {
                let done = self.reset_overlay(&id);
                self.release_parked();
                let _ = reply.send(done);
            }
        }
        None
    }

    /// All vCPUs are parked: asks them for their state.
    pub(super) fn begin_capture(&mut self, save: SaveFor) -> Option<Ending> {
        // Devices first: an interrupt of their last request then is in the state of the vCPU that gets it.
        let devices = match std::mem::replace(&mut self.phase, Phase::Running) {
            Phase::Paused { devices } => devices,
            // What nobody reads stays in the guest's queues.
            _ if matches!(save, SaveFor::Live(_)) => self.machine.devices.pause(&|| true),
            _ => self.machine.devices.pause(&gives_up),
        };
        self.phase = Phase::Capturing {
            devices,
            states: self.vcpus.iter().map(|_| None).collect(),
            save,
        };
        let indices = match msr::saved_indices(&self.machine.kvm, &self.machine.config.cpu_msrs()) {
            Ok(indices) => Arc::new(indices),
            Err(cause) => return self.finish_save(Err(SaveFailure::MsrList(cause))),
        };
        for vcpu in &self.vcpus {
            vcpu.capture(&indices);
        }
        None
    }

    pub(super) fn note_captured(
        &mut self,
        id: VcpuId,
        state: Result<Box<VcpuStateV1>, VcpuStateError>,
    ) -> Option<Ending> {
        let Phase::Capturing { states, save, .. } = &mut self.phase else {
            return None;
        };
        let is_live = matches!(save, SaveFor::Live(_));
        match state {
            Ok(state) => {
                if let Some(place) = states.get_mut(usize::from(id)) {
                    *place = Some(*state);
                }
            }
            Err(cause) => return self.finish_save(Err(SaveFailure::Vcpu { id, cause })),
        }
        if states.iter().any(Option::is_none) {
            return None;
        }
        if is_live {
            self.work_aside();
            return None;
        }
        let saved = self.write();
        self.finish_save(saved)
    }

    fn write(&mut self) -> Result<(), SaveFailure> {
        let Phase::Capturing {
            devices,
            states,
            save: wanted,
        } = &mut self.phase
        else {
            return Ok(());
        };
        let states: Vec<VcpuStateV1> = states.drain(..).flatten().collect();
        let written = match (wanted, &self.plan) {
            (SaveFor::Order(target, _), _) => {
                save_apart(&mut self.machine, &states, devices, target)
            }
            (SaveFor::Plan, Some(plan)) => {
                save(&self.machine, &states, devices, &plan.path).map(|_bytes| ())
            }
            (SaveFor::Plan, None) | (SaveFor::Live(_), _) => Ok(()),
        };
        written.map_err(SaveFailure::Save)
    }

    /// The state is taken and written, or will not be.
    fn finish_save(&mut self, result: Result<(), SaveFailure>) -> Option<Ending> {
        match std::mem::replace(&mut self.phase, Phase::Running) {
            Phase::Capturing {
                devices,
                save: SaveFor::Order(target, reply),
                ..
            } => {
                if result.is_ok() {
                    feed::publish(|| Happening::Saved { path: target.state });
                }
                self.answer_save(devices, result, &reply)
            }
            Phase::Capturing {
                devices,
                save: SaveFor::Live(save),
                ..
            } => {
                if let Err(failure) = result {
                    self.abandon_live(devices, save, failure);
                }
                None
            }
            Phase::Capturing { .. } => {
                self.machine.devices.resume();
                self.finish_plan(result)
            }
            _ => self.finish_plan(result),
        }
    }

    /// A machine that was saved by the REST API goes on standing still; one that was told to end while it was saved ends.
    fn answer_save(
        &mut self,
        devices: SavedDevices,
        result: Result<(), SaveFailure>,
        reply: &crate::orders::OrderReply,
    ) -> Option<Ending> {
        self.phase = Phase::Paused { devices };
        // The interruption itself is served as the signal that it is.
        let _ = reply.send(result.map_err(OrderError::new));
        None
    }

    /// Ends, or lets the guest go on. A save at `READY` happens once, one by signal as often as it is asked for.
    fn finish_plan(&mut self, result: Result<(), SaveFailure>) -> Option<Ending> {
        self.machine.bus.set_park_at_ready(false);
        let goes_on = self.plan.as_ref().is_some_and(|plan| plan.go_on);
        match (result, goes_on) {
            (Ok(()), false) => return Some(Ending::Saved),
            (Err(failure), false) => return Some(Ending::SaveFailed(failure)),
            (Ok(()), true) => {}
            (Err(failure), true) => report::warn(&failure),
        }
        self.release_parked();
        if self
            .plan
            .as_ref()
            .is_some_and(|plan| plan.moment == SaveMoment::Ready)
        {
            self.plan = None;
            // What was kept for clones is ours.
            if let Some(console) = self.machine.devices.console() {
                console.hold_input(false);
            }
        }
        None
    }

    /// Lets those run that are parked. One that is still on its way there is let go when it arrives.
    pub(super) fn release_parked(&mut self) {
        for (id, vcpu) in (0_u32..).zip(&self.vcpus) {
            if self.parked & (1 << id) != 0 {
                vcpu.run();
            }
        }
        self.parked = 0;
    }
}
