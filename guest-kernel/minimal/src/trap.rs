//! How the guest ends when something is wrong: exceptions and panics report themselves.

use core::panic::PanicInfo;

use crate::control;
use crate::port;
use crate::shim;
use crate::{eprintln, println};

/// i8042 command port, and the command that pulses the CPU's reset line.
const I8042_COMMAND: u16 = 0x64;
const I8042_RESET: u8 = 0xfe;

/// What the shim leaves on its stack: pushed by the CPU (Intel SDM vol. 3 §6.14.2), but for the vector.
#[repr(C)]
#[derive(Debug)]
struct TrapFrame {
    vector: u64,
    error: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

/// Entered from the shim at CPL 3 on an exception, on an empty stack.
#[unsafe(no_mangle)]
extern "C" fn guest_trap(frame: &TrapFrame, cr2: u64) -> ! {
    eprintln!(
        "guest exception: vector={} error={:#x} rip={:#x} cs={:#x} rsp={:#x} rflags={:#x} cr2={cr2:#x}",
        frame.vector, frame.error, frame.rip, frame.cs, frame.rsp, frame.rflags,
    );
    die()
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    match info.location() {
        Some(at) => eprintln!(
            "guest panic: {} at {}:{}",
            info.message(),
            at.file(),
            at.line()
        ),
        None => eprintln!("guest panic: {}", info.message()),
    }
    die()
}

/// Ends the guest as failed.
fn die() -> ! {
    if let Some(control) = control::get() {
        control.panic();
    }
    reset()
}

/// Ends the guest with `status`. Without a control device the status is printed.
#[unsafe(link_section = ".text.hot.exit")]
pub fn exit(status: u8) -> ! {
    match control::get() {
        Some(control) => control.exit(status),
        None => print_status(status),
    }
    reset()
}

#[cold]
fn print_status(status: u8) {
    println!("exit status={status}");
}

/// Resets the machine by the keyboard controller; if that does nothing, by a triple fault.
pub fn reset() -> ! {
    port::write_u8(I8042_COMMAND, I8042_RESET);
    shim::triple_fault()
}
