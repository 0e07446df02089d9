//! How much a device may transfer in a time: a bucket for bytes and one for operations.
//!
//! A bucket that has a token lets the next request begin, whatever its size, and the request is charged when its size is
//! known: the bucket may go below empty, and then nothing begins until there is a token again. So a request that is larger than a
//! bucket is no special case, a frame need not be read to find out whether it may be, and over time exactly the rate passes.

use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use crate::counters::Counters;
use crate::limits::LIMITER_REFILL_MAX;

/// A bucket: `size` tokens come back evenly in `refill`. The default limits nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BucketOptions {
    /// Tokens in a full bucket; 0: no limit.
    pub size: u64,
    /// Time in which an empty bucket becomes full; 0: no limit.
    pub refill: Duration,
    /// Tokens that are there once more, and are used first.
    pub burst: u64,
}

/// Buckets of a limiter. One that is `None` is left as it is: a new limiter has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LimiterOptions {
    /// Tokens are bytes.
    pub bytes: Option<BucketOptions>,
    /// Tokens are operations.
    pub operations: Option<BucketOptions>,
}

/// Tokens for one kind of thing.
#[derive(Debug, Clone)]
struct Bucket {
    size: u64,
    refill: Duration,
    burst: u64,
    /// How long before it is full it has its first token.
    first_token: Duration,
    /// When it is full if nothing more is taken: all that has to be known of its level.
    full_at: Instant,
}

impl Bucket {
    fn new(options: BucketOptions, now: Instant) -> Option<Self> {
        let BucketOptions {
            size,
            refill,
            burst,
        } = options;
        let refill = refill.min(LIMITER_REFILL_MAX);
        (size > 0 && refill > Duration::ZERO).then_some(Self {
            size,
            refill,
            burst,
            first_token: time_of(size.saturating_sub(1), size, refill),
            full_at: now,
        })
    }

    /// How long it is empty from `now` on; `None` when it is not.
    fn empty_for(&self, now: Instant) -> Option<Duration> {
        let to_full = self.full_at.saturating_duration_since(now);
        let empty = to_full.saturating_sub(self.first_token);
        (self.burst == 0 && !empty.is_zero()).then_some(empty)
    }

    fn charge(&mut self, tokens: u64, now: Instant) {
        let of_burst = tokens.min(self.burst);
        self.burst = self.burst.saturating_sub(of_burst);
        let tokens = tokens.saturating_sub(of_burst);
        let time = time_of(tokens, self.size, self.refill);
        let from = self.full_at.max(now);
        // A time that the clock cannot say is hundreds of years away.
        self.full_at = from.checked_add(time).unwrap_or(from);
    }
}

