//! x86_64: where things lie, what the CPU says it is, and how it starts.

pub mod acpi;
pub mod board;
pub mod boot_params;
pub mod boot_tables;
pub mod cpu_template;
pub mod cpuid;
pub mod generation;
pub mod guest_tsc;
pub mod layout;
pub mod linux_kernel;
pub mod mptable;
pub mod msr;
pub mod rng_seed;
pub mod software_kvm;
pub mod start_state;
