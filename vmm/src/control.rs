//! The one event loop: it owns the machine, does the devices' work, and decides what happens next.
//!
//! ```text
//!   Running --READY or SIGUSR1 with a save wanted--> Parking --all parked--> Capturing --all captured--> (save)
//!      ^                                                |                                                  |
//!      |                                          time-out: save fails                                     |
//!      +------------------------------------------------+-----------------------<-- continue --------------+--> end
//! ```
//!
//! The REST API adds: Running --Pause--> Parking --all parked--> Paused --Save--> Capturing --> Paused --Resume--> Running,
//! and Running --live Save--> Parking --all parked--> Capturing --all captured--> (fork) --> Running.
//!
//! The loop never waits for a vCPU: a vCPU that resets a device waits for the loop, also while the loop is parking
//! the vCPUs.

mod capture;
mod linger;
mod live;
mod orders;
mod phase;

use std::collections::VecDeque;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lightv_api::event::Happening;

use self::linger::Linger;
use self::live::Side;
use self::phase::{Phase, Purpose};

use crate::arch::VcpuId;
use crate::buttons;
use crate::event::{DeviceCall, Event, StopReason};
use crate::feed;
use crate::foreground::Leash;
use crate::limits;
use crate::machine::{Machine, Running};
use crate::memory_watch;
use crate::metrics;
use crate::orders::{Order, OrderReply};
use crate::poller::{PollError, Poller, Token};
use crate::runtime_dir;
use crate::sandbox::{ConfineError, violation};
use crate::save::SaveError;
use crate::seat::{BeginError, PoolLink, PoolSays};
use crate::snapshot::vcpu_state::VcpuStateError;
use crate::sys::process;
use crate::sys::signal::{self, SignalFd};
use crate::terminal;
use crate::touched;
use crate::vcpu::VcpuHandle;

/// How often a vCPU that does not come out of the guest is signalled again.
const KICK_INTERVAL: Duration = Duration::from_millis(limits::KICK_INTERVAL_MS);
/// How long the loop is idle before the runtime directory says of the machine.
const LISTED_AFTER: Duration = Duration::from_millis(limits::SETTLED_AFTER_MS);

/// When a machine is saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SaveMoment {
    /// At the guest's `READY` doorbell.
    Ready,
    /// When SIGUSR1 comes.
    Signal,
}

/// A save that was asked for on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavePlan {
    /// Where the image goes.
    pub path: PathBuf,
    /// When.
    pub moment: SaveMoment,
    /// Whether the guest goes on afterwards; else the process ends with status 0.
    pub go_on: bool,
}

/// How a machine ended.
#[derive(Debug)]
pub enum Ending {
    /// The guest ended, or could not go on.
    Stopped(StopReason),
    /// The guest ended, and some of its output could not be written.
    OutputLost(StopReason),
    /// The machine was saved and is done.
    Saved,
    /// A signal ended it.
    Signal(u8),
    /// A thread has made a system call that its filter does not allow.
    Forbidden,
    /// Memory that another process served will not come.
    MemoryLost,
    /// It was to be saved and could not be.
    SaveFailed(SaveFailure),
}

impl Ending {
    /// Ended by signal number `signal`.
    #[must_use]
    pub fn by_signal(signal: libc::c_int) -> Self {
        Self::Signal(u8::try_from(signal).unwrap_or(0))
    }

    /// A thread has said that the process cannot go on. By a signal, which means nothing from somebody else.
    #[must_use]
    pub fn by_own_thread() -> Option<Self> {
        if violation::count() > 0 {
            return Some(Self::Forbidden);
        }
        memory_watch::is_lost().then_some(Self::MemoryLost)
    }
}

