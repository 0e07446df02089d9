//! The console under test, with pipes for standard input and output.

use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::os::fd::AsFd;
use std::sync::Arc;

use lightv_devices::state::DeviceState;
use lightv_devices::virtio::console::{
    Console, Input, Output, QueueRole, STDIN, STDIO, Streams, TerminalSize, event,
};
use lightv_devices::virtio::device::VirtioDevice;

use super::Subject;
use crate::support::{Machine, readable, writable};

#[derive(Default)]
pub(crate) struct ConsoleSubject {
    pub(crate) host: Option<(PipeWriter, PipeReader)>,
}

impl ConsoleSubject {
    fn console(&mut self) -> Console {
        let (stdin, writer) = pipe().unwrap();
        let (reader, stdout) = pipe().unwrap();
        self.host = Some((writer, reader));
        let streams = Streams {
            terminal: None,
            terminal_output: Output::nowhere(),
            stdin: Some(Input::open(stdin.as_fd()).unwrap()),
            stdout: Output::open(stdout.as_fd(), Arc::new(|_| ())).unwrap(),
            stderr: Output::nowhere(),
            size: TerminalSize::default(),
        };
        Console::new("console".into(), streams).unwrap()
    }

    /// What a hostile guest has written before, as far as it is still under way.
    fn take_output(&mut self, machine: &mut Machine) {
        let (_, stdout) = self.host.as_mut().unwrap();
        rustix::io::ioctl_fionbio(&mut *stdout, true).unwrap();
        while stdout.read(&mut [0; 4096]).is_ok_and(|bytes| bytes > 0) {
            machine.serve_backend(1);
        }
        rustix::io::ioctl_fionbio(&mut *stdout, false).unwrap();
    }

    /// Sends a message, and takes `answers` of the device.
    fn say(machine: &mut Machine, port: u32, event: u16, answers: usize) {
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&port.to_le_bytes());
        bytes[4..6].copy_from_slice(&event.to_le_bytes());
        bytes[6] = 1;
        let queue = QueueRole::ControlToGuest.index();
        let address = machine.alloc(64);
        for _ in 0..answers {
            machine.add(queue, &[writable(address, 64)]);
        }
        machine.kick(queue);
        let message = machine.put(&bytes);
        let from_guest = QueueRole::ControlFromGuest.index();
        assert_eq!(machine.request(from_guest, &[readable(message, 8)]), 0);
        for _ in 0..answers {
            assert!(machine.take_used(queue).is_some());
        }
    }
}

impl Subject for ConsoleSubject {
    fn make(&mut self) -> Box<dyn VirtioDevice> {
        Box::new(self.console())
    }

    fn restore(&mut self, state: DeviceState) -> Box<dyn VirtioDevice> {
        let DeviceState::Console(state) = state else {
            panic!("{state:?}")
        };
        Box::new(self.console().with_state(&state).unwrap())
    }

    fn assert_works(&mut self, machine: &mut Machine) {
        Self::say(machine, u32::MAX, event::DEVICE_READY, 5);
        Self::say(machine, u32::try_from(STDIN).unwrap(), event::PORT_READY, 2);
        Self::say(machine, u32::try_from(STDIN).unwrap(), event::PORT_OPEN, 0);
        self.take_output(machine);
        let (stdin, stdout) = self.host.as_mut().unwrap();
        let address = machine.put(b"text");
        let from_guest = QueueRole::FromGuest(STDIO).index();
        assert_eq!(machine.request(from_guest, &[readable(address, 4)]), 0);
        let mut text = [0; 4];
        stdout.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"text");

        let to_guest = QueueRole::ToGuest(STDIN).index();
        let address = machine.alloc(64);
        machine.add(to_guest, &[writable(address, 64)]);
        machine.kick(to_guest);
        stdin.write_all(b"input").unwrap();
        machine.serve_backend(1);
        let used = machine.take_used(to_guest).map(|(_, bytes)| bytes);
        assert_eq!(used, Some(5));
        assert_eq!(machine.get(address, 5), b"input");
    }
}
