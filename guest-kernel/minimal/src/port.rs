//! Port I/O, which the task state segment's I/O map allows at CPL 3.

use core::arch::asm;

/// Writes one byte to `port`.
pub fn write_u8(port: u16, value: u8) {
    // SAFETY: a port is not memory; the devices behind the ports this crate names do no DMA.
    unsafe {
        asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags))
    };
}

/// Reads one byte from `port`.
pub fn read_u8(port: u16) -> u8 {
    let value;
    // SAFETY: as for write_u8.
    unsafe {
        asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags))
    };
    value
}