/// Why a wanted save did not happen.
#[derive(Debug, thiserror::Error)]
pub enum SaveFailure {
    /// Writing failed.
    #[error("The machine could not be saved")]
    Save(#[source] SaveError),
    /// A vCPU could not be read.
    #[error("Cannot read the state of vCPU {id}")]
    Vcpu {
        /// Which one.
        id: VcpuId,
        /// Why.
        #[source]
        cause: VcpuStateError,
    },
    /// A vCPU did not leave the guest.
    #[error(
        "The vCPUs did not stop within {} ms; the host may be short of CPUs: try again",
        limits::PAUSE_TIMEOUT_MS
    )]
    ParkTimeout,
    /// The guest ended first.
    #[error("The guest ended before it was saved: {0}")]
    EndedBefore(String),
    /// KVM would not say which registers to save.
    #[error("Cannot list the registers to save")]
    MsrList(#[source] crate::arch::host::msr::MsrError),
}

impl SaveFailure {
    /// The signal that interrupted the save, if one did.
    #[must_use]
    pub const fn interrupted_by(&self) -> Option<u8> {
        match self {
            Self::Save(cause) => cause.interrupted_by(),
            _ => None,
        }
    }
}

/// Why the loop could not run.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The kernel's event interface failed.
    #[error("The event loop failed")]
    Poll(#[source] PollError),
    /// It could not be confined.
    #[error(transparent)]
    Confine(ConfineError),
    /// A machine of a pool could not begin its work.
    #[error(transparent)]
    Begin(BeginError),
}

/// What the loop takes over from the time before there was a machine.
#[derive(Debug)]
pub struct Inherited {
    /// Where signals are read.
    pub signals: SignalFd,
    /// SIGUSR1 has come already.
    pub save_is_wanted: bool,
    /// Of a run with a terminal: the terminal, and who waits for us.
    pub leash: Option<Leash>,
    /// Of a machine of a pool: the pool.
    pub pool: Option<PoolLink>,
}

/// Runs a machine until it ends. Its devices start here, while its vCPUs may be running already: what they ask of the
/// loop waits for it.
///
/// # Errors
/// [`ControlError`].
pub fn run(
    running: Running,
    plan: Option<SavePlan>,
    inherited: Inherited,
) -> Result<Ending, ControlError> {
    let Running {
        mut machine,
        vcpus,
        is_paused,
    } = running;
    let Inherited {
        signals,
        save_is_wanted,
        leash,
        pool,
    } = inherited;
    let mut poller =
        Poller::new(machine.receiver.wake_fd(), &signals).map_err(ControlError::Poll)?;
    machine
        .devices
        .watch_doorbells(&mut poller)
        .map_err(ControlError::Poll)?;
    if !is_paused {
        machine.devices.resume();
    }
    if let Some(pool) = &pool {
        let watched = poller.watch(pool.as_fd().as_raw_fd(), Token::Pool);
        watched.map_err(ControlError::Poll)?;
    }
    if let Some(leash) = &leash {
        // Without it keys come by the line, and nothing else is wrong.
        let _ = leash.terminal().make_raw();
    }
    let linger = Linger::new(machine.config.tuning());
    let mut control = Control {
        machine,
        vcpus,
        parked: 0,
        plan,
        phase: Phase::Running,
        poller,
        signals,
        has_start_pages: true,
        is_listed: false,
        began: Instant::now(),
        busy_at: Instant::now(),
        leash,
        pool,
        told_to_end: None,
        waiting: VecDeque::new(),
        sides: Vec::new(),
        linger,
    };
    if is_paused {
        control.park_all(Purpose::Pause(None));
    }
    control.take_terminal_size();
    if save_is_wanted {
        control.save_at_signal();
    }
    let stamps = Arc::clone(&control.machine.stamps);
    let ending = control.run_until_end();
    stamps.end();
    ending
}

