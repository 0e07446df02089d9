//! The HTTP server of `http` and `server`: GET only, keep-alive, many connections.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Write as _};
use core::ops::Range;

use guest_text::http::{self, HEAD_BYTES_MAX, Head, Request};
use lightv_workloads::pattern;
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{Socket, State};

use super::disk_job::DiskStats;
use crate::control;
use crate::hex::Hex;
use crate::machine::Machine;
use crate::network::Network;
use crate::time;

const CONNECTIONS: usize = 16;
const RECEIVE_BYTES: usize = 8 * 1024;
const SEND_BYTES: usize = 64 * 1024;
const NS_PER_TICK: u64 = 100_000_000;
/// How long `/exit` waits for its answer to leave.
const EXIT_TICKS_MAX: u64 = 10;

/// What the server can be asked about.
pub struct Facts<'a> {
    /// Arguments and environment.
    pub machine: &'a Machine,
    /// State of the disk job, if there is one.
    pub disk: Option<DiskStats>,
}

/// The server: its connections, and whether it was asked to end.
pub struct HttpServer {
    connections: Vec<Connection>,
    exit: Option<Exit>,
}

/// `/exit` was asked for.
#[derive(Clone, Copy)]
struct Exit {
    status: u8,
    ticks: u64,
}

struct Connection {
    handle: SocketHandle,
    /// Bytes of heads not answered yet.
    input: Vec<u8>,
    /// Head and text of the answer being sent, from `sent` on.
    output: String,
    sent: usize,
    /// Bytes of the pattern that follow `output`.
    pattern: Range<u64>,
    close: bool,
}

/// An answer's content.
enum Body {
    Text(String),
    Pattern(u64),
}

impl HttpServer {
    /// A server that does not listen yet.
    pub fn new(network: &mut Network) -> Self {
        let connections =
            (0..CONNECTIONS).map(|_| Connection::new(network.add_tcp(RECEIVE_BYTES, SEND_BYTES)));
        Self {
            connections: connections.collect(),
            exit: None,
        }
    }

    /// Answers what has come. True if anything was moved.
    pub fn serve(&mut self, network: &mut Network, port: u16, facts: &Facts<'_>) -> bool {
        let mut moved = false;
        for connection in &mut self.connections {
            moved |= connection.turn(network, port, facts, &mut self.exit);
        }
        moved
    }

    /// The exit status, once it was asked for and the answer has left.
    pub fn ended(&self, network: &mut Network) -> Option<u8> {
        let exit = self.exit?;
        let sent = self.connections.iter().all(|connection| {
            connection.is_idle() && network.tcp(connection.handle).send_queue() == 0
        });
        (sent || ticks() > exit.ticks + EXIT_TICKS_MAX).then_some(exit.status)
    }
}

impl Connection {
    fn new(handle: SocketHandle) -> Self {
        Self {
            handle,
            input: Vec::new(),
            output: String::new(),
            sent: 0,
            pattern: 0..0,
            close: false,
        }
    }

    /// No answer is being sent.
    fn is_idle(&self) -> bool {
        self.sent == self.output.len() && self.pattern.is_empty()
    }

    fn turn(
        &mut self,
        network: &mut Network,
        port: u16,
        facts: &Facts<'_>,
        exit: &mut Option<Exit>,
    ) -> bool {
        let socket = network.tcp(self.handle);
        if !socket.is_open() {
            *self = Self::new(self.handle);
            return socket.listen(port).is_ok();
        }
        let mut moved = self.send(socket);
        if self.is_idle() && !self.close {
            moved |= self.receive(socket);
            moved |= self.answer(facts, exit);
            moved |= self.send(socket);
        }
        let peer_done = socket.state() == State::CloseWait && !socket.can_recv();
        if self.is_idle() && (self.close || peer_done) && socket.may_send() {
            socket.close();
            moved = true;
        }
        moved
    }

    fn send(&mut self, socket: &mut Socket<'_>) -> bool {
        let mut moved = false;
        if self.sent < self.output.len() && socket.can_send() {
            // It can send, so it takes some.
            let taken = socket
                .send_slice(&self.output.as_bytes()[self.sent..])
                .unwrap_or(0);
            self.sent += taken;
            moved = taken > 0;
        }
        while self.sent == self.output.len() && !self.pattern.is_empty() && socket.can_send() {
            let rest = &mut self.pattern;
            let _ = socket.send(|room| {
                let left = usize::try_from(rest.end - rest.start).unwrap_or(usize::MAX);
                let len = room.len().min(left);
                pattern::fill(&mut room[..len], rest.start);
                rest.start += len as u64;
                (len, ())
            });
            moved = true;
        }
        moved
    }

