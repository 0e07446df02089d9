//! `hello [NAME]`: says hello. The shortest way from `READY` to the first byte: no formatting, one doorbell.

use super::{Refusal, STATUS_OK};
use crate::console::Output;
use crate::control::Stream;
use crate::machine::Machine;

// Beside the code that reads them, on the same page.
#[unsafe(link_section = ".rodata.hot.hello")]
static BEFORE: [u8; 7] = *b"Hello, ";
#[unsafe(link_section = ".rodata.hot.hello")]
static NAME: [u8; 5] = *b"world";
#[unsafe(link_section = ".rodata.hot.hello")]
static AFTER: [u8; 2] = *b"!\n";

#[unsafe(link_section = ".text.hot.hello")]
pub fn run(machine: &mut Machine) -> Result<u8, Refusal> {
    machine.ready();
    let mut out = Output::new(Stream::Out);
    let name = machine.first_arg().unwrap_or(&NAME);
    out.bytes(&BEFORE).bytes(name).bytes(&AFTER);
    Ok(STATUS_OK)
}
