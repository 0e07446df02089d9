//! A program that stands before its own first instruction: its libraries are loaded, and nothing of its own has run.
//!
//! The kernel stops a traced program after `execve`, at the first instruction of the dynamic linker. A breakpoint at the
//! program's entry (`AT_ENTRY`) lets the linker do its work first. A program without one stands at its entry already.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};

use crate::auxv;
use crate::message::{plain, say};
use crate::program::{Program, Start};
use crate::sys::ptrace;

/// `int3`: one byte.
const BREAKPOINT: u8 = 0xcc;

/// What has become of a program that was to be held.
#[derive(Debug)]
pub enum Outcome {
    /// It stands.
    Held(Held),
    /// It has ended before, with this status: it was not found, or a library was not.
    Ended(i32),
}

/// A program that stands.
#[derive(Debug)]
pub struct Held {
    pid: Pid,
    /// Its memory, and where its random bytes are in it.
    random: Option<(File, u64)>,
}

/// Status of a process that has ended, as shells have it.
#[must_use]
pub fn ended(status: WaitStatus) -> Option<i32> {
    let killed = || Some(128 + status.terminating_signal()?);
    status.exit_status().or_else(killed)
}

/// Starts `program` up to its own first instruction.
///
/// # Errors
/// When there is no room for another process.
pub fn start(program: &Program) -> io::Result<Outcome> {
    let pid = program.start(Start::Held)?;
    match wait(pid)? {
        Stop::Ended(status) => return Ok(Outcome::Ended(status)),
        // It could not be traced, and stands before `execve`.
        Stop::By(libc::SIGSTOP) => return Ok(Outcome::Held(Held { pid, random: None })),
        Stop::By(_) => {}
    }
    let mut held = Held { pid, random: None };
    match held.run_to_entry() {
        Ok(None) => {}
        Ok(Some(status)) => return Ok(Outcome::Ended(status)),
        // Saved with its libraries still to be loaded, it is slower and just as right.
        Err(error) => say(format_args!("the program waits early: {}", plain(&error))),
    }
    Ok(Outcome::Held(held))
}

impl Held {
    /// Its process.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Runs it to its entry. Returns its status when it ends on the way.
    fn run_to_entry(&mut self) -> io::Result<Option<i32>> {
        let process = format!("/proc/{}", self.pid.as_raw_nonzero());
        let auxv = fs::read(format!("{process}/auxv"))?;
        let memory = format!("{process}/mem");
        let memory = File::options().read(true).write(true).open(memory)?;
        let entry = auxv::value(&auxv, auxv::ENTRY).ok_or(io::ErrorKind::NotFound)?;
        let ended = if ptrace::instruction_pointer(self.pid)? == entry {
            None
        } else {
            self.run_to(entry, &memory)?
        };
        self.random = auxv::value(&auxv, auxv::RANDOM).map(|at| (memory, at));
        Ok(ended)
    }

    fn run_to(&self, entry: u64, memory: &File) -> io::Result<Option<i32>> {
        let mut original = [0];
        memory.read_exact_at(&mut original, entry)?;
        memory.write_all_at(&[BREAKPOINT], entry)?;
        let mut signal = 0;
        loop {
            ptrace::go_on(self.pid, signal)?;
            match wait(self.pid)? {
                Stop::Ended(status) => return Ok(Some(status)),
                Stop::By(libc::SIGTRAP)
                    // The processor has gone over the breakpoint.
                    if ptrace::instruction_pointer(self.pid)? == entry + 1 =>
                {
                    break;
                }
                Stop::By(other) => signal = other,
            }
        }
        memory.write_all_at(&original, entry)?;
        ptrace::set_instruction_pointer(self.pid, entry)?;
        Ok(None)
    }

    /// Replaces the random bytes that the kernel gave it: those of all clones are the same. What the dynamic linker has made
    /// of them stays.
    pub fn refresh_random(&self, bytes: [u8; 16]) {
        if let Some((memory, at)) = &self.random
            && let Err(error) = memory.write_all_at(&bytes, *at)
        {
            say(format_args!(
                "the program's random bytes stay: {}",
                plain(&error)
            ));
        }
    }

    /// Lets it run.
    ///
    /// # Errors
    /// When it is gone.
    pub fn release(&self) -> io::Result<()> {
        // What is not traced has stopped itself.
        ptrace::detach(self.pid)
            .or_else(|_| Ok(rustix::process::kill_process(self.pid, Signal::CONT)?))
    }

    /// Ends it before it has run.
    ///
    /// # Errors
    /// When it is gone.
    pub fn kill(self) -> io::Result<()> {
        rustix::process::kill_process(self.pid, Signal::KILL)?;
        while let Stop::By(_) = wait(self.pid)? {}
        Ok(())
    }
}

enum Stop {
    /// By a signal, which it has not got yet.
    By(i32),
    /// For good, with this status.
    Ended(i32),
}

fn wait(pid: Pid) -> io::Result<Stop> {
    loop {
        let changed = rustix::process::waitpid(Some(pid), WaitOptions::UNTRACED)?;
        let Some((_, status)) = changed else {
            continue;
        };
        if let Some(status) = ended(status) {
            return Ok(Stop::Ended(status));
        }
        if let Some(signal) = status.stopping_signal() {
            return Ok(Stop::By(signal));
        }
    }
}
