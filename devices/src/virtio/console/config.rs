//! Features and configuration of the console (virtio 1.2 §5.3.3, §5.3.4).

use crate::virtio::console::ports::PORTS;

/// Feature bits of virtio-console.
pub mod feature {
    /// The configuration has the size of the terminal, and changes of it are told.
    pub const SIZE: u64 = 1 << 0;
    /// There are several ports, and queues for messages about them.
    pub const MULTIPORT: u64 = 1 << 1;
}

/// What the console offers. The same with and without a terminal: a snapshot made without one is run with one.
pub(super) const FEATURES: u64 =
    crate::virtio::feature::COMMON | feature::SIZE | feature::MULTIPORT;

/// Size of a terminal in characters; 0 is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TerminalSize {
    /// Characters in a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

impl TerminalSize {
    /// Whether both are known.
    #[must_use]
    pub const fn is_known(self) -> bool {
        self.columns != 0 && self.rows != 0
    }
}

/// `struct virtio_console_config`: columns, rows, number of ports; `emerg_wr` belongs to a feature that is not offered.
pub(super) fn config_space(size: TerminalSize) -> [u8; 12] {
    let [a, b] = size.columns.to_le_bytes();
    let [c, d] = size.rows.to_le_bytes();
    let [e, f, g, h] = u32::try_from(PORTS).unwrap_or(u32::MAX).to_le_bytes();
    [a, b, c, d, e, f, g, h, 0, 0, 0, 0]
}
