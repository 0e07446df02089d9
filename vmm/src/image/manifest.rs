//! What stands in an image in words: JSON, for tools and people, and the configuration for a start.

use lightv_api::config::VmSpec;
use lightv_devices::state::Section;
use serde::{Deserialize, Serialize};

/// The manifest, version 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of LightV that wrote the image.
    pub written_by: String,
    /// When, in seconds since 1970.
    pub created_unix_s: u64,
    /// Restores that lie between the boot and this image.
    pub restores: u64,
    /// Guest RAM in bytes.
    pub ram_bytes: u64,
    /// The machine's configuration. Its kernel and initial RAM disk are sections of the image.
    pub config: VmSpec,
    /// Lengths of the disks when the image was saved, in bytes, in the order of the machine's disks.
    pub disk_bytes: Vec<u64>,
}

/// The guest's RAM in the `memory` section, version 1: the runs follow each other there without gaps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryMapV1 {
    /// Runs in address order.
    pub runs: Vec<MemoryRunV1>,
}

/// A stretch of whole pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryRunV1 {
    /// Guest-physical address in bytes.
    pub address: u64,
    /// Length in bytes.
    pub bytes: u64,
}

impl Section for MemoryMapV1 {
    const KIND: &'static str = "memory-map";
    const VERSION: u16 = 1;
}
