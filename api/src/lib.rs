//! LightV's contract: what a client writes and what the monitor answers.
//!
//! Only data, no behaviour: this crate knows neither KVM nor devices, nor sockets, so that the command line and other
//! clients can use it alone, and the start path of a VM links nothing that it does not need. The server is a crate of its
//! own, `lightv-api-server`. The JSON of [`config`] is that of Firecracker's `--config-file`, that of [`contract`] its
//! REST API's, both with additions that are all optional.

pub mod agent;
pub mod config;
pub mod contract;
pub mod describe;
pub mod event;
pub mod exit;
pub mod fault;
pub mod host;
pub mod offer;
pub mod openapi;
pub mod request;
pub mod runtime;
pub mod template;
pub mod timings;
