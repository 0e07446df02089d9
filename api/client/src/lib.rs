//! A client of the REST API: one request after the other over a Unix socket, without a runtime.

#![forbid(unsafe_code)]

mod socket;

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use lightv_api::fault::FaultMessage;
use serde::Serialize;
use serde::de::DeserializeOwned;
use ureq::config::ConfigBuilder;
use ureq::http::{Request, Response};
use ureq::typestate::AgentScope;
use ureq::unversioned::transport::Connector as _;
use ureq::{Agent, Body};

use self::socket::{NoResolver, UnixConnector};

/// How long an answer may take: a save writes as much as the guest has memory.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(600);
/// Bytes of an answer; the largest is the metrics'.
const ANSWER_BYTES_MAX: u64 = 16 << 20;

/// What is read and written at a time, by each connection: what is not used need not be filled with zeros. An answer's head must
/// fit.
const INPUT_BUFFER_BYTES: usize = 16 << 10;
/// See [`INPUT_BUFFER_BYTES`].
const OUTPUT_BUFFER_BYTES: usize = 8 << 10;

/// The API of one machine.
#[derive(Debug, Clone)]
pub struct Client {
    agent: Agent,
    socket: PathBuf,
}

/// What the machine answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Status code: 200, 204, 400 or 413.
    pub status: u16,
    /// Body; empty with 204.
    pub body: String,
}

impl Answer {
    /// Whether the request was granted.
    #[must_use]
    pub const fn is_granted(&self) -> bool {
        self.status >= 200 && self.status < 300
    }
}

/// Why there is no answer, or none that was wanted.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no such socket, or nobody listens on it.
    #[error("No microVM serves {}: {advice}", socket.display())]
    NotServed {
        /// The socket.
        socket: PathBuf,
        /// What that means.
        advice: &'static str,
    },
    /// No complete answer in time.
    #[error("The microVM at {} did not answer in time", socket.display())]
    Timeout {
        /// The socket.
        socket: PathBuf,
    },
    /// The connection failed.
    #[error("Cannot talk to the microVM at {}", socket.display())]
    Talk {
        /// The socket.
        socket: PathBuf,
        /// Why.
        #[source]
        cause: Box<ureq::Error>,
    },
    /// No path or method of HTTP.
    #[error("{method} {path} is no request: {cause}")]
    Request {
        /// The method.
        method: String,
        /// The path.
        path: String,
        /// Why.
        cause: ureq::http::Error,
    },
    /// The machine refused.
    #[error("{0}")]
    Refused(String),
    /// Something that is no LightV answered.
    #[error("The answer to {path} is not what it should be: {cause}")]
    Answer {
        /// What was asked.
        path: String,
        /// Why.
        cause: serde_json::Error,
    },
}

impl Client {
    /// The machine whose API is served at `socket`.
    #[must_use]
    pub fn at(socket: &Path) -> Self {
        Self::with_patience(socket, ANSWER_TIME_MAX)
    }

    /// The same, for what is answered at once or not at all.
    #[must_use]
    pub fn with_patience(socket: &Path, patience: Duration) -> Self {
        Self {
            agent: agent_for(socket, |config| config.timeout_global(Some(patience))),
            socket: socket.to_owned(),
        }
    }

    /// The same, for what is answered once something has happened, however long that takes.
    #[must_use]
    pub fn without_limit(&self) -> Self {
        Self {
            agent: agent_for(&self.socket, |config| config),
            socket: self.socket.clone(),
        }
    }

