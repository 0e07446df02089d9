use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::limits::VSOCK_REPLIES_MAX;
use crate::test_support::{HIGH_RAM, LOW_RAM, Machine, guest_mem, process, readable, writable};

const CID: u32 = 7;
const PORT: u32 = 80;

/// A running device, and its driver.
struct Bench {
    folder: TempDir,
    machine: Machine,
}

fn device(folder: &TempDir) -> Vsock {
    let path = folder.path().join("v");
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).unwrap();
    Vsock::new("vsock".into(), CID, &path, listener).unwrap()
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut machine = Machine::new(Box::new(device(&folder)));
        machine.init();
        Self { folder, machine }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Gives `count` buffers for packets.
    fn lend(&mut self, count: usize) {
        for _ in 0..count {
            let address = self.machine.alloc(4096);
            self.machine.add(RECEIVE_QUEUE, &[writable(address, 4096)]);
        }
        self.machine.kick(RECEIVE_QUEUE);
    }

    /// Sends a packet as it is.
    fn send_bytes(&mut self, bytes: &[u8]) {
        let address = self.machine.put(bytes);
        let bytes = u32::try_from(bytes.len()).unwrap();
        assert_eq!(
            self.machine
                .request(TRANSMIT_QUEUE, &[readable(address, bytes)]),
            0
        );
    }

    /// Sends a packet on the connection of the guest's port `guest`.
    fn send(&mut self, guest: u32, op: u16, payload: &[u8]) {
        let header = header(guest, op, payload.len());
        self.send_bytes(&[&header.encode()[..], payload].concat());
    }

    /// Takes a packet for the guest.
    fn take(&mut self) -> Option<(Header, Vec<u8>)> {
        let (head, used) = self.machine.take_used(RECEIVE_QUEUE)?;
        if used == 0 {
            return None;
        }
        let table = self.machine.rings[RECEIVE_QUEUE].table;
        let address = self.machine.get(table + 16 * u64::from(head), 8);
        let address = u64::from_le_bytes(address.try_into().unwrap());
        let bytes = self.machine.get(address, used as usize);
        let (header, payload) = bytes.split_first_chunk().unwrap();
        Some((Header::decode(header), payload.to_vec()))
    }

    fn take_op(&mut self) -> Option<u16> {
        self.take().map(|(header, _)| header.op)
    }

    /// Connects the guest's port `guest` to the service at [`PORT`].
    fn connect(&mut self, guest: u32, service: &UnixListener) -> UnixStream {
        self.lend(1);
        self.send(guest, op::REQUEST, &[]);
        assert_eq!(self.take_op(), Some(op::RESPONSE));
        service.accept().unwrap().0
    }

    fn service(&self) -> UnixListener {
        UnixListener::bind(self.path(&format!("v_{PORT}"))).unwrap()
    }

    /// Stops the machine, and gives another that goes on from what was saved.
    fn restore(mut self) -> Self {
        let (transport, state) = self.machine.save();
        let DeviceState::Vsock(state) = state else {
            panic!("{state:?}")
        };
        let restored = device(&self.folder).with_state(&state).unwrap();
        let mem = Arc::clone(&self.machine.mem);
        let rings = self.machine.rings.clone();
        let mut machine = Machine::with_mem(Box::new(restored), mem, Some(&transport));
        machine.rings = rings;
        Self { machine, ..self }
    }
}

fn header(guest: u32, op: u16, len: usize) -> Header {
    Header {
        src_cid: u64::from(CID),
        dst_cid: HOST_CID,
        src_port: guest,
        dst_port: PORT,
        len: u32::try_from(len).unwrap(),
        socket_type: socket_type::STREAM,
        op,
        buf_alloc: 1 << 20,
        ..Header::default()
    }
}

