//! How LightV's claims are measured: end to end, the sides alternating in one run on one host.
//!
//! Every result names its case, its unit and the case that it is compared with; [`report`] is the one JSON shape,
//! and [`plot`] its picture.

#![deny(unsafe_code)]

pub mod api;
pub mod churn;
pub mod compute;
pub mod density;
pub mod disk;
pub mod fork;
pub mod guest;
pub mod host_agent;
pub mod idle;
pub mod net;
pub mod plot;
pub mod pool;
pub mod preset;
pub mod process;
pub mod report;
pub mod simulate;
pub mod start;
pub mod stats;
pub mod two_sided;
pub mod vsock;

mod first_byte;
mod fleet;
mod stream;
#[allow(unsafe_code)]
mod sys;
