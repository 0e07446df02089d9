//! `GET /events` over a real socket: readers that are late, slow, many, or gone.

mod common;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use common::{Running, request};
use lightv_api::event::{Happening, VmEvent};
use lightv_api_server::controller::Setup;
use lightv_api_server::limits;
use lightv_api_server::settings::Settings;

/// Longer than anything takes.
const PATIENCE: Duration = Duration::from_secs(60);

fn with(settings: Settings) -> Running {
    Running::new(Setup::new("events"), settings)
}

/// A reader of the stream.
#[derive(Debug)]
struct Reader {
    stream: BufReader<UnixStream>,
    /// Pieces have their length before them.
    is_chunked: bool,
    head: String,
}

/// An event as it came.
#[derive(Debug, PartialEq)]
struct Received {
    id: Option<u64>,
    what: Happening,
}

impl Reader {
    /// Asks for events; the answer's head is read.
    fn ask(server: &Running, version: &str, header: &str) -> Self {
        let mut client = server.connect();
        client.send(format!("GET /events HTTP/{version}\r\n{header}\r\n"));
        let mut stream = BufReader::new(client.stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(stream.read_line(&mut head).unwrap() > 0, "{head}");
        }
        let is_chunked = head.contains("Transfer-Encoding: chunked");
        Self {
            stream,
            is_chunked,
            head,
        }
    }

    fn new(server: &Running) -> Self {
        let reader = Self::ask(server, "1.1", "");
        assert!(reader.head.starts_with("HTTP/1.1 200 "), "{}", reader.head);
        reader
    }

    /// The lines of the next event or comment; `None` at the end.
    fn block(&mut self) -> Option<Vec<String>> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line).ok()? == 0 {
                assert!(lines.is_empty(), "half an event: {lines:?}");
                return None;
            }
            if self.is_chunked && line.ends_with("\r\n") {
                // A chunk's length, or the end of one.
                continue;
            }
            match line.trim_end_matches('\n') {
                "" if lines.is_empty() => {}
                "" => return Some(lines),
                text => lines.push(text.to_owned()),
            }
        }
    }

    fn next(&mut self) -> Option<Received> {
        loop {
            let lines = self.block()?;
            if lines[0].starts_with(':') {
                continue;
            }
            let value = |name: &str| lines.iter().find_map(|line| line.strip_prefix(name));
            let event: VmEvent = serde_json::from_str(value("data: ").unwrap()).unwrap();
            assert_eq!(value("event: "), Some(event.what.name()));
            return Some(Received {
                id: value("id: ").map(|id| id.parse().unwrap()),
                what: event.what,
            });
        }
    }

    #[track_caller]
    fn expect(&mut self, id: u64, what: Happening) {
        let id = Some(id);
        assert_eq!(self.next(), Some(Received { id, what }));
    }
}

fn ended() -> Happening {
    Happening::Ended {
        status: 3,
        reason: "it exited with status 3".to_owned(),
    }
}

/// An event of some 4 KiB.
fn large() -> Happening {
    Happening::Saved {
        path: "x".repeat(4096).into(),
    }
}

#[test]
fn readers_are_told_what_was_and_what_comes_and_then_the_stream_ends() {
    let server = with(Settings::default());
    let mut early = Reader::new(&server);
    assert!(early.head.contains("Content-Type: text/event-stream\r\n"));
    assert!(early.head.contains("Cache-Control: no-store\r\n"));
    server.feed.publish(Happening::Started);
    early.expect(1, Happening::Started);
    server.feed.publish(Happening::Paused);
    let mut late = Reader::new(&server);
    late.expect(1, Happening::Started);
    server.feed.publish(ended());
    let began = Instant::now();
    server.feed.end(PATIENCE);
    assert!(began.elapsed() < PATIENCE / 2, "readers have all of it");
    for reader in [&mut early, &mut late] {
        reader.expect(2, Happening::Paused);
        reader.expect(3, ended());
        assert_eq!(reader.next(), None);
    }
    let mut too_late = Reader::new(&server);
    too_late.expect(1, Happening::Started);
}

#[test]
fn a_reader_that_comes_back_gets_what_it_has_not_had() {
    let server = with(Settings::default());
    for what in [Happening::Started, Happening::Paused, Happening::Resumed] {
        server.feed.publish(what);
    }
    let mut back = Reader::ask(&server, "1.1", "Last-Event-ID: 2\r\n");
    back.expect(3, Happening::Resumed);
    let mut other = Reader::ask(&server, "1.1", "Last-Event-ID: 99\r\n");
    other.expect(1, Happening::Started);
    let mut bad = server.connect();
    bad.send("GET /events HTTP/1.1\r\nLast-Event-ID: x\r\n\r\n");
    let answer = bad.answer();
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert!(answer.contains("Last-Event-ID is"), "{answer}");
    bad.send(request("GET", "/", ""));
    assert!(bad.answer().starts_with("HTTP/1.1 200 "));
}

#[test]
fn a_client_of_http_1_0_gets_the_events_as_they_are() {
    let server = with(Settings::default());
    server.feed.publish(Happening::Started);
    let mut reader = Reader::ask(&server, "1.0", "Connection: keep-alive\r\n");
    assert!(!reader.is_chunked, "{}", reader.head);
    reader.expect(1, Happening::Started);
    server.feed.publish(ended());
    reader.expect(2, ended());
    assert_eq!(reader.next(), None);
}