#[test]
fn the_guest_finds_its_context_id() {
    let mut bench = Bench::new();
    let mut config = [0; 12];
    bench.machine.front.read(0x100, &mut config);
    assert_eq!(config, [7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn bytes_go_both_ways() {
    let mut bench = Bench::new();
    let service = bench.service();
    let mut stream = bench.connect(1000, &service);
    bench.send(1000, op::RW, b"from the guest");
    let mut text = [0; 14];
    stream.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"from the guest");
    stream.write_all(b"from the host").unwrap();
    bench.machine.serve_backend(2);
    assert!(bench.take().is_none(), "there is no buffer yet");
    bench.lend(1);
    let (header, payload) = bench.take().unwrap();
    assert_eq!((header.op, header.fwd_cnt), (op::RW, 14));
    assert_eq!(payload, b"from the host");
    let counters = bench.machine.counters();
    assert_eq!(
        (counters.bytes_from_guest, counters.bytes_to_guest),
        (14, 13)
    );
    assert_eq!(counters.guest_faults, 0);
}

#[test]
fn a_packet_may_lie_in_pieces() {
    let mut bench = Bench::new();
    let service = bench.service();
    let mut stream = bench.connect(1000, &service);
    let bytes = [&header(1000, op::RW, 6).encode()[..], b"pieces"].concat();
    let first = bench.machine.put(&bytes[..20]);
    bench
        .machine
        .mem
        .write_slice(&bytes[20..], GuestAddress(HIGH_RAM))
        .unwrap();
    let pieces = [readable(first, 20), readable(HIGH_RAM, 30)];
    assert_eq!(bench.machine.request(TRANSMIT_QUEUE, &pieces), 0);
    let mut text = [0; 6];
    stream.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"pieces");
    // Linux before 6.1 gives a buffer for the header and one for the bytes.
    stream.write_all(b"two").unwrap();
    let (header_at, payload_at) = (bench.machine.alloc(64), bench.machine.alloc(64));
    bench.machine.add(
        RECEIVE_QUEUE,
        &[writable(header_at, 44), writable(payload_at, 64)],
    );
    bench.machine.kick(RECEIVE_QUEUE);
    bench.machine.serve_backend(1);
    assert_eq!(bench.machine.take_used(RECEIVE_QUEUE).unwrap().1, 47);
    assert_eq!(bench.machine.get(payload_at, 3), b"two");
}

#[test]
fn packets_with_other_addresses_reach_nobody() {
    let mut bench = Bench::new();
    let service = bench.service();
    let mut stream = bench.connect(1000, &service);
    bench.lend(8);
    let good = header(1000, op::RW, 0);
    let wrong_source = Header { src_cid: 8, ..good };
    let from_host = Header {
        src_cid: HOST_CID,
        ..good
    };
    for header in [wrong_source, from_host] {
        bench.send_bytes(&header.encode());
        assert!(bench.take().is_none(), "{header:?}");
    }
    let to_nobody = Header {
        dst_cid: 77,
        ..good
    };
    let no_stream = Header {
        socket_type: 2,
        ..good
    };
    let unknown_type = Header {
        socket_type: 99,
        op: op::REQUEST,
        ..good
    };
    for sent in [to_nobody, no_stream, unknown_type] {
        bench.send_bytes(&sent.encode());
        let (answer, _) = bench.take().unwrap();
        assert_eq!(answer.op, op::RST);
        assert_eq!(
            (answer.src_cid, answer.socket_type),
            (sent.dst_cid, sent.socket_type)
        );
        assert_eq!((answer.dst_cid, answer.dst_port), (u64::from(CID), 1000));
    }
    assert_eq!(bench.machine.counters().guest_faults, 5);
    // The connection is as it was.
    bench.send(1000, op::RW, b"still");
    let mut text = [0; 5];
    stream.read_exact(&mut text).unwrap();
}

#[test]
fn lengths_that_are_not_there_end_the_connection() {
    for (len, bytes) in [(u32::MAX, 100), (101, 100), (65_537, 70_000), (1, 0)] {
        let mut bench = Bench::new();
        let service = bench.service();
        let mut stream = bench.connect(1000, &service);
        bench.lend(2);
        let header = Header {
            len,
            ..header(1000, op::RW, 0)
        };
        bench.send_bytes(&[&header.encode()[..], &vec![1; bytes]].concat());
        assert_eq!(bench.take_op(), Some(op::RST), "{len}");
        assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0);
        assert_eq!(bench.machine.counters().guest_faults, 1);
        assert_eq!(bench.machine.counters().connections_killed, 1);
    }
}

#[test]
fn more_bytes_than_there_is_credit_for_end_the_connection() {
    let mut bench = Bench::new();
    let service = bench.service();
    let _stream = bench.connect(1000, &service);
    bench.lend(2);
    // Nobody reads: the socket fills, then what is kept for it.
    let mut sent = 0;
    let answer = loop {
        bench.send(1000, op::RW, &[5; 32_768]);
        sent += 32_768;
        assert!(sent < 64 << 20, "bytes are taken without end");
        match bench.take_op() {
            None | Some(op::CREDIT_UPDATE) => bench.lend(1),
            Some(other) => break other,
        }
    };
    assert_eq!(answer, op::RST);
    assert!(sent > VSOCK_BUFFER_BYTES);
}

