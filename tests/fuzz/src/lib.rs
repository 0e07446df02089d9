//! What is fuzzed: a module for each target, whose `run` takes one input. docs/fuzzing.md tells what each covers.
//!
//! A target panics when LightV does what it must not: that is a finding. Inputs are bytes, so that they can be written by
//! hand and cut down: `input` reads them.

#![deny(unsafe_code)]

pub mod api;
pub mod balloon;
pub mod block;
pub mod config;
pub mod console;
pub mod entropy;
mod fake_machine;
mod file;
pub mod http;
pub mod image;
pub mod kernel;
pub mod mmds;
pub mod mmio;
pub mod net;
pub mod overlay;
pub mod ports;
pub mod rootfs;
mod script;
pub mod seeds;
pub mod state;
#[expect(dead_code, reason = "the tests of devices use more of it")]
#[path = "../../../devices/tests/subjects/mod.rs"]
mod subjects;
#[expect(dead_code, reason = "the tests of devices use more of it")]
#[path = "../../../devices/tests/support/mod.rs"]
mod support;
#[allow(unsafe_code)]
mod sys;
pub mod vsock;

/// Bytes of one allocation, after which it is a finding: no input is longer than some KiB, and the largest limit of what
/// is made of one is 32 MiB.
pub const ALLOCATION_BYTES_MAX: usize = 64 << 20;

#[global_allocator]
static ALLOCATOR: sys::Limited = sys::Limited;

/// What a process does before its first input.
pub fn begin() {
    sys::ignore_sigpipe();
}
