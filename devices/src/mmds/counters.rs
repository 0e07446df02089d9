//! What the metadata service counts: Firecracker's group `mmds`.

use std::sync::atomic::{AtomicU64, Ordering};

/// Declares the counters once, live and as they are at a moment.
macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident)*) => {
        /// The counters.
        #[derive(Debug, Default)]
        pub(super) struct Counters { $(pub(super) $name: AtomicU64,)* }

        /// What the metadata service has counted since the process began.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct MmdsCounts { $($(#[$doc])* pub $name: u64,)* }

        impl Counters {
            /// All of them now.
            pub(super) fn counts(&self) -> MmdsCounts {
                MmdsCounts { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Frames of the guest that were taken.
    rx_accepted
    /// Of these, those that could not be read: malformed, a wrong checksum, or more than is taken.
    rx_accepted_err
    /// Of these, those that are neither ARP nor TCP.
    rx_accepted_unusual
    /// What the guest sent that is no Ethernet frame.
    rx_bad_eth
    /// Requests with a token that is not valid.
    rx_invalid_token
    /// Requests without a token.
    rx_no_token
    /// TCP segments that were read.
    rx_count
    /// Bytes of frames that the guest was given.
    tx_bytes
    /// Frames that were made for the guest.
    tx_count
    /// Frames that the guest was not given: it has no buffers for them.
    tx_errors
    /// Frames that the guest was given.
    tx_frames
    /// Connections that the guest has begun.
    connections_created
    /// Connections that have ended.
    connections_destroyed
}

/// Adds one.
pub(super) fn count(counter: &AtomicU64) {
    add(counter, 1);
}

/// Adds `amount`.
pub(super) fn add(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Ordering::Relaxed);
}
