//! The console (virtio 1.2 §5.3): the machine's terminal, its standard streams, and a line to the guest's agent.
//!
//! A guest hands over a buffer and the host takes it in one call; nothing is stored here. What the host does not take
//! stays in the ring, which holds the guest back; a stream is read only when the guest has opened its port and given
//! buffers for it.

mod config;
mod message;
mod ports;
pub mod state;
mod stream;
mod transmit;
mod watch;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use virtio_queue::Queue;

pub use self::config::{TerminalSize, feature};
pub use self::message::event;
pub use self::ports::{AGENT, PORTS, QUEUES, QueueRole, STDERR, STDIN, STDIO, TERMINAL};
pub use self::state::ConsoleStateV1;
pub use self::stream::{Input, OnLost, Output};

use self::config::FEATURES;
use self::message::{HostSide, MESSAGE_BYTES, Message, PortTable};
use self::ports::QUEUE_SIZES;
use self::stream::Got;
use self::transmit::Transmitter;
use self::watch::{Watch, Wish};
use crate::counters::Counters;
use crate::fault::{ActivateError, GuestFault, HostFault, HostOperation, RestoreDeviceError};
use crate::limits::{CONSOLE_BUFFERS_PER_TURN, CONSOLE_BYTES_PER_TURN, CONSOLE_CHUNK_BYTES};
use crate::state::DeviceState;
use crate::virtio::chain::read_at;
use crate::virtio::device::{Activation, DeviceKind, Progress, VirtioDevice};
use crate::virtio::receive::Receiver;
use crate::virtio::ring::{Popped, Ring};

/// The byte of Ctrl-]: typed at the terminal, it detaches it, and does not reach the guest.
pub const DETACH_KEY: u8 = 0x1d;

/// Ports that the host has bytes for.
const INPUT_PORTS: [usize; 2] = [TERMINAL, STDIN];

/// The host's side of the console.
#[derive(Debug)]
pub struct Streams {
    /// What is typed. `None`: there is no terminal.
    pub terminal: Option<Input>,
    /// Where the terminal's output goes.
    pub terminal_output: Output,
    /// Standard input. `None`: it has ended.
    pub stdin: Option<Input>,
    /// Standard output.
    pub stdout: Output,
    /// Standard error.
    pub stderr: Output,
    /// Size of the terminal, if it is known.
    pub size: TerminalSize,
}

impl Streams {
    fn by_port(self) -> ([Option<Input>; PORTS], [Output; PORTS]) {
        let (to_agent, from_agent) = (Output::nowhere(), Output::nowhere());
        (
            [self.terminal, None, None, None, self.stdin],
            [
                self.terminal_output,
                self.stdout,
                self.stderr,
                to_agent,
                from_agent,
            ],
        )
    }
}

/// The console.
#[derive(Debug)]
pub struct Console {
    id: String,
    config: [u8; 12],
    counters: Arc<Counters>,
    table: PortTable,
    inputs: [Option<Input>; PORTS],
    outputs: [Output; PORTS],
    size: TerminalSize,
    watch: Watch,
    /// Nothing is read: the machine that reads is one restored from this one.
    is_input_held: bool,
    is_detach_wanted: bool,
    /// Bytes of the first buffer in each queue of output that were written before a pause. A machine that is restored has other
    /// streams, and writes the buffer whole.
    written: [u64; PORTS],
    active: Option<Active>,
}

/// What a device has while it works.
#[derive(Debug)]
struct Active {
    control_to_guest: Receiver,
    control_from_guest: Ring,
    to_guest: [Receiver; PORTS],
    from_guest: [Transmitter; PORTS],
    /// The driver knows of ports; without, there is the terminal alone (virtio 1.2 §5.3.3).
    is_multiport: bool,
    /// What is on the way between a stream and guest memory.
    chunk: Vec<u8>,
}

impl Console {
    /// A console, idle.
    ///
    /// # Errors
    /// The kernel's, when there are no descriptors left.
    pub fn new(id: String, streams: Streams) -> io::Result<Self> {
        let size = streams.size;
        let (inputs, outputs) = streams.by_port();
        Ok(Self {
            id,
            config: config::config_space(size),
            counters: Arc::default(),
            table: PortTable::default(),
            inputs,
            outputs,
            size,
            watch: Watch::new()?,
            is_input_held: false,
            is_detach_wanted: false,
            written: [0; PORTS],
            active: None,
        })
    }

