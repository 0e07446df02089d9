//! Saving and forking a machine that runs: it stands still while its state is taken, and another process does the rest.

use std::os::fd::{AsFd as _, AsRawFd as _};
use std::time::{Duration, Instant};

use lightv_api::event::Happening;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, getpid};

use super::phase::{LiveSave, LiveTarget, Phase, Purpose, SaveFor};
use super::{Control, Ending, KICK_INTERVAL, SaveFailure, gives_up};
use crate::feed;
use crate::limits;
use crate::metrics;
use crate::orders::{OrderError, OrderReply};
use crate::poller::Token;
use crate::save::{SaveError, ensure_fork, ensure_live, freeze, save_live, tell_pages};
use crate::side_process::{News, SideProcess};
use crate::snapshot::saved::SavedDevices;

/// A process beside this one.
#[derive(Debug)]
pub(super) struct Side {
    process: SideProcess,
    target: LiveTarget,
    /// Who waits for it; of frozen memory nobody does, once it can be had.
    reply: Option<OrderReply>,
    /// It is still to be told which pages there are.
    awaits_pages: bool,
}

impl Side {
    const fn is_fork(&self) -> bool {
        matches!(self.target, LiveTarget::Fork(_))
    }

    /// This process ends. What writes a snapshot ends with it; frozen memory stays, for those who begin from it.
    fn leave(self) {
        if let LiveTarget::Fork(target) = self.target {
            target.socket.leave();
        }
    }
}

impl LiveSave {
    /// Tells who has asked, when a socket that was made for it is gone.
    fn fail(self, failure: SaveFailure) {
        drop(self.target);
        let _ = self.reply.send(Err(OrderError::new(failure)));
    }
}

impl Control {
    /// Has a machine that runs stand still, to be saved or forked as `target`; one that stands still is forked as it is.
    pub(super) fn begin_live(&mut self, target: LiveTarget, reply: OrderReply) {
        if let Err(refusal) = self.admit_live(&target) {
            // Its socket goes before anybody is told.
            drop(target);
            let _ = reply.send(Err(OrderError::new(refusal)));
            return;
        }
        let save = LiveSave {
            target,
            reply,
            began: Instant::now(),
            was_paused: matches!(self.phase, Phase::Paused { .. }),
        };
        if save.was_paused {
            self.begin_capture(SaveFor::Live(save));
        } else {
            self.park_all(Purpose::SaveLive(save));
        }
    }

    fn admit_live(&self, target: &LiveTarget) -> Result<(), SaveError> {
        match target {
            LiveTarget::Save(target) => {
                let busy = self.sides.iter().find_map(|side| match &side.target {
                    LiveTarget::Save(other) => Some(other.state.clone()),
                    LiveTarget::Fork(_) => None,
                });
                match busy {
                    Some(path) => Err(SaveError::Busy { path }),
                    None => ensure_live(&self.machine, target),
                }
            }
            LiveTarget::Fork(target) => {
                match self.sides.iter().filter(|side| side.is_fork()).count() {
                    limits::FROZEN_MAX.. => Err(SaveError::Frozen),
                    _ => ensure_fork(&self.machine, &target.state),
                }
            }
        }
    }

    /// All vCPUs have given their state: hands it to another process, and lets the machine go on.
    pub(super) fn work_aside(&mut self) {
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
        let started = match &save.target {
            LiveTarget::Save(target) => save_live(&self.machine, &states, &devices, target),
            LiveTarget::Fork(target) => freeze(&self.machine, &states, &devices, target),
        };
        self.go_on_after_live(devices, &save);
        match started {
            Ok(process) => self.await_side(process, save.target, save.reply),
            Err(error) => save.fail(SaveFailure::Save(error)),
        }
        if self.sides.last().is_some_and(|side| !side.is_fork()) {
            self.tell_sides();
        }
    }

    /// Tells processes beside this one which pages there are.
    pub(super) fn tell_sides(&mut self) {
        while let Some(place) = self.sides.iter().position(|side| side.awaits_pages) {
            let Some(side) = self.sides.get_mut(place) else {
                return;
            };
            side.awaits_pages = false;
            if let Err(error) = tell_pages(&self.machine, &side.process) {
                let mut side = self.sides.swap_remove(place);
                side.process.end();
                let _ = self.poller.unwatch(side.process.as_fd().as_raw_fd());
                answer(&mut side, Err(error));
            }
        }
    }

