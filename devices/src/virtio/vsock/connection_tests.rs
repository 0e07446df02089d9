use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use super::*;

const PAIR: Pair = Pair {
    guest: 5000,
    host: 52,
};
const GUEST_BYTES: u32 = 100;

/// A packet of the guest that has forwarded `fwd_cnt` bytes of 100 that it has room for.
fn packet(op: u16, fwd_cnt: u32) -> Header {
    Header {
        src_port: PAIR.guest,
        dst_port: PAIR.host,
        op,
        buf_alloc: GUEST_BYTES,
        fwd_cnt,
        ..Header::default()
    }
}

/// An open connection, and the host's end of it.
fn open() -> (UnixStream, Connection) {
    let (host, ours) = UnixStream::pair().unwrap();
    let request = packet(op::REQUEST, 0);
    let mut connection = Connection::accepted(ours.into(), &request);
    assert_eq!(next(&mut connection).unwrap().0.op, op::RESPONSE);
    assert_eq!(connection.wanted_events(), Some(EventFlags::IN));
    (host, connection)
}

/// The next packet for the guest, with its bytes.
fn next(connection: &mut Connection) -> Option<(Outgoing, Vec<u8>)> {
    let mut target = [0; 64];
    let outgoing = connection.next_for_guest(&mut target, Instant::now())?;
    connection.tell_credit(&mut Header::default());
    Some((outgoing, target[..outgoing.len].to_vec()))
}

fn shut_of(connection: &mut Connection) -> u32 {
    let (outgoing, _) = next(connection).unwrap();
    assert_eq!(outgoing.op, op::SHUTDOWN);
    outgoing.flags
}

fn send(connection: &mut Connection, bytes: &[u8]) -> Fate {
    connection.take(&packet(op::RW, 0), Some(bytes))
}

#[test]
fn no_byte_is_read_that_the_guest_has_no_room_for() {
    let (mut host, mut connection) = open();
    host.write_all(&[7; 150]).unwrap();
    connection.fired(EventFlags::IN);
    assert_eq!(next(&mut connection).unwrap().1.len(), 64);
    assert_eq!(next(&mut connection).unwrap().1.len(), 36);
    // It is asked once, and the socket is left alone meanwhile.
    assert_eq!(next(&mut connection).unwrap().0.op, op::CREDIT_REQUEST);
    assert!(next(&mut connection).is_none() && !connection.has_for_guest());
    assert_eq!(connection.wanted_events(), None);
    connection.take(&packet(op::CREDIT_UPDATE, 50), Some(&[]));
    assert!(connection.has_for_guest());
    assert_eq!(next(&mut connection).unwrap().1.len(), 50);
}

#[test]
fn credit_that_makes_no_sense_is_none() {
    for (sent, forwarded, room, expected) in [
        (0, 0, 100, 100),
        (60, 10, 100, 50),
        (60, 61, 100, 0),
        (200, 0, 100, 0),
        (5, u32::MAX - 4, 100, 90),
        (0, 0, u32::MAX, u32::MAX),
        (0, 0, 0, 0),
    ] {
        let credit = Credit {
            sent,
            guest_forwarded: forwarded,
            guest_bytes: room,
            ..Credit::default()
        };
        assert_eq!(credit.of_guest(), expected, "{sent} {forwarded} {room}");
    }
}

#[test]
fn bytes_that_the_host_does_not_take_are_kept_up_to_the_limit() {
    let (mut host, mut connection) = open();
    // The socket takes some of it; then what is kept grows to the limit.
    let piece = [3; 4096];
    let mut sent = 0;
    while connection.buffer.len() + piece.len() <= VSOCK_BUFFER_BYTES {
        assert_eq!(send(&mut connection, &piece), Fate::Stays);
        sent += piece.len();
        assert!(sent < 64 << 20, "the socket takes no end of bytes");
    }
    assert_eq!(
        connection.wanted_events(),
        Some(EventFlags::IN | EventFlags::OUT)
    );
    assert_eq!(send(&mut connection, &[3; 4096]), Fate::Broken);
    let mut received = vec![0; sent];
    let reader = std::thread::spawn(move || {
        host.read_exact(&mut received).unwrap();
        received
    });
    while connection.has_bytes_for_host() {
        connection.flush();
    }
    assert_eq!(reader.join().unwrap(), vec![3; sent]);
    // The guest learns that there is room again.
    assert!(connection.has_for_guest());
    assert_eq!(next(&mut connection).unwrap().0.op, op::CREDIT_UPDATE);
    assert!(!connection.has_for_guest());
}