struct Control {
    machine: Machine,
    vcpus: Vec<VcpuHandle>,
    /// vCPUs that have said that they are parked and have not been told to run: a bit each.
    parked: u32,
    plan: Option<SavePlan>,
    phase: Phase,
    poller: Poller,
    signals: SignalFd,
    /// The pages that only the start needed are still mapped.
    has_start_pages: bool,
    /// The runtime directory says of the machine.
    is_listed: bool,
    began: Instant,
    /// When there was something to do last, until all is done that waits for a time of nothing.
    busy_at: Instant,
    /// Of a run with a terminal, until it is detached.
    leash: Option<Leash>,
    /// Of a machine of a pool, until the pool is gone.
    pool: Option<PoolLink>,
    /// When the agent was told SIGTERM.
    told_to_end: Option<Instant>,
    /// Orders that came while vCPUs were on their way out of the guest.
    waiting: VecDeque<(Order, OrderReply)>,
    /// Processes beside this one, for live snapshots and forks.
    sides: Vec<Side>,
    /// How long is looked before the loop waits.
    linger: Linger,
}

impl Drop for Control {
    /// However the machine ends, and before anything is said of it.
    fn drop(&mut self) {
        if let Some(leash) = &self.leash {
            leash.terminal().restore();
        }
        self.machine.devices.settle();
        self.leave_sides();
    }
}

impl Control {
    fn run_until_end(mut self) -> Result<Ending, ControlError> {
        loop {
            let tokens = self.next_tokens().map_err(ControlError::Poll)?;
            self.settle_sides();
            metrics::flush_if_due();
            self.machine.devices.wake_due();
            self.settle_if_due(tokens.is_empty());
            for token in tokens {
                self.settle_sides();
                if let Some(ending) = self.serve(token) {
                    return Ok(ending);
                }
            }
            if let Some(ending) = self.kick_again().or_else(|| self.end_overdue()) {
                return Ok(ending);
            }
            self.serve_waiting();
            self.detach_if_wanted();
            self.machine
                .devices
                .update_watch(&mut self.poller)
                .map_err(ControlError::Poll)?;
        }
    }

    /// After the first idle second, or, of a guest that is never idle, after ten: what was put off until now. Memory has a time of
    /// its own.
    fn settle_if_due(&mut self, is_idle: bool) {
        if !self.is_settling() {
            return;
        }
        if !is_idle {
            self.busy_at = Instant::now();
        }
        let anyway = Duration::from_millis(limits::SETTLED_ANYWAY_MS);
        let (idle, age) = (self.busy_at.elapsed(), self.began.elapsed());
        let is_due = |after: Duration| idle >= after || age >= anyway.max(after);
        if !self.is_listed && is_due(LISTED_AFTER) {
            self.is_listed = true;
            runtime_dir::register_announced();
        }
        if self.has_start_pages && is_due(self.machine.config.tuning().give_back_after) {
            self.has_start_pages = false;
            process::give_back_code();
            process::give_back_heap();
        }
    }

    const fn is_settling(&self) -> bool {
        self.has_start_pages || !self.is_listed
    }

    /// What is left of the time of nothing after which something is done. Rounded up, as in `time_to_end`.
    fn time_to_settle(&self) -> Option<Duration> {
        let memory = self.machine.config.tuning().give_back_after;
        let memory = self.has_start_pages.then_some(memory);
        let listed = (!self.is_listed).then_some(LISTED_AFTER);
        let first = memory.into_iter().chain(listed).min()?;
        let left = first.saturating_sub(self.busy_at.elapsed());
        Some(left + Duration::from_millis(1))
    }

    fn serve(&mut self, token: Token) -> Option<Ending> {
        match token {
            Token::Events => self.serve_events(),
            Token::Signals => self.serve_signals(),
            Token::Pool => self.serve_pool(),
            Token::Side => {
                self.serve_sides();
                None
            }
            Token::Queue { device, queue } => {
                self.machine.devices.process_queue(device, queue);
                self.note_first_output();
                None
            }
            Token::Backend { device } => {
                self.machine.devices.process_backend(device);
                None
            }
        }
    }

