//! Firecracker's boot timer (`--boot-timer`): an init that was made for it writes a byte when it has started, and the log says how
//! long that took.

use std::sync::OnceLock;

use crate::sys::process;

/// What is written.
const MAGIC: u8 = 123;
/// Where: the first byte of Firecracker's device memory, in its present versions and in those before them. The first is also
/// the first of the control device, to which nothing else is written there.
const ADDRESSES: [u64; 2] = [0xc000_0000, 0xd000_0000];

/// When the process began, if the timer is wanted.
static BEGAN: OnceLock<Began> = OnceLock::new();

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

/// A guest has written `data` to device memory; true if that was for the timer.
pub fn take(address: u64, data: &[u8]) -> bool {
    if data != [MAGIC] || !ADDRESSES.contains(&address) {
        return false;
    }
    let Some(began) = BEGAN.get() else {
        return false;
    };
    let time_us = (process::monotonic_ns() / 1000).saturating_sub(began.monotonic_us);
    let cpu_us = process::cpu_us().saturating_sub(began.cpu_us);
    let (time_ms, cpu_ms) = (time_us / 1000, cpu_us / 1000);
    tracing::info!(
        "Guest-boot-time = {time_us:>6} us {time_ms} ms, {cpu_us:>6} CPU us {cpu_ms} CPU ms"
    );
    true
}

#[cfg(test)]
mod tests {
    use super::*;

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