    /// This console, fresh and idle, as it was saved. The guest is told where its host side differs from the one that it
    /// was saved with.
    ///
    /// # Errors
    /// [`RestoreDeviceError::Ports`].
    pub fn with_state(mut self, state: &ConsoleStateV1) -> Result<Self, RestoreDeviceError> {
        self.table = state.check(&self.id)?;
        if self.size.is_known() {
            self.table.size_changed();
        }
        Ok(self)
    }

    /// Has other streams from now on, but no other size. It is idle, so that none of the old ones is watched.
    pub fn replace_streams(&mut self, streams: Streams) {
        debug_assert!(self.active.is_none(), "an active console");
        (self.inputs, self.outputs) = streams.by_port();
    }

    /// Reads no stream while `is_held`: what is typed or piped in belongs to the machines that are restored from this
    /// one. The guest sees its input open.
    pub fn hold_input(&mut self, is_held: bool) {
        self.is_input_held = is_held;
        self.update_watch();
    }

    /// The terminal has another size.
    pub fn set_size(&mut self, size: TerminalSize) {
        if self.size != size {
            self.size = size;
            self.table.size_changed();
            self.send_messages();
        }
    }

    /// Whether somebody in the guest holds the agent's port open.
    #[must_use]
    pub fn is_agent_open(&self) -> bool {
        self.active.is_some() && self.is_guest_open(AGENT)
    }

    /// Gives the agent a line, its end included. False if the agent is not there, or does not read.
    #[must_use]
    pub fn send_line(&mut self, line: &str) -> bool {
        if !self.is_agent_open() {
            return false;
        }
        let receiver = self
            .active
            .as_mut()
            .and_then(|active| active.to_guest.get_mut(AGENT));
        receiver.is_some_and(|receiver| {
            let is_taken = receiver.deliver(line.as_bytes(), &self.counters);
            receiver.notify();
            is_taken
        })
    }

    /// Whether [`DETACH_KEY`] has come. The terminal is not read any more then.
    #[must_use]
    pub const fn is_detach_wanted(&self) -> bool {
        self.is_detach_wanted
    }

    /// Lets go of all streams: input has ended, output goes nowhere. The guest is told.
    pub fn detach(&mut self) {
        self.is_detach_wanted = false;
        for port in INPUT_PORTS {
            self.close_input(port);
        }
        for port in 0..PORTS {
            self.unwatch(Wish::Output(port));
            if let Some(output) = self.outputs.get_mut(port) {
                *output = Output::nowhere();
            }
            self.serve_output(port);
        }
        self.send_messages();
    }

    /// The driver has reset the device: what it has said of ports, and what it was to be told of them, does not count any more.
    pub fn forget_driver(&mut self) {
        self.table = PortTable::default();
        self.written = [0; PORTS];
        self.update_watch();
    }

    fn is_guest_open(&self, port: usize) -> bool {
        match &self.active {
            Some(active) if active.is_multiport => self.table.is_guest_open(port),
            Some(_) => port == TERMINAL,
            None => false,
        }
    }

    fn host_side(&self) -> HostSide {
        let has_input = |port: usize| self.inputs.get(port).is_some_and(Option::is_some);
        let mut is_open = [true; PORTS];
        for port in INPUT_PORTS {
            if let Some(is_open) = is_open.get_mut(port) {
                *is_open = has_input(port);
            }
        }
        HostSide {
            is_open,
            size: self.size,
        }
    }

    /// Tells the guest what it has still to be told, as far as it has buffers for it.
    fn send_messages(&mut self) {
        let host = self.host_side();
        if let Some(active) = self.active.as_mut().filter(|active| active.is_multiport) {
            while let Some(outgoing) = self.table.next(&host) {
                if !active
                    .control_to_guest
                    .deliver(outgoing.bytes(), &self.counters)
                {
                    break;
                }
                self.table.sent(&outgoing);
            }
            active.control_to_guest.notify();
        }
        self.update_watch();
    }

    /// Takes messages of the guest, up to the limit of a turn.
    fn receive_messages(&mut self) -> Progress {
        let Some(active) = &mut self.active else {
            return Progress::Done;
        };
        let ring = &mut active.control_from_guest;
        let mut progress = Progress::More;
        for _ in 0..CONSOLE_BUFFERS_PER_TURN {
            match ring.pop() {
                Popped::Chain(chain) => {
                    let mut bytes = [0; MESSAGE_BYTES];
                    let read = read_at(ring.mem(), chain.readable(), 0, &mut bytes);
                    // The driver waits for it, its CPU spinning.
                    ring.complete(chain, 0);
                    let received: Result<(), GuestFault> =
                        read.and_then(|()| self.table.receive(Message::decode(bytes)));
                    if received.is_err() {
                        self.counters.guest_fault();
                    }
                }
                Popped::Malformed => {}
                Popped::Empty => {
                    if !ring.resume_kicks() {
                        progress = Progress::Done;
                        break;
                    }
                }
            }
        }
        ring.notify();
        self.send_messages();
        progress
    }

