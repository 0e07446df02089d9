//! Our streams, terminal and signals while a program runs: input and signals are threads, output is the caller's.
//!
//! Our streams stay as blocking as they were, for others have them too. Input is read as far as the guest has room for it, so
//! a guest that takes nothing holds back nobody.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use lightv_contract::exec::{DATA_BYTES_MAX, TerminalSize, ToGuest};
use lightv_contract::exec_host::{Heard, StdinRoom};
use lightv_vmm::terminal::{self, Terminal};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::Signal;

use super::dial::{Connection, send};
use super::{ExecError, killed_by};
use crate::failure::Failure;
use crate::watch;

/// Signals that are the program's.
const PASSED_ON: [Signal; 6] = [
    Signal::HUP,
    Signal::INT,
    Signal::QUIT,
    Signal::TERM,
    Signal::USR1,
    Signal::USR2,
];
/// So many of one signal in [`HURRY`] end us too: a guest need not heed them.
const URGENT: u32 = 3;
const HURRY: Duration = Duration::from_secs(2);
/// Ctrl-]: ends us at a terminal.
const LEAVE_KEY: u8 = 0x1d;

/// What a program has of us.
#[derive(Debug)]
pub(crate) struct Seat {
    /// Our standard input is the program's.
    pub(crate) has_stdin: bool,
    /// Our terminal is the program's.
    pub(crate) terminal: Option<Terminal>,
}

impl Seat {
    fn restore(&self) {
        if let Some(terminal) = &self.terminal {
            terminal.restore();
        }
    }
}

/// What the threads share.
#[derive(Debug)]
struct Shared {
    stream: Mutex<UnixStream>,
    room: Mutex<StdinRoom>,
    has_more_room: Condvar,
    seat: Seat,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn send(&self, message: &ToGuest) -> io::Result<()> {
        send(&lock(&self.stream), message)
    }

    /// Ends this process. The agent sees the connection end.
    fn quit(&self, status: u8) -> ! {
        self.seat.restore();
        process::exit(i32::from(status))
    }

    /// Waits until the guest has room for input; gives how many bytes the next message may have.
    fn wait_for_room(&self) -> usize {
        let room = self
            .has_more_room
            .wait_while(lock(&self.room), |room| room.bytes() == 0);
        room.unwrap_or_else(PoisonError::into_inner).bytes()
    }
}

/// Carries streams and signals between us and the program behind `connection`, which runs, until it ends: gives its status, or
/// nothing when the connection has ended before.
pub(crate) fn carry(mut connection: Connection, seat: Seat) -> Result<Option<u8>, Failure> {
    let shared = Arc::new(Shared {
        stream: Mutex::new(connection.sender().map_err(ExecError::Setup)?),
        room: Mutex::default(),
        has_more_room: Condvar::new(),
        seat,
    });
    let ended = begin(&shared)
        .map_err(Failure::from)
        .and_then(|()| hear(&mut connection, &shared));
    shared.seat.restore();
    ended
}

/// Starts the threads, and makes the terminal raw.
fn begin(shared: &Arc<Shared>) -> Result<(), ExecError> {
    let has_terminal = shared.seat.terminal.is_some();
    let resized = has_terminal.then_some(Signal::WINCH);
    let heard = PASSED_ON.into_iter().chain(resized).map(watch::listen);
    let heard = heard.collect::<io::Result<Vec<_>>>();
    let heard = heard.map_err(ExecError::Setup)?;
    if let Some(terminal) = &shared.seat.terminal {
        terminal.make_raw().map_err(ExecError::Terminal)?;
    }
    let own = Arc::clone(shared);
    spawn("signals", move || pass_on_signals(&own, &heard))?;
    if shared.seat.has_stdin {
        let own = Arc::clone(shared);
        spawn("input", move || pass_on_input(&own))?;
    }
    Ok(())
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), ExecError> {
    let thread = thread::Builder::new().name(name.to_owned()).spawn(work);
    thread.map(drop).map_err(ExecError::Setup)
}

/// Writes output until the program has ended.
fn hear(connection: &mut Connection, shared: &Shared) -> Result<Option<u8>, Failure> {
    let (stdout, stderr) = (io::stdout(), io::stderr());
    loop {
        let Some(heard) = connection.next(None)? else {
            return Ok(None);
        };
        let written = match heard {
            Heard::Stdout(bytes) => write_all(&stdout, &bytes),
            Heard::Stderr(bytes) => write_all(&stderr, &bytes),
            Heard::StdinTaken(bytes) => {
                lock(&shared.room).add(bytes).map_err(ExecError::from)?;
                shared.has_more_room.notify_one();
                Ok(())
            }
            Heard::Ended(status) => return Ok(Some(status)),
            // Of one that has started.
            Heard::LetIn | Heard::Started | Heard::Refused { .. } => Ok(()),
        };
        match written {
            Ok(()) => {}
            // Whoever read it has gone: the program is told as if it were here.
            Err(Errno::PIPE) => drop(shared.send(&signal(Signal::PIPE))),
            Err(cause) => return Err(Failure::Output(cause.into())),
        }
    }
}

