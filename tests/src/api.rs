//! The REST API of a monitor, as a client without a library speaks it.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::process::{DEADLINE, Process, wait_for};
use crate::scratch::Scratch;

/// An answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Body; `null` if there is none.
    pub body: Value,
}

impl Answer {
    /// The refusal's text.
    ///
    /// # Panics
    /// When it is no refusal.
    #[must_use]
    #[track_caller]
    pub fn fault(&self) -> &str {
        assert_eq!(self.status, 400, "{self:?}");
        let text = self.body["fault_message"].as_str();
        text.unwrap_or_else(|| panic!("no fault_message: {self:?}"))
    }
}

/// A socket of the API, and requests to it: each on a connection of its own.
#[derive(Debug, Clone)]
pub struct Api {
    socket: PathBuf,
}

impl Api {
    /// The API at `socket`.
    #[must_use]
    pub fn at(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
        }
    }

    /// The socket's path.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Starts `lightv-vmm --api-sock NAME.sock ARGS` in `scratch` and waits until it serves.
    ///
    /// # Panics
    /// When it does not.
    #[must_use]
    pub fn start(scratch: &Scratch, name: &str, args: &[&str]) -> (Self, Process) {
        let socket = format!("{name}.sock");
        let args = [&["--api-sock", &socket, "--id", name], args].concat();
        let mut process = Process::start(&mut scratch.vmm(&args));
        let api = Self::at(scratch.path(&socket));
        wait_for("the API", || {
            assert!(process.is_alive(), "{:?}", process.stderr());
            api.try_call("GET", "/", "").ok()
        });
        (api, process)
    }

    /// A connection.
    ///
    /// # Errors
    /// The kernel's.
    pub fn connect(&self) -> io::Result<UnixStream> {
        let stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        Ok(stream)
    }

    /// The answer to a request.
    ///
    /// # Errors
    /// The connection's.
    pub fn try_call(&self, method: &str, path: &str, body: &str) -> io::Result<Answer> {
        let mut stream = self.connect()?;
        let length = match body.len() {
            0 => String::new(),
            length => format!("Content-Length: {length}\r\n"),
        };
        let head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n{length}\r\n");
        stream.write_all(head.as_bytes())?;
        stream.write_all(body.as_bytes())?;
        read_answer(&mut BufReader::new(stream))
    }

    /// The answer to a request.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    #[track_caller]
    pub fn call(&self, method: &str, path: &str, body: &Value) -> Answer {
        let text = match body {
            Value::Null => String::new(),
            body => body.to_string(),
        };
        let answer = self.try_call(method, path, &text);
        answer.unwrap_or_else(|cause| panic!("{method} {path} {text}: {cause}"))
    }

    /// A request that must be granted.
    ///
    /// # Panics
    /// When it is not.
    #[track_caller]
    pub fn put(&self, path: &str, body: &Value) {
        let answer = self.call("PUT", path, body);
        assert_eq!(answer.status, 204, "PUT {path} {body}: {answer:?}");
    }

    /// As [`put`](Self::put), with `PATCH`.
    ///
    /// # Panics
    /// When it is not granted.
    #[track_caller]
    pub fn patch(&self, path: &str, body: &Value) {
        let answer = self.call("PATCH", path, body);
        assert_eq!(answer.status, 204, "PATCH {path} {body}: {answer:?}");
    }

    /// The body of the answer to `GET path`.
    ///
    /// # Panics
    /// When it is refused.
    #[must_use]
    #[track_caller]
    pub fn get(&self, path: &str) -> Value {
        let answer = self.call("GET", path, &Value::Null);
        assert_eq!(answer.status, 200, "GET {path}: {answer:?}");
        answer.body
    }

    /// `PATCH /vm`.
    ///
    /// # Panics
    /// When it is refused.
    #[track_caller]
    pub fn set_state(&self, state: &str) {
        self.patch("/vm", &serde_json::json!({"state": state}));
    }

    /// `PUT /actions`.
    ///
    /// # Panics
    /// When it is refused.
    #[track_caller]
    pub fn act(&self, action: &str) {
        self.put("/actions", &serde_json::json!({"action_type": action}));
    }
}

/// Reads one answer.
///
/// # Errors
/// The connection's, or when it is no answer.
pub fn read_answer(stream: &mut BufReader<UnixStream>) -> io::Result<Answer> {
    let status = read_line(stream)?;
    let code = status.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = code.ok_or_else(|| io::Error::other(status))?;
    let mut length = 0;
    loop {
        let line = read_line(stream)?;
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length: ") {
            length = value
                .parse()
                .map_err(|_| io::Error::other(value.to_owned()))?;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    let body = match length {
        0 => Value::Null,
        _ => serde_json::from_slice(&body)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&body).into_owned())),
    };
    Ok(Answer { status, body })
}

fn read_line(stream: &mut BufReader<UnixStream>) -> io::Result<String> {
    let mut line = String::new();
    stream.read_line(&mut line)?;
    match line.strip_suffix("\r\n") {
        Some(line) => Ok(line.to_owned()),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}