    fn receive(&mut self, socket: &mut Socket<'_>) -> bool {
        let before = self.input.len();
        while socket.can_recv() && self.input.len() < HEAD_BYTES_MAX {
            let room = HEAD_BYTES_MAX - self.input.len();
            let input = &mut self.input;
            let _ = socket.recv(|bytes| {
                let len = bytes.len().min(room);
                input.extend_from_slice(&bytes[..len]);
                (len, ())
            });
        }
        self.input.len() > before
    }

    /// Makes the answer to the first whole head.
    fn answer(&mut self, facts: &Facts<'_>, exit: &mut Option<Exit>) -> bool {
        let (status, body, keep_alive, len) = match http::parse(&self.input) {
            Head::Partial => return false,
            Head::Bad => (
                "400 Bad Request",
                text("bad request\n"),
                false,
                self.input.len(),
            ),
            Head::Whole(request) => {
                let (status, body) = respond(&request, facts, exit);
                (status, body, request.keep_alive, request.len)
            }
        };
        self.input.drain(..len);
        self.close = !keep_alive;
        let body_len = match &body {
            Body::Text(text) => text.len() as u64,
            Body::Pattern(len) => *len,
        };
        let connection = if keep_alive { "keep-alive" } else { "close" };
        self.output = formatted(format_args!(
            "HTTP/1.1 {status}\r\nContent-Length: {body_len}\r\nConnection: {connection}\r\n\r\n"
        ));
        self.sent = 0;
        match body {
            Body::Text(text) => self.output.push_str(&text),
            Body::Pattern(len) => self.pattern = 0..len,
        }
        true
    }
}

fn text(text: &str) -> Body {
    Body::Text(text.into())
}

fn respond(
    request: &Request<'_>,
    facts: &Facts<'_>,
    exit: &mut Option<Exit>,
) -> (&'static str, Body) {
    const OK: &str = "200 OK";
    if request.method != "GET" {
        return ("405 Method Not Allowed", text("GET only\n"));
    }
    let path = http::path(request.target);
    let body = match path {
        "/" => text("Hello, world!\n"),
        "/args" => lines(facts.machine.args()),
        "/env" => lines(facts.machine.env()),
        "/generation" => hex(&control::get()
            .map(|control| control.generation())
            .unwrap_or_default()),
        "/seed" => hex(&control::get()
            .map(|control| control.seed())
            .unwrap_or_default()),
        "/ticks" => Body::Text(formatted(format_args!("{}\n", ticks()))),
        "/disk" => match facts.disk {
            Some(stats) => Body::Text(formatted(format_args!("{stats}"))),
            None => return ("404 Not Found", text("no disk job\n")),
        },
        "/exit" => {
            let status = http::query(request.target, "status").map_or(Ok(0), str::parse);
            let Ok(status) = status else {
                return ("400 Bad Request", text("status is 0-255\n"));
            };
            *exit = Some(Exit {
                status,
                ticks: ticks(),
            });
            text("exit\n")
        }
        _ => match path
            .strip_prefix("/bytes/")
            .and_then(|len| len.parse().ok())
        {
            Some(len) => Body::Pattern(len),
            None => return ("404 Not Found", text("not found\n")),
        },
    };
    (OK, body)
}

/// 100 ms steps of the guest's monotonic clock.
fn ticks() -> u64 {
    time::now_ns() / NS_PER_TICK
}

/// As `alloc::format!`, which cannot be linked here: the stable toolchain's copy of it needs the unwinder.
fn formatted(args: fmt::Arguments<'_>) -> String {
    let mut text = String::new();
    // A String takes every byte.
    let _ = text.write_fmt(args);
    text
}

fn lines(strings: impl Iterator<Item = &'static str>) -> Body {
    Body::Text(strings.fold(String::new(), |mut all, line| {
        // A String takes every byte.
        let _ = writeln!(all, "{line}");
        all
    }))
}

fn hex(bytes: &[u8]) -> Body {
    Body::Text(formatted(format_args!("{}\n", Hex(bytes))))
}
