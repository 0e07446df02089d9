//! Monotonic time from the time stamp counter, and sleeping by the local APIC's timer.

use core::arch::x86_64::_rdtsc;

use crate::apic;
use crate::control;
use crate::local::Local;
use crate::shim;

const CALIBRATION_US: u64 = 10_000;
const NS_PER_KHZ_CYCLE: u64 = 1_000_000;
/// Fixed point of [`Clock::ns_per_tick`].
const FRACTION_BITS: u32 = 32;

#[derive(Clone, Copy)]
struct Clock {
    /// Nanoseconds per tick, [`FRACTION_BITS`] after the point; 0 = not yet known.
    ns_per_tick: u64,
    /// The counter at `base_ns`.
    base_tsc: u64,
    base_ns: u64,
    /// The last time given out.
    last_ns: u64,
}

static CLOCK: Local<Clock> = Local::new(Clock {
    ns_per_tick: 0,
    base_tsc: 0,
    base_ns: 0,
    last_ns: 0,
});

/// The time stamp counter.
pub fn ticks() -> u64 {
    // SAFETY: every x86-64 CPU has the instruction, and CR4.TSD is clear.
    unsafe { _rdtsc() }
}

/// Makes the clock and the timer ready. Takes 10 ms where the control device does not tell the frequency.
pub fn init() {
    if CLOCK.get().ns_per_tick != 0 {
        return;
    }
    apic::init_timer();
    let khz = control::get()
        .and_then(|c| c.tsc_khz())
        .map_or_else(calibrate_khz, u64::from);
    CLOCK.with(|clock| {
        clock.ns_per_tick = (NS_PER_KHZ_CYCLE << FRACTION_BITS) / khz.max(1);
        clock.base_tsc = ticks();
    });
}

fn calibrate_khz() -> u64 {
    apic::arm_timer(u64::MAX);
    let (start_us, start) = (apic::timer_elapsed_us(), ticks());
    let elapsed_us = loop {
        let elapsed_us = apic::timer_elapsed_us() - start_us;
        if elapsed_us >= CALIBRATION_US {
            break elapsed_us;
        }
    };
    (ticks() - start) * 1000 / elapsed_us
}

/// Nanoseconds since the first [`init`]. Never goes back. The time between save and restore does not count if
/// [`resume`] is called after the restore.
pub fn now_ns() -> u64 {
    CLOCK.with(|clock| {
        let elapsed = ticks().saturating_sub(clock.base_tsc);
        let elapsed_ns = (u128::from(elapsed) * u128::from(clock.ns_per_tick)) >> FRACTION_BITS;
        let now_ns = clock.base_ns + u64::try_from(elapsed_ns).unwrap_or(u64::MAX);
        clock.last_ns = clock.last_ns.max(now_ns);
        clock.last_ns
    })
}

/// Goes on from the last time given out: the counter may have jumped, as it does in a restored guest.
pub fn resume() {
    CLOCK.with(|clock| {
        clock.base_tsc = ticks();
        clock.base_ns = clock.last_ns;
    });
}

/// Sleeps until an interrupt, or until `deadline_ns`. May return early for no reason.
pub fn wait_until(deadline_ns: u64) {
    let delay_ns = deadline_ns.saturating_sub(now_ns());
    if delay_ns > 0 {
        apic::arm_timer(delay_ns);
        shim::wait();
    }
}

/// Sleeps until `deadline_ns`.
pub fn sleep_until(deadline_ns: u64) {
    while now_ns() < deadline_ns {
        wait_until(deadline_ns);
    }
}
