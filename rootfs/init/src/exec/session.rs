//! A stream from the host, and the program that it is for.
//!
//! ```text
//!   Waiting --Start--> Running --the program has ended, its output is read--> Closing --all is sent--> over
//!      |                  |  the stream has ended: SIGHUP ------------------------------------------> over
//!      +--- refused, or too late -----------------------------------------------> Closing
//! ```

use std::collections::VecDeque;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use lightv_contract::exec::{
    DATA_BYTES_MAX, Incoming, Message, PROGRAMS_MAX, START_SECONDS_MAX, STDIN_WINDOW_BYTES,
    TOO_MANY, ToGuest, ToHost,
};
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::process::Pid;

use super::launch::{self, Launch, LaunchError, Launched};
use crate::control::{Orders, Readable};
use crate::message::with_causes;
use crate::sys::signals;

/// Bytes for the host that are kept. While there are so many, the program's output is not read.
const OUTGOING_BYTES_MAX: usize = 2 * DATA_BYTES_MAX;
/// Signals that come before the program is one.
const EARLY_SIGNALS_MAX: usize = 16;
/// How long the last words of a terminal may take: its driver passes them on by and by, and then tells the end.
const TERMINAL_PATIENCE: Duration = Duration::from_secs(1);
/// How long a host that takes nothing is waited for when all is said.
const CLOSING_PATIENCE: Duration = Duration::from_secs(60);

/// A file of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The stream.
    Stream,
    /// What a new process tells.
    Report,
    /// The program's input.
    Stdin,
    /// Its standard output.
    Stdout,
    /// Its standard error.
    Stderr,
}

/// A stream.
#[derive(Debug)]
pub(super) struct Session {
    stream: OwnedFd,
    incoming: Incoming<ToGuest>,
    outgoing: VecDeque<u8>,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// For [`ToGuest::Start`].
    Waiting {
        until: Instant,
    },
    Running(Box<Running>),
    /// All is said; it has to be sent.
    Closing {
        until: Instant,
    },
    Over,
}

/// A program, or a process that is about to be one.
#[derive(Debug)]
struct Running {
    launch: Launch,
    pid: Pid,
    /// Until the program runs.
    report: Option<OwnedFd>,
    early_signals: Vec<u8>,
    stdin: Option<OwnedFd>,
    /// What it has not read.
    input: VecDeque<u8>,
    is_input_ended: bool,
    /// Read, and not told yet.
    taken: usize,
    stdout: Option<Output>,
    stderr: Option<Output>,
    end: Option<End>,
}

/// A stream of the program's.
#[derive(Debug)]
struct Output {
    fd: OwnedFd,
    /// Bytes still to be read of it, once the program has ended: what others write goes on for ever.
    left: Option<usize>,
}

/// How the program has ended.
#[derive(Debug, Clone, Copy)]
struct End {
    status: i32,
    /// Output of a terminal is waited for until then.
    until: Instant,
}

impl Session {
    pub(super) fn new(stream: OwnedFd) -> Self {
        Self {
            stream,
            incoming: Incoming::default(),
            outgoing: VecDeque::new(),
            stage: Stage::Waiting {
                until: Instant::now() + Duration::from_secs(START_SECONDS_MAX),
            },
        }
    }

