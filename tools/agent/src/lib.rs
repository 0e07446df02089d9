//! The host agent: one process that owns the images, pools and running microVMs of a host (docs/agent.md).
//!
//! ```text
//!   client --HTTP--> server --> router --+--> start, end, logs --> sandboxes --> monitors (lightv-vmm), each a process
//!                                        +--> images               of its own that goes on when the agent ends
//!                                        +--> pools --> templates --> machines that are ready; they end with the agent
//!                                        +--> events
//! ```
//!
//! One thread does everything but what waits for a disk. What must not be forgotten is written down before it is answered
//! ([`folders`]); what the agent before this one has left is found by [`adopt`].

#![deny(unsafe_code)]

pub mod adopt;
pub mod agent;
pub mod answer;
pub mod args;
pub mod care;
pub mod clock;
pub mod end;
pub mod events;
pub mod exec;
pub mod figures;
pub mod folders;
pub mod fork;
pub mod guest;
pub mod host;
pub mod images;
pub mod jail;
pub mod keep;
pub mod limits;
pub mod logs;
pub mod meter;
pub mod observe;
pub mod openapi;
pub mod output;
pub mod patient;
pub mod plan;
pub mod pool_requests;
pub mod pools;
pub mod process;
pub mod query;
pub mod race;
pub mod refusal;
pub mod route;
pub mod router;
pub mod run;
pub mod run_socket;
pub mod sandboxes;
pub mod server;
pub mod start;
#[allow(unsafe_code)]
mod sys;
pub mod tcp;
pub mod tokens;
pub mod vm_api;
pub mod warm;
pub mod web;