/// Writes to one of our streams, whether it blocks or not.
fn write_all(fd: &impl AsFd, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(length) => bytes = bytes.get(length..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait_for(fd, PollFlags::OUT),
            Err(cause) => return Err(cause),
        }
    }
    Ok(())
}

fn wait_for(fd: &impl AsFd, events: PollFlags) {
    // What goes wrong here, the next read or write tells.
    let _ = poll(&mut [PollFd::new(fd, events)], None);
}

/// Sends our input, until it ends or nobody hears it.
fn pass_on_input(shared: &Shared) {
    let stdin = io::stdin();
    let mut piece = vec![0; DATA_BYTES_MAX];
    loop {
        let room = shared.wait_for_room().min(piece.len());
        let target = piece.get_mut(..room).unwrap_or_default();
        let bytes = match rustix::io::read(&stdin, &mut *target) {
            Ok(length) => target.get(..length).unwrap_or_default(),
            Err(Errno::INTR) => continue,
            Err(Errno::AGAIN) => {
                wait_for(&stdin, PollFlags::IN);
                continue;
            }
            Err(_) => &[],
        };
        let is_leaving = shared.seat.terminal.is_some() && bytes.contains(&LEAVE_KEY);
        if is_leaving {
            shared.seat.restore();
            eprintln!("lightv: left; the program gets SIGHUP");
            shared.quit(killed_by(Signal::HUP));
        }
        let message = if bytes.is_empty() {
            ToGuest::StdinEnd
        } else {
            lock(&shared.room).fill(bytes.len());
            ToGuest::Stdin(bytes.to_vec())
        };
        // When the connection has ended, the other threads know.
        if shared.send(&message).is_err() || message == ToGuest::StdinEnd {
            return;
        }
    }
}

/// Sends our signals, and the size of our terminal.
fn pass_on_signals(shared: &Shared, heard: &[(Signal, UnixStream)]) {
    let mut urgency = Urgency::default();
    loop {
        let streams = heard.iter();
        let mut fds: Vec<PollFd<'_>> = streams
            .map(|(_, stream)| PollFd::new(stream, PollFlags::IN))
            .collect();
        let _ = poll(&mut fds, None);
        for (number, stream) in heard {
            if !matches!(rustix::io::read(stream, &mut [0; 64]), Ok(1..)) {
                continue;
            }
            let message = if *number == Signal::WINCH {
                ToGuest::Resize(size())
            } else {
                if urgency.is_urgent(*number, Instant::now()) {
                    shared.quit(killed_by(*number));
                }
                signal(*number)
            };
            if shared.send(&message).is_err() && *number != Signal::WINCH {
                shared.quit(killed_by(*number));
            }
        }
    }
}

fn signal(signal: Signal) -> ToGuest {
    ToGuest::Signal(u8::try_from(signal.as_raw()).unwrap_or(0))
}

/// Size of our terminal.
pub(crate) fn size() -> TerminalSize {
    let size = terminal::size();
    TerminalSize {
        columns: size.columns,
        rows: size.rows,
    }
}

/// Whether somebody is out of patience.
#[derive(Debug, Default)]
struct Urgency {
    last: Option<(Signal, Instant)>,
    count: u32,
}

impl Urgency {
    fn is_urgent(&mut self, signal: Signal, now: Instant) -> bool {
        let goes_on = self.last.is_some_and(|(last, since)| {
            last == signal && now.saturating_duration_since(since) < HURRY
        });
        if goes_on {
            self.count += 1;
        } else {
            self.last = Some((signal, now));
            self.count = 1;
        }
        self.count >= URGENT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_of_a_signal_in_a_hurry_are_for_us() {
        let began = Instant::now();
        let mut urgency = Urgency::default();
        let mut heard = |signal, ms| urgency.is_urgent(signal, began + Duration::from_millis(ms));
        assert!(!heard(Signal::INT, 0));
        assert!(!heard(Signal::INT, 1500));
        assert!(!heard(Signal::INT, 2500), "too slow");
        assert!(!heard(Signal::TERM, 2600));
        assert!(!heard(Signal::TERM, 2700));
        assert!(heard(Signal::TERM, 2800));
    }
}
