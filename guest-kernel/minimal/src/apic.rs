//! The local APIC (xAPIC mode, the state after reset) and the I/O APIC, programmed from CPL 3 by their register pages.
//!
//! xAPIC and not x2APIC: its registers are memory, so Rust reaches them without a service of the shim; KVM serves
//! both inside the kernel at the same cost.

use crate::mmio::Window;
use crate::shim::{LINES, VECTOR_LINE_0, VECTOR_SPURIOUS, VECTOR_TIMER};

const LOCAL_BASE: usize = 0xfee0_0000;
const IO_BASE: usize = 0xfec0_0000;
const PAGE_BYTES: usize = 4096;

/// Address of the register that ends an interrupt.
pub const EOI: usize = LOCAL_BASE + 0xb0;

/// Address of the register that holds the local APIC's identity, in bits 24-31.
pub const ID: usize = LOCAL_BASE + local::ID;

/// Local APIC registers (Intel SDM vol. 3 table 11-1). 32 bits each.
mod local {
    pub const ID: usize = 0x20;
    pub const ID_SHIFT: u32 = 24;
    pub const SPURIOUS: usize = 0xf0;
    pub const SPURIOUS_ENABLE: u32 = 1 << 8;
    pub const COMMAND_LOW: usize = 0x300;
    pub const LVT_TIMER: usize = 0x320;
    pub const LVT_LINT0: usize = 0x350;
    pub const LVT_MASKED: u32 = 1 << 16;
    pub const TIMER_INITIAL: usize = 0x380;
    pub const TIMER_CURRENT: usize = 0x390;
    pub const TIMER_DIVIDE: usize = 0x3e0;
    /// One count every 16 bus cycles.
    pub const TIMER_DIVIDE_BY_16: u32 = 0b0011;

    /// Interrupt command: to all CPUs but this one, level asserted.
    pub const COMMAND_ALL_OTHERS: u32 = 0b11 << 18 | 1 << 14;
    pub const COMMAND_INIT: u32 = 0b101 << 8;
    pub const COMMAND_STARTUP: u32 = 0b110 << 8;
}

/// I/O APIC registers (Intel 82093AA datasheet §3).
mod io {
    pub const SELECT: usize = 0x00;
    pub const DATA: usize = 0x10;
    /// Low half of the redirection entry of pin 0; each entry has two registers.
    pub const REDIRECTION_0: u32 = 0x10;
    pub const DESTINATION_SHIFT: u32 = 24;
}

/// Bus cycles of the local APIC's timer per microsecond: KVM's bus clock is 1 GHz, as is QEMU's.
const BUS_CYCLES_PER_US: u64 = 1000;
const DIVISOR: u64 = 16;

const fn local() -> Window {
    // SAFETY: the local APIC's page, where it is after reset; identity-mapped.
    unsafe { Window::new(LOCAL_BASE, PAGE_BYTES) }
}

const fn io() -> Window {
    // SAFETY: the first I/O APIC's page, where every PC has it; identity-mapped.
    unsafe { Window::new(IO_BASE, PAGE_BYTES) }
}

/// Lets interrupts in. The legacy PIC is kept out at its entry to this APIC, so it need not be there.
pub fn init() {
    local().write(local::LVT_LINT0, local::LVT_MASKED);
    local().write(
        local::SPURIOUS,
        local::SPURIOUS_ENABLE | u32::from(VECTOR_SPURIOUS),
    );
}

/// Lets interrupt line `line` (GSI) in: edge-triggered, to this CPU. False if there is no such line.
pub fn enable_line(line: u32) -> bool {
    if line >= u32::from(LINES) {
        return false;
    }
    let register = io::REDIRECTION_0 + 2 * line;
    io().write(io::SELECT, register + 1);
    io().write(io::DATA, id() << io::DESTINATION_SHIFT);
    io().write(io::SELECT, register);
    io().write(io::DATA, u32::from(VECTOR_LINE_0) + line);
    true
}

/// Identity of this CPU's local APIC.
pub fn id() -> u32 {
    local().read::<u32>(local::ID) >> local::ID_SHIFT
}

/// Readies the timer: one interrupt each time it is armed.
pub fn init_timer() {
    local().write(local::TIMER_DIVIDE, local::TIMER_DIVIDE_BY_16);
    local().write(local::LVT_TIMER, u32::from(VECTOR_TIMER));
}

/// Arms the timer to interrupt once after `delay_ns`, or after the longest delay it can do (68 s), whichever is less.
pub fn arm_timer(delay_ns: u64) {
    let counts = (delay_ns / 1000).saturating_mul(BUS_CYCLES_PER_US) / DIVISOR;
    local().write(
        local::TIMER_INITIAL,
        u32::try_from(counts.max(1)).unwrap_or(u32::MAX),
    );
}

/// Microseconds since the timer was armed for longer than this.
pub fn timer_elapsed_us() -> u64 {
    let initial: u32 = local().read(local::TIMER_INITIAL);
    let current: u32 = local().read(local::TIMER_CURRENT);
    u64::from(initial.wrapping_sub(current)) * DIVISOR / BUS_CYCLES_PER_US
}

/// Resets all other CPUs; they wait for [`start_others`].
pub fn init_others() {
    local().write(
        local::COMMAND_LOW,
        local::COMMAND_ALL_OTHERS | local::COMMAND_INIT,
    );
}

/// Starts all other CPUs in real mode at the page of this number.
pub fn start_others(page: u8) {
    local().write(
        local::COMMAND_LOW,
        local::COMMAND_ALL_OTHERS | local::COMMAND_STARTUP | u32::from(page),
    );
}
