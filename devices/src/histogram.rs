//! How long something takes, counted without a lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Upper ends of the buckets in microseconds; one without end follows.
pub const BOUNDS_US: [u64; 14] = [
    1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 5000, 25_000, 100_000, 1_000_000,
];
const BUCKETS: usize = BOUNDS_US.len() + 1;

/// Durations, by buckets. Relaxed additions, as in [`Counters`](crate::counters::Counters).
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    sum_ns: AtomicU64,
    /// Since [`Histogram::take_extremes`]: the shortest plus one, or 0 when there is none; the longest.
    min_ns: AtomicU64,
    max_ns: AtomicU64,
}

/// [`Histogram`] at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HistogramSnapshot {
    /// How many fell into each bucket; not cumulative.
    pub buckets: [u64; BUCKETS],
    /// All of them together, in nanoseconds.
    pub sum_ns: u64,
}

/// The shortest and the longest of a time, in nanoseconds; 0 when there was none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Extremes {
    /// The shortest.
    pub min_ns: u64,
    /// The longest.
    pub max_ns: u64,
}

impl Histogram {
    /// Counts what began at `began` and is done now.
    pub fn record_since(&self, began: Instant) {
        self.record(u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX));
    }

    /// Counts a duration in nanoseconds.
    pub fn record(&self, ns: u64) {
        let place = BOUNDS_US.partition_point(|bound| bound.saturating_mul(1000) < ns);
        if let Some(bucket) = self.buckets.get(place) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.sum_ns.fetch_add(ns, Ordering::Relaxed);
        self.max_ns.fetch_max(ns, Ordering::Relaxed);
        let shortest = ns.saturating_add(1);
        let known = self.min_ns.load(Ordering::Relaxed);
        if known == 0 || shortest < known {
            self.min_ns.store(shortest, Ordering::Relaxed);
        }
    }

    /// All of it now.
    #[must_use]
    pub fn snapshot(&self) -> HistogramSnapshot {
        HistogramSnapshot {
            buckets: std::array::from_fn(|place| {
                let bucket = self.buckets.get(place);
                bucket.map_or(0, |bucket| bucket.load(Ordering::Relaxed))
            }),
            sum_ns: self.sum_ns.load(Ordering::Relaxed),
        }
    }

    /// The extremes since this was called last.
    pub fn take_extremes(&self) -> Extremes {
        Extremes {
            min_ns: self.min_ns.swap(0, Ordering::Relaxed).saturating_sub(1),
            max_ns: self.max_ns.swap(0, Ordering::Relaxed),
        }
    }
}

impl HistogramSnapshot {
    /// How many.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_duration_falls_into_one_bucket() {
        let times = Histogram::default();
        for ns in [0, 1000, 1001, 2000, 3_000_000_000] {
            times.record(ns);
        }
        let found = times.snapshot();
        assert_eq!(found.buckets[..3], [2, 2, 0]);
        assert_eq!(found.buckets[BUCKETS - 1], 1);
        assert_eq!((found.count(), found.sum_ns), (5, 3_000_004_001));
        let extremes = |min_ns, max_ns| Extremes { min_ns, max_ns };
        assert_eq!(times.take_extremes(), extremes(0, 3_000_000_000));
        assert_eq!(times.take_extremes(), extremes(0, 0));
        times.record(7);
        assert_eq!(times.take_extremes(), extremes(7, 7));
    }
}