    /// Asks; a refusal is an answer too.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn call(
        &self,
        method: &str,
        path: &str,
        body: Option<&str>,
    ) -> Result<Answer, ClientError> {
        let mut response = self.send_request(&self.agent, (method, path), body)?;
        let body = response
            .body_mut()
            .with_config()
            .limit(ANSWER_BYTES_MAX)
            .read_to_string();
        Ok(Answer {
            status: response.status().as_u16(),
            body: body.map_err(|cause| self.describe(cause))?,
        })
    }

    /// Asks for what may have no end: gives the status, and what can be read as it comes. Only the answer's beginning has to
    /// come in time.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn stream(
        &self,
        method: &str,
        path: &str,
        body: Option<&str>,
    ) -> Result<(u16, impl Read + use<>), ClientError> {
        let patience = self.agent.config().timeouts().global;
        let agent = agent_for(&self.socket, |config| {
            let config = config.timeout_connect(patience);
            config.timeout_recv_response(patience)
        });
        let response = self.send_request(&agent, (method, path), body)?;
        let status = response.status().as_u16();
        Ok((status, response.into_body().into_reader()))
    }

    fn send_request(
        &self,
        agent: &Agent,
        (method, path): (&str, &str),
        body: Option<&str>,
    ) -> Result<Response<Body>, ClientError> {
        let request = Request::builder()
            .method(method)
            // The host means nothing; a path without it is no URI.
            .uri(format!("http://localhost{path}"));
        let request = match body {
            Some(body) => request
                .header("Content-Type", "application/json")
                .body(body.to_owned()),
            None => request.body(String::new()),
        };
        let request = request.map_err(|cause| ClientError::Request {
            method: method.to_owned(),
            path: path.to_owned(),
            cause,
        })?;
        let sent = if body.is_some() {
            agent.run(request)
        } else {
            agent.run(request.map(|_| ()))
        };
        sent.map_err(|cause| self.describe(cause))
    }

    /// The body of the answer to `GET path`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let answer = granted(self.call("GET", path, None)?)?;
        serde_json::from_str(&answer.body).map_err(|cause| ClientError::Answer {
            path: path.to_owned(),
            cause,
        })
    }

    /// `PUT path` with `body`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn put(&self, path: &str, body: &impl Serialize) -> Result<(), ClientError> {
        self.send("PUT", path, body)
    }

    /// `PATCH path` with `body`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn patch(&self, path: &str, body: &impl Serialize) -> Result<(), ClientError> {
        self.send("PATCH", path, body)
    }

    /// `DELETE path`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn delete(&self, path: &str) -> Result<(), ClientError> {
        granted(self.call("DELETE", path, None)?).map(drop)
    }

    fn send(&self, method: &str, path: &str, body: &impl Serialize) -> Result<(), ClientError> {
        let body = serde_json::to_string(body).map_err(|cause| ClientError::Answer {
            path: path.to_owned(),
            cause,
        })?;
        granted(self.call(method, path, Some(&body))?).map(drop)
    }

    fn describe(&self, cause: ureq::Error) -> ClientError {
        let socket = self.socket.clone();
        let not_served = |advice| ClientError::NotServed {
            socket: socket.clone(),
            advice,
        };
        match &cause {
            ureq::Error::Io(io) if io.kind() == io::ErrorKind::NotFound => {
                not_served("there is no such socket")
            }
            ureq::Error::Io(io) if io.kind() == io::ErrorKind::ConnectionRefused => {
                not_served("nobody listens there any more")
            }
            ureq::Error::Timeout(_) => ClientError::Timeout { socket },
            _ => ClientError::Talk {
                socket,
                cause: Box::new(cause),
            },
        }
    }
}

type AgentConfig = ConfigBuilder<AgentScope>;

fn agent_for(socket: &Path, with_patience: impl FnOnce(AgentConfig) -> AgentConfig) -> Agent {
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .proxy(None)
        .input_buffer_size(INPUT_BUFFER_BYTES)
        .output_buffer_size(OUTPUT_BUFFER_BYTES)
        .user_agent(concat!("lightv/", env!("CARGO_PKG_VERSION")));
    let connector = ().chain(UnixConnector::to(socket));
    Agent::with_parts(with_patience(config).build(), connector, NoResolver)
}

