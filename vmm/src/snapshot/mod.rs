//! What a snapshot keeps of the machine itself, and the order in which it is taken and put back.
//!
//! Saved forms are plain data, untrusted until they have been checked (docs/snapshot-format.md). Devices have theirs in
//! `lightv-devices`.

pub mod irqchip_state;
pub mod memory_file;
pub mod page_log;
pub mod page_map;
pub mod ram_scan;
pub mod saved;
pub mod served;
pub mod vcpu_state;
pub mod working_set;
