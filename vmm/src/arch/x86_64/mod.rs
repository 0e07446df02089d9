//! x86_64: where things lie, what the CPU says it is, and how it starts.

pub mod boot_params;
pub mod cpuid;
pub mod layout;
pub mod msr;
pub mod start_state;
