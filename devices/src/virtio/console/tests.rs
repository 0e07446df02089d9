use std::fs::File;
use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use lightv_contract::ports::NAMES;

use super::*;
use crate::limits::{CONSOLE_BUFFER_BYTES_MAX, CONSOLE_LINES_SIZE, CONSOLE_OUTPUT_SIZE};
use crate::test_support::{HIGH_RAM, LOW_RAM, Machine, readable, writable};

/// A console that the test reaches beside the register front.
#[derive(Debug)]
struct Shared {
    console: Arc<Mutex<Console>>,
    counters: Arc<Counters>,
    config: Vec<u8>,
}

impl VirtioDevice for Shared {
    fn id(&self) -> &'static str {
        "console"
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
        self.console.lock().unwrap().activate(env)
    }

    fn finish(&mut self, gives_up: &dyn Fn() -> bool) {
        self.console.lock().unwrap().finish(gives_up);
    }

    fn deactivate(&mut self) -> Vec<Queue> {
        self.console.lock().unwrap().deactivate()
    }

    fn process_queue(&mut self, index: usize) -> Result<Progress, HostFault> {
        self.console.lock().unwrap().process_queue(index)
    }

    fn backend_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn wants_backend(&self) -> bool {
        self.console.lock().unwrap().wants_backend()
    }

    fn process_backend(&mut self) -> Result<(), HostFault> {
        self.console.lock().unwrap().process_backend()
    }

    fn save(&self) -> DeviceState {
        self.console.lock().unwrap().save()
    }
}

/// The other ends of the streams.
struct Host {
    keys: PipeWriter,
    screen: PipeReader,
    stdin: Option<PipeWriter>,
    stdout: PipeReader,
    stderr: PipeReader,
    losses: Arc<AtomicU32>,
}

/// A console whose terminal is two pipes.
fn console(size: TerminalSize) -> (Console, Host) {
    let (streams, host) = streams(size);
    (Console::new("console".to_owned(), streams).unwrap(), host)
}

fn streams(size: TerminalSize) -> (Streams, Host) {
    let losses = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&losses);
    let on_lost: OnLost = Arc::new(move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
    });
    let input = || {
        let (reader, writer) = pipe().unwrap();
        (Input::open(reader.as_fd()).unwrap(), writer)
    };
    let output = || {
        let (reader, writer) = pipe().unwrap();
        let output = Output::open(writer.as_fd(), Arc::clone(&on_lost)).unwrap();
        (reader, output)
    };
    let ((terminal, keys), (stdin, stdin_writer)) = (input(), input());
    let ((screen, terminal_output), (stdout_reader, stdout), (stderr_reader, stderr)) =
        (output(), output(), output());
    let streams = Streams {
        terminal: Some(terminal),
        terminal_output,
        stdin: Some(stdin),
        stdout,
        stderr,
        size,
    };
    let host = Host {
        keys,
        screen,
        stdin: Some(stdin_writer),
        stdout: stdout_reader,
        stderr: stderr_reader,
        losses,
    };
    (streams, host)
}

struct Driver {
    machine: Machine,
    console: Arc<Mutex<Console>>,
    host: Host,
    /// Where the next message goes.
    mailbox: Option<u64>,
}

const UNKNOWN: TerminalSize = TerminalSize {
    columns: 0,
    rows: 0,
};

fn shared(console: &Arc<Mutex<Console>>) -> Shared {
    let locked = console.lock().unwrap();
    Shared {
        console: Arc::clone(console),
        counters: Arc::clone(locked.counters()),
        config: locked.config().to_vec(),
    }
}

fn driver_of(console: Console, host: Host) -> Driver {
    let console = Arc::new(Mutex::new(console));
    Driver {
        machine: Machine::new(Box::new(shared(&console))),
        console,
        host,
        mailbox: None,
    }
}

impl Driver {
    /// A driver that has made all ports.
    fn new(size: TerminalSize) -> Self {
        let (console, host) = console(size);
        Self::of(driver_of(console, host))
    }

