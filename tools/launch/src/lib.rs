//! What `lightv run --detach` and the host agent have in common: where LightV's programs are, and how a monitor with a REST
//! API is started whose output goes to a file.

#![forbid(unsafe_code)]

pub mod monitor;
pub mod program;
pub mod serve;
