//! What PID 1 does while the program runs: it buries processes, hands signals on, and ends the machine.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions};

use crate::button;
use crate::end;
use crate::exec::{Server, Token};
use crate::hold::ended;
use crate::line::Lines;
use crate::message::say;
use crate::ready::{LISTEN_PAUSE, Listener, Look};
use crate::sys::signals::{self, Signals};

/// How long the program may take to end when the machine is switched off.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a port is left alone whose other end is closed: it is always readable, with nothing to read.
const CLOSED_PAUSE: Duration = Duration::from_secs(1);

/// Signals to PID 1 that mean the end: Ctrl-Alt-Del, `kill 1`, `poweroff` of busybox, and a failing power supply.
const TO_END: [i32; 4] = [libc::SIGINT, libc::SIGTERM, libc::SIGUSR2, libc::SIGPWR];

/// Begins to collect the signals that [`Duty::serve`] heeds.
///
/// # Errors
/// Those of the system.
pub fn collect_signals() -> std::io::Result<Signals> {
    let [a, b, c, d] = TO_END;
    Signals::collect(&[libc::SIGCHLD, a, b, c, d])
}

/// What the agent waits for.
#[derive(Debug)]
pub struct Duty {
    /// The program.
    pub program: Pid,
    /// Signals to the agent.
    pub signals: Signals,
    /// The monitor's line to the agent.
    pub orders: Option<File>,
    /// The power button.
    pub button: Option<File>,
    /// Who looks whether the program listens.
    pub listener: Option<Box<Listener>>,
    /// Who starts programs of the host's.
    pub exec: Option<Server>,
}

/// Which of the files that [`Duty`] has are ready.
#[derive(Debug)]
struct Awake {
    orders: PollFlags,
    button: PollFlags,
    exec: Vec<Token>,
}

impl Duty {
    /// Serves until the program ends, and ends the machine with it.
    ///
    /// # Errors
    /// When the system cannot wait, or a restored machine's orders cannot be read.
    pub fn serve(mut self) -> std::io::Result<std::convert::Infallible> {
        let mut lines = Lines::default();
        let mut kill_at = None;
        let mut deaf_until: Option<Instant> = None;
        loop {
            let now = Instant::now();
            if deaf_until.is_some_and(|until| until <= now) {
                deaf_until = None;
            }
            let pause = self.listener.as_ref().map(|_| now + LISTEN_PAUSE);
            let exec = self.exec.as_ref().and_then(Server::wake_at);
            let wake_at = [kill_at, deaf_until, pause, exec];
            let wake_at = wake_at.into_iter().flatten().min();
            let timeout = wake_at.map(|at| at.saturating_duration_since(now));
            let awake = self.wait(timeout, deaf_until.is_some())?;
            while let Some(signal) = self.signals.take() {
                if TO_END.contains(&signal) && kill_at.is_none() {
                    kill_at = Some(self.ask_to_end());
                }
            }
            self.bury();
            if let Some(exec) = &mut self.exec {
                exec.serve(&awake.exec);
            }
            if awake.orders.contains(PollFlags::IN) {
                self.hand_on(&mut lines);
            } else if awake.orders.intersects(PollFlags::HUP | PollFlags::ERR) {
                deaf_until = Some(Instant::now() + CLOSED_PAUSE);
            }
            let is_pressed = awake.button.contains(PollFlags::IN)
                && self.button.as_ref().is_some_and(button::is_pressed);
            if is_pressed && kill_at.is_none() {
                kill_at = Some(self.ask_to_end());
            }
            if kill_at.is_some_and(|at| at <= Instant::now()) {
                let _ = rustix::process::kill_process(self.program, Signal::KILL);
                kill_at = None;
            }
            self.look()?;
        }
    }

    fn wait(&self, timeout: Option<Duration>, is_deaf: bool) -> std::io::Result<Awake> {
        let orders = self.orders.as_ref().filter(|_| !is_deaf);
        let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN)];
        for file in [orders, self.button.as_ref()].into_iter().flatten() {
            fds.push(PollFd::from_borrowed_fd(file.as_fd(), PollFlags::IN));
        }
        let exec = self.exec.as_ref().map(Server::interests);
        let exec = exec.unwrap_or_default();
        let waited = exec
            .iter()
            .map(|interest| PollFd::from_borrowed_fd(interest.fd, interest.events));
        fds.extend(waited);
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut results = fds.iter().skip(1).map(PollFd::revents);
        let mut of = |file: Option<&File>| {
            let result = file.and_then(|_| results.next());
            result.unwrap_or(PollFlags::empty())
        };
        let (orders, button) = (of(orders), of(self.button.as_ref()));
        let exec = exec.iter().zip(results);
        let exec = exec.filter(|(_, result)| !result.is_empty());
        Ok(Awake {
            orders,
            button,
            exec: exec.map(|(interest, _)| interest.token).collect(),
        })
    }

    /// Buries all processes that have ended, whoever's they were. When the program is among them, the machine ends.
    fn bury(&mut self) {
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            let Some(status) = ended(status) else {
                continue;
            };
            if pid == self.program {
                end::with_status(status);
            }
            if let Some(exec) = &mut self.exec {
                exec.ended(pid, status);
            }
        }
    }

    /// Asks the program to end. Returns when it will have had its time.
    fn ask_to_end(&self) -> Instant {
        let _ = rustix::process::kill_process(self.program, Signal::TERM);
        Instant::now() + PATIENCE
    }

    /// Gives the program the signals that the monitor sends.
    fn hand_on(&mut self, lines: &mut Lines) {
        let mut bytes = [0; 512];
        let Some(orders) = &mut self.orders else {
            return;
        };
        while let Ok(length @ 1..) = orders.read(&mut bytes) {
            for signal in lines.add(bytes.get(..length).unwrap_or_default()) {
                signals::send(self.program, signal);
            }
        }
    }

    fn look(&mut self) -> std::io::Result<()> {
        let Some(listener) = &mut self.listener else {
            return Ok(());
        };
        match listener.look()? {
            Look::NotYet => {}
            Look::Ready => self.listener = None,
            Look::TooLate => {
                let port = listener.port();
                say(format_args!("nobody listens on port {port} after 60 s"));
                end::with_status(1);
            }
        }
        Ok(())
    }
}