    fn of(mut driver: Self) -> Self {
        driver.machine.init();
        assert!(
            driver.messages().is_empty(),
            "nothing before the driver is ready"
        );
        driver.say(u32::MAX, event::DEVICE_READY, 1);
        let added: Vec<_> = driver.messages().into_iter().map(|m| (m.0, m.1)).collect();
        let expected: Vec<_> = (0..5).map(|port| (port, event::PORT_ADD)).collect();
        assert_eq!(added, expected);
        (0..5).for_each(|port| driver.say(port, event::PORT_READY, 1));
        driver
    }

    /// The same, with all ports open.
    fn open(size: TerminalSize) -> Self {
        let mut driver = Self::new(size);
        let _ = driver.messages();
        (0..5).for_each(|port| driver.say(port, event::PORT_OPEN, 1));
        driver
    }

    fn say(&mut self, port: u32, event: u16, value: u16) {
        let bytes = Message { port, event, value }.encode();
        let address = self.machine.put(&bytes);
        let queue = QueueRole::ControlFromGuest.index();
        assert_eq!(self.machine.request(queue, &[readable(address, 8)]), 0);
    }

    /// What the device says. One buffer is left with it for what it says next.
    fn messages(&mut self) -> Vec<(u32, u16, u16, Vec<u8>)> {
        let queue = QueueRole::ControlToGuest.index();
        let mut messages = Vec::new();
        loop {
            let address = match self.mailbox {
                Some(address) => address,
                None => {
                    let address = self.machine.alloc(64);
                    self.machine.add(queue, &[writable(address, 64)]);
                    self.machine.kick(queue);
                    self.mailbox = Some(address);
                    address
                }
            };
            let Some((_, bytes)) = self.machine.take_used(queue) else {
                return messages;
            };
            self.mailbox = None;
            let message = self.machine.get(address, bytes as usize);
            let (head, more) = message.split_at(MESSAGE_BYTES);
            let Message { port, event, value } = Message::decode(head.try_into().unwrap());
            messages.push((port, event, value, more.to_vec()));
        }
    }

    /// Gives the device a buffer for `port`.
    fn give(&mut self, port: usize, bytes: u32) -> u64 {
        let queue = QueueRole::ToGuest(port).index();
        let address = self.machine.alloc(bytes as usize);
        self.machine.add(queue, &[writable(address, bytes)]);
        self.machine.kick(queue);
        address
    }

    fn take(&mut self, port: usize, address: u64) -> Option<Vec<u8>> {
        let used = self.machine.take_used(QueueRole::ToGuest(port).index());
        used.map(|(_, bytes)| self.machine.get(address, bytes as usize))
    }

    /// Prints; true if the buffer is back at once.
    fn print(&mut self, port: usize, text: &[u8]) -> bool {
        let queue = QueueRole::FromGuest(port).index();
        let address = self.machine.put(text);
        let bytes = u32::try_from(text.len()).unwrap();
        self.machine.add(queue, &[readable(address, bytes)]);
        self.machine.kick(queue);
        self.machine.take_used(queue).is_some()
    }
}

fn read(mut stream: &PipeReader, bytes: usize) -> Vec<u8> {
    let mut read = vec![0; bytes];
    stream.read_exact(&mut read).unwrap();
    read
}

#[test]
fn configuration_and_messages_say_how_large_the_terminal_is() {
    let size = TerminalSize {
        columns: 300,
        rows: 50,
    };
    let mut driver = Driver::new(size);
    let mut config = [0xff; 12];
    driver.machine.front.read(0x100, &mut config);
    assert_eq!(config, [0x2c, 1, 50, 0, 5, 0, 0, 0, 0, 0, 0, 0]);
    let resize = (0, event::RESIZE, 0, vec![0x2c, 1, 50, 0]);
    assert!(driver.messages().contains(&resize));
    let larger = TerminalSize {
        columns: 301,
        rows: 51,
    };
    for _ in 0..3 {
        driver.console.lock().unwrap().set_size(larger);
    }
    let resize = (0, event::RESIZE, 0, vec![0x2d, 1, 51, 0]);
    assert_eq!(driver.messages(), [resize]);
}

