//! The memory balloon (virtio 1.2 §5.5): the guest gives memory back to the host.
//!
//! By four ways pages come: into the balloon (the guest does not use them until they come out), as hints and as reports (they
//! are free just now). All go back to the host the same way, by [`Reclaim`], before the driver has its buffer back. What a
//! page that was given back reads as is decided there (docs/adr/0015-memory-given-back.md); a driver may count on nothing.

mod config;
mod hinting;
mod pages;
mod reclaim;
pub mod state;
mod stats;
mod timer;

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use virtio_queue::Queue;

pub use self::config::{QueueRole, feature, queue_roles};
pub use self::reclaim::{MemoryRange, PAGE_BYTES, Reclaim};
pub use self::state::BalloonStateV1;
pub use self::stats::Report;

use self::config::{DRIVER_FIELDS, field};
use self::hinting::{Hinting, command};
use self::pages::{Added, PageList};
use self::state::HintingStateV1;
use self::timer::StatsTimer;
use crate::counters::{BalloonCounters, Counters};
use crate::fault::{ActivateError, HostFault, HostOperation, RestoreDeviceError};
use crate::interrupt::Interrupt;
use crate::limits::{
    BALLOON_BYTES_PER_TURN, BALLOON_CHAINS_PER_TURN, BALLOON_QUEUE_SIZE, BALLOON_RANGES_PER_TURN,
};
use crate::state::DeviceState;
use crate::virtio::chain::{Chain, read_at, total_bytes};
use crate::virtio::device::{Activation, DeviceKind, Progress, VirtioDevice};
use crate::virtio::feature as ring_feature;
use crate::virtio::live_config::LiveConfig;
use crate::virtio::ring::{Popped, Ring};

/// Pages of the balloon in a MiB.
pub const PAGES_PER_MIB: u32 = 256;

/// Bytes of a command of hinting.
const COMMAND_BYTES: usize = 4;

/// A balloon to be made.
#[derive(Debug, Clone)]
pub struct BalloonOptions {
    /// Its id.
    pub id: String,
    /// Pages that the guest is to give back; at most `ram_pages`.
    pub target_pages: u32,
    /// Pages of guest RAM.
    pub ram_pages: u32,
    /// Whether the guest may take memory back when it has none left.
    pub deflate_on_oom: bool,
    /// How often the guest is asked for statistics, in s; 0: never.
    pub polling_interval_s: u16,
    /// Whether the guest can be asked which pages are free.
    pub has_hinting: bool,
    /// Whether the guest tells which pages have become free.
    pub has_reporting: bool,
    /// Where memory goes.
    pub reclaim: Arc<dyn Reclaim>,
}

impl BalloonOptions {
    const fn features(&self) -> u64 {
        let mut features = ring_feature::COMMON;
        if self.deflate_on_oom {
            features |= feature::DEFLATE_ON_OOM;
        }
        if self.polling_interval_s != 0 {
            features |= feature::STATS_VQ;
        }
        if self.has_hinting {
            features |= feature::FREE_PAGE_HINT;
        }
        if self.has_reporting {
            features |= feature::REPORTING;
        }
        features
    }
}

/// Why the balloon does not do what it is asked to. The words are Firecracker's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BalloonError {
    /// No driver has started it.
    #[error("Device not activated yet.")]
    NotActive,
    /// It was made without hinting.
    #[error("Attempting to use hinting when not enabled")]
    NoHinting,
    /// It was made without statistics.
    #[error("Received stats query when stats are disabled.")]
    NoStatistics,
    /// Statistics would be turned on or off.
    #[error("Statistics cannot be enabled/disabled after activation.")]
    StatisticsSwitch,
    /// More than the guest has.
    #[error("Amount of pages requested is too large: {pages} pages; the machine has {ram_pages}.")]
    TooLarge {
        /// What was asked for.
        pages: u32,
        /// Pages of RAM.
        ram_pages: u32,
    },
    /// The timer of statistics could not be set.
    #[error("Cannot set the timer of statistics")]
    Timer,
}

