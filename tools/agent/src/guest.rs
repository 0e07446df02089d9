//! A program in a guest: the connection to the guest's agent (docs/exec.md), and what goes over it.
//!
//! What the guest sends is not trusted: each message and each wait before the program runs has a limit, and no more is read of
//! it than a client takes.

use std::cell::{Cell, RefCell};
use std::future::pending;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::body::Bytes;
use lightv_contract::exec::{Message as _, ToGuest};
use lightv_contract::exec_host::{HearError, Heard, Hearing, PATIENCE, StdinRoom, call};
use rustix::process::Signal;
use tokio::net::UnixStream;
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;

use crate::jail;
use crate::limits;
use crate::output::OutputLines;
use crate::race::{Raced, race};

/// Why a program was not started, or its end is not known.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// Nobody listens.
    #[error("Cannot connect to {}, the socket of the microVM's vsock", socket.display())]
    Connect {
        /// Where.
        socket: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The connection failed.
    #[error("Cannot talk to the guest's agent")]
    Talk(#[source] io::Error),
    /// No answer in time.
    #[error(
        "The guest did not answer within {} s: it is still booting, stands still, or has very much to do",
        PATIENCE.as_secs()
    )]
    Silent,
    /// It has no agent, or one that breaks the rules.
    #[error(transparent)]
    Hear(#[from] HearError),
    /// It does not start the program.
    #[error("In the guest: {text}")]
    Refused {
        /// As in [`Heard::Refused`].
        status: u8,
        /// Why not.
        text: String,
    },
    /// The guest, or the machine, has closed the connection.
    #[error(
        "The connection to the guest's agent ended before the program; it has got SIGHUP, unless the guest was restored or has failed"
    )]
    Lost,
    /// SIGKILL did not help.
    #[error(
        "The program's time was over, and its end was not heard of within {} s after SIGKILL",
        limits::PROGRAM_KILL_TIME_MAX.as_secs()
    )]
    Unkilled,
}

/// A connection to a guest's agent. When it is dropped, a program that runs gets SIGHUP.
#[derive(Debug)]
pub struct Guest {
    stream: UnixStream,
    hearing: Hearing,
}

/// What a program is given while it runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Given {
    /// All of its input, if it has any.
    pub stdin: Option<Vec<u8>>,
    /// How long it may run.
    pub time_max: Option<Duration>,
}

/// What has become of a program.
#[derive(Debug)]
pub enum Outcome {
    /// It has ended.
    Ended {
        /// As in [`Heard::Ended`].
        status: u8,
        /// Whether it was sent SIGKILL before.
        timed_out: bool,
    },
    /// Nobody knows.
    Failed(GuestError),
    /// The client has gone.
    Left,
}

impl Guest {
    /// Connects to the agent of the machine whose vsock has the socket `socket`.
    ///
    /// # Errors
    /// [`GuestError`].
    pub async fn dial(socket: &Path) -> Result<Self, GuestError> {
        let stream = jail::connect(socket).await;
        let stream = stream.map_err(|cause| GuestError::Connect {
            socket: socket.to_owned(),
            cause,
        })?;
        let mut guest = Self {
            stream,
            hearing: Hearing::default(),
        };
        let mut sending = Sending::of(call().into_bytes());
        sending
            .finish(&guest.stream)
            .await
            .map_err(GuestError::Talk)?;
        // What is heard first is that we are let in.
        let _ = guest.next_in_time().await?;
        Ok(guest)
    }

    /// Has the program started that `start` describes, a [`lightv_contract::exec::StartSpec`] as JSON.
    ///
    /// # Errors
    /// [`GuestError`].
    pub async fn start(&mut self, start: Vec<u8>) -> Result<(), GuestError> {
        let mut sending = Sending::default();
        sending.add(&ToGuest::Start(start));
        // One that was turned away has not to be heard; why, it is told.
        let sent = timeout(PATIENCE, sending.finish(&self.stream)).await;
        let _ = sent.map_err(|_| GuestError::Silent)?;
        match self.next_in_time().await? {
            Heard::Refused { status, text } => Err(GuestError::Refused { status, text }),
            // Nothing else comes first but that it runs.
            _ => Ok(()),
        }
    }

    async fn next_in_time(&mut self) -> Result<Heard, GuestError> {
        let next = async {
            loop {
                if let Some(heard) = self.hearing.hear()? {
                    return Ok(heard);
                }
                read(&self.stream, &mut self.hearing).await?;
            }
        };
        timeout(PATIENCE, next)
            .await
            .unwrap_or(Err(GuestError::Silent))
    }

    /// Carries input and output of the program, which runs, until it has ended: its output goes to `out` as lines, as fast as they
    /// are taken.
    pub async fn carry(
        &mut self,
        given: Given,
        lines: &mut OutputLines,
        out: &mpsc::Sender<Bytes>,
    ) -> Outcome {
        let shared = Shared::default();
        let spoken = speak(&self.stream, given, &shared);
        let heard = hear((&self.stream, &mut self.hearing), lines, &shared, out);
        match race(heard, spoken).await {
            Raced::First(Ok(Some(status))) => Outcome::Ended {
                status,
                timed_out: shared.is_over.get(),
            },
            Raced::First(Ok(None)) => Outcome::Left,
            Raced::First(Err(error)) => Outcome::Failed(error),
            Raced::Second(()) => Outcome::Failed(GuestError::Unkilled),
        }
    }
}