#[test]
fn ports_have_the_names_of_the_contract() {
    let mut driver = Driver::new(UNKNOWN);
    let named: Vec<_> = driver
        .messages()
        .into_iter()
        .filter(|message| message.1 == event::PORT_NAME)
        .map(|message| String::from_utf8(message.3).unwrap())
        .collect();
    assert_eq!(named, NAMES);
}

#[test]
fn each_port_prints_to_its_own_stream() {
    let mut driver = Driver::open(UNKNOWN);
    for (port, text) in [
        (TERMINAL, b"screen"),
        (STDIO, b"stdout"),
        (STDERR, b"stderr"),
    ] {
        assert!(driver.print(port, text));
    }
    for port in [AGENT, STDIN] {
        assert!(driver.print(port, b"to nobody"));
    }
    let Host {
        screen,
        stdout,
        stderr,
        ..
    } = &driver.host;
    assert_eq!(read(screen, 6), b"screen");
    assert_eq!(read(stdout, 6), b"stdout");
    assert_eq!(read(stderr, 6), b"stderr");
}

#[test]
fn an_idle_console_is_given_other_streams() {
    let (mut console, mut old) = console(UNKNOWN);
    let (streams, host) = streams(UNKNOWN);
    console.replace_streams(streams);
    let mut driver = Driver::of(driver_of(console, host));
    let _ = driver.messages();
    driver.say(u32::try_from(STDIO).unwrap(), event::PORT_OPEN, 1);
    assert!(driver.print(STDIO, b"new"));
    assert_eq!(read(&driver.host.stdout, 3), b"new");
    let mut text = Vec::new();
    old.stdout.read_to_end(&mut text).unwrap();
    assert!(text.is_empty());
}

#[test]
fn output_that_nobody_reads_stays_in_the_ring_and_holds_up_no_other_port() {
    let mut driver = Driver::open(UNKNOWN);
    let block = vec![0x5a; 32 << 10];
    let mut printed = 0;
    while driver.print(STDIO, &block) {
        printed += 1;
        assert!(printed < 1000, "the pipe is never full");
    }
    assert!(driver.machine.wants_backend());
    assert!(!driver.print(STDIO, &block), "it stays in the ring");
    assert!(driver.print(STDERR, b"stderr"));
    assert_eq!(read(&driver.host.stderr, 6), b"stderr");
    driver.machine.serve_backend(100);
    assert_eq!(
        driver
            .machine
            .take_used(QueueRole::FromGuest(STDIO).index()),
        None
    );
    let total = (printed + 2) * block.len();
    let mut got = 0;
    while got < total {
        let mut part = vec![0; (total - got).min(4096)];
        driver.host.stdout.read_exact(&mut part).unwrap();
        assert!(part.iter().all(|byte| *byte == 0x5a));
        got += part.len();
        driver.machine.serve_backend(1);
    }
    let queue = QueueRole::FromGuest(STDIO).index();
    assert!(driver.machine.take_used(queue).is_some());
    assert!(driver.machine.take_used(queue).is_some());
    assert!(!driver.machine.wants_backend());
    assert!(driver.print(STDIO, b"again"), "the driver is heard again");
}

#[path = "pause_tests.rs"]
mod pauses;

#[test]
fn a_machine_that_ends_waits_for_a_slow_reader_and_gives_up_when_it_is_told() {
    for gives_up in [false, true] {
        let mut driver = Driver::open(UNKNOWN);
        let block = vec![1; 32 << 10];
        let mut bytes = block.len();
        while driver.print(STDIO, &block) {
            bytes += block.len();
        }
        for _ in 1..CONSOLE_OUTPUT_SIZE {
            assert!(!driver.print(STDIO, &block));
            bytes += block.len();
        }
        let mut stdout = driver.host.stdout;
        let reader = std::thread::spawn(move || {
            let mut read = Vec::new();
            stdout.read_to_end(&mut read).unwrap();
            read.len()
        });
        driver.console.lock().unwrap().finish(&|| gives_up);
        // The last writer of the pipe.
        drop(driver.machine);
        drop(driver.console);
        let read = reader.join().unwrap();
        assert!(gives_up || read == bytes, "{read} of {bytes}");
    }
}

