//! What a snapshot keeps of devices: plain data, untrusted until a device has been made from it.
//!
//! The image encodes each with postcard and stores kind, version, length and checksum beside it, so the structs hold
//! the data only. A struct is never edited: a change is a new version with a `From` of the old one, and new golden
//! bytes under `devices/tests/golden`.

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use crate::serial::SerialStateV1;
pub use crate::virtio::block::state::BlockStateV1;
pub use crate::virtio::entropy::EntropyStateV1;
pub use crate::virtio::net::state::NetStateV1;
pub use crate::virtio::queue_state::QueueStateV1;
pub use crate::virtio::transport_state::TransportStateV1;

/// A kind of section of an image.
pub trait Section: Serialize + DeserializeOwned {
    /// Name of the kind in the section table.
    const KIND: &'static str;
    /// Version of the struct's layout.
    const VERSION: u16;
}

impl Section for TransportStateV1 {
    const KIND: &'static str = "virtio-mmio";
    const VERSION: u16 = 1;
}

impl Section for BlockStateV1 {
    const KIND: &'static str = "virtio-blk";
    const VERSION: u16 = 1;
}

impl Section for NetStateV1 {
    const KIND: &'static str = "virtio-net";
    const VERSION: u16 = 1;
}

impl Section for EntropyStateV1 {
    const KIND: &'static str = "virtio-rng";
    const VERSION: u16 = 1;
}

impl Section for SerialStateV1 {
    const KIND: &'static str = "serial";
    const VERSION: u16 = 1;
}

/// Saved form of any virtio device. Closed: a new device is a compile error everywhere it matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceState {
    /// A disk.
    Block(BlockStateV1),
    /// A network card.
    Net(NetStateV1),
    /// The entropy source.
    Entropy(EntropyStateV1),
}

/// Why a device could not be made from its saved form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestoreDeviceError {
    /// The disk is not the one that was saved.
    #[error("Disk {device} had {saved_bytes} bytes when it was saved and has {found_bytes} now")]
    DiskSize {
        /// Id of the device.
        device: String,
        /// Length when it was saved, in bytes.
        saved_bytes: u64,
        /// Length now, in bytes.
        found_bytes: u64,
    },
    /// The guest could write to the disk and now could not, or the other way round.
    #[error("Disk {device} was saved with read-only {saved} and is opened with read-only {found}")]
    DiskReadOnly {
        /// Id of the device.
        device: String,
        /// When it was saved.
        saved: bool,
        /// Now.
        found: bool,
    },
    /// The saved network address is none that a card can have.
    #[error("Network interface {device} was saved with a MAC address that no interface can have")]
    Mac {
        /// Id of the device.
        device: String,
    },
    /// The saved MTU is none that an interface can have.
    #[error("Network interface {device} was saved with an MTU of {mtu}, outside 68-65535")]
    Mtu {
        /// Id of the device.
        device: String,
        /// What was saved.
        mtu: u16,
    },
}