/// What those who speak and those who hear share.
#[derive(Debug, Default)]
struct Shared {
    room: RefCell<StdinRoom>,
    has_more_room: Notify,
    /// The program's time is over.
    is_over: Cell<bool>,
}

/// Reads what has come, at least a byte.
async fn read(stream: &UnixStream, hearing: &mut Hearing) -> Result<(), GuestError> {
    loop {
        stream.readable().await.map_err(GuestError::Talk)?;
        let mut piece = vec![0; limits::GUEST_PIECE_BYTES];
        match stream.try_read(&mut piece) {
            Ok(0) => return Err(hearing.end().map_or(GuestError::Lost, GuestError::Hear)),
            Ok(length) => {
                hearing.add(piece.get(..length).unwrap_or_default());
                return Ok(());
            }
            Err(cause) => match cause.kind() {
                io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => {}
                io::ErrorKind::ConnectionReset => return Err(GuestError::Lost),
                _ => return Err(GuestError::Talk(cause)),
            },
        }
    }
}

/// Passes output on until the program has ended: its status, or nothing when the client has gone.
async fn hear(
    (stream, hearing): (&UnixStream, &mut Hearing),
    lines: &mut OutputLines,
    shared: &Shared,
    out: &mpsc::Sender<Bytes>,
) -> Result<Option<u8>, GuestError> {
    loop {
        let heard = hearing.hear()?;
        if (heard.is_none() || lines.is_much()) && !send(lines.take(), out).await {
            return Ok(None);
        }
        match heard {
            None => {
                let more = timeout(limits::HEARTBEAT, read(stream, hearing));
                match race(more, out.closed()).await {
                    Raced::First(Ok(read)) => read?,
                    // A line without anything.
                    Raced::First(Err(_)) if send(b"\n".to_vec(), out).await => {}
                    Raced::First(Err(_)) | Raced::Second(()) => return Ok(None),
                }
            }
            Some(Heard::Stdout(bytes)) => lines.add_stdout(&bytes),
            Some(Heard::Stderr(bytes)) => lines.add_stderr(&bytes),
            Some(Heard::StdinTaken(bytes)) => {
                shared.room.borrow_mut().add(bytes)?;
                shared.has_more_room.notify_one();
            }
            Some(Heard::Ended(status)) => return Ok(Some(status)),
            // Of one that has started.
            Some(Heard::LetIn | Heard::Started | Heard::Refused { .. }) => {}
        }
    }
}

/// Whether the client is still there. It may take its time.
async fn send(text: Vec<u8>, out: &mpsc::Sender<Bytes>) -> bool {
    for piece in text.chunks(limits::EXEC_PIECE_BYTES) {
        if out.send(Bytes::copy_from_slice(piece)).await.is_err() {
            return false;
        }
    }
    true
}

/// Sends input, as far as the guest has room for it, and SIGKILL when the time is over. Ends when that has not helped.
async fn speak(stream: &UnixStream, given: Given, shared: &Shared) {
    let mut sending = Sending::default();
    let fed = feed(stream, &mut sending, given.stdin, shared);
    match given.time_max {
        // Never comes to an end.
        None => fed.await,
        Some(time_max) => {
            let _ = timeout(time_max, fed).await;
        }
    }
    shared.is_over.set(true);
    // Behind what was begun: half a message would be none.
    let kill = u8::try_from(Signal::KILL.as_raw()).unwrap_or_default();
    sending.add(&ToGuest::Signal(kill));
    let killed = async {
        // When the connection has ended, whoever hears knows.
        let _ = sending.finish(stream).await;
        pending::<()>().await;
    };
    let _ = timeout(limits::PROGRAM_KILL_TIME_MAX, killed).await;
}

/// Sends input and its end, and waits for ever.
async fn feed(stream: &UnixStream, sending: &mut Sending, input: Option<Vec<u8>>, shared: &Shared) {
    if let Some(input) = input {
        let mut rest = input.as_slice();
        loop {
            let room = shared.room.borrow().bytes().min(rest.len());
            let (piece, more) = rest.split_at(room);
            if rest.is_empty() {
                sending.add(&ToGuest::StdinEnd);
            } else if piece.is_empty() {
                shared.has_more_room.notified().await;
                continue;
            } else {
                shared.room.borrow_mut().fill(piece.len());
                sending.add(&ToGuest::Stdin(piece.to_vec()));
            }
            let is_last = rest.is_empty();
            rest = more;
            // When the connection has ended, whoever hears knows.
            if sending.finish(stream).await.is_err() || is_last {
                break;
            }
        }
    }
    pending().await
}

/// Bytes that are being sent. What was begun goes on where it was, whoever stops waiting for it.
#[derive(Debug, Default)]
struct Sending {
    bytes: Vec<u8>,
    sent: usize,
}

impl Sending {
    const fn of(bytes: Vec<u8>) -> Self {
        Self { bytes, sent: 0 }
    }

    fn add(&mut self, message: &ToGuest) {
        message.encode(&mut self.bytes);
    }

    async fn finish(&mut self, stream: &UnixStream) -> io::Result<()> {
        while let Some(rest) = self.bytes.get(self.sent..).filter(|rest| !rest.is_empty()) {
            stream.writable().await?;
            match stream.try_write(rest) {
                Ok(length) => self.sent += length,
                Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => {}
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                Err(cause) => return Err(cause),
            }
        }
        self.bytes.clear();
        self.sent = 0;
        Ok(())
    }
}

#[cfg(test)]
#[path = "guest_tests.rs"]
mod tests;
