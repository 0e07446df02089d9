//! How many machines should be ready: as many as were asked for in the busiest second of the last minute. Times are given,
//! nothing is read.

use std::collections::VecDeque;
use std::time::Duration;

/// A burst is what comes in so long: machines that are asked for in it are not made in time.
const BURST: Duration = Duration::from_secs(1);
/// How long a burst is remembered.
const MEMORY: Duration = Duration::from_secs(60);

/// Least and most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Ready when nobody asks.
    pub min: u32,
    /// Ready at most; not below `min`.
    pub max: u32,
}

impl Bounds {
    const fn clamp(self, count: u32) -> u32 {
        if count > self.max {
            self.max
        } else if count < self.min {
            self.min
        } else {
            count
        }
    }
}

/// Requests of one second.
#[derive(Debug, Clone, Copy)]
struct Burst {
    /// Since an origin that does not matter.
    began: Duration,
    wanted: u32,
}

/// The policy.
#[derive(Debug, Clone)]
pub struct Policy {
    bounds: Bounds,
    bursts: VecDeque<Burst>,
}

impl Policy {
    /// One that has not seen a request.
    #[must_use]
    pub const fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            bursts: VecDeque::new(),
        }
    }

    /// Other bounds from now on.
    pub fn set_bounds(&mut self, bounds: Bounds) {
        self.bounds = bounds;
    }

    /// A machine was asked for at `now`, and one was ready or not: a request that was missed counts twice. `now` does not go
    /// back.
    pub fn on_request(&mut self, now: Duration, was_ready: bool) {
        self.forget(now);
        let counts = if was_ready { 1 } else { 2 };
        match self.bursts.back_mut() {
            Some(burst) if now < burst.began + BURST => {
                burst.wanted = burst.wanted.saturating_add(counts);
            }
            _ => self.bursts.push_back(Burst {
                began: now,
                wanted: counts,
            }),
        }
    }

    /// How many should be ready at `now`.
    pub fn on_tick(&mut self, now: Duration) -> u32 {
        self.forget(now);
        let wanted = self.bursts.iter().map(|burst| burst.wanted).max();
        self.bounds.clamp(wanted.unwrap_or(0))
    }

    fn forget(&mut self, now: Duration) {
        // One a second: a minute has 60 of them at most.
        self.bursts.retain(|burst| now < burst.began + MEMORY);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOUNDS: Bounds = Bounds { min: 2, max: 16 };

    fn ms(number: u64) -> Duration {
        Duration::from_millis(number)
    }

    #[test]
    fn a_burst_is_remembered_for_a_minute_and_then_forgotten() {
        let mut policy = Policy::new(BOUNDS);
        assert_eq!(policy.on_tick(ms(0)), 2);
        for _ in 0..7 {
            policy.on_request(ms(500), true);
        }
        policy.on_request(ms(1499), true);
        policy.on_request(ms(1500), true);
        assert_eq!(policy.on_tick(ms(1500)), 8);
        assert_eq!(policy.on_tick(ms(60_499)), 8);
        assert_eq!(policy.on_tick(ms(60_500)), 2);
    }

    #[test]
    fn a_request_that_was_missed_counts_twice() {
        let mut policy = Policy::new(BOUNDS);
        for _ in 0..3 {
            policy.on_request(ms(0), false);
        }
        assert_eq!(policy.on_tick(ms(1)), 6);
    }

    proptest! {
        #[test]
        fn the_target_is_in_bounds_rises_with_demand_and_comes_back(
            steps in prop::collection::vec((0_u64..3000, any::<bool>()), 0..300),
            min in 0_u32..20,
            more in 0_u32..50,
        ) {
            let bounds = Bounds { min, max: min + more };
            let (mut policy, mut busier) = (Policy::new(bounds), Policy::new(bounds));
            let mut now = ms(0);
            for (later, was_ready) in steps {
                now += ms(later);
                policy.on_request(now, was_ready);
                // The same requests, each at least as urgent, and as many again.
                busier.on_request(now, false);
                busier.on_request(now, was_ready);
                let target = policy.on_tick(now);
                prop_assert!((min..=min + more).contains(&target));
                prop_assert!(busier.on_tick(now) >= target);
                prop_assert!(policy.bursts.len() <= 61);
            }
            prop_assert_eq!(policy.on_tick(now + MEMORY), min);
        }
    }
}
