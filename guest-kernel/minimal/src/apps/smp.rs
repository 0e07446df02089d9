//! `smp`: starts all other CPUs and says which came up.

use core::fmt;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::{Refusal, STATUS_FAILED, STATUS_OK};
use crate::machine::Machine;
use crate::{apic, control, println, shim, time};

/// Page that the trampoline is copied to: below 1 MiB, and not among those where monitors put boot data.
const TRAMPOLINE_PAGE: u8 = 0x08;
const PAGE_SHIFT: u32 = 12;
const NS_PER_MS: u64 = 1_000_000;
/// Between the reset and the start (Intel SDM vol. 3 §9.4.4.1).
const INIT_NS: u64 = 10 * NS_PER_MS;
/// All CPUs must be there by then.
const START_NS_MAX: u64 = 5_000 * NS_PER_MS;
/// Without a control device nobody says how many there are: those that come within this time count.
const START_NS_UNKNOWN: u64 = 500 * NS_PER_MS;

unsafe extern "C" {
    static other_cpu_ids: [AtomicU64; 4];
    static other_cpus: AtomicU32;
}

pub fn run(machine: &mut Machine) -> Result<u8, Refusal> {
    time::init();
    machine.ready();
    let wanted = control::get().map(|control| control.vcpus());
    bring_up(wanted);
    println!("cpus online={} apic_ids={}", online(), Ids);
    let complete = wanted.is_none_or(|wanted| wanted == online());
    Ok(if complete { STATUS_OK } else { STATUS_FAILED })
}

/// Starts all other CPUs, also again, and waits until `wanted` have come in all, this one and earlier starts included.
pub(super) fn bring_up(wanted: Option<u32>) {
    shim::place_trampoline(usize::from(TRAMPOLINE_PAGE) << PAGE_SHIFT);
    apic::init_others();
    time::sleep_until(time::now_ns() + INIT_NS);
    apic::start_others(TRAMPOLINE_PAGE);
    let deadline_ns = time::now_ns() + wanted.map_or(START_NS_UNKNOWN, |_| START_NS_MAX);
    while Some(online()) != wanted && time::now_ns() < deadline_ns {
        core::hint::spin_loop();
    }
}

/// CPUs that have come up, this one included: one that came twice counts twice.
pub(super) fn online() -> u32 {
    // SAFETY: an aligned word that only `lock incl` in the trampoline changes.
    1 + unsafe { &other_cpus }.load(Ordering::Acquire)
}

struct Ids;

impl fmt::Display for Ids {
    /// Comma-separated, ascending.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // SAFETY: aligned words that only `lock btsl` in the trampoline changes.
        let ids = unsafe { &other_cpu_ids };
        let mut separator = "";
        for id in 0..256_u32 {
            let word = ids[id as usize / 64].load(Ordering::Acquire);
            if id == apic::id() || word & 1 << (id % 64) != 0 {
                write!(f, "{separator}{id}")?;
                separator = ",";
            }
        }
        Ok(())
    }
}
