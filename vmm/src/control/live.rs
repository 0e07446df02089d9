//! Saving a machine that runs: it stands still while its state is taken, and another process writes it.

use std::time::Instant;

use lightv_api::event::Happening;

use super::phase::{LiveSave, Phase, Purpose, SaveFor};
use super::{Control, SaveFailure};
use crate::feed;
use crate::metrics;
use crate::orders::{OrderError, OrderReply, SnapshotTarget};
use crate::poller::Token;
use crate::save::{SaveError, ensure_live, save_live};
use crate::side_process::{News, SideProcess};

/// A snapshot that another process writes.
#[derive(Debug)]
pub(super) struct Writing {
    process: SideProcess,
    target: SnapshotTarget,
    reply: OrderReply,
}

impl Control {
    /// The machine runs: has it stand still, to be saved as `target`.
    pub(super) fn begin_live(&mut self, target: SnapshotTarget, reply: OrderReply) {
        let refusal = match &self.writing {
            Some(writing) => Some(SaveError::Busy {
                path: writing.target.state.clone(),
            }),
            None => ensure_live(&self.machine, &target).err(),
        };
        if let Some(refusal) = refusal {
            let _ = reply.send(Err(OrderError::new(refusal)));
            return;
        }
        self.park_all(Purpose::SaveLive(LiveSave {
            target,
            reply,
            began: Instant::now(),
        }));
    }

    /// All vCPUs have given their state: hands it to another process, and lets the machine go on.
    pub(super) fn write_aside(&mut self) {
        let phase = std::mem::replace(&mut self.phase, Phase::Running);
        let Phase::Capturing {
            devices,
            states,
            save: SaveFor::Live(save),
        } = phase
        else {
            return;
        };
        let states: Vec<_> = states.into_iter().flatten().collect();
        let LiveSave {
            target,
            reply,
            began,
        } = save;
        let started = save_live(&self.machine, &states, &devices, &target);
        self.go_on_after_live(began);
        match started {
            Ok(process) => self.await_writer(Writing {
                process,
                target,
                reply,
            }),
            Err(error) => {
                let _ = reply.send(Err(OrderError::new(SaveFailure::Save(error))));
            }
        }
    }

    /// What was to be written cannot be taken; the machine goes on.
    pub(super) fn abandon_live(&mut self, save: &LiveSave, failure: SaveFailure) {
        self.go_on_after_live(save.began);
        let _ = save.reply.send(Err(OrderError::new(failure)));
    }

    fn go_on_after_live(&mut self, began: Instant) {
        self.machine.devices.resume();
        self.release_parked();
        metrics::get().live_pause.record_since(began);
    }

    fn await_writer(&mut self, writing: Writing) {
        match self.poller.watch(writing.process.fd(), Token::Side) {
            Ok(()) => self.writing = Some(writing),
            Err(error) => {
                writing.process.end();
                let _ = writing.reply.send(Err(OrderError::new(error)));
            }
        }
    }

    /// The process that writes a snapshot has something to say, or has ended.
    pub(super) fn serve_writer(&mut self) {
        let Some(writing) = &mut self.writing else {
            return;
        };
        let Some(News::Ended(outcome)) = writing.process.news() else {
            return;
        };
        // It is closed with what is taken here, which has the same effect.
        let _ = self.poller.unwatch(writing.process.fd());
        let Some(Writing { target, reply, .. }) = self.writing.take() else {
            return;
        };
        if outcome.is_ok() {
            feed::publish(|| Happening::Saved { path: target.state });
        }
        let done = outcome.map_err(|error| OrderError::new(SaveFailure::Save(error.into())));
        let _ = reply.send(done);
    }
}
