//! Which places of a disk are read or written, in which order: the same for a guest and its host.

use crate::random::SplitMix64;

/// A run over a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Plan {
    /// Bytes of each request: what the disk is divided into.
    pub request_bytes: u64,
    /// Bytes of the disk.
    pub disk_bytes: u64,
    /// One after the other, or anywhere.
    pub order: Order,
}

/// In which order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// One after the other from the beginning on, and again.
    Sequential,
    /// Anywhere, by a seed.
    Random(u64),
}

impl Plan {
    /// The places of the requests, in bytes, without end. Nothing for a disk that is smaller than a request.
    pub fn places(&self) -> impl Iterator<Item = u64> + use<> {
        let (bytes, order) = (self.request_bytes, self.order);
        let slots = self.disk_bytes.checked_div(bytes).unwrap_or(0);
        let mut random = match order {
            Order::Sequential => None,
            Order::Random(seed) => Some(SplitMix64::new(seed)),
        };
        let mut next = 0;
        core::iter::from_fn(move || {
            if slots == 0 {
                return None;
            }
            let slot = match &mut random {
                Some(random) => random.below(slots),
                None => next % slots,
            };
            next += 1;
            Some(slot * bytes)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(order: Order) -> Plan {
        Plan {
            request_bytes: 4096,
            disk_bytes: 3 * 4096 + 100,
            order,
        }
    }

    #[test]
    fn places_are_whole_requests_of_the_disk() {
        let sequential = plan(Order::Sequential).places().take(4);
        assert!(sequential.eq([0, 4096, 8192, 0]));
        let random = || plan(Order::Random(7)).places().take(100);
        assert!(random().all(|place| [0, 4096, 8192].contains(&place)));
        assert!(random().eq(random()));
        assert!(!random().eq(plan(Order::Random(8)).places().take(100)));
    }

    #[test]
    fn a_disk_that_is_too_small_has_no_places() {
        let small = Plan {
            disk_bytes: 4095,
            ..plan(Order::Sequential)
        };
        assert_eq!(small.places().next(), None);
    }
}
