//! A child process, its end, and the signals that we get meanwhile.

use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use signal_hook::low_level::pipe;

/// Signals that are for the child rather than for us.
const PASSED_ON: [Signal; 4] = [Signal::INT, Signal::TERM, Signal::HUP, Signal::USR1];

/// How long a child may take to end when it is asked to.
const GRACE: Duration = Duration::from_secs(2);

/// What happened.
#[derive(Debug)]
pub(crate) enum Event {
    Ended(ExitStatus),
    Signal(Signal),
    TimedOut,
}

/// A running child.
#[derive(Debug)]
pub(crate) struct Watch {
    child: Child,
    end: OwnedFd,
    signals: Vec<(Signal, UnixStream)>,
}

impl Watch {
    /// Starts `command`. From here on our signals only arrive as [`Event::Signal`].
    pub(crate) fn spawn(command: &mut Command) -> io::Result<Self> {
        let signals = PASSED_ON
            .into_iter()
            .map(listen)
            .collect::<io::Result<_>>()?;
        let child = command.spawn()?;
        let end = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
        Ok(Self {
            child,
            end,
            signals,
        })
    }

    /// Process id of the child.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The child's standard input, if it is a pipe; taken once.
    pub(crate) fn take_stdin(&mut self) -> Option<std::process::ChildStdin> {
        self.child.stdin.take()
    }

    /// Waits for what happens next, at most for `timeout`.
    pub(crate) fn next(&mut self, timeout: Option<Duration>) -> io::Result<Event> {
        loop {
            if let Some(event) = self.poll_once(timeout)? {
                return Ok(event);
            }
        }
    }

    /// `None` when the wait was cut short for no reason of ours.
    fn poll_once(&mut self, timeout: Option<Duration>) -> io::Result<Option<Event>> {
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let mut fds = vec![PollFd::new(&self.end, PollFlags::IN)];
        fds.extend(
            self.signals
                .iter()
                .map(|(_, stream)| PollFd::new(stream, PollFlags::IN)),
        );
        match poll(&mut fds, timeout.as_ref()) {
            Ok(0) => return Ok(Some(Event::TimedOut)),
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let has_ended = !fds[0].revents().is_empty();
        for (signal, stream) in &mut self.signals {
            // The streams do not block: without a signal this reads nothing.
            if matches!(stream.read(&mut [0; 64]), Ok(len) if len > 0) {
                return Ok(Some(Event::Signal(*signal)));
            }
        }
        has_ended
            .then(|| Ok(Event::Ended(self.child.wait()?)))
            .transpose()
    }

    /// Sends `signal` to the child.
    pub(crate) fn pass_on(&self, signal: Signal) {
        // It fails only when the child has ended, which the next event tells.
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }

    /// Ends the child: politely first.
    pub(crate) fn end(&mut self) -> io::Result<()> {
        self.pass_on(Signal::TERM);
        loop {
            match self.next(Some(GRACE))? {
                Event::Ended(_) => return Ok(()),
                Event::Signal(_) => {}
                Event::TimedOut => self.child.kill()?,
            }
        }
    }
}

/// Has `signal` come through a pipe from here on, a byte each time; reading does not block.
pub(crate) fn listen(signal: Signal) -> io::Result<(Signal, UnixStream)> {
    let (reader, writer) = UnixStream::pair()?;
    reader.set_nonblocking(true)?;
    pipe::register(signal.as_raw(), writer)?;
    Ok((signal, reader))
}
