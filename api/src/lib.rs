//! LightV's contract: what a client writes and what the monitor answers.
//!
//! Only data, no behaviour: this crate knows neither KVM nor devices, so that the command line and other clients
//! can use it alone. The JSON of [`config`] is that of Firecracker's `--config-file`, with additions that are
//! all optional.

pub mod config;
pub mod describe;
pub mod exit;
pub mod host;
pub mod timings;
