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
use crate::poller::{PollError, Token};

/// What is looked for at first.
const BEGIN: Duration = Duration::from_micros(25);
/// What is looked for at most, and what a short wait is: as long as KVM looks by default for a vCPU that halts.
const MOST: Duration = Duration::from_micros(200);
/// Between two looks, and more: the CPU was taken from the loop.
const GAP: Duration = Duration::from_micros(50);
/// How long is not looked after that: somebody else wants the CPU.
const REST: Duration = Duration::from_millis(20);
/// Looks between two questions to the kernel, whose other descriptors must have their turn.
const LOOKS: u32 = 32;

/// How long is looked.
#[derive(Debug, Default)]
pub(super) struct Linger {
    window: Duration,
    rests_until: Option<Instant>,
    /// Drivers have been told not to notify.
    is_looking: bool,
}

impl Linger {
    /// How long is to be looked at `now`, if at all.
    fn window(&mut self, now: Instant) -> Option<Duration> {
        if self.rests_until.is_some_and(|until| now < until) {
            return None;
        }
        self.rests_until = None;
        (!self.window.is_zero()).then_some(self.window)
    }

    /// The loop has had nothing to do for so long, until a disk, or something else, had.
    fn note(&mut self, waited: Duration, is_disk: bool) {
        self.window = match (waited <= MOST, is_disk) {
            (false, _) => Duration::ZERO,
            (true, true) if waited > self.window => (2 * self.window).clamp(BEGIN, MOST),
            (true, true) => self.window,
            (true, false) if self.window >= 2 * BEGIN => self.window / 2,
            (true, false) => Duration::ZERO,
        };
    }

    /// The CPU was taken away at `now`.
    fn rest(&mut self, now: Instant) {
        self.rests_until = Some(now + REST);
    }
}

impl Control {
    /// Waits for what is to be done next.
    pub(super) fn next_tokens(&mut self) -> Result<Vec<Token>, PollError> {
        let began = Instant::now();
        let mut tokens = match self.linger.window(began) {
            Some(window) => self.linger(began, window)?,
            None => Vec::new(),
        };
        if tokens.is_empty() && std::mem::take(&mut self.linger.is_looking) {
            tokens = self.machine.devices.end_looking();
        }
        if tokens.is_empty() {
            tokens = self.poller.wait(self.timeout())?;
        }
        let is_disk = |token: &Token| match *token {
            Token::Queue { device, .. } | Token::Backend { device } => {
                self.machine.devices.is_looked_at(device)
            }
            _ => false,
        };
        let is_disk = tokens.iter().any(is_disk);
        self.linger.note(began.elapsed(), is_disk);
        Ok(tokens)
    }

    /// Looks for `window`. Nothing when nothing has come.
    fn linger(&mut self, began: Instant, window: Duration) -> Result<Vec<Token>, PollError> {
        if !self.machine.devices.begin_looking() {
            return Ok(Vec::new());
        }
        self.linger.is_looking = true;
        let mut last = began;
        loop {
            let tokens = self.poller.wait(Some(Duration::ZERO))?;
            if !tokens.is_empty() {
                return Ok(tokens);
            }
            for _ in 0..LOOKS {
                let tokens = self.machine.devices.look();
                if !tokens.is_empty() {
                    return Ok(tokens);
                }
                std::hint::spin_loop();
            }
            let now = Instant::now();
            if now.duration_since(last) > GAP {
                self.linger.rest(now);
                return Ok(tokens);
            }
            if now.duration_since(began) >= window {
                return Ok(tokens);
            }
            last = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_micros(60);

    #[test]
    fn short_waits_for_a_disk_are_looked_through_and_no_others() {
        let now = Instant::now();
        let mut linger = Linger::default();
        assert_eq!(linger.window(now), None);
        linger.note(SHORT, false);
        assert_eq!(linger.window(now), None);
        linger.note(SHORT, true);
        assert_eq!(linger.window(now), Some(BEGIN));
        linger.note(SHORT, true);
        linger.note(SHORT, true);
        let long_enough = linger.window(now).unwrap();
        assert!(long_enough >= SHORT);
        linger.note(SHORT, true);
        assert_eq!(linger.window(now), Some(long_enough));
        for _ in 0..20 {
            linger.note(MOST, true);
        }
        assert_eq!(linger.window(now), Some(MOST));
        linger.note(SHORT, false);
        assert_eq!(linger.window(now), Some(MOST / 2));
        linger.note(MOST + SHORT, true);
        assert_eq!(linger.window(now), None);
    }

    #[test]
    fn waits_that_something_else_ends_let_it_end() {
        let mut linger = Linger::default();
        (0..20).for_each(|_| linger.note(MOST, true));
        (0..4).for_each(|_| linger.note(SHORT, false));
        assert_eq!(linger.window(Instant::now()), None);
    }

    #[test]
    fn who_is_put_off_the_cpu_does_not_look_for_a_while() {
        let now = Instant::now();
        let mut linger = Linger::default();
        linger.note(SHORT, true);
        linger.rest(now);
        assert_eq!(linger.window(now), None);
        linger.note(SHORT, true);
        assert_eq!(linger.window(now + REST / 2), None);
        assert!(linger.window(now + REST).is_some());
    }
}
