//! What a LightV guest sees: virtio devices behind virtio-mmio, the serial port, the i8042, pvpanic and the control device;
//! and the metadata service, which it finds on its network.
//!
//! The crate knows guest memory and eventfds; never KVM, never the REST API. Nothing a guest does may make it panic, loop or
//! allocate without bound: every limit is in [`limits`].
//!
//! Each module uses only those listed before it: `memory`, `fault`, `limits`, `counters`, `register_page`, `interrupt`, `sys`,
//! `mmds`, `state` (with the saved form of each device), `virtio::ring`, `virtio::live_config`, `virtio::device`, the devices,
//! `virtio::mmio`.

#![deny(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::todo,
        clippy::unreachable
    )
)]

pub mod control;
pub mod counters;
pub mod fault;
pub mod histogram;
pub mod i8042;
pub mod interrupt;
pub mod limiter;
pub mod limits;
pub mod memory;
pub mod mmds;
pub mod pvpanic;
pub mod register_page;
pub mod serial;
pub mod state;
#[allow(unsafe_code)]
mod sys;
pub mod virtio;

#[cfg(test)]
extern crate self as lightv_devices;
#[cfg(test)]
#[path = "../tests/support/mod.rs"]
mod test_support;