#[test]
fn readers_beyond_the_limit_are_refused_and_nobody_else() {
    let server = with(Settings::default());
    let mut readers: Vec<_> = (0..limits::EVENT_STREAMS_MAX)
        .map(|_| Reader::new(&server))
        .collect();
    let refused = server.ask("GET", "/events", "");
    assert!(refused.starts_with("HTTP/1.1 400 "), "{refused}");
    assert!(refused.contains("64 clients are told events already"));
    assert!(server.ask("GET", "/", "").starts_with("HTTP/1.1 200 "));
    server.feed.publish(Happening::Started);
    for reader in &mut readers {
        reader.expect(1, Happening::Started);
    }
}

#[test]
fn the_place_of_a_reader_that_has_gone_is_free_at_the_next_sign_of_life() {
    let server = with(Settings {
        event_streams_max: 1,
        heartbeat: Duration::from_millis(20),
        ..Settings::default()
    });
    for _ in 0..3 {
        let began = Instant::now();
        while Reader::ask(&server, "1.1", "").head.contains(" 400 ") {
            assert!(began.elapsed() < PATIENCE, "the place stays taken");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

#[test]
fn a_reader_that_does_not_read_misses_events_and_delays_nobody() {
    let server = with(Settings::default());
    let mut slow = Reader::new(&server);
    let mut quick = Reader::new(&server);
    let last = 2000;
    for id in 1..=last {
        server.feed.publish(large());
        quick.expect(id, large());
        if id % 500 == 0 {
            assert!(server.ask("GET", "/", "").starts_with("HTTP/1.1 200 "));
        }
    }
    server.feed.publish(ended());
    quick.expect(last + 1, ended());
    let mut next = 1;
    let mut missed = 0;
    while let Some(received) = slow.next() {
        match (received.id, received.what) {
            (Some(id), _) => {
                assert_eq!(id, next);
                next += 1;
            }
            (None, Happening::Missed { count }) => {
                missed += count;
                next += count;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(next, last + 2, "the last of all is there");
    assert!(missed > 0, "2000 × 4 KiB fit no socket");
}

#[test]
fn a_reader_that_takes_nothing_for_long_loses_its_connection() {
    let server = with(Settings {
        event_streams_max: 1,
        stream_stall_time_max: Duration::from_millis(100),
        ..Settings::default()
    });
    let stuck = Reader::new(&server);
    for _ in 0..limits::EVENTS_KEPT {
        server.feed.publish(large());
    }
    let began = Instant::now();
    while Reader::ask(&server, "1.1", "").head.contains(" 400 ") {
        assert!(began.elapsed() < PATIENCE, "the place stays taken");
        thread::sleep(Duration::from_millis(5));
    }
    drop(stuck);
}

#[test]
fn a_stream_outlives_the_times_of_requests_and_has_signs_of_life() {
    let server = with(Settings {
        request_time_max: Duration::from_secs(1),
        idle_time_max: Duration::from_secs(1),
        heartbeat: Duration::from_millis(20),
        ..Settings::default()
    });
    let mut reader = Reader::new(&server);
    // So many take longer than either time.
    for _ in 0..60 {
        let lines = reader.block().expect("a stream that goes on");
        assert!(lines[0].starts_with(':'), "{lines:?}");
    }
    server.feed.publish(Happening::Started);
    reader.expect(1, Happening::Started);
}

#[test]
fn the_end_does_not_wait_for_a_reader_that_takes_nothing() {
    let server = with(Settings::default());
    let _stuck = Reader::new(&server);
    for _ in 0..limits::EVENTS_KEPT {
        server.feed.publish(large());
    }
    server.feed.publish(ended());
    let began = Instant::now();
    server.feed.end(Duration::from_millis(100));
    assert!(began.elapsed() < PATIENCE / 2);
}

#[test]
fn what_is_answered_holds_the_end_up_no_more() {
    let server = with(Settings::default());
    let mut clients: Vec<_> = (0..3).map(|_| server.connect()).collect();
    for client in &mut clients {
        for (method, path, status) in [("GET", "/", "200"), ("GET", "/nowhere", "400")] {
            client.send(request(method, path, ""));
            let answer = client.answer();
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status} ")),
                "{answer}"
            );
        }
    }
    let reader = Reader::new(&server);
    drop(reader);
    // Connections that are open and idle are none of its concern.
    let began = Instant::now();
    server.feed.end(PATIENCE);
    assert!(began.elapsed() < PATIENCE / 2);
    drop(clients);
}

#[test]
fn bytes_after_the_request_are_no_second_one() {
    let server = with(Settings::default());
    let mut client = server.connect();
    client.send([request("GET", "/events", ""), request("GET", "/", "")].concat());
    assert!(client.answer().starts_with("HTTP/1.1 200 "));
    let _ = client.stream.write_all(b"GET / HTTP/1.1\r\n\r\n");
    server.feed.publish(ended());
    let mut rest = Vec::new();
    // The socket has bytes that the server did not read: the end may be a reset.
    let _ = client.stream.read_to_end(&mut rest);
    let rest = String::from_utf8_lossy(&rest);
    assert!(!rest.contains("HTTP/1.1 "), "{rest}");
}
