//! Looking for what comes next, before the loop waits for it.
//!
//! To be woken costs the loop, and the vCPU that wakes it, more than many disk requests take: 45 µs of the vCPU's time and 21 µs
//! until the loop runs where the host is a guest itself, a few where it is not, and an exit for the doorbell on each. So after a
//! wait that was short the loop looks at the disks' rings for a while, whose drivers need not ring meanwhile. What waits turn out to
//! be says how long: a guest that asks for something now and then is waited for.
//!
//! Only disks: the one who waits for an answer of a disk is the guest, on a CPU of its own. The one who waits at the other end of
//! a network may want this CPU.

use std::time::{Duration, Instant};

use super::Control;
use crate::affinity;
use crate::config::Tuning;
use crate::device_set::DeviceSet;
use crate::poller::{PollError, Poller, Token};

/// What is looked for at first.
const BEGIN: Duration = Duration::from_micros(25);
/// Between two questions for the time, and more: the CPU was taken from the loop.
const GAP: Duration = Duration::from_micros(50);
/// How long is not looked after that: somebody else wants the CPU.
const REST: Duration = Duration::from_millis(20);
/// Looks at a queue between two questions for the time, which take a few microseconds, and between two to the kernel, whose other
/// descriptors must have their turn.
const LOOKS: u32 = 32;
/// As so many of them counts one that has found something, for that is served then.
const LOOKS_OF_A_TURN: u32 = 8;

/// Who is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum For {
    /// A driver: nothing is under way.
    Driver,
    /// The host's disk, which works on something, or a driver that has more of it: whoever comes first.
    Host,
}

/// How long is looked.
#[derive(Debug, Default)]
pub(super) struct Linger {
    /// What is looked for at most, and what a short wait is.
    most: Duration,
    /// The loop is held to a CPU on which no vCPU is.
    has_own_cpu: bool,
    /// While a driver is waited for.
    driver: Duration,
    /// While the host is. A guest that has its answer asks for more at once, also where the host takes long for each.
    host: Duration,
    rests_until: Option<Instant>,
    /// Drivers have been told not to notify.
    is_looking: bool,
    /// Looks since the kernel was asked.
    looks: u32,
}

impl Linger {
    pub(super) fn new(tuning: &Tuning) -> Self {
        let is_shared = |cpu| tuning.vcpu_cpus.values().any(|other| *other == cpu);
        let shares = tuning.control_cpu.map(is_shared);
        Self {
            // A vCPU that is looked for must be able to run.
            most: match shares {
                Some(true) => Duration::ZERO,
                _ => Duration::from_micros(tuning.disk_poll_us.into()),
            },
            has_own_cpu: shares == Some(false),
            ..Self::default()
        }
    }

    const fn window_mut(&mut self, whom: For) -> &mut Duration {
        match whom {
            For::Driver => &mut self.driver,
            For::Host => &mut self.host,
        }
    }

    /// How long is to be looked at `now`, if at all. `due` tells when something else is, and is asked only then.
    fn window(
        &mut self,
        whom: For,
        now: Instant,
        due: impl FnOnce() -> Option<Instant>,
    ) -> Option<Duration> {
        if self.rests_until.is_some_and(|until| now < until) {
            return None;
        }
        self.rests_until = None;
        let window = *self.window_mut(whom);
        if window.is_zero() {
            return None;
        }
        let left = due().map_or(window, |due| due.saturating_duration_since(now).min(window));
        (!left.is_zero()).then_some(left)
    }

    /// The loop has had nothing to do for so long, until a disk, or something else, had.
    fn note(&mut self, whom: For, waited: Duration, is_disk: bool) {
        let (most, has_own_cpu) = (self.most, self.has_own_cpu);
        let begin = BEGIN.min(most);
        let window = self.window_mut(whom);
        *window = match (waited <= most, is_disk) {
            (false, _) => Duration::ZERO,
            (true, true) if window.is_zero() && !has_own_cpu && !affinity::has_several() => *window,
            (true, true) if waited > *window => (2 * *window).clamp(begin, most),
            (true, true) => *window,
            (true, false) if *window >= 2 * begin => *window / 2,
            (true, false) => Duration::ZERO,
        };
    }

    /// The CPU was taken away at `now`.
    fn rest(&mut self, now: Instant) {
        self.rests_until = Some(now + REST);
    }
}

/// Where is looked.
trait Around {
    /// Has drivers not notify; gives how many queues there are to look at.
    fn begin(&mut self) -> u32;
    /// What memory tells.
    fn look(&mut self) -> Vec<Token>;
    /// What the kernel tells, without waiting.
    fn ask_kernel(&mut self) -> Result<Vec<Token>, PollError>;
}

