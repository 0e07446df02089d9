//! The entropy source: its requests over any ring.

use arbitrary::Result;

use crate::script::{self, Attacked, Input, low_half, number};
use crate::subjects::EntropySubject;
use crate::support::{Machine, writable};

impl Attacked for EntropySubject {
    fn request(&mut self, machine: &mut Machine, input: &mut Input<'_>) -> Result<()> {
        let bytes = low_half(number(input)?);
        let address = machine.alloc(64 << 10);
        machine.add(0, &[writable(address, bytes)]);
        machine.kick(0);
        Ok(())
    }
}

/// A script.
pub fn run(input: &[u8]) {
    script::attack(&mut EntropySubject, input);
}