/// What is known of the balloon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BalloonFacts {
    /// Pages that are wanted.
    pub target_pages: u32,
    /// Pages that there are, as the driver tells: at most those of RAM.
    pub actual_pages: u32,
    /// The last report.
    pub report: Report,
}

/// A balloon.
#[derive(Debug)]
pub struct Balloon {
    options: BalloonOptions,
    queue_sizes: Vec<u16>,
    config: Arc<LiveConfig>,
    counters: Arc<Counters>,
    hinting: Hinting,
    report: Report,
    /// There is one if there are statistics.
    timer: Option<StatsTimer>,
    active: Option<Active>,
    /// A failure of the host that is told when a queue is empty.
    failure: Option<HostFault>,
}

/// What a device has while it works.
#[derive(Debug)]
struct Active {
    interrupt: Interrupt,
    /// In index order, with what each is for. Queues beyond them have no use: their features were not accepted.
    rings: Vec<Ring>,
    roles: Vec<QueueRole>,
    /// The driver's last report: it goes back when the next one is due (virtio 1.2 §5.5.6.3).
    report_chain: Option<Chain>,
}

impl Active {
    fn index_of(&self, role: QueueRole) -> Option<usize> {
        self.roles.iter().position(|known| *known == role)
    }

    /// Asks for the next report by giving the last one back.
    fn ask_for_report(&mut self) {
        let index = self.index_of(QueueRole::Stats);
        let Some(ring) = index.and_then(|index| self.rings.get_mut(index)) else {
            return;
        };
        if let Some(chain) = self.report_chain.take() {
            ring.complete(chain, 0);
            ring.notify();
        }
    }
}

/// What has come of the chains of a turn. They go back when all their pages have been given to the host.
#[derive(Debug, Default)]
struct Turn {
    chains: Vec<Chain>,
    pages: PageList,
    added_bytes: u64,
    /// The driver is through with a run of hinting.
    is_run_over: bool,
}

impl Balloon {
    /// A balloon, idle, in which nothing is.
    ///
    /// # Errors
    /// The kernel's, when there are no descriptors left for a timer.
    pub fn new(options: BalloonOptions) -> io::Result<Self> {
        let timer = match options.polling_interval_s {
            0 => None,
            _ => Some(StatsTimer::new()?),
        };
        let fields = [options.target_pages, 0, command::STOP];
        Ok(Self {
            queue_sizes: queue_roles(options.features())
                .map(|_| BALLOON_QUEUE_SIZE)
                .collect(),
            config: Arc::new(LiveConfig::new(&fields, DRIVER_FIELDS)),
            counters: Arc::default(),
            hinting: Hinting::default(),
            report: Report::default(),
            timer,
            active: None,
            failure: None,
            options,
        })
    }

    /// This new balloon as it was saved.
    ///
    /// # Errors
    /// [`RestoreDeviceError::Balloon`]: nothing of a saved state is trusted.
    pub fn with_state(self, state: &BalloonStateV1) -> Result<Self, RestoreDeviceError> {
        let impossible = |what| RestoreDeviceError::Balloon {
            device: self.options.id.clone(),
            what,
        };
        let HintingStateV1 {
            host_cmd, last_run, ..
        } = state.hinting;
        if host_cmd >= command::FIRST_RUN && host_cmd != last_run {
            return Err(impossible("hinting"));
        }
        let report = Report::restore(&state.stats).ok_or_else(|| impossible("statistics"))?;
        let fields = [self.options.target_pages, state.actual_pages, host_cmd];
        Ok(Self {
            config: Arc::new(LiveConfig::new(&fields, DRIVER_FIELDS)),
            hinting: Hinting(state.hinting),
            report,
            ..self
        })
    }

    /// Whether a driver has started it.
    #[must_use]
    pub const fn is_active(&self) -> bool {
        self.active.is_some()
    }

    /// Wants `pages` in the balloon. The driver is to be told by a configuration interrupt.
    ///
    /// # Errors
    /// [`BalloonError::TooLarge`].
    pub fn set_target(&mut self, pages: u32) -> Result<(), BalloonError> {
        let ram_pages = self.options.ram_pages;
        if pages > ram_pages {
            return Err(BalloonError::TooLarge { pages, ram_pages });
        }
        self.options.target_pages = pages;
        self.config.set_word(field::NUM_PAGES, pages);
        Ok(())
    }

