//! How long a driver looks for what it waits for before the CPU sleeps.
//!
//! To sleep and be woken costs more than a short wait: an exit or two and an interrupt on any host, some 100 µs where the kernel of a
//! guest is emulated. So waits that turn out to be short are looked through, and others are not, as by the governor of Linux'
//! guests (haltpoll, Documentation/virt/guest-halt-polling.rst).

use core::hint::spin_loop;

use crate::time::ticks;

/// Ticks of the time stamp counter in a microsecond, about: what is done with them is no measurement.
const TICKS_PER_US: u64 = 2500;
/// What is looked for at first, and again after a short sleep that follows long ones.
const BEGIN: u64 = 50 * TICKS_PER_US;
/// What is looked for at most.
const MOST: u64 = 200 * TICKS_PER_US;
/// Of a wait that ends by a sleep: one that should have been looked through, for the sleep is a part of it.
const SOON: u64 = 300 * TICKS_PER_US;

/// Of one place at which a driver waits.
pub struct Patience {
    ticks: u64,
    began: u64,
}

impl Patience {
    /// Before the first wait.
    pub const fn new() -> Self {
        Self {
            ticks: BEGIN,
            began: 0,
        }
    }

    /// Looks for a while. True as soon as `is_there`.
    pub fn look(&mut self, mut is_there: impl FnMut() -> bool) -> bool {
        self.began = ticks();
        loop {
            if is_there() {
                return true;
            }
            if ticks().saturating_sub(self.began) >= self.ticks {
                return false;
            }
            spin_loop();
        }
    }

    /// The CPU has slept since [`look`](Self::look) found nothing.
    pub fn note_sleep(&mut self) {
        self.ticks = match ticks().saturating_sub(self.began) {
            waited if waited <= SOON => (2 * self.ticks).clamp(BEGIN, MOST),
            _ => self.ticks / 2,
        };
    }
}
