//! What a client of the host says first: `CONNECT PORT\n`.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::RecvFlags;

use crate::limits::{VSOCK_GREETING_BYTES_MAX, VSOCK_GREETING_MS};
use crate::virtio::vsock::watch::Registration;

/// A client that has not said its line yet.
#[derive(Debug)]
pub(super) struct Greeting {
    pub(super) stream: OwnedFd,
    pub(super) registration: Registration,
    pub(super) deadline: Instant,
    line: [u8; VSOCK_GREETING_BYTES_MAX],
    length: usize,
}

/// What has come of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// Not all of the line.
    Part,
    /// The line, with this port of the guest.
    Port(u32),
    /// No such line: too long, of other words, or the client has gone.
    Nothing,
}

impl Greeting {
    pub(super) fn new(stream: OwnedFd, now: Instant) -> Self {
        Self {
            stream,
            registration: Registration::default(),
            deadline: deadline(now),
            line: [0; VSOCK_GREETING_BYTES_MAX],
            length: 0,
        }
    }

    /// Gives the client its whole time again: the machine has stood still.
    pub(super) fn restart_clock(&mut self, now: Instant) {
        self.deadline = deadline(now);
    }

    /// Reads what has come, and nothing after the line: that is the guest's.
    pub(super) fn listen(&mut self) -> Heard {
        loop {
            let free = self.line.get_mut(self.length..).unwrap_or_default();
            if free.is_empty() {
                return Heard::Nothing;
            }
            let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
            let seen = match rustix::net::recv(&self.stream, &mut *free, flags) {
                Ok((seen @ 1.., _)) => seen,
                Ok((0, _)) => return Heard::Nothing,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return Heard::Part,
                Err(_) => return Heard::Nothing,
            };
            let new = free.get(..seen).unwrap_or_default();
            let end = new.iter().position(|byte| *byte == b'\n');
            let ours = end.map_or(seen, |end| end.saturating_add(1));
            let free = free.get_mut(..ours).unwrap_or_default();
            // It has been seen, so it is there.
            if rustix::net::recv(&self.stream, free, RecvFlags::DONTWAIT).is_err() {
                return Heard::Nothing;
            }
            self.length = self.length.saturating_add(ours);
            if end.is_some() {
                let line = self.line.get(..self.length).unwrap_or_default();
                return parse(line).map_or(Heard::Nothing, Heard::Port);
            }
        }
    }
}

fn deadline(now: Instant) -> Instant {
    now + Duration::from_millis(VSOCK_GREETING_MS)
}

/// Firecracker's form: the word in any case, spaces as one likes, and `\r\n` too; but nothing after the port.
fn parse(line: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(line).ok()?;
    let mut words = text.split_ascii_whitespace();
    let (command, port) = (words.next()?, words.next()?);
    let is_number = port.bytes().all(|byte| byte.is_ascii_digit());
    if !command.eq_ignore_ascii_case("CONNECT") || !is_number || words.next().is_some() {
        return None;
    }
    port.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    fn greeting() -> (UnixStream, Greeting) {
        let (client, ours) = UnixStream::pair().unwrap();
        (client, Greeting::new(ours.into(), Instant::now()))
    }

    #[test]
    fn only_a_whole_line_with_a_port_is_taken() {
        for (line, expected) in [
            ("CONNECT 52\n", Heard::Port(52)),
            ("connect 52\r\n", Heard::Port(52)),
            (" CONNECT  4294967295 \n", Heard::Port(u32::MAX)),
            ("CONNECT 0\n", Heard::Port(0)),
            ("CONNECT 4294967296\n", Heard::Nothing),
            ("CONNECT -1\n", Heard::Nothing),
            ("CONNECT +1\n", Heard::Nothing),
            ("CONNECT 0x34\n", Heard::Nothing),
            ("CONNECT 52 53\n", Heard::Nothing),
            ("CONNECT\n", Heard::Nothing),
            ("\n", Heard::Nothing),
            ("GET / HTTP/1.1\n", Heard::Nothing),
            ("CONNECT \u{664}\n", Heard::Nothing),
            ("CONNECT 52", Heard::Part),
            ("", Heard::Part),
            ("CONNECT 00000000000000000000000052\n", Heard::Nothing),
        ] {
            let (mut client, mut greeting) = greeting();
            client.write_all(line.as_bytes()).unwrap();
            assert_eq!(greeting.listen(), expected, "{line:?}");
        }
    }

    #[test]
    fn bytes_that_are_no_text_and_endless_lines_are_refused() {
        for bytes in [&b"CONNECT \xff\n"[..], &[b'C'; 1 << 16]] {
            let (mut client, mut greeting) = greeting();
            client.write_all(bytes).unwrap();
            assert_eq!(greeting.listen(), Heard::Nothing);
        }
    }

    #[test]
    fn a_line_may_come_in_parts_and_what_follows_is_left() {
        let (mut client, mut greeting) = greeting();
        for part in ["CONN", "ECT", " 5"] {
            client.write_all(part.as_bytes()).unwrap();
            assert_eq!(greeting.listen(), Heard::Part, "{part}");
        }
        client.write_all(b"2\nhello").unwrap();
        assert_eq!(greeting.listen(), Heard::Port(52));
        drop(client);
        let mut rest = String::new();
        UnixStream::from(greeting.stream)
            .read_to_string(&mut rest)
            .unwrap();
        assert_eq!(rest, "hello");
    }

    #[test]
    fn a_client_that_goes_is_noticed() {
        let (client, mut greeting) = greeting();
        drop(client);
        assert_eq!(greeting.listen(), Heard::Nothing);
    }
}