    /// Writes what the guest has for `port`, up to the limit of a turn.
    fn serve_output(&mut self, port: usize) {
        if let (Some(active), Some(output)) = (&mut self.active, self.outputs.get_mut(port))
            && let Some(transmitter) = active.from_guest.get_mut(port)
        {
            transmitter.serve_turn(output, &mut active.chunk, &self.counters);
        }
        self.update_watch();
    }

    fn is_unfinished(&self, port: usize) -> bool {
        let transmitter = self
            .active
            .as_ref()
            .and_then(|active| active.from_guest.get(port));
        transmitter.is_some_and(Transmitter::is_unfinished)
    }

    /// Gives the guest what the host has for `port`, up to the limit of a turn.
    fn serve_input(&mut self, port: usize) -> Result<(), HostFault> {
        let mut result = Ok(());
        let mut bytes_left = CONSOLE_BYTES_PER_TURN;
        for _ in 0..CONSOLE_BUFFERS_PER_TURN {
            if bytes_left == 0 || !self.wants_input(port) {
                break;
            }
            match self.move_input(port) {
                Got::Bytes(bytes) => bytes_left = bytes_left.saturating_sub(bytes),
                Got::Nothing => break,
                Got::End => self.close_input(port),
                Got::Failed(cause) => {
                    self.close_input(port);
                    result = Err(cause);
                }
            }
        }
        let active = self.active.as_mut();
        if let Some(receiver) = active.and_then(|active| active.to_guest.get_mut(port)) {
            receiver.notify();
        }
        self.send_messages();
        result.map_err(|cause| {
            self.counters.host_fault(&cause);
            HostFault {
                device: self.id.clone(),
                operation: HostOperation::ReadStream,
                cause,
            }
        })
    }

    /// Moves what one buffer of the guest takes.
    fn move_input(&mut self, port: usize) -> Got {
        let (Some(active), Some(Some(input))) = (&mut self.active, self.inputs.get(port)) else {
            return Got::Nothing;
        };
        let Some(receiver) = active.to_guest.get_mut(port) else {
            return Got::Nothing;
        };
        let room = usize::try_from(receiver.room().unwrap_or(0)).unwrap_or(usize::MAX);
        let length = room.min(active.chunk.len());
        let got = input.read(active.chunk.get_mut(..length).unwrap_or_default());
        if let Got::Bytes(bytes) = got {
            let mut read = active.chunk.get(..bytes).unwrap_or_default();
            if port == TERMINAL
                && let Some(at) = read.iter().position(|byte| *byte == DETACH_KEY)
            {
                self.is_detach_wanted = true;
                read = read.get(..at).unwrap_or_default();
            }
            if !read.is_empty() {
                // There is room, in RAM.
                receiver.deliver(read, &self.counters);
            }
        }
        got
    }

    /// Whether `port` is to be read now.
    fn wants_input(&self, port: usize) -> bool {
        let has_room = self.active.as_ref().is_some_and(|active| {
            active
                .to_guest
                .get(port)
                .is_some_and(|receiver| receiver.room().is_some())
        });
        let has_stream = self.inputs.get(port).is_some_and(Option::is_some);
        let is_free = !self.is_input_held && !self.is_detach_wanted;
        has_room && has_stream && is_free && self.is_guest_open(port)
    }

    fn close_input(&mut self, port: usize) {
        self.unwatch(Wish::Input(port));
        if let Some(input) = self.inputs.get_mut(port) {
            *input = None;
        }
    }

    fn unwatch(&mut self, wish: Wish) {
        let fd = match wish {
            Wish::Input(port) => {
                let input = self.inputs.get(port).and_then(Option::as_ref);
                input.map(AsFd::as_fd)
            }
            Wish::Output(port) => self.outputs.get(port).and_then(Output::fd),
        };
        self.watch.set(wish, fd, false);
    }

