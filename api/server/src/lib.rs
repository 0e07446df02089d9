//! The REST server that orchestrators already speak to: HTTP over a Unix socket, and the state machine behind it.
//!
//! ```text
//!   client --HTTP--> server (thread api) --Request--> Service --> Controller (its own thread) --calls--> Machine
//!                       |                                |                                        (the monitor)
//!                       |<------------- Reply -----------+-- View: what needs no machine, at once
//!                       |<------------- events ------------- Feed: what happens, told by the monitor
//! ```
//!
//! A crate of its own, so that what starts a VM without a server links neither hyper nor tokio
//! (docs/adr/0012-rest-server.md). [`server`] serves a socket, [`controller`] decides what is legal when and calls the
//! monitor through [`machine::Machine`], [`feed`] tells clients what happens, [`openapi`] describes it all.

#![forbid(unsafe_code)]

mod answer;
mod connection;
pub mod controller;
pub mod exporter;
pub mod feed;
pub mod limits;
pub mod machine;
pub mod openapi;
pub mod server;
pub mod service;
pub mod settings;
mod stream;
mod transport;
