//! The host's side of a stream of [`exec`](crate::exec), without the stream: what is said first, and what the guest says, in an
//! order that it has to keep to. `lightv exec` and the host agent read by it; neither trusts the guest.
//!
//! ```text
//!   Calling --LetIn--> Waiting --Started--> Running --Ended--> Over
//!                         '-----------Refused------------------^
//! ```

use std::error::Error;
use std::fmt;
use std::mem;
use std::time::Duration;

use crate::exec::{BadMessage, DATA_BYTES_MAX, Incoming, PORT, STDIN_WINDOW_BYTES, ToHost};

/// How long a guest may take to let the host in, and again to start the program. One whose kernel is emulated, on a busy host, needs
/// many seconds when it was started a moment ago.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Bytes of the monitor's answer: `OK 4294967295`, and the end of the line.
const ANSWER_BYTES_MAX: usize = 32;

/// What is said first to the socket of the machine's vsock: a line that asks for the agent.
#[must_use]
pub fn call() -> String {
    format!("CONNECT {PORT}\n")
}

/// What was heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// The agent listens; now it is told what to start.
    LetIn,
    /// The program runs.
    Started,
    /// It does not, and why; nothing follows.
    Refused {
        /// As in [`ToHost::Refused`].
        status: u8,
        /// One line without control characters.
        text: String,
    },
    /// Output, or what the terminal shows.
    Stdout(Vec<u8>),
    /// Output.
    Stderr(Vec<u8>),
    /// For [`StdinRoom::add`].
    StdinTaken(u32),
    /// The program has ended with this status, 128 + N by signal N; nothing follows.
    Ended(u8),
}

/// Why the guest is not heard further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HearError {
    /// Nobody listens on the agent's port.
    NoAgent,
    /// What it sends is no message.
    Message(BadMessage),
    /// A message at a time that is not its own.
    Order(&'static str),
}

impl fmt::Display for HearError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let breach = "The guest's agent does not keep to the protocol";
        match self {
            Self::NoAgent => out.write_str(
                "Nobody in the guest starts programs: it has no agent of LightV's, or an old one; build its image anew with `lightv build --rootfs … --exec`",
            ),
            Self::Message(bad) => write!(out, "{breach}: {bad}"),
            Self::Order(what) => write!(out, "{breach}: {what}"),
        }
    }
}

impl Error for HearError {}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Calling,
    Waiting,
    Running,
    Over,
}

/// What has come of a guest. Holds no more than the longest message and what was added last.
#[derive(Debug, Default)]
pub struct Hearing {
    stage: Stage,
    /// The monitor's answer, as far as it has come.
    answer: Vec<u8>,
    incoming: Incoming<ToHost>,
}

impl Hearing {
    /// Adds bytes as they come. All that can be heard is to be heard before more are added.
    pub fn add(&mut self, bytes: &[u8]) {
        match self.stage {
            Stage::Calling => self.answer.extend_from_slice(bytes),
            _ => self.incoming.add(bytes),
        }
    }

    /// The next thing that was said, if all of it has come.
    ///
    /// # Errors
    /// [`HearError`]: what breaks a rule, as soon as that shows.
    pub fn hear(&mut self) -> Result<Option<Heard>, HearError> {
        if self.stage == Stage::Calling {
            return self.take_answer();
        }
        let Some(message) = self.incoming.take().map_err(HearError::Message)? else {
            return Ok(None);
        };
        let heard = match (self.stage, message) {
            (Stage::Waiting, ToHost::Started) => {
                self.stage = Stage::Running;
                Heard::Started
            }
            (Stage::Waiting, ToHost::Refused { status, text }) => {
                self.stage = Stage::Over;
                let text = plain(&text);
                Heard::Refused { status, text }
            }
            // Each message has a price: output is as fast as it is taken, and input ends.
            (Stage::Running, ToHost::StdinTaken(0)) => {
                return Err(HearError::Order("it has taken no input, and says so"));
            }
            (Stage::Running, ToHost::Stdout(bytes) | ToHost::Stderr(bytes)) if bytes.is_empty() => {
                return Err(HearError::Order("output of no bytes"));
            }
            (Stage::Running, ToHost::Stdout(bytes)) => Heard::Stdout(bytes),
            (Stage::Running, ToHost::Stderr(bytes)) => Heard::Stderr(bytes),
            (Stage::Running, ToHost::StdinTaken(bytes)) => Heard::StdinTaken(bytes),
            (Stage::Running, ToHost::Ended(status)) => {
                self.stage = Stage::Over;
                Heard::Ended(status)
            }
            (Stage::Running, _) => return Err(HearError::Order("the program had started")),
            (Stage::Over, _) => return Err(HearError::Order("all had been said")),
            (Stage::Calling | Stage::Waiting, _) => {
                return Err(HearError::Order("the program has not started"));
            }
        };
        Ok(Some(heard))
    }

    /// What it means that the connection has ended now; `None` of one that was let in.
    #[must_use]
    pub fn end(&self) -> Option<HearError> {
        (self.stage == Stage::Calling).then_some(HearError::NoAgent)
    }

    fn take_answer(&mut self) -> Result<Option<Heard>, HearError> {
        let seen = self.answer.iter().take(ANSWER_BYTES_MAX);
        let Some(length) = seen.clone().position(|byte| *byte == b'\n') else {
            return match seen.len() {
                ANSWER_BYTES_MAX.. => Err(HearError::NoAgent),
                _ => Ok(None),
            };
        };
        let answer = mem::take(&mut self.answer);
        if !answer.starts_with(b"OK ") {
            return Err(HearError::NoAgent);
        }
        self.stage = Stage::Waiting;
        // What follows the line is the agent's.
        self.incoming
            .add(answer.get(length + 1..).unwrap_or_default());
        Ok(Some(Heard::LetIn))
    }
}

/// A guest's words as one line that does nothing to a terminal.
fn plain(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// Room that the guest has for input, in bytes: at most [`STDIN_WINDOW_BYTES`], whatever it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StdinRoom(usize);

impl Default for StdinRoom {
    fn default() -> Self {
        Self(STDIN_WINDOW_BYTES)
    }
}

impl StdinRoom {
    /// Bytes that the next message may have.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.min(DATA_BYTES_MAX)
    }

    /// `bytes` are sent, no more than there is room for.
    pub fn fill(&mut self, bytes: usize) {
        self.0 = self.0.saturating_sub(bytes);
    }

    /// The guest says that it has taken `bytes`.
    ///
    /// # Errors
    /// [`HearError::Order`]: so many were not under way.
    pub fn add(&mut self, bytes: u32) -> Result<(), HearError> {
        let more = usize::try_from(bytes).ok();
        let room = more.and_then(|bytes| self.0.checked_add(bytes));
        let room = room.filter(|room| *room <= STDIN_WINDOW_BYTES);
        self.0 = room.ok_or(HearError::Order("it has taken more input than there was"))?;
        Ok(())
    }
}

#[cfg(test)]
#[path = "exec_host_tests.rs"]
mod tests;
