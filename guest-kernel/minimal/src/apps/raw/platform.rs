//! The control device's doorbells, ports, and device memory where there is no device.

use core::arch::asm;

use super::device::{Outcome, check, pages, peek, poke};
use crate::{apic, control, port};

/// Memory and the control device.
pub struct Platform {
    ram_end: u64,
    /// A page of text, and room for input.
    page: u64,
}

type Attack = fn(&mut Platform) -> Outcome;

pub const ATTACKS: &[(&str, Attack)] = &[
    ("doorbells-of-every-width-and-place", doorbells),
    ("the-read-side-is-written", read_side),
    ("ready-a-thousand-times", |_| ring(0x800, 4, 1000)),
    ("a-flood-of-marks", |_| ring(0x820, 4, 3000)),
    ("a-flood-of-clocks", |_| ring(0x828, 4, 1000)),
    ("print-of-nothing", |p| print(p.page, 0)),
    ("print-of-nothing-at-the-last-address", |_| {
        print(0xffff_ffff_ffff, 0)
    }),
    ("print-over-the-end-of-ram", |p| print(p.ram_end - 1, 2)),
    ("print-after-the-end-of-ram", |p| print(p.ram_end, 65_535)),
    ("print-of-registers", |_| print(0xc001_0000, 64)),
    ("print-of-the-control-device", |_| print(0xc000_0000, 64)),
    ("print-of-the-local-apic", |_| print(0xfee0_0000, 4096)),
    ("print-of-the-highest-address", |_| {
        print(0xffff_ffff_ffff, 65_535)
    }),
    ("print-error-of-registers", |_| {
        poke(CONTROL + 0x810, 8, 0xc001_0000 | 64 << 48);
        unchanged()
    }),
    ("memory-where-no-device-is", no_device),
    ("every-port-is-read", ports_read),
    ("ports-that-are-none-are-written", ports_written),
    ("every-command-of-the-keyboard-controller", keyboard),
    ("the-keyboard-controller-is-never-read", keyboard_unread),
    ("every-register-of-the-serial-port", serial),
    ("serial-port-in-a-loop", serial_loop),
    ("serial-output-by-one-instruction", serial_string),
    ("serial-input-by-one-instruction", serial_input),
];

const CONTROL: usize = 0xc000_0000;
const MAGIC: u64 = 0x5443_564c;
const STRING_BYTES: usize = 4096;

/// Ports of the keyboard controller and of the serial port.
const KEYBOARD_DATA: u16 = 0x60;
const KEYBOARD_COMMAND: u16 = 0x64;
const KEYBOARD_LINE: u32 = 1;
const SERIAL: u16 = 0x3f8;
/// Ports that this CPL may use.
const PORTS: u16 = 0x400;
/// The command that resets the machine.
const RESET: u8 = 0xfe;

impl Platform {
    pub fn new(ram_end: u64) -> Self {
        let page = pages(1);
        for at in 0..STRING_BYTES {
            page.write(at, b'.');
        }
        Self {
            ram_end,
            page: page.address(0),
        }
    }
}

/// Waits until the host has pressed keys, and reads them. The host presses none where nobody lets the interrupt in.
pub fn wait_for_keys() {
    apic::enable_line(KEYBOARD_LINE);
    let has_key = || port::read_u8(KEYBOARD_COMMAND) & 1 != 0;
    while !has_key() {
        core::hint::spin_loop();
    }
    while has_key() {
        port::read_u8(KEYBOARD_DATA);
    }
}

/// The control device is as it was.
fn unchanged() -> Outcome {
    let magic = peek(CONTROL, 4);
    check(
        magic == MAGIC && control::get().is_some(),
        "the magic number",
        magic,
    )
}

/// All but what ends the machine, and what prints.
fn doorbells(_: &mut Platform) -> Outcome {
    let around = 0x7f8..0x848;
    let sparse = (0x848..0xfff8).step_by(0x7d);
    for offset in around.chain(sparse) {
        for width in [1, 2, 4, 8] {
            let is_meant = matches!(
                (offset, width),
                (0x800 | 0x818 | 0x820 | 0x828 | 0x830, 4) | (0x808 | 0x810, 8)
            );
            if !is_meant {
                poke(CONTROL + offset, width, 0x1122_3344_5566_7788);
            }
        }
    }
    unchanged()
}

fn read_side(_: &mut Platform) -> Outcome {
    let before = peek(CONTROL + 0x58, 8);
    for offset in (0..0x100).step_by(4) {
        for value in [0, 123, u64::MAX] {
            poke(CONTROL + offset, 1, value);
            poke(CONTROL + offset, 4, value);
        }
    }
    let now = peek(CONTROL + 0x58, 8);
    check(now == before, "the size of RAM", now)?;
    unchanged()
}

fn ring(offset: usize, width: usize, times: u32) -> Outcome {
    for number in 0..times {
        poke(CONTROL + offset, width, number.into());
    }
    unchanged()
}

fn print(address: u64, len: u64) -> Outcome {
    poke(CONTROL + 0x808, 8, address | len << 48);
    unchanged()
}

