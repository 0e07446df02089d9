//! The routines as they are measured: the same sizes, in the same order, in a guest and on its host.

use core::hint::black_box;

use crate::{compute, memory, sha256};

/// Bytes of the message that is hashed.
pub const MESSAGE_BYTES: usize = 64 * 1024;
/// Numbers of the sieve.
pub const SIEVE_LEN: usize = 256 * 1024;
/// Bytes of each of the arrays in memory, at most; a machine with less has smaller ones.
pub const ARRAY_BYTES_MAX: usize = 16 << 20;

const PICTURE_SIDE: u32 = 128;
const PICTURE_LIMIT: u32 = 256;
const CHASE_STEPS: u64 = 100_000;
const SCALE_FACTOR: f64 = 3.0;
const CYCLE_SEED: u64 = 1;

/// Is given each routine: its name, how many units of work it does, and itself, to be called as often as is wanted.
pub type Measure<'a> = dyn FnMut(&str, u64, &mut dyn FnMut()) + 'a;

/// Routines of the CPU: bytes hashed, numbers sieved, points of a picture.
pub fn cpu(message: &[u8], sieve: &mut [bool], measure: &mut Measure<'_>) {
    measure("sha256", message.len() as u64, &mut || {
        black_box(sha256::digest(black_box(message)));
    });
    measure("primes", sieve.len() as u64, &mut || {
        black_box(compute::count_primes(black_box(sieve)));
    });
    let points = u64::from(PICTURE_SIDE) * u64::from(PICTURE_SIDE);
    measure("mandelbrot", points, &mut || {
        black_box(compute::mandelbrot(black_box(PICTURE_SIDE), PICTURE_LIMIT));
    });
}

/// Room for [`mem`]: three arrays and a cycle, each of the same number of bytes.
#[derive(Debug)]
pub struct MemoryRoom<'a> {
    /// Written.
    pub a: &'a mut [f64],
    /// Read.
    pub b: &'a mut [f64],
    /// Read.
    pub c: &'a mut [f64],
    /// Followed from element to element.
    pub next: &'a mut [u32],
}

/// Routines of memory: bytes moved, steps of a chase. All memory is touched before the first.
pub fn mem(room: MemoryRoom<'_>, measure: &mut Measure<'_>) {
    let MemoryRoom { a, b, c, next } = room;
    memory::fill(a, 0.0);
    memory::fill(b, 1.0);
    memory::fill(c, 2.0);
    memory::make_cycle(next, CYCLE_SEED);
    let array = size_of_val(a) as u64;
    measure("fill", array, &mut || memory::fill(black_box(a), 0.0));
    measure("copy", 2 * array, &mut || memory::copy(black_box(a), b));
    measure("scale", 2 * array, &mut || {
        memory::scale(black_box(a), b, SCALE_FACTOR);
    });
    measure("triad", 3 * array, &mut || {
        memory::triad(black_box(a), b, c, SCALE_FACTOR);
    });
    measure("sum", array, &mut || {
        black_box(memory::sum(black_box(a)));
    });
    measure("chase", CHASE_STEPS, &mut || {
        black_box(memory::chase(black_box(next), CHASE_STEPS));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_routine_is_measured_once_and_can_be_called_again() {
        let mut names = Vec::new();
        let mut sieve = vec![false; 100];
        cpu(&[1; 100], &mut sieve, &mut |name, units, routine| {
            assert!(units > 0);
            routine();
            routine();
            names.push(name.to_owned());
        });
        let (mut a, mut b, mut c, mut next) =
            (vec![0.0; 64], vec![0.0; 64], vec![0.0; 64], vec![0; 128]);
        let room = MemoryRoom {
            a: &mut a,
            b: &mut b,
            c: &mut c,
            next: &mut next,
        };
        mem(room, &mut |name, units, routine| {
            assert!(units >= 512, "{name}");
            routine();
            names.push(name.to_owned());
        });
        let expected = [
            "sha256",
            "primes",
            "mandelbrot",
            "fill",
            "copy",
            "scale",
            "triad",
            "sum",
            "chase",
        ];
        assert_eq!(names, expected);
        assert!(a.iter().all(|value| (value - 7.0).abs() < 1e-9));
    }
}
