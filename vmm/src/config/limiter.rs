//! Rate limiters: from the words of the contract to the device's, and changes of a running machine's.

use std::time::Duration;

use lightv_api::config::VmSpec;
use lightv_api::contract::limiter::{RateLimiter, TokenBucket, patched};
use lightv_devices::limiter::{BucketOptions, LimiterOptions};

/// Other limits for a device of a running machine. Buckets that are not named stay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LimitsPatch {
    /// For a drive.
    Drive {
        /// Its id.
        id: String,
        /// Its limits.
        limiter: Option<RateLimiter>,
    },
    /// For a network interface.
    Net {
        /// Its id.
        id: String,
        /// Of what the guest receives.
        receive: Option<RateLimiter>,
        /// Of what it sends.
        transmit: Option<RateLimiter>,
    },
}

/// The limits that `limiter` names.
#[must_use]
pub fn options(limiter: Option<RateLimiter>) -> LimiterOptions {
    let limiter = limiter.unwrap_or_default();
    LimiterOptions {
        bytes: limiter.bandwidth.map(bucket),
        operations: limiter.ops.map(bucket),
    }
}

fn bucket(bucket: TokenBucket) -> BucketOptions {
    BucketOptions {
        size: bucket.size,
        refill: Duration::from_millis(bucket.refill_time),
        burst: bucket.one_time_burst.unwrap_or(0),
    }
}

/// `spec` has the limits of `patch` from now on, so that a save has them too.
pub(super) fn patch(spec: &mut VmSpec, patch: &LimitsPatch) {
    match patch {
        LimitsPatch::Drive { id, limiter } => {
            let drives = spec.drives.iter_mut();
            for drive in drives.filter(|drive| drive.drive_id == *id) {
                drive.rate_limiter = patched(drive.rate_limiter, *limiter);
            }
        }
        LimitsPatch::Net {
            id,
            receive,
            transmit,
        } => {
            let nets = spec.network_interfaces.iter_mut();
            for net in nets.filter(|net| net.iface_id == *id) {
                net.rx_rate_limiter = patched(net.rx_rate_limiter, *receive);
                net.tx_rate_limiter = patched(net.tx_rate_limiter, *transmit);
            }
        }
    }
}
