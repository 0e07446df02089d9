//! The ways a guest can end, or not end: one app each.

use super::{Refusal, STATUS_OK};
use crate::machine::Machine;
use crate::{control, println, shim, trap};

/// Mark that `mark` rings; the control device reserves it for the first instruction of the user's own code.
const MARK_USER_CODE: u32 = 1;

/// `exit [STATUS]`: ends with this status, 0 if none is given.
pub fn exit(machine: &mut Machine) -> Result<u8, Refusal> {
    machine.ready();
    u8::try_from(machine.number(0, 0)?).map_err(|_| Refusal::Usage("exit [0-255]"))
}

/// `idle`: sleeps for ever.
pub fn idle(machine: &mut Machine) -> Result<u8, Refusal> {
    machine.ready();
    loop {
        shim::wait();
    }
}

/// `panic [MESSAGE]`: panics.
pub fn panic(machine: &mut Machine) -> Result<u8, Refusal> {
    machine.ready();
    panic!("{}", machine.args().next().unwrap_or("asked to"));
}

/// `reset`: resets the machine by the keyboard controller.
pub fn reset(machine: &mut Machine) -> Result<u8, Refusal> {
    machine.ready();
    trap::reset()
}

/// `triple-fault`: faults without an interrupt descriptor table.
pub fn triple_fault(machine: &mut Machine) -> Result<u8, Refusal> {
    machine.ready();
    shim::triple_fault()
}

/// `bad-instruction`: an instruction at CPL 0 that software KVM cannot emulate. Hardware goes on.
pub fn bad_instruction(machine: &mut Machine) -> Result<u8, Refusal> {
    machine.ready();
    shim::bad_instruction();
    println!("bad-instruction: it was executed, so this is not software KVM");
    Ok(STATUS_OK)
}

/// `mark`: rings the mark doorbell.
pub fn mark(machine: &mut Machine) -> Result<u8, Refusal> {
    machine.ready();
    if let Some(control) = control::get() {
        control.mark(MARK_USER_CODE);
    }
    println!("mark {MARK_USER_CODE}");
    Ok(STATUS_OK)
}
