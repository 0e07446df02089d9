//! `args`: prints all that the guest knows of this run.

use core::fmt::Write as _;

use super::{Refusal, STATUS_OK};
use crate::console::Output;
use crate::control::{self, Control, Stream};
use crate::hex::Hex;
use crate::machine::Machine;

pub fn run(machine: &mut Machine) -> Result<u8, Refusal> {
    machine.ready();
    let mut out = Output::new(Stream::Out);
    // Output takes every byte: there is no error to lose.
    let _ = print(machine, &mut out);
    Ok(STATUS_OK)
}

fn print(machine: &Machine, out: &mut Output) -> core::fmt::Result {
    for (index, arg) in machine.args().enumerate() {
        writeln!(out, "arg[{index}]={arg}")?;
    }
    for entry in machine.env() {
        writeln!(out, "env {entry}")?;
    }
    match control::get() {
        Some(control) => print_control(control, out),
        None => writeln!(out, "ram_bytes={}", machine.ram_bytes),
    }
}

fn print_control(control: Control, out: &mut Output) -> core::fmt::Result {
    writeln!(out, "generation={}", Hex(&control.generation()))?;
    writeln!(out, "restores={}", control.restores())?;
    writeln!(out, "seed={}", Hex(&control.seed()))?;
    writeln!(out, "wall_clock_ns={}", control.wall_clock_ns())?;
    writeln!(out, "vcpus={}", control.vcpus())?;
    writeln!(out, "ram_bytes={}", control.ram_bytes())
}
