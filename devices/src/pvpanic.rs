//! pvpanic: one byte by which a kernel says that it panics (QEMU's docs/specs/pvpanic.rst). Linux writes it after it has
//! said why on its console.

/// Bit of the byte: the guest has panicked, and the host is to handle it. The only one that is offered.
const PANICKED: u8 = 1 << 0;

/// What a read gives: the events that a guest may report.
#[must_use]
pub const fn events() -> u8 {
    PANICKED
}

/// Whether `value`, written, says that the guest has panicked.
#[must_use]
pub const fn is_panic(value: u8) -> bool {
    value & PANICKED != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_offered_is_a_panic() {
        assert_eq!(events(), 1);
        for value in 0..=u8::MAX {
            // Bit 1: a crash kernel of the guest's own takes over, so the machine goes on.
            assert_eq!(is_panic(value), value & 1 == 1, "{value:#x}");
        }
    }
}
