//! `cpu [N | Ns | Nms]` and `mem [N | Ns | Nms]`: the routines of `lightv-workloads`, N times or for a time each.

use alloc::vec;

use lightv_workloads::suite::{self, MemoryRoom};

use super::{Refusal, STATUS_OK};
use crate::machine::{BadNumber, Machine};
use crate::{heap, println, time};

const NS_PER_S: u64 = 1_000_000_000;
const NS_PER_MS: u64 = 1_000_000;

/// How long a routine is repeated.
#[derive(Clone, Copy)]
enum Length {
    Times(u64),
    Ns(u64),
}

impl Length {
    /// The first argument; one second without one.
    fn of(machine: &Machine) -> Result<Self, Refusal> {
        let text = machine.args().next().unwrap_or("1s");
        let units = [("ms", NS_PER_MS), ("s", NS_PER_S)];
        let unit = units.into_iter().find(|(unit, _)| text.ends_with(unit));
        let digits = text.trim_end_matches(['m', 's']);
        let number: u64 = digits.parse().map_err(|_| BadNumber(text))?;
        Ok(match unit {
            Some((_, ns)) => Self::Ns(number.saturating_mul(ns)),
            None => Self::Times(number.max(1)),
        })
    }

    /// Repeats `routine`, which does `units` of work, and prints how it went.
    fn measure(self, name: &str, units: u64, routine: &mut dyn FnMut()) {
        let start_ns = time::now_ns();
        let mut iterations = 0_u64;
        let ns = loop {
            routine();
            iterations += 1;
            let ns = time::now_ns() - start_ns;
            let done = match self {
                Self::Times(times) => iterations >= times,
                Self::Ns(limit_ns) => ns >= limit_ns,
            };
            if done {
                break ns.max(1);
            }
        };
        let rate =
            u128::from(iterations) * u128::from(units) * u128::from(NS_PER_S) / u128::from(ns);
        println!("name={name} iterations={iterations} ns={ns} rate={rate}");
    }
}

/// `cpu`: rates in bytes (sha256), numbers sieved (primes) and points (mandelbrot) a second.
pub fn cpu(machine: &mut Machine) -> Result<u8, Refusal> {
    time::init();
    machine.ready();
    let length = Length::of(machine)?;
    let message = vec![0x5a; suite::MESSAGE_BYTES];
    let mut sieve = vec![false; suite::SIEVE_LEN];
    suite::cpu(&message, &mut sieve, &mut |name, units, routine| {
        length.measure(name, units, routine);
    });
    Ok(STATUS_OK)
}

/// `mem`: rates in bytes moved (fill, copy, scale, triad, sum) and steps (chase) a second.
pub fn mem(machine: &mut Machine) -> Result<u8, Refusal> {
    time::init();
    machine.ready();
    let length = Length::of(machine)?;
    let bytes = suite::ARRAY_BYTES_MAX.min(heap::fresh_bytes() / 8 * 7 / 4);
    let array = || vec![0.0; bytes / size_of::<f64>()];
    let (mut a, mut b, mut c) = (array(), array(), array());
    let mut next = vec![0_u32; bytes / size_of::<u32>()];
    let room = MemoryRoom {
        a: &mut a,
        b: &mut b,
        c: &mut c,
        next: &mut next,
    };
    suite::mem(room, &mut |name, units, routine| {
        length.measure(name, units, routine);
    });
    Ok(STATUS_OK)
}