    /// The first byte that a guest gives out by the console ends its start, as one by the other ways does.
    fn note_first_output(&self) {
        let stamps = &self.machine.stamps;
        if stamps.awaits_output() && self.machine.devices.has_console_output() {
            stamps.first_output();
        }
    }

    fn serve_events(&mut self) -> Option<Ending> {
        self.machine.receiver.clear();
        for _ in 0..limits::EVENTS_PER_TURN {
            let event = self.machine.receiver.next()?;
            self.settle_sides();
            let ending = match event {
                Event::Device(device, call) => {
                    self.serve_device_call(device, call);
                    None
                }
                Event::Order(order, reply) => {
                    self.serve_order(order, reply);
                    None
                }
                Event::FirstOutput => {
                    let touched = touched::of(&self.machine);
                    self.machine.stamps.write_report(touched);
                    None
                }
                Event::Ready => {
                    self.park_all(Purpose::Plan);
                    None
                }
                Event::Parked(id) => self.note_parked(id),
                Event::Captured(id, state) => self.note_captured(id, state),
                Event::Stopped(_, reason) => {
                    if reason == StopReason::GuestPanic {
                        feed::publish(|| Happening::GuestPanic);
                    }
                    self.machine.devices.serve_last(&gives_up);
                    Some(self.note_stopped(reason))
                }
            };
            if ending.is_some() {
                return ending;
            }
        }
        // Signals and other devices have their turn, however busy the guest keeps us.
        self.machine.receiver.wake();
        None
    }

    fn serve_pool(&mut self) -> Option<Ending> {
        let pool = self.pool.take()?;
        match pool.look() {
            PoolSays::Nothing => self.pool = Some(pool),
            PoolSays::End => return Some(Ending::by_signal(libc::SIGHUP)),
            // It is watched, so this cannot fail.
            PoolSays::Gone => drop(self.poller.unwatch(pool.as_fd().as_raw_fd())),
        }
        None
    }

    fn serve_device_call(&mut self, device: usize, call: DeviceCall) {
        match call {
            DeviceCall::Activate {
                queues,
                acked_features,
                reply,
            } => {
                let taken = self
                    .machine
                    .devices
                    .activate(device, queues, acked_features);
                let _ = reply.send(taken);
            }
            DeviceCall::Reset { reply } => {
                self.machine.devices.reset(device);
                let _ = reply.send(true);
            }
        }
    }

    fn serve_signals(&mut self) -> Option<Ending> {
        while let Some(number) = self.signals.next() {
            let ending = match number {
                libc::SIGUSR1 => {
                    self.save_at_signal();
                    None
                }
                libc::SIGPWR => {
                    if let Err(error) = buttons::ask_to_end(&self.machine) {
                        crate::report::warn(&error);
                    }
                    None
                }
                libc::SIGWINCH => {
                    self.take_terminal_size();
                    None
                }
                // Detached, nobody waits for us.
                gone if gone == signal::parent_gone() => self
                    .leash
                    .is_some()
                    .then(|| Ending::by_signal(libc::SIGHUP)),
                libc::SIGTERM => self.serve_sigterm(),
                number if number == signal::cannot_go_on() => Ending::by_own_thread(),
                other => (!self.tell_agent(other)).then(|| Ending::by_signal(other)),
            };
            if ending.is_some() {
                return ending;
            }
        }
        None
    }

    /// The first is the agent's, if there is one, which then has [`limits::TERM_GRACE_MS`]; the second ends the machine.
    fn serve_sigterm(&mut self) -> Option<Ending> {
        let end = || Some(Ending::by_signal(libc::SIGTERM));
        if let Some(told) = self.told_to_end {
            let is_same = told.elapsed() < Duration::from_millis(limits::TERM_REPEAT_MS);
            return if is_same { None } else { end() };
        }
        if !self.tell_agent(libc::SIGTERM) {
            return end();
        }
        self.told_to_end = Some(Instant::now());
        None
    }

