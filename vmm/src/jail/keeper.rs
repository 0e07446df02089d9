//! The process that stays outside of a jail: it passes on signals and the exit status, and takes away what the machine, which
//! does not see it any more, has outside: its control groups, its record in the runtime directory, its API socket.

use std::io::{self, PipeReader, PipeWriter, Read as _, Write as _};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, WaitOptions, pidfd_open, waitpid};

use crate::foreground::{pass_on, status_of};
use crate::runtime_dir;
use crate::sys::signal::SignalFd;

/// What the machine says: that it is in its jail; and, when it has nothing better to do, that it can be listed.
const SETTLED: u8 = b's';
const RUNS: u8 = b'r';

/// The machine's way to its keeper.
#[derive(Debug)]
pub(super) struct Line(PipeWriter);

impl Line {
    /// Says that it is in its jail.
    ///
    /// # Errors
    /// The kernel's: the keeper has ended before it could take the machine along.
    pub(super) fn tell_settled(&self) -> io::Result<()> {
        (&self.0).write_all(&[SETTLED])
    }

    /// Says that the machine runs.
    pub(super) fn tell_running(&self) {
        // A keeper that is gone takes the machine along.
        let _ = (&self.0).write_all(&[RUNS]);
    }
}

/// Both ends of the line.
///
/// # Errors
/// The kernel's.
pub(super) fn line() -> io::Result<(PipeReader, Line)> {
    let (reader, writer) = io::pipe()?;
    Ok((reader, Line(writer)))
}

/// Waits for the machine's process `pid`, and gives its exit status. When it runs, it is listed by its process id here, and
/// `on_running` is called.
///
/// # Errors
/// The kernel's.
pub(super) fn keep(pid: Pid, mut reader: PipeReader, on_running: impl FnOnce()) -> io::Result<u8> {
    let machine = pidfd_open(pid, PidfdFlags::empty())?;
    let signals = SignalFd::open()?;
    let mut on_running = Some(on_running);
    let (mut hears, mut is_settled) = (true, false);
    loop {
        let mut fds = [
            PollFd::new(&machine, PollFlags::IN),
            PollFd::new(&signals, PollFlags::IN),
            PollFd::new(&reader, PollFlags::IN),
        ];
        // Without the line, whose end is not news twice.
        let watched = if hears { 3 } else { 2 };
        match poll(fds.get_mut(..watched).unwrap_or_default(), None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(cause) => return Err(cause.into()),
        }
        let [has_ended, _, has_word] = fds.map(|fd| !fd.revents().is_empty());
        if hears && has_word {
            let mut word = [0];
            let has_read = matches!(reader.read(&mut word), Ok(1));
            // Each once: who says more is not listened to.
            hears = has_read && word == [SETTLED] && !std::mem::replace(&mut is_settled, true);
            if has_read
                && word == [RUNS]
                && let Some(on_running) = on_running.take()
            {
                runtime_dir::register_announced_as(pid.as_raw_nonzero().get().unsigned_abs());
                on_running();
            }
        }
        if has_ended {
            let ended = waitpid(Some(pid), WaitOptions::empty())?;
            return Ok(ended.map_or(lightv_api::exit::FAILURE, |(_, status)| status_of(status)));
        }
        while let Some(signal) = signals.next_sent() {
            pass_on(pid, signal);
        }
    }
}
