//! The only place of this crate with `unsafe`: one operation a block, each with its reason.

pub mod bytes;
pub mod cpu;
pub mod file;
pub mod fork;
pub mod jail;
pub mod kvm;
pub mod mapping;
pub mod process;
pub mod signal;
pub mod sigsys;
pub mod uffd;