#[test]
fn a_host_that_sends_no_more_still_gets_what_the_guest_sends() {
    let (mut host, mut connection) = open();
    host.write_all(b"last").unwrap();
    host.shutdown(Shutdown::Write).unwrap();
    connection.fired(EventFlags::IN);
    assert_eq!(next(&mut connection).unwrap().1, b"last");
    connection.fired(EventFlags::IN);
    assert_eq!(shut_of(&mut connection), shutdown::SEND);
    assert_eq!(send(&mut connection, b"answer"), Fate::Stays);
    let mut answer = [0; 6];
    host.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"answer");
    // Only its end is waited for.
    assert_eq!(connection.wanted_events(), Some(EventFlags::empty()));
    drop(host);
    connection.fired(EventFlags::HUP);
    assert_eq!(shut_of(&mut connection), shutdown::BOTH);
    assert!(connection.deadline().is_some());
    assert_eq!(connection.wanted_events(), None);
    assert_eq!(send(&mut connection, b"too late"), Fate::Stays);
    assert_eq!(connection.take(&packet(op::RST, 0), Some(&[])), Fate::Gone);
}

#[test]
fn a_host_that_has_gone_has_sent_all_before() {
    let (mut host, mut connection) = open();
    host.write_all(&[1; 70]).unwrap();
    drop(host);
    connection.fired(EventFlags::IN | EventFlags::HUP);
    assert_eq!(next(&mut connection).unwrap().1.len(), 64);
    assert_eq!(next(&mut connection).unwrap().1.len(), 6);
    connection.fired(EventFlags::IN | EventFlags::HUP);
    assert_eq!(shut_of(&mut connection), shutdown::BOTH);
}

#[test]
fn a_guest_that_sends_no_more_still_gets_what_the_host_sends() {
    let (mut host, mut connection) = open();
    let shut = |flags| Header {
        flags,
        ..packet(op::SHUTDOWN, 0)
    };
    assert_eq!(send(&mut connection, b"ask"), Fate::Stays);
    let fate = connection.take(&shut(shutdown::SEND), Some(&[]));
    assert_eq!(fate, Fate::Stays);
    let mut asked = String::new();
    host.read_to_string(&mut asked).unwrap();
    assert_eq!(asked, "ask");
    host.write_all(b"answer").unwrap();
    connection.fired(EventFlags::IN);
    assert_eq!(next(&mut connection).unwrap().1, b"answer");
    assert_eq!(send(&mut connection, b"x"), Fate::Broken, "it said so");
    let fate = connection.take(&shut(shutdown::RECEIVE), Some(&[]));
    assert_eq!(fate, Fate::Closed, "both ways by now");
    assert!(!connection.drain(Instant::now()));
}

#[test]
fn what_the_guest_sent_before_it_closed_is_given_to_a_slow_host() {
    let (mut host, mut connection) = open();
    let mut sent = 0;
    while !connection.has_bytes_for_host() {
        assert_eq!(send(&mut connection, &[9; 4096]), Fate::Stays);
        sent += 4096;
    }
    let header = Header {
        flags: shutdown::BOTH,
        ..packet(op::SHUTDOWN, 0)
    };
    assert_eq!(connection.take(&header, Some(&[])), Fate::Closed);
    assert!(connection.drain(Instant::now()));
    assert!(!connection.has_for_guest() && !connection.is_known_to_guest());
    assert_eq!(connection.wanted_events(), Some(EventFlags::OUT));
    let mut received = vec![0; sent];
    let reader = std::thread::spawn(move || host.read_exact(&mut received).map(|()| received));
    while connection.has_bytes_for_host() {
        connection.fired(EventFlags::OUT);
    }
    drop(connection);
    assert_eq!(reader.join().unwrap().unwrap(), vec![9; sent]);
}