impl Linger {
    /// Looks for `window`. Nothing when nothing has come.
    fn look(
        &mut self,
        around: &mut impl Around,
        began: Instant,
        window: Duration,
    ) -> Result<Vec<Token>, PollError> {
        let Some(looks) = LOOKS.checked_div(around.begin()) else {
            return Ok(Vec::new());
        };
        self.is_looking = true;
        let mut last = began;
        loop {
            if self.looks >= LOOKS {
                self.looks = 0;
                let told = around.ask_kernel()?;
                if !told.is_empty() {
                    // And what the kernel cannot tell of, because drivers were told not to notify: the one must not hold up the
                    // other.
                    return Ok(with(told, around.look()));
                }
            }
            for _ in 0..looks.max(1) {
                let seen = around.look();
                if !seen.is_empty() {
                    self.looks += LOOKS_OF_A_TURN;
                    return Ok(seen);
                }
                self.looks += 1;
                std::hint::spin_loop();
            }
            let now = Instant::now();
            if now.duration_since(last) > GAP {
                self.rest(now);
                return Ok(Vec::new());
            }
            if now.duration_since(began) >= window {
                return Ok(Vec::new());
            }
            last = now;
        }
    }
}

/// Both, each once.
fn with(mut tokens: Vec<Token>, others: Vec<Token>) -> Vec<Token> {
    for token in others {
        if !tokens.contains(&token) {
            tokens.push(token);
        }
    }
    tokens
}

struct Machine<'a> {
    devices: &'a mut DeviceSet,
    poller: &'a Poller,
}

impl Around for Machine<'_> {
    fn begin(&mut self) -> u32 {
        self.devices.begin_looking()
    }

    fn look(&mut self) -> Vec<Token> {
        self.devices.look()
    }

    fn ask_kernel(&mut self) -> Result<Vec<Token>, PollError> {
        self.poller.wait(Some(Duration::ZERO))
    }
}

