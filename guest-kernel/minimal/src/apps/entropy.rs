//! `entropy`: prints 32 bytes of the entropy device.

use super::{Refusal, STATUS_FAILED, STATUS_OK};
use crate::hex::Hex;
use crate::machine::Machine;
use crate::{eprintln, println};

const BYTES: usize = 32;

pub fn run(machine: &mut Machine) -> Result<u8, Refusal> {
    machine.ready();
    let device = machine
        .devices
        .entropy
        .as_mut()
        .ok_or(Refusal::NoDevice("entropy"))?;
    let mut bytes = [0; BYTES];
    let mut filled = 0;
    while filled < BYTES {
        match device.request_entropy(&mut bytes[filled..]) {
            Ok(0) => {
                eprintln!("entropy error: the device gave nothing");
                return Ok(STATUS_FAILED);
            }
            Ok(count) => filled += count.min(BYTES - filled),
            Err(error) => {
                eprintln!("entropy error: {error}");
                return Ok(STATUS_FAILED);
            }
        }
    }
    println!("{}", Hex(&bytes));
    Ok(STATUS_OK)
}
