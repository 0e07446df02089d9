use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use tempfile::TempDir;

use super::*;
use crate::virtio::vsock::packet::shutdown;

const CID: u32 = 3;

struct Bench {
    folder: TempDir,
    host: Host,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v");
        let listener = UnixListener::bind(&path).unwrap();
        let mut host = Host::new(CID, &path, listener, Arc::default()).unwrap();
        host.set_open(true);
        Self { folder, host }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A client that has said `text`, and has been heard.
    fn client(&mut self, text: &str) -> UnixStream {
        let mut client = UnixStream::connect(self.path("v")).unwrap();
        client.write_all(text.as_bytes()).unwrap();
        self.host.serve().unwrap();
        client
    }

    fn next(&mut self) -> Option<Header> {
        self.host.next_for_guest(&mut [0; 4096])
    }

    /// Takes a packet; true if the guest kept to the rules and the host did not fail.
    fn take(&mut self, op: u16, pair: Pair) -> bool {
        let header = packet(op, pair);
        self.host.take(&header, Some(&[])).is_ok_and(|good| good)
    }

    /// A socket for the guest's connections to `port`.
    fn service(&self, port: u32) -> UnixListener {
        UnixListener::bind(self.path(&format!("v_{port}"))).unwrap()
    }
}

fn packet(op: u16, pair: Pair) -> Header {
    Header {
        src_cid: u64::from(CID),
        dst_cid: HOST_CID,
        src_port: pair.guest,
        dst_port: pair.host,
        socket_type: socket_type::STREAM,
        op,
        buf_alloc: 65_536,
        ..Header::default()
    }
}

const fn pair(guest: u32, host: u32) -> Pair {
    Pair { guest, host }
}

#[test]
fn a_client_is_connected_by_way_of_the_guest() {
    let mut bench = Bench::new();
    let mut client = bench.client("CONNECT 52\nhello");
    let request = bench.next().unwrap();
    let expected = Header {
        src_cid: HOST_CID,
        dst_cid: u64::from(CID),
        src_port: 1 << 30,
        dst_port: 52,
        socket_type: socket_type::STREAM,
        op: op::REQUEST,
        buf_alloc: 65_536,
        ..Header::default()
    };
    assert_eq!(request, expected);
    assert!(bench.take(op::RESPONSE, pair(52, 1 << 30)));
    let mut line = [0; 14];
    client.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"OK 1073741824\n");
    bench.host.serve().unwrap();
    let bytes = bench.next().unwrap();
    assert_eq!((bytes.op, bytes.len), (op::RW, 5));
}

#[test]
fn the_guest_connects_to_sockets_that_are_there_and_to_no_others() {
    let mut bench = Bench::new();
    let service = bench.service(80);
    assert!(bench.take(op::REQUEST, pair(1000, 80)));
    assert_eq!(bench.next().unwrap().op, op::RESPONSE);
    let _accepted = service.accept().unwrap();
    std::fs::write(bench.path("v_81"), "no socket").unwrap();
    for port in [81, 82, u32::MAX] {
        assert!(bench.take(op::REQUEST, pair(1000, port)));
        let refused = bench.next().unwrap();
        assert_eq!((refused.op, refused.src_port), (op::RST, port));
    }
    assert!(bench.next().is_none());
    // A name that is too long for a socket with its port.
    bench.host.path = PathBuf::from(format!("/tmp/{}", "a".repeat(100)));
    assert!(bench.take(op::REQUEST, pair(1000, 90)));
    assert_eq!(bench.next().unwrap().op, op::RST);
}

#[test]
fn more_requests_than_there_may_be_connections_are_refused_and_said_once() {
    let mut bench = Bench::new();
    let service = bench.service(80);
    service.set_nonblocking(true).unwrap();
    let mut accepted = Vec::new();
    let mut failures = 0;
    for guest in 0..5000 {
        let header = packet(op::REQUEST, pair(guest, 80));
        failures += usize::from(bench.host.take(&header, Some(&[])).is_err());
        while let Ok((stream, _)) = service.accept() {
            accepted.push(stream);
        }
        let answer = bench.next().unwrap();
        let is_taken = (guest as usize) < VSOCK_CONNECTIONS_MAX;
        let expected = if is_taken { op::RESPONSE } else { op::RST };
        assert_eq!(answer.op, expected, "{guest}");
    }
    assert_eq!((accepted.len(), failures), (VSOCK_CONNECTIONS_MAX, 1));
    // A client of the host is sent away too.
    let mut client = bench.client("CONNECT 52\n");
    assert_eq!(client.read(&mut [0; 8]).unwrap(), 0);
    // One goes, another comes.
    assert!(bench.take(op::RST, pair(0, 80)));
    assert!(bench.take(op::REQUEST, pair(0, 80)));
    assert_eq!(bench.next().unwrap().op, op::RESPONSE);
}

#[test]
fn opening_and_closing_without_end_leaves_nothing() {
    let mut bench = Bench::new();
    let service = bench.service(80);
    for _ in 0..3 * VSOCK_CONNECTIONS_MAX {
        assert!(bench.take(op::REQUEST, pair(7, 80)));
        let _ = service.accept().unwrap();
        assert!(bench.take(op::RST, pair(7, 80)));
    }
    assert!(bench.host.queue.is_empty() && bench.host.known.is_empty());
    assert!(!bench.host.has_for_guest());
}

