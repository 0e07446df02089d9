//! Firecracker's boot timer (`--boot-timer`): an init that was made for it writes a byte when it has started, and the log says how
//! long that took.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::limits;
use crate::sys::process;

/// What is written.
const MAGIC: u8 = 123;
/// Where: the first byte of Firecracker's device memory, in its present versions and in those before them. The first is also
/// the first of the control device, to which nothing else is written there.
const ADDRESSES: [u64; 2] = [0xc000_0000, 0xd000_0000];

/// When the process began, if the timer is wanted.
static BEGAN: OnceLock<Began> = OnceLock::new();

/// How often it was told.
static TOLD: AtomicU32 = AtomicU32::new(0);

#[derive(Debug, Clone, Copy)]
struct Began {
    monotonic_us: u64,
    cpu_us: u64,
}

/// Starts the timer: the process begins now.
pub fn start() {
    let began = Began {
        monotonic_us: process::monotonic_ns() / 1000,
        cpu_us: process::cpu_us(),
    };
    // The first one counts.
    let _ = BEGAN.set(began);
}

/// A guest has written `data` to device memory; true if that was for the timer. The log has it a few times: a guest can write as
/// often as it likes.
pub fn take(address: u64, data: &[u8]) -> bool {
    if data != [MAGIC] || !ADDRESSES.contains(&address) {
        return false;
    }
    let Some(began) = BEGAN.get() else {
        return false;
    };
    if !is_to_be_told(&TOLD) {
        return true;
    }
    let time_us = (process::monotonic_ns() / 1000).saturating_sub(began.monotonic_us);
    let cpu_us = process::cpu_us().saturating_sub(began.cpu_us);
    let (time_ms, cpu_ms) = (time_us / 1000, cpu_us / 1000);
    tracing::info!(
        "Guest-boot-time = {time_us:>6} us {time_ms} ms, {cpu_us:>6} CPU us {cpu_ms} CPU ms"
    );
    true
}

fn is_to_be_told(told: &AtomicU32) -> bool {
    let next = |count| (count < limits::BOOT_TIMES_TOLD).then_some(count + 1);
    told.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next)
        .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_a_few_times_however_often_the_guest_writes() {
        let told = AtomicU32::new(0);
        let count = (0..10_000).filter(|_| is_to_be_told(&told)).count();
        assert_eq!(count, limits::BOOT_TIMES_TOLD as usize);
    }

    #[test]
    fn only_the_magic_byte_at_its_places_is_taken_once_there_is_a_timer() {
        assert!(!take(0xc000_0000, &[MAGIC]));
        start();
        for address in ADDRESSES {
            assert!(take(address, &[MAGIC]));
            assert!(!take(address, &[122]));
            assert!(!take(address, &[MAGIC, 0]));
            assert!(!take(address + 1, &[MAGIC]));
        }
    }
}
