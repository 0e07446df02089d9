//! What a kernel is told of the board: the same facts for every kind of table.

/// What the tables tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoardFacts {
    /// Number of vCPUs, 1–32. Their APIC ids are their numbers.
    pub vcpus: u8,
    /// Devices on virtio-mmio, in the order of their pages.
    pub devices: Vec<MmioPlace>,
}

/// Where a device on virtio-mmio is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MmioPlace {
    /// Address of its registers, [`super::layout::MMIO_BYTES`] of them.
    pub address: u32,
    /// Its interrupt line: edge, active high.
    pub gsi: u32,
}