/// How long `tokens` take to come back, rounded up.
fn time_of(tokens: u64, size: u64, refill: Duration) -> Duration {
    let nanos = refill.as_nanos().saturating_mul(u128::from(tokens));
    let nanos = nanos.div_ceil(u128::from(size.max(1)));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// The limits of a device, or of one direction of it.
#[derive(Debug, Clone, Default)]
pub struct Limiter {
    bytes: Option<Bucket>,
    operations: Option<Bucket>,
    /// Something was held up: when the first of all that is may go on.
    blocked_until: Option<Instant>,
}

impl Limiter {
    /// A limiter with full buckets.
    #[must_use]
    pub fn new(options: LimiterOptions) -> Self {
        let mut limiter = Self::default();
        limiter.change(options);
        limiter
    }

    /// Replaces the buckets that `options` names by full ones.
    pub fn change(&mut self, options: LimiterOptions) {
        let now = Instant::now();
        if let Some(bytes) = options.bytes {
            self.bytes = Bucket::new(bytes, now);
        }
        if let Some(operations) = options.operations {
            self.operations = Bucket::new(operations, now);
        }
        // Whoever waits looks again at once.
        self.blocked_until = self.blocked_until.map(|_| now);
    }

    const fn is_limited(&self) -> bool {
        self.bytes.is_some() || self.operations.is_some()
    }

    /// Whether the next request has to wait. The clock is not read where nothing is limited. Of a device with several queues each
    /// asks: what was held up in another one is not forgotten, whatever this one is told.
    pub fn is_blocked(&mut self) -> bool {
        if !self.is_limited() {
            return false;
        }
        let now = Instant::now();
        let Some(wait) = self.empty_for(now) else {
            return false;
        };
        let until = now.checked_add(wait).unwrap_or(now);
        let first = self.blocked_until.map_or(until, |first| first.min(until));
        self.blocked_until = Some(first);
        true
    }

    /// Whether something `waits` that the limits hold up: as [`is_blocked`](Self::is_blocked). Not asked where nothing is limited. A
    /// wait is counted in `throttled` when it begins.
    pub fn holds_up(&mut self, throttled: &AtomicU64, waits: impl FnOnce() -> bool) -> bool {
        let was_blocked = self.blocked_until.is_some();
        let holds_up = self.is_limited() && waits() && self.is_blocked();
        if holds_up && !was_blocked {
            Counters::add_one(throttled);
        }
        holds_up
    }

    /// When what was held up may go on: until [`forget_due`](Self::forget_due), also when that has come.
    #[must_use]
    pub const fn blocked_until(&self) -> Option<Instant> {
        self.blocked_until
    }

    /// All who were held up ask again: a wait that is over is forgotten.
    pub fn forget_due(&mut self) {
        self.blocked_until = self.blocked_until.filter(|time| *time > Instant::now());
    }

    /// Nobody waits any more.
    pub const fn forget_wait(&mut self) {
        self.blocked_until = None;
    }

    /// An operation of `bytes` was done.
    pub fn charge(&mut self, bytes: u64) {
        if !self.is_limited() {
            return;
        }
        let now = Instant::now();
        if let Some(bucket) = &mut self.bytes {
            bucket.charge(bytes, now);
        }
        if let Some(bucket) = &mut self.operations {
            bucket.charge(1, now);
        }
    }

    fn empty_for(&self, now: Instant) -> Option<Duration> {
        let buckets = [&self.bytes, &self.operations].into_iter().flatten();
        buckets.filter_map(|bucket| bucket.empty_for(now)).max()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn bucket(size: u64, burst: u64) -> (Bucket, Instant) {
        let now = Instant::now();
        let options = BucketOptions {
            size,
            refill: SECOND,
            burst,
        };
        (Bucket::new(options, now).unwrap(), now)
    }

    /// One operation, and no other for a long time.
    const ONE_OPERATION: LimiterOptions = LimiterOptions {
        bytes: None,
        operations: Some(BucketOptions {
            size: 1,
            refill: Duration::from_secs(1000),
            burst: 0,
        }),
    };

    #[test]
    fn a_bucket_fills_up_evenly_and_no_further_than_its_size() {
        let (mut bucket, start) = bucket(10, 0);
        for _ in 0..10 {
            assert_eq!(bucket.empty_for(start), None);
            bucket.charge(1, start);
        }
        assert!(bucket.empty_for(start).is_some());
        let wait = bucket.empty_for(start + Duration::from_millis(99));
        assert_eq!(wait, Some(Duration::from_millis(1)));
        assert_eq!(bucket.empty_for(start + Duration::from_millis(100)), None);
        let later = start + 100 * SECOND;
        bucket.charge(10, later);
        assert!(bucket.empty_for(later).is_some());
    }

    #[test]
    fn what_is_larger_than_a_bucket_passes_and_is_paid_for_afterwards() {
        let (mut bucket, start) = bucket(10, 0);
        bucket.charge(35, start);
        let wait = bucket.empty_for(start).unwrap();
        assert_eq!(wait, SECOND * 26 / 10);
        assert_eq!(bucket.empty_for(start + wait), None);
    }

    #[test]
    fn a_burst_is_used_first_and_once() {
        let (mut bucket, start) = bucket(10, 5);
        bucket.charge(4, start);
        assert_eq!((bucket.burst, bucket.full_at), (1, start));
        bucket.charge(11, start);
        assert!(bucket.empty_for(start).is_some());
        assert_eq!(bucket.empty_for(start + 2 * SECOND), None);
        assert_eq!(bucket.burst, 0);
    }

    #[test]
    fn exactly_the_rate_passes_over_time() {
        let (mut bucket, start) = bucket(1 << 20, 0);
        let (mut now, mut passed) = (start, 0_u64);
        while now < start + 10 * SECOND {
            match bucket.empty_for(now) {
                // The loop's clock is coarse.
                Some(_) => now += Duration::from_millis(3),
                None => {
                    bucket.charge(4096, now);
                    passed += 4096;
                }
            }
        }
        // Ten seconds' worth, and the full bucket at the start.
        let expected = 11 << 20;
        assert!(passed.abs_diff(expected) < 1 << 16, "{passed}");
    }

    #[test]
    fn sizes_and_times_of_zero_limit_nothing_and_the_largest_do_not_overflow() {
        let zero = BucketOptions::default();
        let mut limiter = Limiter::new(LimiterOptions {
            bytes: Some(zero),
            operations: None,
        });
        limiter.charge(u64::MAX);
        assert!(!limiter.is_blocked());
        let huge = BucketOptions {
            size: 1,
            refill: Duration::from_millis(u64::MAX),
            burst: u64::MAX,
        };
        limiter.change(LimiterOptions {
            bytes: Some(huge),
            operations: Some(huge),
        });
        limiter.charge(u64::MAX);
        limiter.charge(u64::MAX);
        limiter.charge(u64::MAX);
        assert!(limiter.is_blocked() && limiter.blocked_until() > Some(Instant::now()));
    }

    #[test]
    fn a_queue_in_which_nothing_waits_does_not_end_the_wait_of_another() {
        let mut limiter = Limiter::new(ONE_OPERATION);
        let throttled = AtomicU64::new(0);
        limiter.charge(1);
        assert!(limiter.holds_up(&throttled, || true));
        let until = limiter.blocked_until();
        assert!(!limiter.holds_up(&throttled, || false));
        limiter.forget_due();
        assert_eq!(limiter.blocked_until(), until);
        assert!(limiter.holds_up(&throttled, || true));
        assert_eq!(throttled.into_inner(), 1, "one wait, of two");
    }

    #[test]
    fn a_wait_that_is_over_is_kept_until_all_ask_again() {
        let throttled = AtomicU64::new(0);
        let mut limiter = Limiter::new(ONE_OPERATION);
        limiter.charge(1);
        assert!(limiter.holds_up(&throttled, || true));
        // New buckets are full: the time has come.
        limiter.change(ONE_OPERATION);
        let due = limiter.blocked_until();
        assert!(due <= Some(Instant::now()));
        // Another queue comes first, is served, and then held up itself.
        assert!(!limiter.holds_up(&throttled, || true));
        limiter.charge(1);
        assert!(limiter.holds_up(&throttled, || true));
        assert_eq!(limiter.blocked_until(), due, "who waits is called first");
        limiter.forget_due();
        assert_eq!(limiter.blocked_until(), None);
        assert!(limiter.holds_up(&throttled, || true));
        assert!(limiter.blocked_until() > Some(Instant::now()));
        assert_eq!(throttled.into_inner(), 2);
    }

    #[test]
    fn a_change_of_one_bucket_leaves_the_other_and_wakes_who_waits() {
        let one = BucketOptions {
            size: 1,
            refill: 1000 * SECOND,
            burst: 0,
        };
        let mut limiter = Limiter::new(LimiterOptions {
            bytes: Some(one),
            operations: Some(one),
        });
        limiter.charge(1);
        assert!(limiter.is_blocked());
        limiter.change(LimiterOptions {
            bytes: Some(BucketOptions::default()),
            operations: None,
        });
        assert!(limiter.blocked_until() <= Some(Instant::now()));
        assert!(limiter.is_blocked(), "operations are still limited");
        limiter.change(LimiterOptions {
            bytes: None,
            operations: Some(BucketOptions::default()),
        });
        assert!(!limiter.is_blocked());
        limiter.forget_due();
        assert_eq!(limiter.blocked_until(), None);
    }

    proptest! {
        /// Whatever is asked for, and when: over time no more than the rate passes, and nothing waits for ever.
        #[test]
        fn no_more_than_the_rate_passes_and_every_wait_ends(
            size in 1..1_u64 << 40,
            refill_ns in 1..10_000_000_000_u64,
            burst in 0..1_u64 << 20,
            asked in proptest::collection::vec((1..1_u64 << 24, 0..50_000_000_u64), 1..60),
        ) {
            let start = Instant::now();
            let refill = Duration::from_nanos(refill_ns);
            let mut bucket = Bucket::new(BucketOptions { size, refill, burst }, start).unwrap();
            let (mut now, mut passed, mut last) = (start, 0_u128, 0_u128);
            for (tokens, pause_ns) in asked {
                now += Duration::from_nanos(pause_ns);
                if let Some(wait) = bucket.empty_for(now) {
                    // Debts of some requests: a time that can be waited for.
                    let Some(then) = now.checked_add(wait) else { break };
                    prop_assert!(bucket.empty_for(then - Duration::from_nanos(1)).is_some());
                    now = then;
                    prop_assert_eq!(bucket.empty_for(now), None);
                }
                bucket.charge(tokens, now);
                passed += u128::from(tokens);
                last = u128::from(tokens);
                // What was there at first, what has come since, and a last one that is paid for later.
                let come = u128::from(size) * (now - start).as_nanos() / u128::from(refill_ns);
                let most = u128::from(size) + u128::from(burst) + come + last;
                prop_assert!(passed <= most, "{passed} of {most}");
            }
            prop_assert!(last > 0);
        }
    }
}
