//! Features and configuration of a disk (virtio 1.2 §5.2.3, §5.2.4).

use super::disk::Disk;
use crate::limits::{BLOCK_DISCARD_SECTORS_MAX, BLOCK_SEGMENTS_MAX};

/// Whether a guest's flushes reach the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum CacheType {
    /// No: flush is not offered, and what the guest has written is as safe as the host's page cache.
    #[default]
    Unsafe,
    /// Yes: flush is offered and ends when the host has synced the file.
    Writeback,
}

/// Feature bits of virtio-blk.
pub mod feature {
    /// The configuration says how many data buffers a request may have.
    pub const SEG_MAX: u64 = 1 << 2;
    /// The disk is read-only.
    pub const RO: u64 = 1 << 5;
    /// Flush requests reach the disk.
    pub const FLUSH: u64 = 1 << 9;
    /// There are several queues.
    pub const MQ: u64 = 1 << 12;
    /// What is discarded is given back to the host.
    pub const DISCARD: u64 = 1 << 13;
    /// Zeroes can be written without being sent.
    pub const WRITE_ZEROES: u64 = 1 << 14;
}

/// Bytes of the configuration that are used: up to `blk_size`.
const CONFIG_BYTES: usize = 24;
/// Where the number of queues is, 16 bits, of a disk that has several.
const QUEUES_AT: usize = 34;
/// The same of a disk that discards: all that virtio 1.2 knows.
const DISCARD_CONFIG_BYTES: usize = 60;
/// Where the limits of discards begin.
const DISCARD_AT: usize = 36;

/// What a disk offers.
pub(super) const fn features(disk: &Disk, cache: CacheType, queues: u16) -> u64 {
    let read_only = if disk.is_read_only() { feature::RO } else { 0 };
    let discard = if disk.discards() {
        feature::DISCARD | feature::WRITE_ZEROES
    } else {
        0
    };
    let flush = match cache {
        CacheType::Writeback => feature::FLUSH,
        CacheType::Unsafe => 0,
    };
    let multi_queue = if queues > 1 { feature::MQ } else { 0 };
    crate::virtio::feature::COMMON | feature::SEG_MAX | read_only | flush | discard | multi_queue
}

/// `struct virtio_blk_config`: `capacity` at 0, `seg_max` at 12, `num_queues` at 34, limits of discards from 36 on; what
/// belongs to features not offered is 0.
pub(super) fn config_space(disk: &Disk, queues: u16) -> Vec<u8> {
    let mut config = Vec::with_capacity(CONFIG_BYTES);
    config.extend_from_slice(&disk.capacity_sectors().to_le_bytes());
    config.extend_from_slice(&0_u32.to_le_bytes());
    config.extend_from_slice(&BLOCK_SEGMENTS_MAX.to_le_bytes());
    config.resize(CONFIG_BYTES, 0);
    if queues > 1 {
        config.resize(QUEUES_AT, 0);
        config.extend_from_slice(&queues.to_le_bytes());
    }
    if disk.discards() {
        config.resize(DISCARD_AT, 0);
        let most = BLOCK_DISCARD_SECTORS_MAX.to_le_bytes();
        let (one_range, one_sector) = (1_u32.to_le_bytes(), 1_u32.to_le_bytes());
        // max_discard_sectors, max_discard_seg, discard_sector_alignment, max_write_zeroes_sectors, max_write_zeroes_seg
        for field in [most, one_range, one_sector, most, one_range] {
            config.extend_from_slice(&field);
        }
        // write_zeroes_may_unmap
        config.push(1);
        config.resize(DISCARD_CONFIG_BYTES, 0);
    }
    config
}