#[test]
fn short_and_unreadable_packets_are_given_back() {
    let mut bench = Bench::new();
    bench.lend(1);
    let address = bench.machine.alloc(64);
    for buffers in [
        &[readable(address, 43)][..],
        &[readable(address, 0)],
        &[writable(address, 64)],
        &[readable(LOW_RAM - 10, 44)],
        &[readable(u64::MAX - 10, 44)],
    ] {
        assert_eq!(bench.machine.request(TRANSMIT_QUEUE, buffers), 0);
    }
    assert_eq!(bench.machine.counters().guest_faults, 5);
    assert!(bench.take().is_none());
}

#[test]
fn buffers_of_no_use_are_given_back_and_no_byte_is_lost() {
    let mut bench = Bench::new();
    let service = bench.service();
    let mut stream = bench.connect(1000, &service);
    stream.write_all(b"whole").unwrap();
    bench.machine.serve_backend(1);
    let address = bench.machine.alloc(64);
    for buffers in [
        &[writable(address, 44)][..],
        &[readable(address, 64)],
        &[writable(LOW_RAM - 10, 100)],
    ] {
        bench.machine.add(RECEIVE_QUEUE, buffers);
        bench.machine.kick(RECEIVE_QUEUE);
        assert_eq!(bench.machine.take_used(RECEIVE_QUEUE).unwrap().1, 0);
    }
    bench.lend(1);
    assert_eq!(bench.take().unwrap().1, b"whole");
}

#[test]
fn a_guest_that_takes_no_answers_is_heard_no_further() {
    let mut bench = Bench::new();
    let packets = u32::try_from(VSOCK_REPLIES_MAX).unwrap() + 100;
    let mut sent = 0;
    for guest in 0..packets {
        let address = bench.machine.put(&header(guest, op::RW, 0).encode());
        bench.machine.add(TRANSMIT_QUEUE, &[readable(address, 44)]);
        bench.machine.kick(TRANSMIT_QUEUE);
        if bench.machine.take_used(TRANSMIT_QUEUE).is_none() {
            break;
        }
        sent += 1;
    }
    assert_eq!(sent, VSOCK_REPLIES_MAX);
    // It goes on as soon as answers are taken.
    bench.lend(200);
    for _ in 0..200 {
        assert_eq!(bench.take_op(), Some(op::RST));
    }
    assert!(bench.machine.take_used(TRANSMIT_QUEUE).is_some());
}

#[test]
fn a_turn_is_bounded() {
    let mut bench = Bench::new();
    let service = bench.service();
    let mut stream = bench.connect(1000, &service);
    for _ in 0..100 {
        let address = bench
            .machine
            .put(&[&header(1000, op::RW, 1).encode()[..], b"x"].concat());
        bench.machine.add(TRANSMIT_QUEUE, &[readable(address, 45)]);
    }
    let progress = bench
        .machine
        .device
        .lock()
        .unwrap()
        .process_queue(TRANSMIT_QUEUE);
    assert_eq!(progress.unwrap(), Progress::More);
    let served = std::iter::from_fn(|| bench.machine.take_used(TRANSMIT_QUEUE)).count();
    assert_eq!(served, VSOCK_PACKETS_PER_TURN);
    process(&bench.machine.device, TRANSMIT_QUEUE);
    let mut all = [0; 100];
    stream.read_exact(&mut all).unwrap();
}

#[test]
fn connections_go_on_after_a_pause() {
    let mut bench = Bench::new();
    let service = bench.service();
    let mut stream = bench.connect(1000, &service);
    let queues = {
        let mut device = bench.machine.device.lock().unwrap();
        device.finish(&|| false);
        device.deactivate()
    };
    assert!(!bench.machine.wants_backend());
    stream.write_all(b"while it stood still").unwrap();
    let activation = Activation {
        mem: Arc::clone(&bench.machine.mem),
        queues,
        interrupt: bench.machine.interrupt.clone(),
        acked_features: bench.machine.front.acked_features(),
    };
    bench
        .machine
        .device
        .lock()
        .unwrap()
        .activate(activation)
        .unwrap();
    bench.lend(1);
    bench.machine.serve_backend(1);
    assert_eq!(bench.take().unwrap().1, b"while it stood still");
    bench.send(1000, op::RW, b"back");
    let mut text = [0; 4];
    stream.read_exact(&mut text).unwrap();
}