impl Control {
    /// Waits for what is to be done next.
    pub(super) fn next_tokens(&mut self) -> Result<Vec<Token>, PollError> {
        let began = Instant::now();
        let whom = match self.machine.devices.is_under_way() {
            true => For::Host,
            false => For::Driver,
        };
        let due = || self.machine.devices.wake_at();
        let mut tokens = match self.linger.window(whom, began, due) {
            Some(window) => {
                let mut around = Machine {
                    devices: &mut self.machine.devices,
                    poller: &self.poller,
                };
                self.linger.look(&mut around, began, window)?
            }
            None => Vec::new(),
        };
        if tokens.is_empty() && std::mem::take(&mut self.linger.is_looking) {
            tokens = self.machine.devices.end_looking();
        }
        if tokens.is_empty() {
            self.linger.looks = 0;
            tokens = self.poller.wait(self.timeout())?;
        }
        let is_disk = |token: &Token| match *token {
            Token::Queue { device, .. } | Token::Backend { device } => {
                self.machine.devices.is_looked_at(device)
            }
            _ => false,
        };
        let is_disk = tokens.iter().any(is_disk);
        self.linger.note(whom, began.elapsed(), is_disk);
        Ok(tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::For::{Driver, Host};
    use super::*;
    use crate::config::DISK_POLL_US;

    const MOST: Duration = Duration::from_micros(DISK_POLL_US as u64);
    const SHORT: Duration = Duration::from_micros(60);

    /// Of a loop that has a CPU of its own.
    fn linger(most_us: u32) -> Linger {
        Linger {
            most: Duration::from_micros(most_us.into()),
            has_own_cpu: true,
            ..Linger::default()
        }
    }

    #[test]
    fn short_waits_for_a_disk_are_looked_through_and_no_others() {
        let now = Instant::now();
        let mut linger = linger(DISK_POLL_US);
        assert_eq!(linger.window(Driver, now, || None), None);
        linger.note(Driver, SHORT, false);
        assert_eq!(linger.window(Driver, now, || None), None);
        linger.note(Driver, SHORT, true);
        assert_eq!(linger.window(Driver, now, || None), Some(BEGIN));
        linger.note(Driver, SHORT, true);
        linger.note(Driver, SHORT, true);
        let long_enough = linger.window(Driver, now, || None).unwrap();
        assert!(long_enough >= SHORT);
        linger.note(Driver, SHORT, true);
        assert_eq!(linger.window(Driver, now, || None), Some(long_enough));
        for _ in 0..20 {
            linger.note(Driver, MOST, true);
        }
        assert_eq!(linger.window(Driver, now, || None), Some(MOST));
        linger.note(Driver, SHORT, false);
        assert_eq!(linger.window(Driver, now, || None), Some(MOST / 2));
        linger.note(Driver, MOST + SHORT, true);
        assert_eq!(linger.window(Driver, now, || None), None);
    }

    #[test]
    fn nothing_is_looked_for_when_it_is_not_wanted_or_something_else_is_due() {
        let now = Instant::now();
        let mut none = linger(0);
        let mut little = linger(10);
        for linger in [&mut none, &mut little] {
            (0..4).for_each(|_| linger.note(Driver, Duration::from_micros(9), true));
        }
        assert_eq!(none.window(Driver, now, || None), None);
        let most = Duration::from_micros(10);
        assert_eq!(little.window(Driver, now, || None), Some(most));
        let soon = Duration::from_micros(3);
        assert_eq!(little.window(Driver, now, || Some(now + soon)), Some(soon));
        assert_eq!(little.window(Driver, now + soon, || Some(now)), None);
    }

    #[test]
    fn who_shares_a_cpu_with_whom_it_waits_for_does_not_look() {
        let now = Instant::now();
        let looks_after = move |machine: &str| {
            let spec = serde_json::from_str(&format!(r#"{{"machine-config":{machine}}}"#));
            let config = crate::config::MachineConfig::prove(spec.unwrap(), 1 << 40).unwrap();
            let mut linger = Linger::new(config.tuning());
            linger.note(Driver, BEGIN, true);
            linger.window(Driver, now, || None)
        };
        let pinned = r#"{"tuning":{"pin_vcpus":{"0":1},"pin_control":CPU}}"#;
        assert_eq!(looks_after(&pinned.replace("CPU", "1")), None);
        assert_eq!(looks_after(&pinned.replace("CPU", "0")), Some(BEGIN));
        let alone = std::thread::spawn(move || {
            let first = affinity::own().unwrap().into_iter().next().unwrap();
            affinity::pin(first).unwrap();
            looks_after("{}")
        });
        assert_eq!(alone.join().unwrap(), None);
    }

    #[test]
    fn a_driver_that_asks_at_once_is_looked_for_where_the_host_takes_long() {
        let now = Instant::now();
        let mut linger = linger(DISK_POLL_US);
        for _ in 0..3 {
            linger.note(Driver, SHORT, true);
            linger.note(Host, 4 * MOST, true);
        }
        assert!(linger.window(Driver, now, || None).unwrap() >= SHORT);
        assert_eq!(linger.window(Host, now, || None), None);
        linger.note(Host, SHORT, true);
        linger.note(Driver, 4 * MOST, true);
        assert_eq!(linger.window(Driver, now, || None), None);
        assert_eq!(linger.window(Host, now, || None), Some(BEGIN));
    }

    #[test]
    fn waits_that_something_else_ends_let_it_end() {
        let mut linger = linger(DISK_POLL_US);
        (0..20).for_each(|_| linger.note(Driver, MOST, true));
        (0..4).for_each(|_| linger.note(Driver, SHORT, false));
        assert_eq!(linger.window(Driver, Instant::now(), || None), None);
    }

    /// A machine of which memory and the kernel tell the same each time.
    struct Told {
        queues: u32,
        seen: Vec<Token>,
        told: Vec<Token>,
        asked: u32,
    }

    impl Around for Told {
        fn begin(&mut self) -> u32 {
            self.queues
        }

        fn look(&mut self) -> Vec<Token> {
            self.seen.clone()
        }

        fn ask_kernel(&mut self) -> Result<Vec<Token>, PollError> {
            self.asked += 1;
            Ok(self.told.clone())
        }
    }

    const fn queue(device: usize) -> Token {
        Token::Queue { device, queue: 0 }
    }

    fn looks(linger: &mut Linger, told: &mut Told) -> Vec<Token> {
        let found = linger.look(told, Instant::now(), Duration::from_secs(60));
        found.unwrap()
    }

    #[test]
    fn what_memory_tells_and_what_the_kernel_tells_do_not_hold_up_each_other() {
        let mut linger = linger(DISK_POLL_US);
        let mut busy = Told {
            queues: 2,
            seen: vec![queue(0), queue(1)],
            told: vec![queue(1), Token::Signals],
            asked: 0,
        };
        let turns = LOOKS / LOOKS_OF_A_TURN;
        for _ in 0..turns {
            assert_eq!(looks(&mut linger, &mut busy), [queue(0), queue(1)]);
        }
        // It has its turn though there is always something to see, and what is seen has one then too.
        let found = looks(&mut linger, &mut busy);
        assert_eq!(found, [queue(1), Token::Signals, queue(0)]);
        assert_eq!(busy.asked, 1);
        busy.seen.clear();
        assert_eq!(
            looks(&mut linger, &mut busy),
            [queue(1), Token::Signals],
            "while nothing is seen"
        );
        busy.queues = 0;
        assert_eq!(looks(&mut linger, &mut busy), [], "nothing to look at");
    }

    #[test]
    fn who_is_put_off_the_cpu_does_not_look_for_a_while() {
        let now = Instant::now();
        let mut linger = linger(DISK_POLL_US);
        linger.note(Driver, SHORT, true);
        linger.rest(now);
        assert_eq!(linger.window(Driver, now, || None), None);
        linger.note(Driver, SHORT, true);
        assert_eq!(linger.window(Driver, now + REST / 2, || None), None);
        assert!(linger.window(Driver, now + REST, || None).is_some());
    }
}
