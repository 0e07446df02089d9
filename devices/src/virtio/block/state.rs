//! Saved form of a disk.

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
