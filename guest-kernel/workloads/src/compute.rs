//! Work for the CPU: integers with branches, and floating point.

/// Number of primes below the length of `sieve`, by the sieve of Eratosthenes. `sieve` is overwritten.
pub fn count_primes(sieve: &mut [bool]) -> usize {
    sieve.fill(true);
    let mut primes = 0;
    for number in 2..sieve.len() {
        if sieve[number] {
            primes += 1;
            let mut multiple = number * number;
            while let Some(place) = sieve.get_mut(multiple) {
                *place = false;
                multiple += number;
            }
        }
    }
    primes
}

/// Iterations until escape, summed over a `side` × `side` picture of the Mandelbrot set, at most `limit` a point.
pub fn mandelbrot(side: u32, limit: u32) -> u64 {
    let scale = 3.0 / f64::from(side);
    let mut total = 0;
    for row in 0..side {
        for column in 0..side {
            let real = f64::from(column) * scale - 2.25;
            let imaginary = f64::from(row) * scale - 1.5;
            total += u64::from(escape_time(real, imaginary, limit));
        }
    }
    total
}

fn escape_time(real: f64, imaginary: f64, limit: u32) -> u32 {
    let (mut x, mut y) = (0.0, 0.0);
    for step in 0..limit {
        let (x_squared, y_squared) = (x * x, y * y);
        if x_squared + y_squared > 4.0 {
            return step;
        }
        y = 2.0 * x * y + imaginary;
        x = x_squared - y_squared + real;
    }
    limit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn primes_below_a_thousand() {
        assert_eq!(count_primes(&mut [false; 1000]), 168);
        assert_eq!(count_primes(&mut [false; 2]), 0);
        assert_eq!(count_primes(&mut []), 0);
    }

    #[test]
    fn mandelbrot_points() {
        assert_eq!(escape_time(0.0, 0.0, 50), 50);
        assert_eq!(escape_time(2.0, 2.0, 50), 1);
        assert!(mandelbrot(16, 50) > 16 * 16);
    }
}
