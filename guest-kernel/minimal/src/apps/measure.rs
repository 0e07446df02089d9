//! `cpu [N | Ns]` and `mem [N | Ns]`: the routines of `lightv-workloads`, N times or for N seconds each.

use alloc::vec;
use core::hint::black_box;

use lightv_workloads::{compute, memory, sha256};

use super::{Refusal, STATUS_OK};
use crate::machine::{BadNumber, Machine};
use crate::{heap, println, time};

const NS_PER_S: u64 = 1_000_000_000;

const SHA_BYTES: usize = 64 * 1024;
const SIEVE_LEN: usize = 256 * 1024;
const PICTURE_SIDE: u32 = 128;
const PICTURE_LIMIT: u32 = 256;

/// Bytes of each of the three arrays together with the cycle: 64 MiB, or what fits.
const MEMORY_BYTES_MAX: usize = 64 << 20;
const CHASE_STEPS: u64 = 100_000;
const SCALE_FACTOR: f64 = 3.0;
const CYCLE_SEED: u64 = 1;

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
        let (digits, is_seconds) = match text.strip_suffix('s') {
            Some(digits) => (digits, true),
            None => (text, false),
        };
        let number: u64 = digits.parse().map_err(|_| BadNumber(text))?;
        Ok(if is_seconds {
            Self::Ns(number.saturating_mul(NS_PER_S))
        } else {
            Self::Times(number.max(1))
        })
    }

    /// Repeats `routine`, which does `units` of work, and prints how it went.
    fn measure(self, name: &str, units: u64, mut routine: impl FnMut()) {
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
    let message = vec![0x5a; SHA_BYTES];
    length.measure("sha256", SHA_BYTES as u64, || {
        black_box(sha256::digest(black_box(&message)));
    });
    let mut sieve = vec![false; SIEVE_LEN];
    length.measure("primes", SIEVE_LEN as u64, || {
        black_box(compute::count_primes(black_box(&mut sieve)));
    });
    length.measure(
        "mandelbrot",
        u64::from(PICTURE_SIDE) * u64::from(PICTURE_SIDE),
        || {
            black_box(compute::mandelbrot(black_box(PICTURE_SIDE), PICTURE_LIMIT));
        },
    );
    Ok(STATUS_OK)
}

/// `mem`: rates in bytes moved (fill, copy, scale, triad, sum) and steps (chase) a second.
pub fn mem(machine: &mut Machine) -> Result<u8, Refusal> {
    time::init();
    machine.ready();
    let length = Length::of(machine)?;
    let bytes = MEMORY_BYTES_MAX.min(heap::fresh_bytes() / 8 * 7) / 4;
    let elements = bytes / size_of::<f64>();
    let (mut a, mut b, mut c) = (
        vec![0.0; elements],
        vec![0.0; elements],
        vec![0.0; elements],
    );
    // Touched before the clock runs: page faults are measured elsewhere.
    memory::fill(&mut a, 0.0);
    memory::fill(&mut b, 1.0);
    memory::fill(&mut c, 2.0);
    let moved = |arrays: usize| (arrays * bytes) as u64;
    length.measure("fill", moved(1), || memory::fill(black_box(&mut a), 0.0));
    length.measure("copy", moved(2), || memory::copy(black_box(&mut a), &b));
    length.measure("scale", moved(2), || {
        memory::scale(black_box(&mut a), &b, SCALE_FACTOR)
    });
    length.measure("triad", moved(3), || {
        memory::triad(black_box(&mut a), &b, &c, SCALE_FACTOR)
    });
    length.measure("sum", moved(1), || {
        black_box(memory::sum(black_box(&a)));
    });
    let mut next = vec![0_u32; bytes / size_of::<u32>()];
    memory::make_cycle(&mut next, CYCLE_SEED);
    length.measure("chase", CHASE_STEPS, || {
        black_box(memory::chase(black_box(&next), CHASE_STEPS));
    });
    Ok(STATUS_OK)
}