#[test]
fn packets_without_a_connection_are_answered_and_then_hold_the_guest_back() {
    let mut bench = Bench::new();
    let more = u32::try_from(VSOCK_REPLIES_MAX).unwrap() + 50;
    for guest in 0..more {
        if bench.host.is_full() {
            break;
        }
        assert!(bench.take(op::RW, pair(guest, 80)));
        assert!(bench.take(op::RST, pair(guest, 80)), "never answered");
    }
    assert!(bench.host.is_full());
    assert_eq!(bench.host.replies.len(), VSOCK_REPLIES_MAX);
    // A new connection is not ended by what an old one of its ports was answered.
    let _service = bench.service(80);
    assert!(bench.take(op::REQUEST, pair(5, 80)));
    while let Some(header) = bench.next() {
        let is_new = header.dst_port == 5;
        assert_eq!(header.op == op::RESPONSE, is_new, "{header:?}");
    }
}

#[test]
fn a_request_for_ports_in_use_ends_both() {
    let mut bench = Bench::new();
    let service = bench.service(80);
    assert!(bench.take(op::REQUEST, pair(1, 80)));
    let (mut accepted, _) = service.accept().unwrap();
    assert!(!bench.take(op::REQUEST, pair(1, 80)));
    assert_eq!(accepted.read(&mut [0; 8]).unwrap(), 0);
    assert_eq!(bench.next().unwrap().op, op::RST);
    assert!(bench.next().is_none());
}

#[test]
fn clients_that_say_nothing_wait_in_turn_and_not_for_ever() {
    let mut bench = Bench::new();
    let silent: Vec<_> = (0..VSOCK_GREETINGS_MAX + 3)
        .map(|_| bench.client(""))
        .collect();
    for _ in 0..VSOCK_GREETINGS_MAX {
        bench.host.serve().unwrap();
    }
    assert!(bench.host.greetings.is_full());
    drop(silent);
    for _ in 0..VSOCK_GREETINGS_MAX {
        bench.host.serve().unwrap();
    }
    assert!(bench.host.greetings.is_empty());
    let mut slow = bench.client("CONN");
    for greeting in bench.host.greetings.iter_mut() {
        greeting.deadline = Instant::now();
    }
    bench.host.tick();
    assert_eq!(slow.read(&mut [0; 8]).unwrap(), 0);
}

#[test]
fn a_bad_line_ends_that_client_alone() {
    let mut bench = Bench::new();
    let endless = "C".repeat(4096);
    for text in ["HELLO\n", "CONNECT 4294967296\n", "CONNECT 1 2\n", &endless] {
        let mut client = bench.client(text);
        // What it said beyond the limit was not read: that is told as a reset.
        let ended = client.read(&mut [0; 8]);
        assert!(!matches!(ended, Ok(1..)), "{text}");
    }
    assert!(bench.next().is_none() && bench.host.greetings.is_empty());
    let _client = bench.client("CONNECT 52\n");
    assert_eq!(bench.next().unwrap().op, op::REQUEST);
}

#[test]
fn a_guest_that_does_not_answer_is_waited_for_but_not_for_ever() {
    let mut bench = Bench::new();
    let mut client = bench.client("CONNECT 52\n");
    let _ = bench.next().unwrap();
    let mut unasked = bench.client("CONNECT 53\n");
    let late = Instant::now() - Duration::from_secs(3600);
    for entry in bench.host.connections.iter_mut() {
        entry.connection.restart_clock(late);
    }
    bench.host.tick();
    for client in [&mut client, &mut unasked] {
        assert_eq!(client.read(&mut [0; 8]).unwrap(), 0);
    }
    // Of the one that it does not know, it is told nothing.
    let told = bench.next().unwrap();
    assert_eq!((told.op, told.dst_port), (op::RST, 52));
    assert!(bench.next().is_none());
}

#[test]
fn clients_wait_while_they_are_not_let_in() {
    let mut bench = Bench::new();
    bench.host.set_open(false);
    let _client = bench.client("CONNECT 52\n");
    assert!(bench.next().is_none() && bench.host.greetings.is_empty());
    bench.host.set_open(true);
    bench.host.serve().unwrap();
    assert_eq!(bench.next().unwrap().op, op::REQUEST);
}

#[test]
fn connections_take_turns() {
    let mut bench = Bench::new();
    let service = bench.service(80);
    let mut streams = Vec::new();
    for guest in 0..3 {
        assert!(bench.take(op::REQUEST, pair(guest, 80)));
        streams.push(service.accept().unwrap().0);
        assert_eq!(bench.next().unwrap().op, op::RESPONSE);
    }
    for stream in &mut streams {
        stream.write_all(&[1; 3 * 4096]).unwrap();
    }
    bench.host.serve().unwrap();
    let turns: Vec<u32> = (0..9).map(|_| bench.next().unwrap().dst_port).collect();
    assert_eq!(turns, [0, 1, 2, 0, 1, 2, 0, 1, 2]);
}

#[test]
fn the_last_bytes_reach_a_host_that_takes_them_late() {
    let mut bench = Bench::new();
    let service = bench.service(80);
    assert!(bench.take(op::REQUEST, pair(1, 80)));
    let (mut accepted, _) = service.accept().unwrap();
    let mut sent = 0;
    let header = packet(op::RW, pair(1, 80));
    while sent == 0
        || !bench
            .host
            .connections
            .get_mut(0)
            .unwrap()
            .connection
            .has_bytes_for_host()
    {
        assert!(bench.host.take(&header, Some(&[6; 8192])).unwrap());
        sent += 8192;
    }
    let header = Header {
        flags: shutdown::BOTH,
        ..packet(op::SHUTDOWN, pair(1, 80))
    };
    assert!(bench.host.take(&header, Some(&[])).unwrap());
    assert_eq!(bench.next().map(|header| header.op), Some(op::RST));
    assert!(bench.host.known.is_empty());
    let reader = std::thread::spawn(move || {
        let mut received = Vec::new();
        accepted.read_to_end(&mut received).map(|_| received.len())
    });
    bench.host.flush_last(&|| false);
    drop(bench);
    assert_eq!(reader.join().unwrap().unwrap(), sent);
}
