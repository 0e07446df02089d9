//! Just enough of the keyboard controller for a guest to reset the machine.
//!
//! There is no keyboard: the output buffer is always full and never empties, from which Linux concludes in 16 reads
//! that no controller is there, instead of waiting half a second for each answer. The input buffer is always empty, so
//! that a reboot by the keyboard controller does not wait for it.

/// The data port.
pub const DATA_PORT: u16 = 0x60;
/// The command port when written, the status port when read.
pub const COMMAND_PORT: u16 = 0x64;

/// System control port B, between the two.
pub const SYSTEM_CONTROL_PORT: u16 = 0x61;

/// Timer 2 has run out, so that nobody waits for it; no reason for an NMI.
const SYSTEM_CONTROL_IDLE: u8 = 0x20;
/// Pulse the reset line of the CPU.
const COMMAND_RESET: u8 = 0xfe;
/// Output buffer full; input buffer (bit 1) empty.
const STATUS_OUTPUT_FULL: u8 = 0x01;

/// What a write means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum I8042Event {
    /// Nothing.
    None,
    /// The guest wants a reset.
    Reset,
}

/// The keyboard controller.
#[derive(Debug, Default)]
pub struct I8042 {}

impl I8042 {
    /// It has no state.
    #[must_use]
    pub const fn new() -> Self {
        Self {}
    }

    /// A read of one byte from `port`. Ports that are not the controller's read as ones.
    #[must_use]
    pub const fn read(&self, port: u16) -> u8 {
        match port {
            COMMAND_PORT => STATUS_OUTPUT_FULL,
            SYSTEM_CONTROL_PORT => SYSTEM_CONTROL_IDLE,
            _ => 0xff,
        }
    }

    /// A write of one byte to `port`.
    #[must_use]
    pub const fn write(&mut self, port: u16, value: u8) -> I8042Event {
        match (port, value) {
            (COMMAND_PORT, COMMAND_RESET) => I8042Event::Reset,
            _ => I8042Event::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_reset_command_resets() {
        let mut i8042 = I8042::new();
        for port in 0x60..0x70 {
            for value in 0..=u8::MAX {
                let is_reset = port == 0x64 && value == 0xfe;
                let event = if is_reset {
                    I8042Event::Reset
                } else {
                    I8042Event::None
                };
                assert_eq!(i8042.write(port, value), event, "{port:#x} {value:#x}");
            }
        }
    }

    #[test]
    fn a_driver_finds_no_controller_and_never_waits_to_write() {
        let i8042 = I8042::new();
        for _ in 0..100 {
            assert_eq!(i8042.read(0x64) & 3, 1);
            assert_eq!(i8042.read(0x60), 0xff);
        }
    }
}