    /// Waits for what can go on, and for nothing else.
    fn update_watch(&mut self) {
        for port in INPUT_PORTS {
            let is_wanted = self.wants_input(port);
            if let Some(Some(input)) = self.inputs.get(port) {
                let fd = Some(input.as_fd());
                self.watch.set(Wish::Input(port), fd, is_wanted);
            }
        }
        for port in 0..PORTS {
            let is_wanted = self.is_unfinished(port);
            let fd = self.outputs.get(port).and_then(Output::fd);
            self.watch.set(Wish::Output(port), fd, is_wanted);
        }
    }
}

impl VirtioDevice for Console {
    fn id(&self) -> &str {
        &self.id
    }

    fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    fn kind(&self) -> DeviceKind {
        DeviceKind::Console
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn activate(&mut self, env: Activation) -> Result<(), ActivateError> {
        ActivateError::unless_idle(&self.id, self.active.is_some())?;
        let is_multiport = env.acked_features & feature::MULTIPORT != 0;
        let rings: [Ring; QUEUES] = env.into_rings(&self.id, &self.counters)?;
        let [
            r0,
            t0,
            control_to_guest,
            control_from_guest,
            r1,
            t1,
            r2,
            t2,
            r3,
            t3,
            r4,
            t4,
        ] = rings;
        let mut written = std::mem::take(&mut self.written).into_iter();
        let transmitter = |ring| Transmitter::new(ring, written.next().unwrap_or(0));
        self.active = Some(Active {
            control_to_guest: Receiver::new(control_to_guest, 1),
            control_from_guest,
            to_guest: [r0, r1, r2, r3, r4].map(|ring| Receiver::new(ring, 1)),
            from_guest: [t0, t1, t2, t3, t4].map(transmitter),
            is_multiport,
            chunk: vec![0; CONSOLE_CHUNK_BYTES],
        });
        Ok(())
    }

    fn finish(&mut self, gives_up: &dyn Fn() -> bool) {
        if let Some(active) = &mut self.active {
            let ports = active.from_guest.iter_mut().zip(&mut self.outputs);
            for (transmitter, output) in ports {
                transmitter.finish(output, &mut active.chunk, &self.counters, gives_up);
            }
        }
        self.update_watch();
    }

    fn deactivate(&mut self) -> Vec<Queue> {
        let Some(active) = self.active.take() else {
            return Vec::new();
        };
        self.update_watch();
        let mut to_guest = active.to_guest.into_iter().map(Receiver::into_queue);
        let mut written = self.written.iter_mut();
        let mut from_guest = active.from_guest.into_iter().map(|transmitter| {
            let (queue, bytes) = transmitter.into_queue();
            written.next().into_iter().for_each(|place| *place = bytes);
            queue
        });
        let mut queues = Vec::with_capacity(QUEUES);
        queues.extend(to_guest.next());
        queues.extend(from_guest.next());
        queues.push(active.control_to_guest.into_queue());
        queues.push(active.control_from_guest.into_queue());
        for (to_guest, from_guest) in to_guest.zip(from_guest) {
            queues.extend([to_guest, from_guest]);
        }
        queues
    }

    fn process_queue(&mut self, index: usize) -> Result<Progress, HostFault> {
        match (QueueRole::of(index), &mut self.active) {
            (Some(QueueRole::ToGuest(port)), Some(active)) => {
                if let Some(receiver) = active.to_guest.get_mut(port) {
                    receiver.buffers_came();
                }
                self.update_watch();
            }
            (Some(QueueRole::ControlToGuest), Some(active)) => {
                active.control_to_guest.buffers_came();
                self.send_messages();
            }
            (Some(QueueRole::FromGuest(port)), Some(_)) => self.serve_output(port),
            (Some(QueueRole::ControlFromGuest), Some(_)) => return Ok(self.receive_messages()),
            _ => {}
        }
        Ok(Progress::Done)
    }

    fn backend_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.watch.as_fd())
    }

    fn wants_backend(&self) -> bool {
        self.watch.is_any()
    }

    /// Tries all that is waited for: what is not ready says so at once.
    fn process_backend(&mut self) -> Result<(), HostFault> {
        for port in 0..PORTS {
            if self.is_unfinished(port) {
                self.serve_output(port);
            }
        }
        let mut result = Ok(());
        for port in INPUT_PORTS {
            if self.wants_input(port) {
                result = self.serve_input(port).and(result);
            }
        }
        result
    }

    fn save(&self) -> DeviceState {
        DeviceState::Console(ConsoleStateV1::from(&self.table))
    }
}

#[cfg(test)]
mod tests;
