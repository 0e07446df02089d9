//! `GET /events`, as a client without a library reads it.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;

use serde_json::Value;

use crate::api::Api;

/// A reader of the stream. What comes is waited for as long as for an answer.
#[derive(Debug)]
pub struct Events {
    stream: BufReader<UnixStream>,
}

impl Events {
    /// Asks for all events.
    ///
    /// # Panics
    /// When they are refused.
    #[must_use]
    #[track_caller]
    pub fn of(api: &Api) -> Self {
        Self::after(api, 0)
    }

    /// Asks for those after `id`.
    ///
    /// # Panics
    /// When they are refused.
    #[must_use]
    #[track_caller]
    pub fn after(api: &Api, id: u64) -> Self {
        let mut stream = api.connect().expect("a connection");
        let head = format!("GET /events HTTP/1.1\r\nLast-Event-ID: {id}\r\n\r\n");
        stream.write_all(head.as_bytes()).expect("a request");
        let mut events = Self {
            stream: BufReader::new(stream),
        };
        let status = events.line().expect("an answer");
        assert!(status.starts_with("HTTP/1.1 200 "), "{status}");
        while events.line().expect("a head") != "\r\n" {}
        events
    }

    /// The data of the next event; `None` when the stream has ended.
    ///
    /// # Panics
    /// When nothing comes, or it is no event.
    pub fn next_event(&mut self) -> Option<Value> {
        let (mut name, mut data) = (String::new(), String::new());
        loop {
            let line = self.line().expect("an event");
            if line.is_empty() {
                return None;
            }
            // The lines of an event end with LF, those around a chunk with CR LF.
            if let Some(text) = line.strip_prefix("event: ") {
                text.trim_end().clone_into(&mut name);
            } else if let Some(text) = line.strip_prefix("data: ") {
                text.clone_into(&mut data);
            } else if line == "\n" && !data.is_empty() {
                let data: Value = serde_json::from_str(&data).expect("JSON");
                assert_eq!(data["event"], name.as_str(), "{data}");
                assert!(data["time_unix_us"].is_u64(), "{data}");
                return Some(data);
            }
        }
    }

    /// The next event, which must have this name.
    ///
    /// # Panics
    /// When it has another, or there is none.
    #[track_caller]
    pub fn expect(&mut self, name: &str) -> Value {
        let event = self.next_event();
        let event = event.unwrap_or_else(|| panic!("the stream has ended before {name}"));
        assert_eq!(event["event"], name, "{event}");
        event
    }

    /// All that comes until the stream ends.
    ///
    /// # Panics
    /// As [`next`](Self::next).
    #[must_use]
    pub fn rest(mut self) -> Vec<Value> {
        std::iter::from_fn(|| self.next_event()).collect()
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        Ok(line)
    }
}