#[test]
fn a_slow_host_that_takes_something_is_waited_for_on() {
    let (mut host, mut connection) = open();
    while !connection.has_bytes_for_host() {
        assert_eq!(send(&mut connection, &[9; 4096]), Fate::Stays);
    }
    let early = Instant::now() - Duration::from_millis(VSOCK_DRAIN_MS / 2);
    assert!(connection.drain(early));
    let first = connection.deadline().unwrap();
    connection.fired(EventFlags::OUT);
    assert_eq!(connection.deadline(), Some(first), "it has taken nothing");
    // As much as has its socket tell of room.
    let mut taken = vec![0; 256 << 10];
    while connection.deadline() == Some(first) && connection.has_bytes_for_host() {
        let _ = host.read(&mut taken).unwrap();
        connection.fired(EventFlags::OUT);
    }
    let left = connection.deadline().unwrap() - first;
    assert!(left > Duration::from_millis(VSOCK_DRAIN_MS / 4), "{left:?}");
}

#[test]
fn a_host_that_has_gone_is_seen_though_the_guest_takes_nothing_and_cannot_send() {
    let (host, mut connection) = open();
    let header = Header {
        flags: shutdown::RECEIVE,
        ..packet(op::SHUTDOWN, 0)
    };
    assert_eq!(connection.take(&header, Some(&[])), Fate::Stays);
    drop(host);
    assert_eq!(send(&mut connection, b"x"), Fate::Stays);
    assert!(connection.wanted_events().is_some());
    connection.fired(EventFlags::HUP);
    assert_eq!(connection.wanted_events(), None);
    let told = shut_of(&mut connection);
    assert_eq!(told, shutdown::BOTH, "{told}");
}

#[test]
fn a_client_is_told_when_the_guest_takes_it() {
    let (mut client, ours) = UnixStream::pair().unwrap();
    let now = Instant::now();
    let mut connection = Connection::asked(PAIR, ours.into(), now);
    assert!(!connection.is_known_to_guest());
    client.write_all(b"early").unwrap();
    connection.fired(EventFlags::IN);
    assert_eq!(next(&mut connection).unwrap().0.op, op::REQUEST);
    assert!(next(&mut connection).is_none(), "nothing before the answer");
    assert_eq!(connection.wanted_events(), None);
    let response = packet(op::RESPONSE, 0);
    assert_eq!(connection.take(&response, Some(&[])), Fate::Stays);
    let mut line = [0; 6];
    client.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"OK 52\n");
    connection.fired(EventFlags::IN);
    assert_eq!(next(&mut connection).unwrap().1, b"early");
    assert_eq!(
        connection.take(&response, Some(&[])),
        Fate::Broken,
        "a second answer"
    );
}

#[test]
fn packets_that_make_no_sense_break_it() {
    for (header, payload) in [
        (packet(0, 0), Some(&[][..])),
        (packet(8, 0), Some(&[])),
        (packet(u16::MAX, 0), Some(&[])),
        (packet(op::REQUEST, 0), Some(&[])),
        (packet(op::RESPONSE, 0), Some(&[])),
        (packet(op::RW, 0), None),
    ] {
        let (_host, mut connection) = open();
        assert_eq!(
            connection.take(&header, payload),
            Fate::Broken,
            "{header:?}"
        );
    }
    let (_client, ours) = UnixStream::pair().unwrap();
    let mut asked = Connection::asked(PAIR, ours.into(), Instant::now());
    assert_eq!(send(&mut asked, b"before its answer"), Fate::Broken);
}
