//! What a snapshot keeps of devices: plain data, untrusted until a device has been made from it.
//!
//! The image encodes each with postcard and stores kind, version, length and checksum beside it, so the structs hold
//! the data only. A struct is never edited: a change is a new version with a `From` of the old one, and new golden
//! bytes under `devices/tests/golden`.

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use crate::fault::RestoreDeviceError;
pub use crate::serial::SerialStateV1;
pub use crate::virtio::balloon::state::{BalloonStateV1, HintingStateV1, StatV1};
pub use crate::virtio::block::state::{BlockStateV1, OverlayMapV1, OverlayRunV1};
pub use crate::virtio::console::state::{ConsoleStateV1, PortStateV1};
pub use crate::virtio::entropy::state::EntropyStateV1;
pub use crate::virtio::net::state::{NetStateV1, NetStateV2};
pub use crate::virtio::queue_state::QueueStateV1;
pub use crate::virtio::transport_state::TransportStateV1;
pub use crate::virtio::vsock::state::{PortPairV1, VsockStateV1};

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

impl Section for OverlayMapV1 {
    const KIND: &'static str = "overlay-map";
    const VERSION: u16 = 1;
}

impl Section for NetStateV1 {
    const KIND: &'static str = "virtio-net";
    const VERSION: u16 = 1;
}

impl Section for NetStateV2 {
    const KIND: &'static str = "virtio-net";
    const VERSION: u16 = 2;
}

impl Section for EntropyStateV1 {
    const KIND: &'static str = "virtio-rng";
    const VERSION: u16 = 1;
}

impl Section for BalloonStateV1 {
    const KIND: &'static str = "virtio-balloon";
    const VERSION: u16 = 1;
}

impl Section for ConsoleStateV1 {
    const KIND: &'static str = "virtio-console";
    const VERSION: u16 = 1;
}

impl Section for VsockStateV1 {
    const KIND: &'static str = "virtio-vsock";
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
    Net(NetStateV2),
    /// The entropy source.
    Entropy(EntropyStateV1),
    /// The console.
    Console(ConsoleStateV1),
    /// The memory balloon.
    Balloon(BalloonStateV1),
    /// Sockets between guest and host.
    Vsock(VsockStateV1),
}
