//! A device at its place.

use std::os::fd::RawFd;
use std::sync::{Arc, Mutex};

use lightv_devices::interrupt::Interrupt;
use lightv_devices::memory::GuestMem;
use lightv_devices::virtio::device::Activation;
use lightv_devices::virtio::mmio::{MmioFront, ResumePoint};
use vmm_sys_util::eventfd::EventFd;

use super::held::Held;
use crate::report;

/// Host failures of one device that are reported; the rest are only counted.
const REPORTS_PER_DEVICE: u32 = 10;

#[derive(Debug)]
pub(super) struct Place {
    pub(super) id: String,
    pub(super) device: Held,
    pub(super) front: Arc<Mutex<MmioFront>>,
    pub(super) interrupt: Interrupt,
    pub(super) mem: Arc<GuestMem>,
    pub(super) doorbells: Arc<Vec<EventFd>>,
    pub(super) gsi: u32,
    pub(super) address: u64,
    /// What the device is started with by [`DeviceSet::resume`].
    pub(super) resume: Option<ResumePoint>,
    /// Features of the running device, for another resume.
    pub(super) acked_features: u64,
    pub(super) watched: Option<RawFd>,
    /// The queue that [`ring_all`](Self::ring_all) begins with.
    pub(super) first_rung: usize,
    pub(super) reports: u32,
}

/// All of `count`, from number `first` on, which is another one the next time.
pub(super) fn in_turn(first: &mut usize, count: usize) -> impl Iterator<Item = usize> + use<> {
    let begin = *first;
    *first = (begin + 1).checked_rem(count).unwrap_or(0);
    (begin..count).chain(0..begin)
}

impl Place {
    pub(super) fn activate(&mut self, resume: ResumePoint) -> bool {
        self.acked_features = resume.acked_features;
        let activation = Activation {
            mem: Arc::clone(&self.mem),
            queues: resume.queues,
            interrupt: self.interrupt.clone(),
            acked_features: resume.acked_features,
        };
        match self.device.activate(activation) {
            Ok(()) => {
                // For what waits already: a doorbell that rang before, or before a save, is forgotten.
                self.ring_all();
                true
            }
            Err(error) => {
                self.report(&error);
                false
            }
        }
    }

    pub(super) fn ring(&self, queue: usize) {
        if let Some(doorbell) = self.doorbells.get(queue) {
            // Fails only when the count is full: then it rings already.
            let _ = doorbell.write(1);
        }
    }

    /// Rings for all queues, each time another one first: the loop serves them in this order, and the first could use up all
    /// that a rate limiter lets pass.
    pub(super) fn ring_all(&mut self) {
        self.device.rung();
        let queues = in_turn(&mut self.first_rung, self.doorbells.len());
        queues.for_each(|queue| self.ring(queue));
    }

    /// Makes what is to outlive the machine safe.
    pub(super) fn settle(&mut self) {
        if let Err(fault) = self.device.settle() {
            self.report(&fault);
        }
    }

    /// Says it, a few times a device: a guest must not be able to fill a log.
    pub(super) fn report(&mut self, error: &dyn std::error::Error) {
        self.reports = self.reports.saturating_add(1);
        if self.reports <= REPORTS_PER_DEVICE {
            report::warn(error);
        }
        if self.reports == REPORTS_PER_DEVICE {
            report::say(&format!(
                "device {}: further failures are only counted",
                self.id
            ));
        }
    }
}