    /// Asks for statistics every `interval_s` seconds, and now.
    ///
    /// # Errors
    /// [`BalloonError::StatisticsSwitch`], [`BalloonError::Timer`].
    pub fn set_polling_interval(&mut self, interval_s: u16) -> Result<(), BalloonError> {
        let before = self.options.polling_interval_s;
        if before == interval_s {
            return Ok(());
        }
        let timer = self.timer.as_ref().filter(|_| interval_s != 0);
        let timer = timer.ok_or(BalloonError::StatisticsSwitch)?;
        if let Some(active) = &mut self.active {
            timer.arm(interval_s).map_err(|_| BalloonError::Timer)?;
            active.ask_for_report();
        }
        self.options.polling_interval_s = interval_s;
        Ok(())
    }

    /// What is known of memory.
    ///
    /// # Errors
    /// [`BalloonError::NoStatistics`].
    pub fn facts(&self) -> Result<BalloonFacts, BalloonError> {
        if self.timer.is_none() {
            return Err(BalloonError::NoStatistics);
        }
        Ok(BalloonFacts {
            target_pages: self.options.target_pages,
            actual_pages: self.config.word(field::ACTUAL).min(self.options.ram_pages),
            report: self.report,
        })
    }

    /// Begins a run of hinting. The driver is to be told by a configuration interrupt.
    ///
    /// # Errors
    /// [`BalloonError::NoHinting`].
    pub fn start_hinting(&mut self, acknowledge_on_stop: bool) -> Result<(), BalloonError> {
        self.hinting_state()?;
        let told = self.hinting.start(acknowledge_on_stop);
        self.config.set_word(field::HINT_COMMAND, told);
        Ok(())
    }

    /// Ends a run of hinting: the driver may use its free pages again. It is to be told by a configuration interrupt.
    ///
    /// # Errors
    /// [`BalloonError::NoHinting`].
    pub fn stop_hinting(&mut self) -> Result<(), BalloonError> {
        self.hinting_state()?;
        self.config
            .set_word(field::HINT_COMMAND, self.hinting.end());
        Ok(())
    }

    /// Where hinting stands.
    ///
    /// # Errors
    /// [`BalloonError::NoHinting`].
    pub const fn hinting_state(&self) -> Result<HintingStateV1, BalloonError> {
        if self.options.has_hinting {
            Ok(self.hinting.0)
        } else {
            Err(BalloonError::NoHinting)
        }
    }

    /// The driver was reset: nothing of what it told counts any more. The number of the last run stays, so that the next
    /// one is another.
    pub fn forget_driver(&mut self) {
        self.report = Report::default();
        self.hinting = Hinting(HintingStateV1 {
            last_run: self.hinting.0.last_run,
            ..HintingStateV1::default()
        });
        self.config.set_word(field::ACTUAL, 0);
        self.config.set_word(field::HINT_COMMAND, command::STOP);
    }

    fn serve_turn(&mut self, index: usize) -> Result<Progress, HostFault> {
        let Some(active) = &mut self.active else {
            return Ok(Progress::Done);
        };
        let role = active.roles.get(index).copied();
        let (Some(role), Some(ring)) = (role, active.rings.get_mut(index)) else {
            return Ok(Progress::Done);
        };
        if role == QueueRole::Stats {
            return Ok(self.serve_stats(index));
        }
        let mut turn = Turn::default();
        let mut progress = Progress::More;
        ring.pause_kicks();
        for _ in 0..BALLOON_CHAINS_PER_TURN {
            if turn.added_bytes >= BALLOON_BYTES_PER_TURN
                || turn.pages.len() >= BALLOON_RANGES_PER_TURN
            {
                break;
            }
            match ring.pop() {
                Popped::Chain(chain) => {
                    turn.take(role, chain, ring, (&mut self.hinting, &self.counters));
                }
                Popped::Malformed => {}
                Popped::Empty => {
                    if !ring.resume_kicks() {
                        progress = Progress::Done;
                        break;
                    }
                }
            }
        }
        let released = self.options.reclaim.release(&turn.pages.take_ranges());
        ring.complete_together(turn.chains.into_iter().map(|chain| (chain, 0)));
        ring.notify();
        if turn.is_run_over {
            self.config
                .set_word(field::HINT_COMMAND, self.hinting.end());
            active.interrupt.signal_config();
        }
        self.note_failure(role, released);
        match (progress, self.failure.take()) {
            (Progress::Done, Some(failure)) => Err(failure),
            (progress, failure) => {
                self.failure = failure;
                Ok(progress)
            }
        }
    }

