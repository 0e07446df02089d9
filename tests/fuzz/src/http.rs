//! The HTTP server: whatever bytes a client sends, it is answered or let go, in time.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use lightv_api::fault::Fault;
use lightv_api::request::{Reply, Request};
use lightv_api_server::feed::Feed;
use lightv_api_server::server;
use lightv_api_server::service::{ReplySender, Service};
use lightv_api_server::settings::Settings;
use tempfile::TempDir;

/// Of an answer that does not end by itself.
const STREAM: &[u8] = b"text/event-stream";
/// Far longer than an answer takes: only a hang is found by it. The fuzzer's own limit is longer.
const PATIENCE: Duration = Duration::from_secs(3);

/// Answers at once, by what the request is alone: an input says all that happens.
struct Echo(Feed);

impl Service for Echo {
    fn call(&self, request: Request, reply: ReplySender) {
        reply.send(match request.route().method {
            "GET" => Ok(Reply::Json("{\"a\":1}".to_owned())),
            "DELETE" => Err(Fault::bad("Never.")),
            _ => Ok(Reply::Done),
        });
    }

    fn feed(&self) -> &Feed {
        &self.0
    }
}

/// One server for all inputs: each has a connection of its own.
static SERVER: LazyLock<(TempDir, PathBuf)> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("the host has a folder");
    let path = folder.path().join("api.sock");
    let listener = UnixListener::bind(&path).expect("the folder is new");
    let settings = Settings {
        body_bytes_max: 1024,
        heartbeat: Duration::from_millis(1),
        ..Settings::default()
    };
    let on_failure = |error| panic!("{error}");
    let echo = Echo(Feed::default());
    server::spawn(listener, echo, settings, || Ok(()), on_failure).expect("a thread");
    (folder, path)
});

/// What a client sends, in as many pieces as the first byte says, before it closes its half.
pub fn run(input: &[u8]) {
    let Some((kind, request)) = input.split_first() else {
        return;
    };
    let mut client = UnixStream::connect(&SERVER.1).expect("the server takes connections");
    let is_set = client.set_read_timeout(Some(PATIENCE));
    is_set.expect("a socket can be set");
    let pieces = 1 + usize::from(kind % 4);
    for piece in request.chunks(1 + request.len() / pieces) {
        // The server may have had enough.
        let _ = client.write_all(piece);
    }
    let _ = client.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match client.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => answer.extend_from_slice(&buffer[..length]),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
            // The fuzzer has a timer.
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => panic!("no answer and no end: {error}"),
        }
        if answer.windows(STREAM.len()).any(|part| part == STREAM) {
            break;
        }
    }
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1."));
}
