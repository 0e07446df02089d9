//! Work of known size: routines that the minimal guest runs and that the host runs too, to compare the two, and the
//! data that one side makes and the other checks.
//!
//! All are pure functions over slices: no clock, no allocation, no output. Whoever calls them measures the time.

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod block;
pub mod compute;
pub mod disk;
pub mod memory;
pub mod network;
pub mod pattern;
pub mod random;
pub mod sha256;
pub mod suite;