    /// A failure is told when all that waited has been served: what fails once fails for each of many requests.
    fn note_failure(&mut self, role: QueueRole, released: io::Result<()>) {
        let Err(cause) = released else {
            return;
        };
        self.counters.host_fault(&cause);
        match role {
            QueueRole::Hinting => Counters::add_one(&self.counters.balloon().hint_fails),
            QueueRole::Reporting => Counters::add_one(&self.counters.balloon().report_fails),
            QueueRole::Inflate | QueueRole::Deflate | QueueRole::Stats => {}
        }
        self.failure.get_or_insert(HostFault {
            device: self.options.id.clone(),
            operation: HostOperation::ReleaseMemory,
            cause,
        });
    }

    /// Keeps the newest report, and its buffer until the next one is due.
    fn serve_stats(&mut self, index: usize) -> Progress {
        let Some(active) = &mut self.active else {
            return Progress::Done;
        };
        let Some(ring) = active.rings.get_mut(index) else {
            return Progress::Done;
        };
        let counters = self.counters.balloon();
        ring.pause_kicks();
        for _ in 0..BALLOON_CHAINS_PER_TURN {
            match ring.pop() {
                Popped::Chain(chain) => {
                    Counters::add_one(&counters.stats_updates);
                    let Ok((report, unknown)) = Report::read(ring.mem(), chain.readable()) else {
                        Counters::add_one(&counters.stats_update_fails);
                        ring.refuse(chain);
                        continue;
                    };
                    Counters::add(&counters.stats_update_fails, unknown);
                    self.report = report;
                    // A driver has one buffer; of two the older goes back.
                    if let Some(older) = active.report_chain.replace(chain) {
                        ring.complete(older, 0);
                    }
                }
                Popped::Malformed => {}
                Popped::Empty => {
                    if !ring.resume_kicks() {
                        ring.notify();
                        return Progress::Done;
                    }
                }
            }
        }
        ring.notify();
        Progress::More
    }
}

impl Turn {
    /// Reads what `chain` says, and keeps it until its pages are with the host.
    fn take(
        &mut self,
        role: QueueRole,
        chain: Chain,
        ring: &Ring,
        (hinting, counters): (&mut Hinting, &Counters),
    ) {
        let balloon = counters.balloon();
        match role {
            QueueRole::Inflate => {
                Counters::add_one(&balloon.inflates);
                match self.pages.add_pfns(ring.mem(), chain.readable()) {
                    Ok(added) => self.note(added, counters),
                    Err(_) => counters.guest_fault(),
                }
            }
            // The pages are there again when they are touched.
            QueueRole::Deflate => Counters::add_one(&balloon.deflates),
            QueueRole::Reporting => {
                let added = self.pages.add_buffers(ring.mem(), chain.writable());
                BalloonCounters::add_free(
                    (
                        &balloon.reports,
                        &balloon.report_bytes,
                        &balloon.report_fails,
                    ),
                    (chain.writable().len() as u64, added.bytes, added.refused),
                );
                self.note(added, counters);
            }
            QueueRole::Hinting => self.take_hint(&chain, ring, (hinting, counters)),
            QueueRole::Stats => {}
        }
        self.chains.push(chain);
    }

