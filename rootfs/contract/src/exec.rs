//! Programs that the host starts in a running guest (docs/exec.md): messages between the host, which is `lightv exec` or
//! the host agent, and the guest's agent on a stream of vsock, one program a stream.
//!
//! The host connects to [`PORT`] and sends [`ToGuest::Start`]. The agent answers [`ToHost::Started`], or [`ToHost::Refused`] as
//! its last word. Then input, output and signals go their ways, until [`ToHost::Ended`]. A message is a kind (one byte), the
//! length of what follows (four bytes, little-endian), and that. Neither side trusts the other: what breaks a rule here ends
//! the stream.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::marker::PhantomData;

use serde::{Deserialize, Serialize};

/// Port on which the agent listens. Below 1024: no program of the guest but root's can take it.
pub const PORT: u32 = 1000;
/// Version of all that is here, in [`StartSpec::version`].
pub const VERSION: u32 = 1;

/// Bytes before the payload of a message.
pub const HEAD_BYTES: usize = 5;
/// Bytes of a [`ToGuest::Start`]: words and environment, as JSON.
pub const START_BYTES_MAX: usize = 256 << 10;
/// Bytes of input or output in a message.
pub const DATA_BYTES_MAX: usize = 32 << 10;
/// Bytes of the text of a [`ToHost::Refused`].
pub const TEXT_BYTES_MAX: usize = 1024;
/// Bytes of input that may be under way: the agent keeps what the program has not read, and hears signals behind it.
pub const STDIN_WINDOW_BYTES: usize = 64 << 10;
/// Programs at a time in a guest; one more is refused with [`TOO_MANY`].
pub const PROGRAMS_MAX: usize = 32;
/// Status of a [`ToHost::Refused`]: as many programs run as may.
pub const TOO_MANY: u8 = 125;
/// How long the agent waits for [`ToGuest::Start`] on a new stream, in seconds.
pub const START_SECONDS_MAX: u64 = 10;

/// What is to be started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartSpec {
    /// [`VERSION`] of the host. An agent of another one refuses.
    pub version: u32,
    /// Command line; at least one word. A name without `/` is looked for in `PATH`.
    pub words: Vec<String>,
    /// Added to the environment of the machine's own program, or replaced by name.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Folder that it starts in. Default: that of the machine's own program.
    #[serde(default)]
    pub workdir: Option<String>,
    /// Who runs it, as [`crate::agent::AgentSpec::user`]. Default: who runs the machine's own program.
    #[serde(default)]
    pub user: Option<String>,
    /// It gets a terminal of this size, which takes all its output as standard output.
    #[serde(default)]
    pub terminal: Option<TerminalSize>,
    /// There is input. Without it, it reads the end of it at once.
    #[serde(default)]
    pub has_stdin: bool,
}

/// Size of a terminal in characters; 0 is unknown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// In a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

/// From the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToGuest {
    /// First: a [`StartSpec`] as JSON.
    Start(Vec<u8>),
    /// Input, within [`STDIN_WINDOW_BYTES`].
    Stdin(Vec<u8>),
    /// There is no more input.
    StdinEnd,
    /// Send this signal to the program's process group.
    Signal(u8),
    /// The terminal has another size.
    Resize(TerminalSize),
}

/// From the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToHost {
    /// The program runs.
    Started,
    /// It does not, and why; nothing follows.
    Refused {
        /// 127: not found. 126: cannot be run. 125: [`TOO_MANY`].
        status: u8,
        /// For people. Whatever a guest says: control characters too.
        text: String,
    },
    /// Output, or what the terminal shows.
    Stdout(Vec<u8>),
    /// Output.
    Stderr(Vec<u8>),
    /// So many more bytes of input may come.
    StdinTaken(u32),
    /// The program has ended with this status, 128 + N by signal N; nothing follows.
    Ended(u8),
}

/// What is sent in messages.
pub trait Message: Sized {
    /// Most bytes of the payload of a message of this kind; `None` when there is no such kind.
    fn bytes_max(kind: u8) -> Option<usize>;
    /// The message, if the payload is one.
    fn decode(kind: u8, payload: &[u8]) -> Option<Self>;
    /// Its kind and payload, appended to `into` with the head.
    fn encode(&self, into: &mut Vec<u8>);
}

/// Appends a message.
fn put(into: &mut Vec<u8>, kind: u8, payload: &[u8]) {
    into.push(kind);
    // Senders keep to the limits, which are far below.
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    into.extend_from_slice(&length.to_le_bytes());
    into.extend_from_slice(payload);
}

impl Message for ToGuest {
    fn bytes_max(kind: u8) -> Option<usize> {
        match kind {
            1 => Some(START_BYTES_MAX),
            2 => Some(DATA_BYTES_MAX),
            3 => Some(0),
            4 => Some(1),
            5 => Some(4),
            _ => None,
        }
    }

