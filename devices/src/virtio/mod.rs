//! Virtio 1.2 devices behind virtio-mmio.

pub mod balloon;
pub mod block;
pub(crate) mod chain;
pub mod console;
pub mod device;
pub mod device_status;
pub mod entropy;
pub mod live_config;
pub mod mmio;
pub mod net;
pub mod queue_state;
pub(crate) mod receive;
pub(crate) mod ring;
pub mod transport_state;
pub mod vsock;

/// Feature bits that concern the rings (virtio 1.2 §6).
pub mod feature {
    /// The device speaks virtio 1: always offered, must be accepted.
    pub const VERSION_1: u64 = 1 << 32;
    /// Notifications are suppressed by index.
    pub const RING_EVENT_IDX: u64 = 1 << 29;
    /// Descriptors may lie in a table of their own.
    pub const RING_INDIRECT_DESC: u64 = 1 << 28;
    /// What every device of ours offers.
    pub const COMMON: u64 = VERSION_1 | RING_EVENT_IDX | RING_INDIRECT_DESC;
}
