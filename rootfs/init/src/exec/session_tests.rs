use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use lightv_contract::control::BYTES;
use lightv_contract::exec::{StartSpec, VERSION};

use super::*;

/// A control device without orders.
struct NoOrders;

impl Readable for NoOrders {
    fn copy(&self, offset: usize, into: &mut [u8]) -> Option<()> {
        into.fill(0);
        (offset + into.len() <= BYTES).then_some(())
    }
}

/// A session, and the host's end of its stream.
fn meet() -> (Session, UnixStream) {
    let (host, guest) = UnixStream::pair().unwrap();
    guest.set_nonblocking(true).unwrap();
    (Session::new(guest.into()), host)
}

fn hear(session: &mut Session, host: &mut UnixStream, bytes: &[u8]) {
    host.write_all(bytes).unwrap();
    session.serve(Part::Stream, &NoOrders);
    session.settle(Instant::now());
}

fn start_of(spec: &StartSpec) -> Vec<u8> {
    let mut bytes = Vec::new();
    ToGuest::Start(serde_json::to_vec(spec).unwrap()).encode(&mut bytes);
    bytes
}

/// What the host is told before the end of the stream.
fn told(session: Session, host: &mut UnixStream) -> Option<ToHost> {
    assert!(session.is_over());
    drop(session);
    let mut bytes = Vec::new();
    host.read_to_end(&mut bytes).unwrap();
    let mut incoming = Incoming::default();
    incoming.add(&bytes);
    incoming.take().unwrap()
}

#[test]
fn what_comes_before_a_start_or_is_no_message_ends_the_stream() {
    for bytes in [&[3, 0, 0, 0, 0][..], &[9, 0, 0, 0, 0], &[2, 1, 0, 0, 0, 7]] {
        let (mut session, mut host) = meet();
        hear(&mut session, &mut host, bytes);
        assert_eq!(told(session, &mut host), None, "{bytes:?}");
    }
}

#[test]
fn a_start_that_cannot_be_is_refused_with_its_status() {
    let nothing = StartSpec {
        version: VERSION,
        ..StartSpec::default()
    };
    let newer = StartSpec {
        version: VERSION + 1,
        words: vec!["ls".to_owned()],
        ..StartSpec::default()
    };
    let nobody = StartSpec {
        version: VERSION,
        words: vec!["ls".to_owned()],
        user: Some("no such user".to_owned()),
        ..StartSpec::default()
    };
    for (spec, expected, words) in [
        (nothing, 127, "no program"),
        (newer, 126, "version 2"),
        (nobody, 126, "no such user"),
    ] {
        let (mut session, mut host) = meet();
        hear(&mut session, &mut host, &start_of(&spec));
        let Some(ToHost::Refused { status, text }) = told(session, &mut host) else {
            panic!("{words}")
        };
        assert_eq!(status, expected);
        assert!(text.contains(words), "{text}");
    }
}

#[test]
fn a_stream_that_says_nothing_has_its_time() {
    let (mut session, _host) = meet();
    let until = session.deadline().unwrap();
    session.settle(until - Duration::from_millis(1));
    assert!(!session.is_over());
    session.settle(until);
    assert!(session.is_over());
}

#[test]
fn a_slow_host_that_takes_something_is_waited_for_on() {
    let (mut session, mut host) = meet();
    session.outgoing.extend(std::iter::repeat_n(7, 1 << 20));
    let first = Instant::now() + CLOSING_PATIENCE / 2;
    session.stage = Stage::Closing { until: first };
    session.flush();
    let until = |session: &Session| match session.stage {
        Stage::Closing { until } => until,
        _ => panic!("it is over"),
    };
    assert!(until(&session) > first, "some of it");
    session.stage = Stage::Closing { until: first };
    session.flush();
    assert_eq!(until(&session), first, "nothing");
    let mut taken = vec![0; 512 << 10];
    host.set_nonblocking(true).unwrap();
    while host.read(&mut taken).is_ok() {}
    session.flush();
    assert!(until(&session) > first + CLOSING_PATIENCE / 4);
}

#[test]
fn one_too_many_is_told_so_whatever_it_says() {
    let (mut session, mut host) = meet();
    session.turn_away();
    hear(&mut session, &mut host, &start_of(&StartSpec::default()));
    let Some(ToHost::Refused { status, text }) = told(session, &mut host) else {
        panic!("a refusal")
    };
    assert_eq!(status, TOO_MANY);
    assert!(text.contains("32 programs"), "{text}");
}

#[test]
fn a_stream_that_ends_ends_the_session() {
    let (mut session, host) = meet();
    drop(host);
    session.serve(Part::Stream, &NoOrders);
    assert!(session.is_over());
}
