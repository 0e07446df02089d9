//! The smallest HTTP/1.1 client.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use serde_json::Value;

use crate::netns::Netns;
use crate::process::wait_for;

/// A kept-alive connection.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    /// A client on an open connection.
    #[must_use]
    pub fn new(stream: TcpStream) -> Self {
        Self {
            stream: BufReader::new(stream),
        }
    }

    /// The body of the answer to `GET path`.
    ///
    /// # Errors
    /// The connection's, or when the answer's status is not 200.
    pub fn get(&mut self, path: &str) -> io::Result<Vec<u8>> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: guest\r\n\r\n");
        self.stream.get_mut().write_all(request.as_bytes())?;
        let status = self.line()?;
        let mut length = 0;
        loop {
            let line = self.line()?;
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("Content-Length: ") {
                length = value.parse().map_err(|_| io::Error::other(line.clone()))?;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        if status == "HTTP/1.1 200 OK" {
            Ok(body)
        } else {
            Err(io::Error::other(status))
        }
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        match line.strip_suffix("\r\n") {
            Some(line) => Ok(line.to_owned()),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// The body of `GET path` from `address`, once it is there.
///
/// # Panics
/// When nobody answers.
#[must_use]
pub fn get(netns: &Netns, address: SocketAddr, path: &str) -> String {
    let body = wait_for(&format!("an answer of {address} about {path}"), || {
        Client::new(netns.try_connect(address).ok()?).get(path).ok()
    });
    String::from_utf8(body).expect("text")
}

/// What the guest's disk job has done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskJob {
    /// Blocks written.
    pub written: u64,
    /// Blocks read back and found right.
    pub verified: u64,
    /// Whatever went wrong.
    pub errors: u64,
}

/// Asks `address` about its disk job.
///
/// # Panics
/// When nobody answers.
#[must_use]
pub fn disk_job(netns: &Netns, address: SocketAddr) -> DiskJob {
    let text = get(netns, address, "/disk");
    let json: Value = serde_json::from_str(&text).expect("JSON");
    let number = |name: &str| {
        json[name]
            .as_u64()
            .unwrap_or_else(|| panic!("no {name}: {text}"))
    };
    DiskJob {
        written: number("blocks_written"),
        verified: number("blocks_verified"),
        errors: number("errors"),
    }
}