#[test]
fn a_reader_that_goes_away_frees_the_guest() {
    let mut driver = Driver::open(UNKNOWN);
    while driver.print(STDIO, &[0; 32 << 10]) {}
    drop(driver.host.stdout);
    driver.machine.serve_backend(2);
    let queue = QueueRole::FromGuest(STDIO).index();
    assert!(driver.machine.take_used(queue).is_some());
    assert!(!driver.machine.wants_backend());
    assert_eq!(driver.host.losses.load(Ordering::Relaxed), 0);
}

#[test]
fn a_full_disk_loses_output_and_says_so() {
    let losses = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&losses);
    let full = File::options().write(true).open("/dev/full").unwrap();
    let on_lost: OnLost = Arc::new(move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
    });
    let (mut console, host) = console(UNKNOWN);
    console.outputs[STDIO] = Output::open(full.as_fd(), on_lost).unwrap();
    let mut driver = driver_of(console, host);
    driver.machine.init();
    assert!(driver.print(STDIO, b"lost"));
    assert_eq!(losses.load(Ordering::Relaxed), 1);
}

#[test]
fn input_is_left_alone_until_the_guest_has_opened_the_port_and_given_buffers() {
    let mut driver = Driver::new(UNKNOWN);
    driver
        .host
        .stdin
        .as_mut()
        .unwrap()
        .write_all(b"piped in")
        .unwrap();
    let address = driver.give(STDIN, 4);
    assert!(!driver.machine.wants_backend(), "it is not open");
    driver.say(4, event::PORT_OPEN, 1);
    assert!(driver.machine.wants_backend());
    driver.machine.serve_backend(10);
    assert_eq!(driver.take(STDIN, address), Some(b"pipe".to_vec()));
    assert!(!driver.machine.wants_backend(), "no more buffers");
    let address = driver.give(STDIN, 100);
    driver.machine.serve_backend(10);
    assert_eq!(driver.take(STDIN, address), Some(b"d in".to_vec()));
    driver.say(4, event::PORT_OPEN, 0);
    driver.give(STDIN, 100);
    assert!(!driver.machine.wants_backend(), "it is closed again");
}

#[test]
fn the_end_of_input_closes_its_port_after_the_last_byte_and_leaves_output_open() {
    let mut driver = Driver::open(UNKNOWN);
    let _ = driver.messages();
    let address = driver.give(STDIN, 100);
    driver.give(STDIN, 100);
    driver
        .host
        .stdin
        .take()
        .unwrap()
        .write_all(b"last")
        .unwrap();
    driver.machine.serve_backend(10);
    assert_eq!(driver.take(STDIN, address), Some(b"last".to_vec()));
    assert_eq!(driver.messages(), [(4, event::PORT_OPEN, 0, vec![])]);
    assert!(!driver.machine.wants_backend(), "an end is read once");
    assert!(driver.print(STDIO, b"still"));
    assert_eq!(read(&driver.host.stdout, 5), b"still");
}

#[test]
fn held_input_is_open_and_not_read() {
    let (mut console, host) = console(UNKNOWN);
    console.hold_input(true);
    let mut driver = driver_of(console, host);
    driver.machine.init();
    driver.say(u32::MAX, event::DEVICE_READY, 1);
    driver.say(4, event::PORT_READY, 1);
    driver.say(4, event::PORT_OPEN, 1);
    assert!(
        driver
            .messages()
            .contains(&(4, event::PORT_OPEN, 1, vec![]))
    );
    let address = driver.give(STDIN, 100);
    driver
        .host
        .stdin
        .take()
        .unwrap()
        .write_all(b"later")
        .unwrap();
    assert!(!driver.machine.wants_backend());
    driver.console.lock().unwrap().hold_input(false);
    driver.machine.serve_backend(10);
    assert_eq!(driver.take(STDIN, address), Some(b"later".to_vec()));
}