/// What is not there reads as ones.
fn no_device(_: &mut Platform) -> Outcome {
    for address in [
        0xc001_0000 + 19 * 0x1000,
        0xc100_0000,
        0xd000_0000,
        0xe000_0000,
        0xfd00_0000,
        0xfed0_0000,
    ] {
        for offset in [0, 1, 2, 3, 7, 0xff8] {
            for width in [1, 2, 4, 8] {
                poke(address + offset, width, 0x1122_3344_5566_7788);
                let found = peek(address + offset, width);
                let ones = u64::MAX >> (64 - 8 * width);
                check(found == ones, "what is not there", found)?;
            }
        }
    }
    Ok(())
}

fn in_16(port: u16) -> u16 {
    let value: u16;
    // SAFETY: a port is not memory, and none of the devices here does DMA by it.
    unsafe { asm!("in ax, dx", in("dx") port, out("ax") value, options(nomem, nostack)) };
    value
}

fn in_32(port: u16) -> u32 {
    let value: u32;
    // SAFETY: the same.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack)) };
    value
}

fn out_16(port: u16, value: u16) {
    // SAFETY: the same.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nomem, nostack)) };
}

fn out_32(port: u16, value: u32) {
    // SAFETY: the same.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack)) };
}

fn ports_read(_: &mut Platform) -> Outcome {
    for port in 0..PORTS - 4 {
        port::read_u8(port);
        in_16(port);
        in_32(port);
    }
    Ok(())
}

fn ports_written(_: &mut Platform) -> Outcome {
    let is_device = |port: u16| (KEYBOARD_DATA - 4..=KEYBOARD_COMMAND).contains(&port);
    for port in (0..SERIAL - 4).filter(|port| !is_device(*port)) {
        port::write_u8(port, 0x5a);
        out_16(port, 0x5a5a);
        out_32(port, 0x5a5a_5a5a);
    }
    Ok(())
}

/// Each command but the one that resets the machine, with an argument of each kind; then it is as before.
fn keyboard(_: &mut Platform) -> Outcome {
    for command in (0..=u8::MAX).filter(|command| *command != RESET) {
        port::write_u8(KEYBOARD_COMMAND, command);
        for argument in [0, 0xff] {
            port::write_u8(KEYBOARD_DATA, argument);
        }
        out_16(KEYBOARD_DATA, command.into());
        out_32(KEYBOARD_DATA, u32::MAX);
        in_32(KEYBOARD_DATA);
    }
    keyboard_again()
}

/// Turns the keyboard and its interrupt on, and empties its output.
fn keyboard_again() -> Outcome {
    port::write_u8(KEYBOARD_COMMAND, 0x60);
    port::write_u8(KEYBOARD_DATA, 0x05);
    for _ in 0..1000 {
        if port::read_u8(KEYBOARD_COMMAND) & 1 == 0 {
            return Ok(());
        }
        port::read_u8(KEYBOARD_DATA);
    }
    check(false, "the keyboard controller is never empty", 0_u8)
}

/// Answers that nobody reads: there are no more than it has room for.
fn keyboard_unread(_: &mut Platform) -> Outcome {
    for _ in 0..3000 {
        port::write_u8(KEYBOARD_COMMAND, 0xaa);
    }
    keyboard_again()
}

fn serial(_: &mut Platform) -> Outcome {
    for value in [0, 1, 0x7f, 0x80, 0xff, 0x5a, 0x0f] {
        for register in (0..8).rev() {
            port::write_u8(SERIAL + register, value);
            port::read_u8(SERIAL + register);
            // The port after the last one is not for this CPL.
            if register < 7 {
                in_16(SERIAL + register);
            }
        }
    }
    for register in 0..5 {
        out_32(SERIAL + register, 0xffff_ffff);
        in_32(SERIAL + register);
    }
    serial_again()
}

/// No loop, no interrupts, data in the first register.
fn serial_again() -> Outcome {
    for (register, value) in [(3, 3), (1, 0), (4, 0), (2, 7)] {
        port::write_u8(SERIAL + register, value);
    }
    for _ in 0..1000 {
        if port::read_u8(SERIAL + 5) & 1 == 0 {
            break;
        }
        port::read_u8(SERIAL);
    }
    Ok(())
}

/// What is sent comes back, and nobody reads it.
fn serial_loop(_: &mut Platform) -> Outcome {
    port::write_u8(SERIAL + 4, 0x10);
    port::write_u8(SERIAL + 1, 0x0f);
    for _ in 0..3000 {
        port::write_u8(SERIAL, 0x5a);
    }
    serial_again()
}

fn serial_string(platform: &mut Platform) -> Outcome {
    // SAFETY: reads the page, which is of this length and in place for good.
    unsafe {
        asm!("rep outsb", in("dx") SERIAL, inout("rsi") platform.page => _,
            inout("rcx") STRING_BYTES => _, options(nostack));
    }
    Ok(())
}

fn serial_input(platform: &mut Platform) -> Outcome {
    for port in [SERIAL, SERIAL + 5, KEYBOARD_DATA, KEYBOARD_COMMAND, 0x80] {
        // SAFETY: writes the page, which is no Rust object, of this length, and in place for good.
        unsafe {
            asm!("rep insb", in("dx") port, inout("rdi") platform.page => _,
                inout("rcx") STRING_BYTES => _, options(nostack));
        }
    }
    Ok(())
}