#[test]
fn after_a_restore_connections_have_ended_and_new_ones_wait_until_the_guest_knows() {
    let mut bench = Bench::new();
    let service = bench.service();
    let _stream = bench.connect(1000, &service);
    let event_at = bench.machine.alloc(16);
    for _ in 0..4 {
        bench.machine.add(EVENT_QUEUE, &[writable(event_at, 4)]);
    }
    bench
        .machine
        .mem
        .write_slice(&[0xff; 4], GuestAddress(event_at))
        .unwrap();
    bench.machine.kick(EVENT_QUEUE);
    assert!(bench.machine.take_used(EVENT_QUEUE).is_none());
    let mut bench = bench.restore();
    assert_eq!(
        bench.machine.take_used(EVENT_QUEUE).map(|used| used.1),
        Some(4)
    );
    assert_eq!(bench.machine.get(event_at, 4), [0; 4]);
    assert!(bench.machine.take_used(EVENT_QUEUE).is_none(), "told once");
    bench.lend(2);
    let (ended, _) = bench.take().unwrap();
    assert_eq!((ended.op, ended.dst_port), (op::RST, 1000));
    // A client comes before the guest has given the buffer back.
    let mut client = UnixStream::connect(bench.path("v")).unwrap();
    client.write_all(b"CONNECT 52\n").unwrap();
    bench.machine.serve_backend(3);
    assert!(bench.take().is_none());
    bench.machine.add(EVENT_QUEUE, &[writable(event_at, 4)]);
    bench.machine.kick(EVENT_QUEUE);
    bench.machine.serve_backend(2);
    assert_eq!(bench.take_op(), Some(op::REQUEST));
    // Not told again by a reset of the driver.
    bench.machine.init();
    bench.machine.add(EVENT_QUEUE, &[writable(event_at, 4)]);
    bench.machine.kick(EVENT_QUEUE);
    assert!(bench.machine.take_used(EVENT_QUEUE).is_none());
}

#[test]
fn a_driver_that_does_not_look_at_events_is_not_waited_for() {
    let mut bench = Bench::new();
    let service = bench.service();
    let _stream = bench.connect(1000, &service);
    let mut bench = bench.restore();
    bench.lend(2);
    assert_eq!(bench.take_op(), Some(op::RST));
    let mut client = UnixStream::connect(bench.path("v")).unwrap();
    client.write_all(b"CONNECT 52\n").unwrap();
    bench.machine.serve_backend(2);
    assert_eq!(bench.take_op(), Some(op::REQUEST));
}

#[test]
fn a_guest_without_connections_is_told_nothing_and_clients_need_not_wait() {
    let mut bench = Bench::new();
    let event_at = bench.machine.alloc(16);
    bench.machine.add(EVENT_QUEUE, &[writable(event_at, 4)]);
    bench.machine.kick(EVENT_QUEUE);
    let mut bench = bench.restore();
    assert!(bench.machine.take_used(EVENT_QUEUE).is_none());
    let mut client = UnixStream::connect(bench.path("v")).unwrap();
    client.write_all(b"CONNECT 52\n").unwrap();
    bench.lend(1);
    bench.machine.serve_backend(1);
    assert_eq!(bench.take_op(), Some(op::REQUEST));
}

#[test]
fn a_device_that_never_had_a_driver_has_nothing_to_tell() {
    let folder = tempfile::tempdir().unwrap();
    let DeviceState::Vsock(state) = device(&folder).save() else {
        panic!("it is a socket device")
    };
    assert!(!state.has_driver);
    let restored = device(&folder).with_state(&state).unwrap();
    let mut machine = Machine::with_mem(Box::new(restored), guest_mem(), None);
    machine.init();
    let event_at = machine.alloc(16);
    machine.add(EVENT_QUEUE, &[writable(event_at, 4)]);
    machine.kick(EVENT_QUEUE);
    assert!(machine.take_used(EVENT_QUEUE).is_none());
}

#[test]
fn a_reset_by_the_driver_ends_connections() {
    let folder = tempfile::tempdir().unwrap();
    let mut vsock = device(&folder);
    vsock.has_driver = true;
    let client = UnixStream::connect(folder.path().join("v")).unwrap();
    let header = header(1, op::REQUEST, 0);
    let service = UnixListener::bind(folder.path().join(format!("v_{PORT}"))).unwrap();
    assert!(vsock.host.take(&header, Some(&[])).unwrap());
    let (mut accepted, _) = service.accept().unwrap();
    vsock.forget_driver();
    assert_eq!(accepted.read(&mut [0; 8]).unwrap(), 0);
    let DeviceState::Vsock(state) = vsock.save() else {
        panic!("it is a socket device")
    };
    assert!(!state.has_driver && state.connections.is_empty());
    drop(client);
}