    fn decode(kind: u8, payload: &[u8]) -> Option<Self> {
        match (kind, payload) {
            (1, payload) => Some(Self::Start(payload.to_vec())),
            (2, payload) => Some(Self::Stdin(payload.to_vec())),
            (3, []) => Some(Self::StdinEnd),
            (4, [number]) => (1..=64).contains(number).then_some(Self::Signal(*number)),
            (5, &[a, b, c, d]) => Some(Self::Resize(TerminalSize {
                columns: u16::from_le_bytes([a, b]),
                rows: u16::from_le_bytes([c, d]),
            })),
            _ => None,
        }
    }

    fn encode(&self, into: &mut Vec<u8>) {
        match self {
            Self::Start(json) => put(into, 1, json),
            Self::Stdin(bytes) => put(into, 2, bytes),
            Self::StdinEnd => put(into, 3, &[]),
            Self::Signal(number) => put(into, 4, &[*number]),
            Self::Resize(size) => {
                let ([a, b], [c, d]) = (size.columns.to_le_bytes(), size.rows.to_le_bytes());
                put(into, 5, &[a, b, c, d]);
            }
        }
    }
}

impl Message for ToHost {
    fn bytes_max(kind: u8) -> Option<usize> {
        match kind {
            1 => Some(0),
            2 => Some(1 + TEXT_BYTES_MAX),
            3 | 4 => Some(DATA_BYTES_MAX),
            5 => Some(4),
            6 => Some(1),
            _ => None,
        }
    }

    fn decode(kind: u8, payload: &[u8]) -> Option<Self> {
        match (kind, payload) {
            (1, []) => Some(Self::Started),
            (2, [status, text @ ..]) => Some(Self::Refused {
                status: *status,
                text: String::from_utf8_lossy(text).into_owned(),
            }),
            (3, payload) => Some(Self::Stdout(payload.to_vec())),
            (4, payload) => Some(Self::Stderr(payload.to_vec())),
            (5, &[a, b, c, d]) => Some(Self::StdinTaken(u32::from_le_bytes([a, b, c, d]))),
            (6, [status]) => Some(Self::Ended(*status)),
            _ => None,
        }
    }

    fn encode(&self, into: &mut Vec<u8>) {
        match self {
            Self::Started => put(into, 1, &[]),
            Self::Refused { status, text } => {
                let text = text.as_bytes();
                let text = text.get(..TEXT_BYTES_MAX).unwrap_or(text);
                put(into, 2, &[&[*status], text].concat());
            }
            Self::Stdout(bytes) => put(into, 3, bytes),
            Self::Stderr(bytes) => put(into, 4, bytes),
            Self::StdinTaken(bytes) => put(into, 5, &bytes.to_le_bytes()),
            Self::Ended(status) => put(into, 6, &[*status]),
        }
    }
}

/// What the other side has sent that is no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadMessage {
    /// There is no such kind.
    Kind(u8),
    /// It is said to be longer than its kind may be.
    Length {
        /// Its kind.
        kind: u8,
        /// Bytes that are to follow.
        found: u32,
        /// Bytes that may.
        allowed: usize,
    },
    /// Its payload is none of its kind.
    Payload(u8),
}

impl fmt::Display for BadMessage {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kind(kind) => write!(out, "there are no messages of kind {kind}"),
            Self::Length {
                kind,
                found,
                allowed,
            } => write!(
                out,
                "a message of kind {kind} has {found} bytes; allowed: at most {allowed}"
            ),
            Self::Payload(kind) => write!(out, "a message of kind {kind} has not its form"),
        }
    }
}

impl Error for BadMessage {}

/// Bytes that have come, up to the end of a message. Holds no more than the longest message and what was added last.
#[derive(Debug)]
pub struct Incoming<M> {
    bytes: Vec<u8>,
    message: PhantomData<M>,
}

impl<M> Default for Incoming<M> {
    fn default() -> Self {
        Self {
            bytes: Vec::new(),
            message: PhantomData,
        }
    }
}

impl<M: Message> Incoming<M> {
    /// Adds bytes as they come. All messages are to be taken before more are added.
    pub fn add(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Takes the next whole message, if there is one.
    ///
    /// # Errors
    /// [`BadMessage`], as soon as its head shows it.
    pub fn take(&mut self) -> Result<Option<M>, BadMessage> {
        let Some((head, rest)) = self.bytes.split_first_chunk::<HEAD_BYTES>() else {
            return Ok(None);
        };
        let [kind, a, b, c, d] = *head;
        let found = u32::from_le_bytes([a, b, c, d]);
        let allowed = M::bytes_max(kind).ok_or(BadMessage::Kind(kind))?;
        let length = usize::try_from(found)
            .ok()
            .filter(|length| *length <= allowed);
        let length = length.ok_or(BadMessage::Length {
            kind,
            found,
            allowed,
        })?;
        let Some(payload) = rest.get(..length) else {
            return Ok(None);
        };
        let message = M::decode(kind, payload).ok_or(BadMessage::Payload(kind))?;
        self.bytes.drain(..HEAD_BYTES + length);
        Ok(Some(message))
    }
}

#[cfg(test)]
#[path = "exec_tests.rs"]
mod tests;
