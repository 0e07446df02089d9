//! The console: messages, text and keys, over any ring.

use std::io::Write;

use arbitrary::Result;
use lightv_devices::state::DeviceState;
use lightv_devices::virtio::console::QueueRole;
use lightv_devices::virtio::device::VirtioDevice;

use crate::script::{self, Attacked, Input, bytes, number};
use crate::subjects::{ConsoleSubject, Subject};
use crate::support::{Machine, readable, writable};

/// The console, and whether the host has written to it: what it has not taken yet it takes later.
#[derive(Default)]
struct Attack {
    console: ConsoleSubject,
    has_input: bool,
}

impl Subject for Attack {
    fn make(&mut self) -> Box<dyn VirtioDevice> {
        self.console.make()
    }

    fn restore(&mut self, state: DeviceState) -> Box<dyn VirtioDevice> {
        self.console.restore(state)
    }

    fn assert_works(&mut self, machine: &mut Machine) {
        self.console.assert_works(machine);
    }
}

impl Attacked for Attack {
    fn request(&mut self, machine: &mut Machine, input: &mut Input<'_>) -> Result<()> {
        let kind: u8 = input.arbitrary()?;
        if kind & 1 == 0 {
            let port = number(input)?.to_le_bytes();
            let event = input.arbitrary::<u8>()?;
            let value = input.arbitrary::<u8>()?;
            let message = [&port[..4], &[event, 0, value, 0]].concat();
            let queue = QueueRole::ControlFromGuest.index();
            let address = machine.put(&message);
            machine.add(queue, &[readable(address, 8)]);
            machine.kick(queue);
        } else {
            let queue = script::queue(machine, input)?;
            let data = bytes(input)?;
            let address = machine.put(data);
            let length = u32::try_from(data.len()).unwrap_or(0);
            let is_writable = kind & 2 == 0;
            let buffer = if is_writable {
                writable(address, length)
            } else {
                readable(address, length)
            };
            machine.add(queue, &[buffer]);
            machine.kick(queue);
        }
        Ok(())
    }

    fn host(&mut self, machine: &mut Machine, input: &mut Input<'_>) -> Result<()> {
        let text = bytes(input)?;
        if let Some((stdin, _)) = &mut self.console.host {
            self.has_input |= !text.is_empty();
            let _ = stdin.write_all(text);
        }
        script::serve_backend(machine);
        Ok(())
    }

    fn is_as_new(&self) -> bool {
        !self.has_input
    }
}

/// A script.
pub fn run(input: &[u8]) {
    script::attack(&mut Attack::default(), input);
}
