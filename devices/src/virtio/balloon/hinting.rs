//! Free page hinting (virtio 1.2 §5.5.6.5): runs, in each of which the driver names free pages once.
//!
//! ```text
//!   STOP (0) --start--> run N (2…) --the driver is through, or stop--> DONE (1) --start--> run N + 1
//! ```
//! The driver holds the pages that it has named until DONE, then uses them again.

use super::state::HintingStateV1;

/// Commands (virtio 1.2 §5.5.6.5: `VIRTIO_BALLOON_CMD_ID_STOP`, `VIRTIO_BALLOON_CMD_ID_DONE`); runs begin after them.
pub(super) mod command {
    pub(in super::super) const STOP: u32 = 0;
    pub(in super::super) const DONE: u32 = 1;
    pub(in super::super) const FIRST_RUN: u32 = 2;
}

/// Where it stands.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Hinting(pub(super) HintingStateV1);

impl Hinting {
    /// Begins another run; what the driver is to be told.
    pub(super) fn start(&mut self, acknowledge_on_stop: bool) -> u32 {
        let next = self.0.last_run.wrapping_add(1).max(command::FIRST_RUN);
        self.0 = HintingStateV1 {
            host_cmd: next,
            last_run: next,
            acknowledge_on_stop,
            ..self.0
        };
        next
    }

    /// Ends the run; what the driver is to be told.
    pub(super) const fn end(&mut self) -> u32 {
        self.0.host_cmd = command::DONE;
        command::DONE
    }

    /// The driver has told a command. True when its run is over, and is to be ended by itself. Of a run that was ended or
    /// replaced meanwhile nothing is to be done.
    pub(super) const fn note(&mut self, told: u32) -> bool {
        let was_at_work = self.is_run_told();
        self.0.guest_cmd = Some(told);
        let is_over = told == command::STOP || told == command::DONE;
        was_at_work && is_over && self.0.acknowledge_on_stop
    }

    /// Whether the driver is in the run that is wanted: only then its pages are still as free as it said.
    pub(super) const fn is_run_told(&self) -> bool {
        match self.0.guest_cmd {
            Some(told) => told == self.0.host_cmd && told >= command::FIRST_RUN,
            None => false,
        }
    }
}
