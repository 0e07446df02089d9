//! Features and configuration of a disk (virtio 1.2 §5.2.3, §5.2.4).

use crate::limits::BLOCK_SEGMENTS_MAX;

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
}

/// Bytes of the configuration that are used: up to `blk_size`.
const CONFIG_BYTES: usize = 24;

/// What a disk offers.
pub(super) const fn features(read_only: bool, cache: CacheType) -> u64 {
    let read_only = if read_only { feature::RO } else { 0 };
    let flush = match cache {
        CacheType::Writeback => feature::FLUSH,
        CacheType::Unsafe => 0,
    };
    crate::virtio::feature::COMMON | feature::SEG_MAX | read_only | flush
}

/// `struct virtio_blk_config`: `capacity` at 0, `seg_max` at 12; what belongs to features not offered is 0.
pub(super) fn config_space(capacity_sectors: u64) -> Vec<u8> {
    let mut config = Vec::with_capacity(CONFIG_BYTES);
    config.extend_from_slice(&capacity_sectors.to_le_bytes());
    config.extend_from_slice(&0_u32.to_le_bytes());
    config.extend_from_slice(&BLOCK_SEGMENTS_MAX.to_le_bytes());
    config.resize(CONFIG_BYTES, 0);
    config
}
