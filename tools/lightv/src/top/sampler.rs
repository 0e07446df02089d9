//! Looks at the microVMs again and again, on a thread of its own: one that does not answer holds up nobody's keys.
//!
//! Processor time is read of all of them each time. What costs more (memory, which the kernel counts page by page, and the
//! monitor's own counters) is read of a few each time, of the one whose turn is longest ago first: of ten microVMs all of
//! it is new each second, of a hundred each ten.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lightv_api::contract::instance::InstanceState;
use lightv_api::runtime::VmRecord;

use super::{News, Post};
use crate::stats::{Look, Moved, Taken};
use crate::vms::{self, State, VmError};

/// How many are asked for all that they take and have moved, each time.
const ASKED_AT_ONCE: usize = 10;
/// One that does not answer is not asked again for so long: it would hold up what is shown of others.
const SILENCE: Duration = Duration::from_secs(10);
/// Processor time is a difference: the second look comes soon after the first.
const SOON: Duration = Duration::from_millis(300);

/// What was found: all that run, or why that is not known.
pub(super) type Sample = Result<Found, VmError>;

/// All that run.
#[derive(Debug, Clone, Default)]
pub(crate) struct Found {
    pub(crate) rows: Vec<Row>,
    /// Seconds since 1970.
    pub(crate) now: u64,
}

/// A microVM.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) vm: VmRecord,
    pub(crate) state: State,
    /// Since the last look, in percent of one core; `None` at the first.
    pub(crate) cpu_percent: Option<f64>,
    pub(crate) taken: Option<Taken>,
    /// Between the last two times that it was asked.
    pub(crate) rates: Option<Rates>,
}

/// What is moved a second.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Rates {
    /// Bytes from disks.
    pub(crate) read: f64,
    /// Bytes to disks.
    pub(crate) written: f64,
    /// Bytes from networks.
    pub(crate) received: f64,
    /// Bytes to networks.
    pub(crate) sent: f64,
    pub(crate) exits: f64,
}

impl Rates {
    /// Of what was moved in `seconds`.
    #[expect(clippy::cast_precision_loss, reason = "2^52 bytes take days")]
    fn between(before: &Moved, now: &Moved, seconds: f64) -> Self {
        let rate = |of: fn(&Moved) -> u64| {
            of(now).saturating_sub(of(before)) as f64 / seconds.max(f64::EPSILON)
        };
        Self {
            read: rate(|moved| moved.disk_read_bytes),
            written: rate(|moved| moved.disk_written_bytes),
            received: rate(|moved| moved.net_received_bytes),
            sent: rate(|moved| moved.net_sent_bytes),
            exits: rate(|moved| moved.exits),
        }
    }

    /// Bytes in all.
    pub(crate) fn bytes(&self) -> f64 {
        self.read + self.written + self.received + self.sent
    }
}

/// The thread.
#[derive(Debug)]
pub(super) struct Sampler {
    focus: Arc<AtomicU32>,
}

impl Sampler {
    /// Starts it: it looks every `interval`, and ends when nobody takes its `post` any more.
    pub(super) fn start(interval: Duration, post: Post) -> Self {
        let focus = Arc::new(AtomicU32::new(0));
        let watched = Arc::clone(&focus);
        let body = move || {
            let mut known = Known::default();
            let mut pause = SOON.min(interval);
            loop {
                let sample = known.look(watched.load(Ordering::Relaxed));
                if !post.send(News::Sample(sample)) {
                    return;
                }
                thread::sleep(pause);
                pause = interval;
            }
        };
        // Without a thread nothing is found, which is seen.
        let _ = thread::Builder::new().name("look".into()).spawn(body);
        Self { focus }
    }

    /// Process `pid` is looked at closely each time.
    pub(super) fn set_focus(&self, pid: Option<u32>) {
        self.focus.store(pid.unwrap_or(0), Ordering::Relaxed);
    }
}

/// A process, told from others that had its number.
type Key = (u32, u64);

/// What is known from earlier looks.
#[derive(Debug, Default)]
struct Known(HashMap<Key, Vm>);

#[derive(Debug)]
struct Vm {
    look: Look,
    cpu_percent: Option<f64>,
    state: State,
    asked_at: Option<Instant>,
    taken: Option<Taken>,
    rates: Option<Rates>,
}

impl Known {
    fn look(&mut self, focus: u32) -> Sample {
        let mut before = std::mem::take(&mut self.0);
        let known: Vec<VmRecord> = before.values().map(|vm| vm.look.vm.clone()).collect();
        let looks = vms::list_again(&known)?.into_iter().filter_map(Look::at);
        for look in looks {
            let key = (look.vm.pid, look.vm.start_ticks);
            let vm = match before.remove(&key) {
                Some(vm) => vm.again(look),
                None => Vm::new(look),
            };
            self.0.insert(key, vm);
        }
        let mut turn: Vec<&mut Vm> = self.0.values_mut().filter(|vm| vm.may_be_asked()).collect();
        turn.sort_by_key(|vm| (vm.look.vm.pid != focus, vm.asked_at));
        turn.into_iter().take(ASKED_AT_ONCE).for_each(Vm::ask);
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Ok(Found {
            rows: self.0.values().map(Vm::row).collect(),
            now: now.map_or(0, |time| time.as_secs()),
        })
    }
}

impl Vm {
    fn new(look: Look) -> Self {
        Self {
            look,
            cpu_percent: None,
            state: State::Known(InstanceState::Running),
            asked_at: None,
            taken: None,
            rates: None,
        }
    }

    fn again(self, look: Look) -> Self {
        Self {
            cpu_percent: Some(look.cpu_percent_since(&self.look)),
            look,
            ..self
        }
    }

    fn may_be_asked(&self) -> bool {
        self.state != State::Silent || self.asked_at.is_none_or(|at| at.elapsed() >= SILENCE)
    }

    fn ask(&mut self) {
        let moved_before = self.taken.and_then(|taken| taken.moved).zip(self.asked_at);
        let asker = vms::asker(&self.look.vm);
        self.state = vms::state_by(asker.as_ref());
        // Who does not say what it does is not asked for more.
        let is_silent = self.state == State::Silent;
        self.taken = if is_silent {
            self.taken.map(|taken| Taken {
                moved: None,
                ..taken
            })
        } else {
            Taken::of(self.look.vm.pid, asker.as_ref())
        };
        let now = Instant::now();
        self.asked_at = Some(now);
        let moved = self.taken.and_then(|taken| taken.moved);
        self.rates = moved
            .zip(moved_before)
            .map(|(moved, (before, at))| Rates::between(&before, &moved, (now - at).as_secs_f64()));
    }

    fn row(&self) -> Row {
        Row {
            vm: self.look.vm.clone(),
            state: self.state,
            cpu_percent: self.cpu_percent,
            taken: self.taken,
            rates: self.rates,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_differences_by_time_and_never_negative() {
        let moved = |disk_read_bytes, exits| Moved {
            disk_read_bytes,
            exits,
            ..Moved::default()
        };
        let rates = Rates::between(&moved(100, 50), &moved(300, 40), 2.0);
        assert_eq!((rates.read, rates.exits), (100.0, 0.0));
        assert_eq!(rates.bytes(), 100.0);
    }
}