    /// To be called before anything is done that could give a page back: which pages there are, processes beside this one are told
    /// before. Not sooner, for a fork is answered without, and has a use for this CPU until then.
    pub(super) fn settle_sides(&mut self) {
        if self.sides.iter().any(|side| side.awaits_pages) {
            self.serve_sides();
            self.tell_sides();
        }
    }

    /// What was to be saved cannot be taken; the machine goes on.
    pub(super) fn abandon_live(
        &mut self,
        devices: SavedDevices,
        save: LiveSave,
        failure: SaveFailure,
    ) {
        self.go_on_after_live(devices, &save);
        save.fail(failure);
    }

    /// As it was before: running, or standing still.
    fn go_on_after_live(&mut self, devices: SavedDevices, save: &LiveSave) {
        if save.was_paused {
            self.phase = Phase::Paused { devices };
            return;
        }
        self.machine.devices.resume();
        self.release_parked();
        metrics::get().live_pause.record_since(save.began);
    }

    fn await_side(&mut self, process: SideProcess, target: LiveTarget, reply: OrderReply) {
        match self.poller.watch(process.as_fd().as_raw_fd(), Token::Side) {
            Ok(()) => self.sides.push(Side {
                process,
                target,
                reply: Some(reply),
                awaits_pages: true,
            }),
            Err(error) => {
                process.end();
                drop(target);
                let _ = reply.send(Err(OrderError::new(error)));
            }
        }
    }

    /// The machine is over, and with it this process.
    pub(super) fn leave_sides(&mut self) {
        self.tell_sides();
        // As the first process of its name space, which one in a jail is, it takes all others of it along.
        if getpid() == Pid::INIT && Ending::by_own_thread().is_none() {
            self.await_frozen();
        } else {
            self.sides.drain(..).for_each(Side::leave);
        }
    }

    /// Waits, while the vCPUs stand still, until nobody needs frozen memory any more, for [`limits::FROZEN_LEFT_MS`], or until one
    /// more signal comes. What is given up then takes its socket away here.
    fn await_frozen(&mut self) {
        let began = Instant::now();
        let time = Duration::from_millis(limits::FROZEN_LEFT_MS);
        let same_signal = Duration::from_millis(limits::TERM_REPEAT_MS);
        while self.sides.iter().any(Side::is_fork) && began.elapsed() < time {
            if began.elapsed() < same_signal {
                while self.signals.next().is_some() {}
            } else if gives_up() {
                return;
            }
            for vcpu in &self.vcpus {
                vcpu.ask_to_park();
            }
            self.wait_for_sides(KICK_INTERVAL);
            self.serve_sides();
        }
    }

    fn wait_for_sides(&self, time: Duration) {
        let fds = self.sides.iter().map(|side| &side.process);
        let mut fds: Vec<_> = fds.map(|it| PollFd::new(it, PollFlags::IN)).collect();
        // A signal that comes is looked at by who calls.
        let _ = poll(&mut fds, Timespec::try_from(time).ok().as_ref());
    }

    /// A process beside this one has something to say, or has ended.
    pub(super) fn serve_sides(&mut self) {
        let poller = &self.poller;
        self.sides.retain_mut(|side| {
            loop {
                match side.process.news() {
                    None => return true,
                    Some(News::Ready) => answer(side, Ok(())),
                    Some(News::Ended(outcome)) => {
                        // It is closed with what is dropped here, which has the same effect.
                        let _ = poller.unwatch(side.process.as_fd().as_raw_fd());
                        answer(side, outcome.map_err(SaveError::from));
                        return false;
                    }
                }
            }
        });
    }
}

/// Tells who has waited.
fn answer(side: &mut Side, outcome: Result<(), SaveError>) {
    let reply = side.reply.take();
    if let (LiveTarget::Save(target), Ok(())) = (&side.target, &outcome) {
        feed::publish(|| Happening::Saved {
            path: target.state.clone(),
        });
    }
    if let LiveTarget::Fork(target) = &side.target
        && (outcome.is_err() || reply.is_none())
    {
        // It is the other's to take away, if it could.
        target.socket.remove();
    }
    let outcome = outcome.map_err(|error| OrderError::new(SaveFailure::Save(error)));
    match reply {
        Some(reply) => {
            let _ = reply.send(outcome);
        }
        None => {
            if let Err(error) = outcome {
                crate::report::warn(&error);
            }
        }
    }
}
