//! Work for memory: the streams of McCalpin's STREAM benchmark, and a chase of pointers.

use crate::random::SplitMix64;

/// `a[i] = value`: writes 8 bytes an element.
pub fn fill(a: &mut [f64], value: f64) {
    a.fill(value);
}

/// `a[i] = b[i]`: moves 16 bytes an element. The slices are of one length.
pub fn copy(a: &mut [f64], b: &[f64]) {
    a.copy_from_slice(b);
}

/// `a[i] = factor * b[i]`: moves 16 bytes an element.
pub fn scale(a: &mut [f64], b: &[f64], factor: f64) {
    for (a, b) in a.iter_mut().zip(b) {
        *a = factor * b;
    }
}

/// `a[i] = b[i] + factor * c[i]`: moves 24 bytes an element.
pub fn triad(a: &mut [f64], b: &[f64], c: &[f64], factor: f64) {
    for ((a, b), c) in a.iter_mut().zip(b).zip(c) {
        *a = b + factor * c;
    }
}

/// Sum of all elements: reads 8 bytes an element, in 8 lanes so that additions do not wait for each other.
pub fn sum(a: &[f64]) -> f64 {
    let mut lanes = [0.0; 8];
    let (groups, rest) = a.as_chunks::<8>();
    for group in groups {
        for (lane, value) in lanes.iter_mut().zip(group) {
            *lane += value;
        }
    }
    lanes.iter().sum::<f64>() + rest.iter().sum::<f64>()
}

/// Makes `next` one random cycle through all its elements (Sattolo's algorithm), for [`chase`].
pub fn make_cycle(next: &mut [u32], seed: u64) {
    for (index, place) in (0..).zip(next.iter_mut()) {
        *place = index;
    }
    let mut random = SplitMix64::new(seed);
    for last in (1..next.len()).rev() {
        // Both fit: `last` is an index of this slice.
        let other = random.below(last as u64);
        next.swap(last, usize::try_from(other).unwrap_or(0));
    }
}

/// Goes `steps` steps along the cycle from element 0 and gives where it arrives. Each step waits for the one before.
pub fn chase(next: &[u32], steps: u64) -> u32 {
    let mut at = 0;
    for _ in 0..steps {
        at = next[at as usize];
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_compute_what_they_say() {
        let (mut a, b, c) = ([0.0; 9], [2.0; 9], [3.0; 9]);
        copy(&mut a, &b);
        assert_eq!(a, [2.0; 9]);
        scale(&mut a, &b, 4.0);
        assert_eq!(a, [8.0; 9]);
        triad(&mut a, &b, &c, 5.0);
        assert_eq!(a, [17.0; 9]);
        fill(&mut a, 1.5);
        assert_eq!(sum(&a), 13.5);
    }

    #[test]
    fn cycle_visits_every_element_once() {
        let mut next = [0; 1000];
        make_cycle(&mut next, 3);
        for steps in 1..1000 {
            assert_ne!(chase(&next, steps), 0, "back too early, after {steps}");
        }
        assert_eq!(chase(&next, 1000), 0);
    }
}
