//! Saved forms of a disk, and of a delta in memory over one.

use serde::{Deserialize, Serialize};

use crate::fault::RestoreDeviceError;
use crate::virtio::block::config::CacheType;
use crate::virtio::block::disk::Disk;

/// Saved virtio-blk, version 1. Never edit: add `BlockStateV2` and a `From` of this.
///
/// The path is not part of it: a restore is told which file to use, and must not open whatever lies at an old path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockStateV1 {
    /// The guest was told that it may not write.
    pub read_only: bool,
    /// Flush was offered.
    pub flush_offered: bool,
    /// Length of the disk in bytes.
    pub len_bytes: u64,
}

impl BlockStateV1 {
    /// What the guest was offered.
    #[must_use]
    pub const fn cache(&self) -> CacheType {
        if self.flush_offered {
            CacheType::Writeback
        } else {
            CacheType::Unsafe
        }
    }

    pub(super) fn check(&self, id: &str, disk: &Disk) -> Result<(), RestoreDeviceError> {
        if self.len_bytes != disk.len_bytes() {
            return Err(RestoreDeviceError::DiskSize {
                device: id.to_owned(),
                saved_bytes: self.len_bytes,
                found_bytes: disk.len_bytes(),
            });
        }
        if self.read_only != disk.is_read_only() {
            return Err(RestoreDeviceError::DiskReadOnly {
                device: id.to_owned(),
                saved: self.read_only,
                found: disk.is_read_only(),
            });
        }
        Ok(())
    }
}

/// Which blocks a saved delta has, version 1. Never edit: add a V2.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OverlayMapV1 {
    /// Length of the disk in bytes.
    pub disk_bytes: u64,
    /// XXH3-64 of some blocks of the disk below; none when that is in the image too.
    pub base: Option<u64>,
    /// Stretches of blocks, in order, disjoint.
    pub runs: Vec<OverlayRunV1>,
}

/// A stretch of blocks of 4 KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OverlayRunV1 {
    /// Its first block on the disk.
    pub block: u64,
    /// How many there are.
    pub blocks: u64,
    /// They are zero, and not in the section. Those of the others follow each other there, in order.
    pub is_zero: bool,
}