#[test]
fn the_detach_key_is_not_for_the_guest_and_what_follows_it_neither() {
    let mut driver = Driver::open(UNKNOWN);
    let address = driver.give(TERMINAL, 100);
    driver.give(TERMINAL, 100);
    driver.host.keys.write_all(b"ls\x1dmore").unwrap();
    driver.machine.serve_backend(10);
    assert_eq!(driver.take(TERMINAL, address), Some(b"ls".to_vec()));
    assert_eq!(driver.take(TERMINAL, address), None);
    assert!(driver.console.lock().unwrap().is_detach_wanted());
    let _ = driver.messages();
    driver.console.lock().unwrap().detach();
    assert!(!driver.machine.wants_backend());
    let told = driver.messages();
    assert_eq!(
        told,
        [
            (0, event::PORT_OPEN, 0, vec![]),
            (4, event::PORT_OPEN, 0, vec![])
        ]
    );
    assert!(driver.print(TERMINAL, b"to nobody"));
    let mut left = Vec::new();
    driver.host.screen.read_to_end(&mut left).unwrap();
    assert!(left.is_empty());
}

#[test]
fn a_detached_guest_that_was_held_back_goes_on() {
    let mut driver = Driver::open(UNKNOWN);
    while driver.print(TERMINAL, &[0; 32 << 10]) {}
    driver.console.lock().unwrap().detach();
    let queue = QueueRole::FromGuest(TERMINAL).index();
    assert!(driver.machine.take_used(queue).is_some());
    assert!(driver.print(TERMINAL, b"more"));
}

#[test]
fn lines_reach_an_agent_that_is_there_and_reads() {
    let mut driver = Driver::new(UNKNOWN);
    let send = |driver: &Driver| driver.console.lock().unwrap().send_line("signal 15\n");
    let address = driver.give(AGENT, 64);
    assert!(!send(&driver), "its port is not open");
    driver.say(3, event::PORT_OPEN, 1);
    assert!(driver.console.lock().unwrap().is_agent_open());
    assert!(send(&driver));
    assert_eq!(driver.take(AGENT, address), Some(b"signal 15\n".to_vec()));
    for _ in 0..CONSOLE_LINES_SIZE {
        driver.give(AGENT, 64);
    }
    for _ in 0..CONSOLE_LINES_SIZE {
        assert!(send(&driver));
    }
    assert!(!send(&driver), "it does not read");
    driver.say(3, event::PORT_OPEN, 0);
    driver.give(AGENT, 64);
    assert!(!send(&driver), "it has gone");
}

#[test]
fn a_buffer_that_is_too_small_for_a_message_goes_back_empty() {
    let (console, host) = console(UNKNOWN);
    let mut driver = driver_of(console, host);
    driver.machine.init();
    let queue = QueueRole::ControlToGuest.index();
    let address = driver.machine.alloc(64);
    for bytes in [4, 64] {
        driver.machine.add(queue, &[writable(address, bytes)]);
        driver.machine.kick(queue);
    }
    driver.say(u32::MAX, event::DEVICE_READY, 1);
    let used = [(); 2].map(|()| driver.machine.take_used(queue).map(|(_, bytes)| bytes));
    assert_eq!(used, [Some(0), Some(8)]);
    assert_eq!(driver.machine.counters().guest_faults, 1);
}

#[test]
fn messages_and_buffers_of_no_sense_are_counted_and_harm_nothing() {
    let mut driver = Driver::open(UNKNOWN);
    let before = driver.machine.counters().guest_faults;
    let (from_guest, control) = (
        QueueRole::FromGuest(STDIO).index(),
        QueueRole::ControlFromGuest.index(),
    );
    let address = driver.machine.put(&[0xff; 64]);
    let too_much = u32::try_from(CONSOLE_BUFFER_BYTES_MAX).unwrap() + 1;
    for (queue, buffer) in [
        (control, readable(address, 7)),
        (control, readable(address, 8)),
        (control, writable(address, 8)),
        (control, readable(LOW_RAM - 4, 8)),
        (from_guest, writable(address, 8)),
        (from_guest, readable(LOW_RAM - 4, 8)),
        (from_guest, readable(0, too_much)),
    ] {
        assert_eq!(driver.machine.request(queue, &[buffer]), 0);
    }
    assert_eq!(driver.machine.counters().guest_faults, before + 7);
    assert!(driver.print(STDIO, b"works"));
    let high = HIGH_RAM + 100;
    assert_eq!(driver.machine.request(from_guest, &[readable(high, 5)]), 0);
    assert_eq!(read(&driver.host.stdout, 10), b"works\0\0\0\0\0");
}

