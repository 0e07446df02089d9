//! When the machine is ready to be saved: three ways.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use lightv_contract::agent::Ready;
use rustix::process::Pid;

use crate::doorbell;
use crate::hold::{self, Outcome};
use crate::listening::has_listener;
use crate::ports::Ports;
use crate::program::{Program, Start};
use crate::renew::Identity;
use crate::run_file;
use crate::sys::signals;

/// How often a listener is looked for.
pub const LISTEN_PAUSE: Duration = Duration::from_millis(20);
/// How long it may take.
const LISTEN_WAIT: Duration = Duration::from_secs(60);
/// A longer table of sockets is read up to here.
const TABLE_BYTES_MAX: usize = 64 << 10;

/// A program, and what is still to be done for it.
#[derive(Debug)]
pub enum Started {
    /// It runs.
    Running(Pid),
    /// It runs, and is ready when it listens.
    Awaited(Pid, Box<Listener>),
    /// It has ended already, with this status.
    Ended(i32),
}

/// Starts the program of `identity`, and has the machine saved as its orders say.
///
/// # Errors
/// When a process, a thread or the FIFO cannot be made, or a restored machine has no program.
pub fn start(
    identity: Identity,
    program: Program,
    ports: &Ports,
) -> Result<Started, Box<dyn std::error::Error>> {
    match identity.spec().ready {
        Ready::Exec => start_held(identity, program, ports),
        Ready::Doorbell => {
            doorbell::install()?;
            run_file::write(identity.orders())?;
            // The thread comes after the process: a copy of a process has one thread.
            let pid = program.start(Start::AtOnce)?;
            doorbell::answer(identity)?;
            Ok(Started::Running(pid))
        }
        Ready::Listen(port) => {
            run_file::write(identity.orders())?;
            let pid = program.start(Start::AtOnce)?;
            let listener = Listener::new(identity, port);
            Ok(Started::Awaited(pid, Box::new(listener)))
        }
    }
}

fn start_held(
    mut identity: Identity,
    mut program: Program,
    ports: &Ports,
) -> Result<Started, Box<dyn std::error::Error>> {
    let mut held = match hold::start(&program)? {
        Outcome::Held(held) => held,
        Outcome::Ended(status) => return Ok(Started::Ended(status)),
    };
    let had_terminal = identity.orders().has_terminal;
    // Of the stops of the program; nothing else has run that could have sent it. A start would first look after that.
    signals::forget(libc::SIGCHLD);
    let renewed = identity.ready()?;
    match renewed {
        Some(renewed) if renewed.is_other_program => {
            held.kill()?;
            let has_terminal = identity.orders().has_terminal;
            if has_terminal != had_terminal {
                ports.connect(has_terminal)?;
            }
            program = Program::plan(identity.orders(), identity.spec())?;
            // Held again, so that the mark is where it would be without a restart.
            held = match hold::start(&program)? {
                Outcome::Held(held) => held,
                Outcome::Ended(status) => return Ok(Started::Ended(status)),
            };
        }
        Some(renewed) => held.refresh_random(renewed.random),
        None => {}
    }
    identity.mark();
    held.release()?;
    if renewed.is_some() {
        identity.announce();
    }
    let pid = held.pid();
    // Never closed: the program runs now, and each close would take the processor from it before its first words (8,000
    // instructions of the kernel; 15 ms in all where they are emulated).
    Box::leak(Box::new((identity, held)));
    Ok(Started::Running(pid))
}

/// Looks for a socket that listens.
#[derive(Debug)]
pub struct Listener {
    identity: Identity,
    port: u16,
    tables: Vec<File>,
    end: Instant,
}

/// What a look has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// Nobody listens yet.
    NotYet,
    /// Somebody did, and the machine was saved or goes on as it was.
    Ready,
    /// It has taken too long.
    TooLate,
}

impl Listener {
    fn new(identity: Identity, port: u16) -> Self {
        let tables = ["/proc/net/tcp", "/proc/net/tcp6"];
        Self {
            identity,
            port,
            tables: tables.into_iter().flat_map(File::open).collect(),
            end: Instant::now() + LISTEN_WAIT,
        }
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Looks once.
    ///
    /// # Errors
    /// When a restored machine's orders cannot be read.
    pub fn look(&mut self) -> io::Result<Look> {
        let is_there = self
            .tables
            .iter()
            .any(|table| has_listener(&read(table), self.port));
        if !is_there {
            let is_late = Instant::now() > self.end;
            return Ok(if is_late { Look::TooLate } else { Look::NotYet });
        }
        if self.identity.ready_while_running()? {
            self.identity.announce();
        }
        Ok(Look::Ready)
    }
}

/// The whole of a file of `/proc` that is open already.
fn read(file: &File) -> String {
    let mut text = vec![0; TABLE_BYTES_MAX];
    let mut filled = 0;
    while let Some(rest) = text.get_mut(filled..).filter(|rest| !rest.is_empty())
        && let Ok(more @ 1..) = file.read_at(rest, filled as u64)
    {
        filled += more;
    }
    text.truncate(filled);
    String::from_utf8(text).unwrap_or_default()
}
