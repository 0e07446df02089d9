//! `lightv bench vsock`: a guest and the host over vsock, and the host with itself over a Unix socket, in turn.

use std::fs;
use std::io::{self, ErrorKind, Read as _};
use std::ops::ControlFlow;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use lightv_workloads::network::PIECE_BYTES;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::guest::Guest;
use crate::report::Case;
use crate::stream::{self, Found, SILENCE};
use crate::two_sided::{self, Kind, Measured, Sides, TransferError};

/// The host's port to which the guest connects.
const PORT: u32 = 5000;
/// After so long of nothing, the other end is looked at.
const AGAIN: Duration = Duration::from_millis(5);

/// What is measured.
#[derive(Debug, Clone)]
pub struct VsockBench {
    /// A guest with vsock at [`VsockBench::socket`].
    pub guest: Guest,
    /// Path of the socket of vsock; the services that the guest connects to are beside it.
    pub socket: PathBuf,
    /// Rounds that count.
    pub rounds: u32,
    /// How long each side sends in a round.
    pub time: Duration,
}

/// What the other end does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Send,
    Receive,
    Answer,
    Connect,
}

impl Mode {
    const ALL: [Self; 4] = [Self::Send, Self::Receive, Self::Answer, Self::Connect];

    /// As the guest's app calls it.
    const fn name(self) -> &'static str {
        match self {
            Self::Send => "send",
            Self::Receive => "receive",
            Self::Answer => "answer",
            Self::Connect => "connect",
        }
    }

    const fn case(self) -> &'static str {
        match self {
            Self::Send => "vsock.stream.g2h",
            Self::Receive => "vsock.stream.h2g",
            Self::Answer => "vsock.rr",
            Self::Connect => "vsock.connect",
        }
    }

    const fn kind(self) -> Kind {
        match self {
            Self::Send | Self::Receive => Kind::Stream,
            Self::Answer | Self::Connect => Kind::Requests,
        }
    }
}

/// Measures each case with the guest and over a Unix socket, in turn. Streams are in MB/s, s/GB and exits/MB; requests and
/// connections in µs and exits for each. `progress` is told after each round of a case, and says whether to go on.
///
/// # Errors
/// [`TransferError`].
pub fn measure(
    bench: &VsockBench,
    progress: impl Fn(u32, u32) -> ControlFlow<()>,
) -> Result<Vec<Case>, TransferError> {
    let about = |mode: &Mode| (mode.case(), mode.kind());
    let sides = Sides {
        guest: |mode: &Mode| with_guest(bench, *mode),
        native: |mode: &Mode| over_unix_socket(bench, *mode),
    };
    two_sided::measure(&Mode::ALL, about, bench.rounds, &sides, progress)
}

fn with_guest(bench: &VsockBench, mode: Mode) -> Result<Measured, TransferError> {
    let socket = service_of(&bench.socket);
    let run = || {
        bench.guest.run(&[
            mode.name(),
            &PORT.to_string(),
            &bench.time.as_millis().max(1).to_string(),
            &PIECE_BYTES.to_string(),
        ])
    };
    let ends = both_ends(bench, mode, &socket, run);
    Measured::of_guest(mode.case(), &socket.display().to_string(), ends)
}

/// The path of the service behind [`PORT`].
fn service_of(socket: &Path) -> PathBuf {
    let mut service = socket.as_os_str().to_owned();
    service.push(format!("_{PORT}"));
    service.into()
}

fn over_unix_socket(bench: &VsockBench, mode: Mode) -> Result<Measured, TransferError> {
    let socket = bench.socket.with_extension("native");
    let run = || peer(mode, &socket, bench.time);
    let ends = both_ends(bench, mode, &socket, run);
    Measured::of_native(mode.case(), &socket.display().to_string(), ends)
}

/// What the guest's app does, as a thread of the host.
fn peer(mode: Mode, socket: &Path, time: Duration) -> io::Result<()> {
    let connect = || with_timeouts(UnixStream::connect(socket)?);
    match mode {
        Mode::Send => stream::send(connect()?, time).map(drop),
        Mode::Receive => stream::receive(connect()?).map(drop),
        Mode::Answer => stream::answer(connect()?),
        Mode::Connect => stream::repeat_for(time, || {
            let mut stream = connect()?;
            stream::Stream::end(&stream)?;
            // Until the other end has closed it too.
            stream.read_exact(&mut [0]).or_else(end_is_well)
        }),
    }
}

fn end_is_well(cause: io::Error) -> io::Result<()> {
    match cause.kind() {
        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset => Ok(()),
        _ => Err(cause),
    }
}

fn with_timeouts(stream: UnixStream) -> io::Result<UnixStream> {
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    Ok(stream)
}

/// Our end listens at `socket`, and `run` is the other one, on a thread of its own.
fn both_ends<T: Send>(
    bench: &VsockBench,
    mode: Mode,
    socket: &Path,
    run: impl FnOnce() -> T + Send,
) -> (io::Result<Found>, T) {
    let listener = UnixListener::bind(socket);
    let ends = thread::scope(|scope| {
        let other = scope.spawn(run);
        let found = listener.and_then(|listener| {
            listener.set_nonblocking(true)?;
            serve(&listener, mode, bench.time, &|| !other.is_finished())
        });
        let other = other.join();
        (
            found,
            other.unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
        )
    });
    // The next round makes it again; where it is not, there was an error that has been told.
    let _ = fs::remove_file(socket);
    ends
}

fn serve(
    listener: &UnixListener,
    mode: Mode,
    time: Duration,
    is_alive: &dyn Fn() -> bool,
) -> io::Result<Found> {
    if mode == Mode::Connect {
        return accept_all(listener, is_alive);
    }
    let stream = accept(listener, is_alive)?.ok_or(ErrorKind::ConnectionAborted)?;
    match mode {
        Mode::Send => stream::receive(stream),
        Mode::Receive => stream::send(stream, time),
        _ => stream::ask(stream, time),
    }
}

/// A connection from the other end; `None` when that has ended.
fn accept(listener: &UnixListener, is_alive: &dyn Fn() -> bool) -> io::Result<Option<UnixStream>> {
    let again = Timespec::try_from(AGAIN).unwrap_or_default();
    let began = Instant::now();
    while began.elapsed() < SILENCE {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return with_timeouts(stream).map(Some);
            }
            Err(cause) if cause.kind() == ErrorKind::WouldBlock => {}
            Err(cause) => return Err(cause),
        }
        if !is_alive() {
            return Ok(None);
        }
        poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&again))?;
    }
    Err(ErrorKind::TimedOut.into())
}

/// Accepts connections and waits for the end of each, until the other end has ended. The time of a connection is from one to the
/// next; what is counted are connections.
fn accept_all(listener: &UnixListener, is_alive: &dyn Fn() -> bool) -> io::Result<Found> {
    let mut found = Found::default();
    let mut last: Option<Instant> = None;
    while let Some(mut stream) = accept(listener, is_alive)? {
        let now = Instant::now();
        if let Some(last) = last.replace(now) {
            let took = now - last;
            found.latencies.push(took.as_secs_f64() * 1e6);
            found.seconds += took.as_secs_f64();
            found.bytes += 1;
        }
        // It sends nothing: what comes is its end.
        stream.read_exact(&mut [0]).or_else(end_is_well)?;
    }
    Ok(found)
}