/// `answer`, unless it is a refusal.
fn granted(answer: Answer) -> Result<Answer, ClientError> {
    if answer.is_granted() {
        return Ok(answer);
    }
    let fault = serde_json::from_str::<FaultMessage>(&answer.body);
    let text = fault.map(|fault| fault.fault_message);
    Err(ClientError::Refused(text.unwrap_or(answer.body)))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::thread;

    use serde_json::{Value, json};

    use super::*;

    /// What a client says to whoever answers `answer`, and what it makes of that.
    fn ask<T>(answer: &'static str, ask: impl FnOnce(&Client) -> T) -> (String, T) {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("s");
        let listener = UnixListener::bind(&socket).expect("a socket");
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut request = String::new();
            let is_whole = |request: &str| {
                let is_get = request.starts_with("GET");
                request.ends_with('}') || (is_get && request.ends_with("\r\n\r\n"))
            };
            while !is_whole(&request) {
                let mut part = [0; 4096];
                let length = stream.read(&mut part).expect("a request");
                request.push_str(&String::from_utf8_lossy(&part[..length]));
            }
            stream.write_all(answer.as_bytes()).expect("an answer");
            request
        });
        let made = ask(&Client::at(&socket));
        (server.join().expect("a server"), made)
    }

    #[test]
    fn who_accepts_nobody_any_more_is_not_waited_for() {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("s");
        let listener = UnixListener::bind(&socket).expect("a socket");
        rustix::net::listen(&listener, 0).expect("our socket");
        let _waits = UnixStream::connect(&socket).expect("the one place");
        let client = Client::with_patience(&socket, Duration::from_millis(50));
        let told = [
            client.call("GET", "/", None).err(),
            client.stream("GET", "/events", None).err(),
        ];
        for error in told {
            assert!(
                matches!(error, Some(ClientError::Timeout { .. })),
                "{error:?}"
            );
        }
    }

    #[test]
    fn a_request_is_sent_and_its_answer_read() {
        let answer = "HTTP/1.1 200 \r\nContent-Length: 7\r\n\r\n{\"a\":1}";
        let (request, made) = ask(answer, |client| client.get::<Value>("/vm/config"));
        assert!(
            request.starts_with("GET /vm/config HTTP/1.1\r\n"),
            "{request}"
        );
        assert_eq!(made.expect("granted"), json!({"a": 1}));
        let (request, made) = ask("HTTP/1.1 204 \r\n\r\n", |client| {
            client.patch("/vm", &json!({"state": "Paused"}))
        });
        assert!(request.ends_with("{\"state\":\"Paused\"}"), "{request}");
        made.expect("granted");
    }

    #[test]
    fn a_stream_is_read_to_the_end_of_the_connection() {
        let answer =
            "HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n2\r\na\n\r\n1\r\nb\r\n0\r\n\r\n";
        let (_, text) = ask(answer, |client| {
            let (status, mut body) = client.stream("GET", "/events", None).expect("granted");
            let mut text = String::new();
            body.read_to_string(&mut text).map(|_| (status, text))
        });
        assert_eq!(text.expect("read"), (200, "a\nb".to_owned()));
    }

    #[test]
    fn who_waits_without_a_limit_gets_an_answer_that_others_do_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("s");
        let listener = UnixListener::bind(&socket).expect("a socket");
        let hasty = Client::with_patience(&socket, Duration::from_millis(20));
        let given_up = hasty.get::<Value>("/wait").expect_err("no answer");
        assert!(
            matches!(given_up, ClientError::Timeout { .. }),
            "{given_up}"
        );
        let waiter = hasty.without_limit();
        let waiter = thread::spawn(move || waiter.get::<Value>("/wait"));
        // That of the hasty one is the first.
        let _ = listener.accept().expect("a client");
        let (mut stream, _) = listener.accept().expect("a client");
        thread::sleep(Duration::from_millis(100));
        let answer = b"HTTP/1.1 200 \r\nContent-Length: 1\r\n\r\n7";
        stream.write_all(answer).expect("an answer");
        let got = waiter.join().expect("a waiter");
        assert_eq!(got.expect("granted"), json!(7));
    }

    #[test]
    fn a_refusal_is_told_in_the_machines_words() {
        let answer = "HTTP/1.1 400 \r\nContent-Length: 22\r\n\r\n{\"fault_message\":\"no\"}";
        let (_, made) = ask(answer, |client| client.put("/actions", &json!({"a": 1})));
        assert_eq!(made.expect_err("refused").to_string(), "no");
    }

    #[test]
    fn a_socket_that_nobody_serves_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("s");
        let error = Client::at(&socket).get::<Value>("/").expect_err("nobody");
        assert!(error.to_string().contains("no such socket"), "{error}");
        drop(UnixListener::bind(&socket).expect("a socket"));
        let error = Client::at(&socket).get::<Value>("/").expect_err("nobody");
        assert!(error.to_string().contains("any more"), "{error}");
    }
}