    /// The guest was told to end, and has not.
    fn end_overdue(&self) -> Option<Ending> {
        let grace = Duration::from_millis(limits::TERM_GRACE_MS);
        let told = self.told_to_end?;
        (told.elapsed() >= grace).then(|| Ending::by_signal(libc::SIGTERM))
    }

    /// Leaves a signal to the guest's agent. False when there is none that takes it now: none at all, one that does not
    /// read, or one that is being saved, and whose clones the signal is not for.
    fn tell_agent(&mut self, number: libc::c_int) -> bool {
        let is_to_be_saved = self
            .plan
            .as_ref()
            .is_some_and(|plan| plan.moment == SaveMoment::Ready);
        let is_running = matches!(self.phase, Phase::Running) && !is_to_be_saved;
        let console = self.machine.devices.console().filter(|_| is_running);
        console.is_some_and(|console| console.send_line(&format!("signal {number}\n")))
    }

    /// Tells the guest how large the terminal is, if the run has one.
    fn take_terminal_size(&mut self) {
        if self.leash.is_some()
            && let Some(console) = self.machine.devices.console()
        {
            console.set_size(terminal::size());
        }
    }

    /// Leaves the terminal to who waits for us, when the user has asked for that.
    fn detach_if_wanted(&mut self) {
        let console = self.machine.devices.console();
        let Some(console) = console.filter(|console| console.is_detach_wanted()) else {
            return;
        };
        console.detach();
        if let Some(leash) = self.leash.take() {
            leash.let_go();
        }
    }

    /// SIGUSR1 has come.
    fn save_at_signal(&mut self) {
        let plan = self.plan.as_ref();
        if plan.is_some_and(|plan| plan.moment == SaveMoment::Signal) {
            self.park_all(Purpose::Plan);
        }
    }

    fn note_stopped(&mut self, reason: StopReason) -> Ending {
        match &self.plan {
            Some(plan) if !plan.go_on => {
                Ending::SaveFailed(SaveFailure::EndedBefore(describe_stop(&reason)))
            }
            _ if self.machine.bus.output().is_lost() => Ending::OutputLost(reason),
            _ => Ending::Stopped(reason),
        }
    }

    fn timeout(&self) -> Option<Duration> {
        // Rounded up, as in `time_to_end`.
        let wake = self.machine.devices.wake_at().map(|time| {
            let left = time.checked_duration_since(Instant::now());
            left.map_or(Duration::ZERO, |left| left + Duration::from_millis(1))
        });
        let all = [self.own_timeout(), metrics::time_to_flush(), wake];
        all.into_iter().flatten().min()
    }

    fn own_timeout(&self) -> Option<Duration> {
        let next = match self.phase {
            Phase::Parking { .. } => Some(KICK_INTERVAL),
            _ => self.time_to_settle(),
        };
        next.into_iter().chain(self.time_to_end()).min()
    }

    /// What is left of the time that the guest was given to end. Rounded up: a wait is in whole milliseconds, and one that
    /// ends early would be followed by many of none.
    fn time_to_end(&self) -> Option<Duration> {
        let grace = Duration::from_millis(limits::TERM_GRACE_MS + 1);
        self.told_to_end
            .map(|told| grace.saturating_sub(told.elapsed()))
    }
}

/// A reader of the guest's output is waited for, but not when a signal is to end the process.
fn gives_up() -> bool {
    signal::waiting_end().is_some()
}

/// A stop in words, for messages.
#[must_use]
pub fn describe_stop(reason: &StopReason) -> String {
    match reason {
        StopReason::GuestExit(status) => format!("it exited with status {status}"),
        StopReason::GuestPanic => "it panicked".to_owned(),
        StopReason::Reset => "it shut down or asked for a reset".to_owned(),
        StopReason::PowerOff => "it powered off".to_owned(),
        StopReason::TripleFault { registers } => format!("triple fault: {registers}"),
        StopReason::KvmError { text } => text.clone(),
    }
}