    /// A chain of hinting has a command, pages, or both in this order.
    fn take_hint(
        &mut self,
        chain: &Chain,
        ring: &Ring,
        (hinting, counters): (&mut Hinting, &Counters),
    ) {
        if !chain.readable().is_empty() {
            let mut told = [0; COMMAND_BYTES];
            let is_whole = total_bytes(chain.readable()) == COMMAND_BYTES as u64;
            if !is_whole || read_at(ring.mem(), chain.readable(), 0, &mut told).is_err() {
                counters.guest_fault();
                return;
            }
            if hinting.note(u32::from_le_bytes(told)) {
                self.is_run_over = true;
            }
        }
        // Of a run that is over the driver may use the pages already.
        if !hinting.is_run_told() || self.is_run_over {
            return;
        }
        let added = self.pages.add_buffers(ring.mem(), chain.writable());
        let balloon = counters.balloon();
        BalloonCounters::add_free(
            (&balloon.hints, &balloon.hint_bytes, &balloon.hint_fails),
            (chain.writable().len() as u64, added.bytes, added.refused),
        );
        self.note(added, counters);
    }

    fn note(&mut self, added: Added, counters: &Counters) {
        self.added_bytes = self.added_bytes.saturating_add(added.bytes);
        if added.refused > 0 {
            counters.guest_fault();
        }
    }
}

impl VirtioDevice for Balloon {
    fn id(&self) -> &str {
        &self.options.id
    }

    fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    fn kind(&self) -> DeviceKind {
        DeviceKind::Balloon
    }

    fn features(&self) -> u64 {
        self.options.features()
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    /// All of it changes: [`live_config`](Self::live_config).
    fn config(&self) -> &[u8] {
        &[]
    }

    fn live_config(&self) -> Option<&Arc<LiveConfig>> {
        Some(&self.config)
    }

    fn activate(&mut self, env: Activation) -> Result<(), ActivateError> {
        ActivateError::unless_idle(&self.options.id, self.active.is_some())?;
        let interrupt = env.interrupt.clone();
        let roles = queue_roles(env.acked_features).collect();
        let rings = env.into_ring_list(&self.options.id, &self.counters, self.queue_sizes.len())?;
        if let Some(timer) = &self.timer {
            let armed = timer.arm(self.options.polling_interval_s);
            armed.map_err(|cause| {
                ActivateError::Host(HostFault {
                    device: self.options.id.clone(),
                    operation: HostOperation::SetTimer,
                    cause,
                })
            })?;
        }
        self.active = Some(Active {
            interrupt,
            rings,
            roles,
            report_chain: None,
        });
        Ok(())
    }

    /// Requests are carried out whole within a call: none waits for the host.
    fn finish(&mut self, _gives_up: &dyn Fn() -> bool) {}

    fn deactivate(&mut self) -> Vec<Queue> {
        let Some(mut active) = self.active.take() else {
            return Vec::new();
        };
        let stats = active.index_of(QueueRole::Stats);
        if let Some(ring) = stats.and_then(|index| active.rings.get_mut(index)) {
            // The driver waits for it: the next start takes it up again.
            ring.put_back(active.report_chain.take().into_iter());
        }
        active.rings.into_iter().map(Ring::into_queue).collect()
    }

    fn process_queue(&mut self, index: usize) -> Result<Progress, HostFault> {
        self.serve_turn(index)
    }

    fn backend_fd(&self) -> Option<BorrowedFd<'_>> {
        self.timer.as_ref().map(StatsTimer::fd)
    }

    /// Without a report of the driver there is none to ask for the next one by.
    fn wants_backend(&self) -> bool {
        let active = self.active.as_ref();
        active.is_some_and(|active| active.report_chain.is_some())
    }

    fn process_backend(&mut self) -> Result<(), HostFault> {
        let has_fired = self.timer.as_ref().is_some_and(StatsTimer::has_fired);
        if let Some(active) = self.active.as_mut().filter(|_| has_fired) {
            active.ask_for_report();
        }
        Ok(())
    }

    fn save(&self) -> DeviceState {
        DeviceState::Balloon(BalloonStateV1 {
            actual_pages: self.config.word(field::ACTUAL),
            hinting: self.hinting.0,
            stats: self.report.save(),
        })
    }
}

#[cfg(test)]
mod tests;
