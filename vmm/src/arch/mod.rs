//! What differs between processors. Only x86_64 exists; another one is a folder beside it.

#[cfg(target_arch = "x86_64")]
pub mod x86_64;
#[cfg(target_arch = "x86_64")]
pub use x86_64 as host;

/// Number of a vCPU: 0–31.
pub type VcpuId = u8;
