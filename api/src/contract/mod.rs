//! The bodies of the REST contract, one module per resource.
//!
//! Field names, defaults and which fields are required are those of Firecracker's API, whose clients are to work as
//! they are; what LightV adds is optional and marked as its own. The configuration file ([`crate::config`]) is made
//! of the same types. Here only form is checked: types, ranges that a type has, unknown fields. What a machine may be
//! is decided by those who build one.

pub mod actions;
pub mod balloon;
pub mod boot_source;
pub mod cpu;
pub mod drive;
pub mod entropy;
pub mod instance;
pub mod limiter;
pub mod logger;
pub mod machine;
pub mod memory_hotplug;
pub mod metrics;
pub mod mmds;
pub mod net;
pub mod pmem;
pub mod serial;
pub mod snapshot;
pub mod tuning;
pub mod vm;
pub mod vsock;
