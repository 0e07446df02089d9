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
use crate::warm;

/// `int3`: one byte.
const BREAKPOINT: u8 = 0xcc;
/// Where compiled code expects the canary of a thread, from the start of its data on (x86-64 psABI, `%fs:0x28`).
const CANARY: u64 = 0x28;

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
    /// Its memory, once it stands at its entry.
    memory: Option<File>,
    /// Where the random bytes are that the kernel has given it.
    random: Option<u64>,
    /// Where the canary is that the dynamic linker has made of them.
    canary: Option<u64>,
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
        Stop::By(libc::SIGSTOP) => return Ok(Outcome::Held(Held::early(pid))),
        Stop::By(_) => {}
    }
    let mut held = Held::early(pid);
    match held.run_to_entry() {
        Ok(None) => {}
        Ok(Some(status)) => return Ok(Outcome::Ended(status)),
        // Saved with its libraries still to be loaded, it is slower and just as right.
        Err(error) => say(format_args!("the program waits early: {}", plain(&error))),
    }
    Ok(Outcome::Held(held))
}

impl Held {
    /// One of which no more is known than that it stands.
    fn early(pid: Pid) -> Self {
        Self {
            pid,
            memory: None,
            random: None,
            canary: None,
        }
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Runs it to its entry, if its libraries are loaded before, and warms it. Returns its status when it ends on the way.
    fn run_to_entry(&mut self) -> io::Result<Option<i32>> {
        let process = format!("/proc/{}", self.pid.as_raw_nonzero());
        let auxv = fs::read(format!("{process}/auxv"))?;
        let memory = format!("{process}/mem");
        let memory = File::options().read(true).write(true).open(memory)?;
        let entry = auxv::value(&auxv, auxv::ENTRY).ok_or(io::ErrorKind::NotFound)?;
        self.random = auxv::value(&auxv, auxv::RANDOM);
        if ptrace::register(self.pid, ptrace::INSTRUCTION)? != entry {
            if let Some(status) = self.run_to(entry, &memory)? {
                return Ok(Some(status));
            }
            self.canary = self.find_canary(&memory);
        }
        let maps = fs::read_to_string(format!("{process}/maps"))?;
        warm::touch(&memory, &warm::areas(&maps));
        self.memory = Some(memory);
        Ok(None)
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
                    if ptrace::register(self.pid, ptrace::INSTRUCTION)? == entry + 1 =>
                {
                    break;
                }
                Stop::By(other) => signal = other,
            }
        }
        memory.write_all_at(&original, entry)?;
        ptrace::set_register(self.pid, ptrace::INSTRUCTION, entry)?;
        Ok(None)
    }

    /// The canary that glibc's or musl's dynamic linker has set: random, with a lowest byte of 0. No function that looks at
    /// it is running, so another one may take its place.
    fn find_canary(&self, memory: &File) -> Option<u64> {
        let thread = ptrace::register(self.pid, ptrace::THREAD).ok()?;
        let at = thread.checked_add(CANARY).filter(|_| thread != 0)?;
        let mut canary = [0; 8];
        memory.read_exact_at(&mut canary, at).ok()?;
        (canary[0] == 0 && canary != [0; 8]).then_some(at)
    }

    /// Replaces the random bytes that the kernel gave it, and the canary that was made of them: those of all clones are the
    /// same.
    pub fn refresh_random(&self, bytes: [u8; 24]) {
        let Some(memory) = &self.memory else {
            return;
        };
        let (random, canary) = bytes.split_at(16);
        let write = |at: Option<u64>, bytes: &[u8]| match at {
            Some(at) => memory.write_all_at(bytes, at),
            None => Ok(()),
        };
        // The lowest byte of a canary stays 0: it ends strings that run over.
        let written = write(self.random, random)
            .and_then(|()| write(self.canary.map(|at| at + 1), &canary[1..]));
        if let Err(error) = written {
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
