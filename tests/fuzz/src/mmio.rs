//! The registers of every virtio device: accesses in any order and width, with rings at work between them. The first byte
//! says which device.

use arbitrary::Result;

use crate::script::{self, Input};
use crate::subjects::{
    BalloonSubject, BlockSubject, ConsoleSubject, EntropySubject, NetSubject, StreamSubject,
    Subject, VsockSubject,
};
use crate::support::{Machine, readable, writable};

/// Steps of one input.
const STEPS_MAX: usize = 256;

fn step(subject: &mut impl Subject, machine: &mut Machine, input: &mut Input<'_>) -> Result<()> {
    match input.arbitrary::<u8>()? % 16 {
        0 => {
            let features = machine.offered();
            machine.negotiate(features);
        }
        1 => {
            let queue = script::queue(machine, input)?;
            machine.set_up_queue(queue);
        }
        2 => {
            let queue = script::queue(machine, input)?;
            let address = machine.alloc(64);
            machine.add(queue, &[readable(address, 16), writable(address + 16, 16)]);
        }
        3 => {
            let queue = script::queue(machine, input)?;
            machine.kick(queue);
        }
        4 => script::serve_backend(machine),
        5 => script::save_and_restore(subject, machine),
        6 => machine.set_status(input.arbitrary()?),
        _ => script::access(machine, input)?,
    }
    Ok(())
}

fn attack(mut subject: impl Subject, script: &[u8]) {
    let mut input = Input::new(script);
    let mut machine = Machine::new(subject.make());
    for _ in 0..STEPS_MAX {
        if input.is_empty() || step(&mut subject, &mut machine, &mut input).is_err() {
            break;
        }
    }
    machine.init();
    subject.assert_works(&mut machine);
}

/// The first byte says which device; the rest is a script.
pub fn run(input: &[u8]) {
    let Some((kind, script)) = input.split_first() else {
        return;
    };
    match kind % 8 {
        0 => attack(EntropySubject, script),
        1 => attack(BlockSubject::new(), script),
        2 => attack(NetSubject::with(1), script),
        3 => attack(StreamSubject::default(), script),
        4 => attack(BalloonSubject, script),
        5 => attack(NetSubject::with(2), script),
        6 => attack(ConsoleSubject::default(), script),
        _ => attack(VsockSubject::new(), script),
    }
}