    /// Says that there is no room.
    pub(super) fn turn_away(&mut self) {
        let text = format!("{PROGRAMS_MAX} programs of the host run in this guest already");
        self.refuse(TOO_MANY, text);
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Over)
    }

    /// When [`settle`](Self::settle) is to be called at the latest.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match &self.stage {
            Stage::Waiting { until } | Stage::Closing { until } => Some(*until),
            // Of pipes nothing is waited for, and no clock runs while the host takes nothing.
            Stage::Running(running) => running
                .end
                .filter(|_| running.has_terminal() && self.has_room())
                .map(|end| end.until),
            Stage::Over => None,
        }
    }

    /// Tells of each file what it is to be waited for.
    pub(super) fn add_interests<'a>(
        &'a self,
        mut add: impl FnMut(BorrowedFd<'a>, PollFlags, Part),
    ) {
        let mut stream = PollFlags::IN;
        stream.set(PollFlags::OUT, !self.outgoing.is_empty());
        add(self.stream.as_fd(), stream, Part::Stream);
        let Stage::Running(running) = &self.stage else {
            return;
        };
        if let Some(report) = &running.report {
            return add(report.as_fd(), PollFlags::IN, Part::Report);
        }
        if let Some(stdin) = running.stdin.as_ref().filter(|_| !running.input.is_empty()) {
            add(stdin.as_fd(), PollFlags::OUT, Part::Stdin);
        }
        if self.has_room() {
            let outputs = [
                (&running.stdout, Part::Stdout),
                (&running.stderr, Part::Stderr),
            ];
            for (output, part) in outputs {
                if let Some(output) = output {
                    add(output.fd.as_fd(), PollFlags::IN, part);
                }
            }
        }
    }

    fn has_room(&self) -> bool {
        self.outgoing.len() < OUTGOING_BYTES_MAX
    }

    /// Does what can be done with `part`, which is ready.
    pub(super) fn serve(&mut self, part: Part, page: &impl Readable) {
        match (part, &mut self.stage) {
            (Part::Stream, _) => self.receive(page),
            (Part::Report, Stage::Running(_)) => self.hear_report(),
            (Part::Stdin, Stage::Running(running)) => running.feed(),
            (Part::Stdout | Part::Stderr, Stage::Running(_)) => self.read_output(part),
            _ => {}
        }
    }

    /// Takes what the host has sent, and acts on it.
    fn receive(&mut self, page: &impl Readable) {
        let mut piece = [0; DATA_BYTES_MAX];
        match rustix::io::read(&self.stream, &mut piece) {
            Ok(0) => return self.lose(),
            Ok(length) => self.incoming.add(piece.get(..length).unwrap_or_default()),
            Err(Errno::AGAIN | Errno::INTR) => return,
            Err(_) => return self.lose(),
        }
        loop {
            match self.incoming.take() {
                Ok(None) => return,
                Ok(Some(message)) => {
                    if !self.obey(message, page) {
                        return self.lose();
                    }
                }
                Err(_) => return self.lose(),
            }
        }
    }

    /// False for what breaks a rule.
    fn obey(&mut self, message: ToGuest, page: &impl Readable) -> bool {
        match (message, &mut self.stage) {
            (ToGuest::Start(json), Stage::Waiting { .. }) => {
                self.start(&json, page);
                true
            }
            (ToGuest::Stdin(bytes), Stage::Running(running)) => running.take_input(&bytes),
            (ToGuest::StdinEnd, Stage::Running(running)) => {
                running.is_input_ended = true;
                running.end_input();
                true
            }
            (ToGuest::Signal(number), Stage::Running(running)) => {
                running.signal(number);
                true
            }
            (ToGuest::Resize(size), Stage::Running(running)) => {
                if let Some(output) = running.stdout.as_ref().filter(|_| running.has_terminal()) {
                    launch::resize(&output.fd, size);
                }
                true
            }
            (ToGuest::Start(_), Stage::Running(_)) | (_, Stage::Waiting { .. }) => false,
            // It may have been on its way when all was said.
            (_, Stage::Closing { .. } | Stage::Over) => true,
        }
    }

    fn start(&mut self, json: &[u8], page: &impl Readable) {
        let plan = || {
            let orders = Orders::read(page).map_err(LaunchError::Orders)?;
            let launch = Launch::plan(json, &orders)?;
            let launched = launch.start()?;
            Ok((launch, launched))
        };
        match plan() {
            Ok((launch, launched)) => {
                let running = Running::new(launch, launched);
                self.stage = Stage::Running(Box::new(running));
            }
            Err(error) => self.refuse_for(&error),
        }
    }

    fn refuse_for(&mut self, error: &LaunchError) {
        let text = with_causes(error);
        // Without the number that Rust adds: it comes last.
        let text = text.split(" (os error").next().unwrap_or_default();
        self.refuse(error.status(), text.to_owned());
    }

    fn refuse(&mut self, status: u8, text: String) {
        self.say(&ToHost::Refused { status, text });
        self.close();
    }

    fn close(&mut self) {
        self.stage = Stage::Closing {
            until: Instant::now() + CLOSING_PATIENCE,
        };
    }

    /// The stream is of no use any more.
    fn lose(&mut self) {
        if let Stage::Running(running) = mem::replace(&mut self.stage, Stage::Over)
            && running.end.is_none()
        {
            if running.report.is_some() {
                // It may not lead a group yet.
                signals::send(running.pid, libc::SIGHUP);
            } else {
                signals::send_to_group(running.pid, libc::SIGHUP);
            }
        }
    }

    /// A new process has become the program, or tells why not.
    fn hear_report(&mut self) {
        let Stage::Running(running) = &mut self.stage else {
            return;
        };
        let Some(report) = running.report.take() else {
            return;
        };
        if let Some(error) = running.launch.read_report(&report) {
            return self.refuse_for(&error);
        }
        for number in mem::take(&mut running.early_signals) {
            running.signal(number);
        }
        running.feed();
        self.say(&ToHost::Started);
    }

    fn read_output(&mut self, part: Part) {
        let has_room = self.has_room();
        let Stage::Running(running) = &mut self.stage else {
            return;
        };
        let place = match part {
            Part::Stderr => &mut running.stderr,
            _ => &mut running.stdout,
        };
        let Some(output) = place.as_mut().filter(|_| has_room) else {
            return;
        };
        let mut piece = [0; DATA_BYTES_MAX];
        let most = output.left.unwrap_or(usize::MAX).min(piece.len());
        let target = piece.get_mut(..most).unwrap_or_default();
        let length = match rustix::io::read(&output.fd, target) {
            Ok(length) => length,
            Err(Errno::AGAIN | Errno::INTR) => return,
            // EIO: a terminal that nobody has open any more.
            Err(_) => 0,
        };
        if length == 0 {
            *place = None;
            return;
        }
        if let Some(left) = &mut output.left {
            *left = left.saturating_sub(length);
        }
        if let Some(end) = &mut running.end {
            end.until = Instant::now() + TERMINAL_PATIENCE;
        }
        let bytes = piece.get(..length).unwrap_or_default().to_vec();
        self.say(&match part {
            Part::Stderr => ToHost::Stderr(bytes),
            _ => ToHost::Stdout(bytes),
        });
    }

    /// The process `pid` has ended.
    pub(super) fn ended(&mut self, pid: Pid, status: i32) {
        if let Stage::Running(running) = &mut self.stage
            && running.pid == pid
            && running.end.is_none()
        {
            running.end(status);
        }
    }

    fn say(&mut self, message: &ToHost) {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        self.outgoing.extend(bytes);
    }

    /// Goes on as far as it can without waiting.
    pub(super) fn settle(&mut self, now: Instant) {
        self.tell_taken();
        self.finish(now);
        self.flush();
        match &self.stage {
            Stage::Waiting { until } if *until <= now => self.lose(),
            Stage::Closing { until } if self.outgoing.is_empty() || *until <= now => {
                self.stage = Stage::Over;
            }
            _ => {}
        }
    }

    fn tell_taken(&mut self) {
        let has_room = self.has_room();
        if let Stage::Running(running) = &mut self.stage
            && has_room
            && running.taken > 0
        {
            let taken = mem::take(&mut running.taken);
            self.say(&ToHost::StdinTaken(
                u32::try_from(taken).unwrap_or(u32::MAX),
            ));
        }
    }

    /// When the program has ended: reads the last of its output, and says so.
    fn finish(&mut self, now: Instant) {
        let has_ended =
            |stage: &Stage| matches!(stage, Stage::Running(running) if running.end.is_some());
        if !has_ended(&self.stage) {
            return;
        }
        self.hear_report();
        for part in [Part::Stdout, Part::Stderr] {
            while self.has_room() && self.is_to_be_read(part) {
                let before = self.outgoing.len();
                self.read_output(part);
                if self.outgoing.len() == before {
                    break;
                }
            }
        }
        let has_room = self.has_room();
        let Stage::Running(running) = &mut self.stage else {
            return;
        };
        let Some(end) = running.end else {
            return;
        };
        running.forget_read(has_room && end.until <= now);
        if running.stdout.is_none() && running.stderr.is_none() {
            let status = u8::try_from(end.status).unwrap_or(u8::MAX);
            self.say(&ToHost::Ended(status));
            self.close();
        }
    }

    fn is_to_be_read(&self, part: Part) -> bool {
        let Stage::Running(running) = &self.stage else {
            return false;
        };
        let output = match part {
            Part::Stderr => &running.stderr,
            _ => &running.stdout,
        };
        output.as_ref().is_some_and(|output| output.left != Some(0))
    }

    /// Sends what the host takes at once.
    fn flush(&mut self) {
        while !self.outgoing.is_empty() {
            let (first, _) = self.outgoing.as_slices();
            match rustix::io::write(&self.stream, first) {
                Ok(length) => {
                    drop(self.outgoing.drain(..length));
                    if let Stage::Closing { until } = &mut self.stage {
                        // A host that takes some of it has the whole time for the rest.
                        *until = Instant::now() + CLOSING_PATIENCE;
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => return self.lose(),
            }
        }
    }
}

impl Running {
    fn new(launch: Launch, launched: Launched) -> Self {
        let [stdout, stderr] = launched
            .outputs
            .map(|fd| fd.map(|fd| Output { fd, left: None }));
        Self {
            launch,
            pid: launched.pid,
            report: Some(launched.report),
            early_signals: Vec::new(),
            stdin: launched.stdin,
            input: VecDeque::new(),
            is_input_ended: false,
            taken: 0,
            stdout,
            stderr,
            end: None,
        }
    }

    fn has_terminal(&self) -> bool {
        self.launch.has_terminal()
    }

    /// False when it is more than the host may send.
    fn take_input(&mut self, bytes: &[u8]) -> bool {
        if self.is_input_ended || self.input.len() + bytes.len() > STDIN_WINDOW_BYTES {
            return false;
        }
        self.input.extend(bytes);
        if self.report.is_none() {
            self.feed();
        }
        true
    }

    /// Gives the program what it takes at once. One that has closed its input gets no more, and the host is told that all of
    /// it was taken.
    fn feed(&mut self) {
        while let Some(stdin) = self.stdin.as_ref().filter(|_| !self.input.is_empty()) {
            let (first, _) = self.input.as_slices();
            match rustix::io::write(stdin, first) {
                Ok(length) => {
                    self.input.drain(..length);
                    self.taken += length;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => self.stdin = None,
            }
        }
        if self.stdin.is_none() {
            self.taken += self.input.len();
            self.input.clear();
        }
        self.end_input();
    }

    /// Closes the input when all of it is read. The end of a terminal's input is a key.
    fn end_input(&mut self) {
        if self.is_input_ended && self.input.is_empty() && !self.has_terminal() {
            self.stdin = None;
        }
    }

    fn signal(&mut self, number: u8) {
        if self.report.is_some() {
            if self.early_signals.len() < EARLY_SIGNALS_MAX {
                self.early_signals.push(number);
            }
        } else if self.end.is_none() {
            signals::send_to_group(self.pid, i32::from(number));
        }
    }

    /// It has ended: what stands in its pipes is still its own.
    fn end(&mut self, status: i32) {
        self.stdin = None;
        self.taken += self.input.len();
        self.input.clear();
        if !self.has_terminal() {
            for output in [&mut self.stdout, &mut self.stderr].into_iter().flatten() {
                let bytes = rustix::io::ioctl_fionread(&output.fd).unwrap_or(0);
                output.left = Some(usize::try_from(bytes).unwrap_or(0));
            }
        }
        self.end = Some(End {
            status,
            until: Instant::now() + TERMINAL_PATIENCE,
        });
    }

    /// After the end: closes what has been read as far as it is the program's.
    fn forget_read(&mut self, is_late: bool) {
        let is_late = is_late && self.has_terminal();
        for output in [&mut self.stdout, &mut self.stderr] {
            if is_late || output.as_ref().is_some_and(|output| output.left == Some(0)) {
                *output = None;
            }
        }
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
