//! What `lightv-vmm --describe IMAGE` prints as JSON, and what `lightv inspect` and `lightv images` show.

use serde::{Deserialize, Serialize};

use crate::config::VmSpec;

/// An image, read without decoding more than its header, manifest and checksums.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImageDescription {
    /// The file, as it was named.
    pub path: String,
    /// Length of the file in bytes.
    pub file_bytes: u64,
    /// Bytes that the file takes on its file system.
    pub allocated_bytes: u64,
    /// Version of the container format.
    pub format_version: u16,
    /// `x86_64`.
    pub architecture: String,
    /// Version of LightV that wrote the image.
    pub written_by: String,
    /// When, in seconds since 1970-01-01 UTC.
    pub created_unix_s: u64,
    /// Restores that lie between the boot and this image.
    pub restores: u64,
    /// Guest RAM in bytes.
    pub ram_bytes: u64,
    /// Whether the image holds a snapshot (else it can only be booted).
    pub has_snapshot: bool,
    /// The configuration of the machine that was saved.
    pub config: VmSpec,
    /// The sections of the file, in file order.
    pub sections: Vec<SectionDescription>,
}

/// One section of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SectionDescription {
    /// Kind, for example `manifest`, `memory`, `vcpu`.
    pub kind: String,
    /// Instance, for example the number of a vCPU or the place of a device.
    pub index: u32,
    /// Version of this kind of section.
    pub version: u16,
    /// Offset in the file in bytes.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
    /// XXH3-64 of the section's bytes, in hex.
    pub checksum: String,
    /// Whether the bytes have this checksum.
    pub intact: bool,
}

/// What `lightv inspect --pid` prints of a running VM's process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessDescription {
    /// Process id.
    pub pid: u32,
    /// Resident memory, guest RAM included, in KiB.
    pub resident_kib: u64,
    /// Names of the threads.
    pub threads: Vec<String>,
    /// What only root is told; a monitor keeps it from others, its own user included.
    #[serde(flatten)]
    pub details: Option<ProcessDetails>,
}

/// What `lightv inspect --pid` prints more for root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessDetails {
    /// Proportional set size of everything but guest RAM, in KiB.
    pub own_pss_kib: u64,
    /// Proportional set size of guest RAM, in KiB.
    pub guest_pss_kib: u64,
    /// Guest RAM that is this VM's alone (written since the restore), in KiB.
    pub guest_private_kib: u64,
    /// Open files, as `/proc/PID/fd` shows them.
    pub open_files: Vec<String>,
}
