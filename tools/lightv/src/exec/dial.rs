//! The connection to the agent, and its messages.

use std::io::{self, Read, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use lightv_contract::exec::{Message as _, ToGuest};
use lightv_contract::exec_host::{Heard, Hearing, PATIENCE, call};
use lightv_vmm::held_socket::HeldSocket;

use super::ExecError;

/// How long the guest may take nothing that we send. What may be under way has room on the way.
const SEND_PATIENCE: Duration = Duration::from_secs(30);
/// Bytes that are read at a time.
const PIECE_BYTES: usize = 64 << 10;

/// A connection to the agent.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: UnixStream,
    hearing: Hearing,
}

impl Connection {
    /// Connects to the agent of the machine whose vsock has the socket `socket`.
    pub(crate) fn dial(socket: &Path) -> Result<Self, ExecError> {
        let connect = |cause| ExecError::Connect {
            socket: socket.to_owned(),
            cause,
        };
        let mut stream = connect_to(socket).map_err(connect)?;
        stream
            .set_write_timeout(Some(SEND_PATIENCE))
            .map_err(connect)?;
        stream.write_all(call().as_bytes()).map_err(connect)?;
        let mut connection = Self {
            stream,
            hearing: Hearing::default(),
        };
        // What is heard first is that we are let in.
        let _ = connection.next(Some(Instant::now() + PATIENCE))?;
        Ok(connection)
    }

    /// Has the program started that `start` describes, a [`lightv_contract::exec::StartSpec`] as JSON. False when the connection
    /// has ended.
    pub(crate) fn start(&mut self, start: Vec<u8>) -> Result<bool, ExecError> {
        // One that was turned away has not to be heard; why, it is told.
        let _ = send(&self.stream, &ToGuest::Start(start));
        match self.next(Some(Instant::now() + PATIENCE))? {
            Some(Heard::Refused { status, text }) => Err(ExecError::Refused { text, status }),
            // Nothing else comes first but that it runs.
            Some(_) => Ok(true),
            None => Ok(false),
        }
    }

    /// What is said next; `None` when the connection has ended.
    pub(crate) fn next(&mut self, until: Option<Instant>) -> Result<Option<Heard>, ExecError> {
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            if let Some(heard) = self.hearing.hear()? {
                return Ok(Some(heard));
            }
            let Some(length) = read_until(&self.stream, &mut piece, until)? else {
                return self
                    .hearing
                    .end()
                    .map_or(Ok(None), |error| Err(error.into()));
            };
            self.hearing.add(piece.get(..length).unwrap_or_default());
        }
    }

    /// Another hold on the stream, to send by.
    pub(crate) fn sender(&self) -> io::Result<UnixStream> {
        self.stream.try_clone()
    }
}

/// Connects to the socket `path` of a machine: see [`HeldSocket`].
fn connect_to(path: &Path) -> io::Result<UnixStream> {
    UnixStream::connect(HeldSocket::open(path)?.path())
}

/// Sends a message.
pub(super) fn send(mut stream: &UnixStream, message: &ToGuest) -> io::Result<()> {
    let mut bytes = Vec::new();
    message.encode(&mut bytes);
    stream.write_all(&bytes)
}

/// Reads what has come, at least a byte; `None` when the connection has ended.
fn read_until(
    mut stream: &UnixStream,
    into: &mut [u8],
    until: Option<Instant>,
) -> Result<Option<usize>, ExecError> {
    loop {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let silent = ExecError::Silent {
            seconds: PATIENCE.as_secs(),
        };
        if left.is_some_and(|left| left.is_zero()) {
            return Err(silent);
        }
        stream.set_read_timeout(left).map_err(ExecError::Talk)?;
        match stream.read(into) {
            Ok(0) => return Ok(None),
            Ok(length) => return Ok(Some(length)),
            Err(cause) => match cause.kind() {
                io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => {}
                io::ErrorKind::ConnectionReset => return Ok(None),
                _ => return Err(ExecError::Talk(cause)),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use lightv_contract::exec_host::HearError;

    use super::*;

    /// What comes of a guest that answers with these bytes and hangs up.
    fn meet(answer: &'static [u8]) -> Result<Connection, ExecError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v");
        let listener = UnixListener::bind(&path).unwrap();
        let guest = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut line = [0; 13];
            stream.read_exact(&mut line).unwrap();
            assert_eq!(&line, b"CONNECT 1000\n");
            stream.write_all(answer).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            // Whatever it is told.
            let _ = stream.read_to_end(&mut Vec::new());
        });
        let met = Connection::dial(&path).and_then(|mut connection| {
            match connection.start(b"{}".to_vec())? {
                true => Ok(connection),
                false => Err(ExecError::Lost),
            }
        });
        if let Ok(connection) = &met {
            connection
                .stream
                .shutdown(std::net::Shutdown::Write)
                .unwrap();
            guest.join().unwrap();
        }
        met
    }

    #[test]
    fn a_program_that_runs_is_heard_to_its_end() {
        let mut connection = meet(b"OK 1\n\x01\0\0\0\0\x03\x02\0\0\0hi\x06\x01\0\0\0\x07").unwrap();
        let mut next = || connection.next(None).unwrap();
        assert_eq!(next(), Some(Heard::Stdout(b"hi".to_vec())));
        assert_eq!(next(), Some(Heard::Ended(7)));
        assert_eq!(next(), None);
    }

    #[test]
    fn guests_without_an_agent_are_told_from_those_that_refuse() {
        for answer in [&b""[..], b"no\n", b"OK 1", &[b'O'; 99]] {
            assert!(
                matches!(meet(answer), Err(ExecError::Hear(HearError::NoAgent))),
                "{answer:?}"
            );
        }
        let refused = meet(b"OK 1\n\x02\x06\0\0\0\x7fa\x1b[2m").unwrap_err();
        let ExecError::Refused { text, status: 127 } = refused else {
            panic!("{refused:?}")
        };
        assert_eq!(text, "a [2m");
    }

    #[test]
    fn a_link_to_a_socket_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let [socket, link] = ["socket", "link"].map(|name| folder.path().join(name));
        let _listener = UnixListener::bind(&socket).unwrap();
        std::os::unix::fs::symlink(&socket, &link).unwrap();
        assert!(connect_to(&socket).is_ok());
        let refused = connect_to(&link).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn a_guest_that_breaks_the_rules_is_not_heard_further() {
        let met = meet(b"OK 1\n\x03\xff\xff\xff\x7f");
        assert!(
            matches!(met, Err(ExecError::Hear(HearError::Message(_)))),
            "{met:?}"
        );
        let early = meet(b"OK 1\n\x03\x01\0\0\0x");
        assert!(
            matches!(early, Err(ExecError::Hear(HearError::Order(_)))),
            "{early:?}"
        );
        assert!(matches!(meet(b"OK 1\n\x01\0"), Err(ExecError::Lost)));
    }
}