#[test]
fn a_driver_without_ports_has_the_terminal() {
    let (console, host) = console(UNKNOWN);
    let mut driver = driver_of(console, host);
    let features = driver.machine.offered() & !feature::MULTIPORT;
    driver.machine.init_with(features);
    assert!(driver.print(TERMINAL, b"screen"));
    assert_eq!(read(&driver.host.screen, 6), b"screen");
    driver.host.keys.write_all(b"keys").unwrap();
    let address = driver.give(TERMINAL, 16);
    driver.machine.serve_backend(2);
    assert_eq!(driver.take(TERMINAL, address), Some(b"keys".to_vec()));
    driver.give(STDIN, 16);
    driver
        .host
        .stdin
        .take()
        .unwrap()
        .write_all(b"stdin")
        .unwrap();
    assert!(!driver.machine.wants_backend());
    assert!(!driver.console.lock().unwrap().send_line("signal 1\n"));
}

#[test]
fn a_restored_guest_is_told_what_has_changed_and_no_more() {
    let mut driver = Driver::open(UNKNOWN);
    let _ = driver.messages();
    driver.give(STDIN, 16);
    drop(driver.host.stdin.take());
    driver.machine.serve_backend(2);
    let _ = driver.messages();
    let (transport, state) = driver.machine.save();
    let DeviceState::Console(state) = state else {
        panic!("{state:?}")
    };
    let size = TerminalSize {
        columns: 80,
        rows: 24,
    };
    let (mem, rings) = (
        Arc::clone(&driver.machine.mem),
        driver.machine.rings.clone(),
    );
    let mailbox = driver.mailbox;
    let (console, host) = console(size);
    let console = console.with_state(&state).unwrap();
    driver = driver_of(console, host);
    let shared = shared(&driver.console);
    driver.machine = Machine::with_mem(Box::new(shared), mem, Some(&transport));
    driver.machine.rings = rings;
    driver.mailbox = mailbox;
    let resize = (0, event::RESIZE, 0, vec![80, 0, 24, 0]);
    assert_eq!(
        driver.messages(),
        [resize, (4, event::PORT_OPEN, 1, vec![])]
    );
    assert!(driver.print(STDIO, b"clone"));
    assert_eq!(read(&driver.host.stdout, 5), b"clone");
}

#[test]
fn the_driver_after_a_reset_is_told_nothing_of_what_the_one_before_was_owed() {
    let mut driver = Driver::open(UNKNOWN);
    driver.machine.set_status(0);
    driver.console.lock().unwrap().forget_driver();
    driver.mailbox = None;
    driver.machine.init();
    assert_eq!(driver.messages(), []);
    driver.say(u32::MAX, event::DEVICE_READY, 1);
    let events: Vec<_> = driver.messages().into_iter().map(|m| m.1).collect();
    assert_eq!(events, [event::PORT_ADD; 5]);
}

#[test]
fn a_turn_is_bounded_and_what_is_left_is_served_without_a_notification() {
    let mut driver = Driver::open(UNKNOWN);
    let file = tempfile::tempfile().unwrap();
    let output = Output::open(file.as_fd(), Arc::new(|_| ())).unwrap();
    driver.console.lock().unwrap().outputs[STDIO] = output;
    let queue = QueueRole::FromGuest(STDIO).index();
    let bytes = u32::try_from(CONSOLE_BUFFER_BYTES_MAX).unwrap();
    for _ in 0..3 {
        driver.machine.add(queue, &[readable(0, bytes)]);
    }
    driver.machine.kick(queue);
    for _ in 0..3 {
        assert!(driver.machine.take_used(queue).is_some());
        assert_eq!(driver.machine.take_used(queue), None);
        assert!(driver.machine.wants_backend());
        driver.machine.serve_backend(1);
    }
    assert!(!driver.machine.wants_backend());
    assert_eq!(file.metadata().unwrap().len(), 3 * u64::from(bytes));
}
