//! What a process takes of its host, looked at again and again: a leak is a line that rises.

use std::fmt;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

/// How long a process may take to let go of what a client has just left.
const SETTLED_AFTER: Duration = Duration::from_secs(20);

/// What it has at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Open descriptors.
    pub files: usize,
    /// Threads, those of the kernel's in it left out.
    pub threads: usize,
    /// Mappings of memory.
    pub maps: usize,
    /// Resident memory in KiB.
    pub resident_kib: u64,
}

impl Usage {
    /// Of the process `pid`.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn of(pid: u32) -> Self {
        let entries = |part: &str| fs::read_dir(format!("/proc/{pid}/{part}")).expect("a process");
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
        let resident = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next())
            .expect("a size");
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("a process");
        let is_own = |task: &fs::DirEntry| {
            let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
            // KVM puts one into the process since Linux 6.13.
            !name.starts_with("kvm-")
        };
        Self {
            files: entries("fd").count(),
            threads: entries("task").flatten().filter(is_own).count(),
            maps: maps.lines().count(),
            resident_kib: resident.parse().expect("a number"),
        }
    }
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            files,
            threads,
            maps,
            resident_kib,
        } = self;
        write!(f, "{files:>5} {threads:>8} {maps:>9} {resident_kib:>13}")
    }
}

/// Looks at a process while something is done with it many times.
#[derive(Debug)]
pub struct Curve {
    what: String,
    pid: u32,
    points: Vec<(usize, Usage)>,
}

/// How far a line may rise and still be flat.
const FILES_MAX: usize = 2;
const THREADS_MAX: usize = 2;
const MAPS_MAX: usize = 4;
const RESIDENT_KIB_MAX: u64 = 2048;

impl Curve {
    /// Of `what` done with the process `pid`.
    #[must_use]
    pub fn of(what: &str, pid: u32) -> Self {
        Self {
            what: what.to_owned(),
            pid,
            points: Vec::new(),
        }
    }

    /// Does `round` `rounds` times, and looks every `step` times.
    pub fn follow(&mut self, rounds: usize, step: usize, mut round: impl FnMut(usize)) {
        for number in 1..=rounds {
            round(number);
            if number.is_multiple_of(step) {
                self.points.push((number, self.settled()));
            }
        }
    }

    /// What it has once it has let go of what a client has just left, as far as that comes.
    fn settled(&self) -> Usage {
        let began = Instant::now();
        loop {
            let usage = Usage::of(self.pid);
            let has_more = self.points.first().is_some_and(|(_, first)| {
                usage.files > first.files
                    || usage.threads > first.threads
                    || usage.maps > first.maps + MAPS_MAX
            });
            if !has_more || began.elapsed() > SETTLED_AFTER {
                return usage;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Prints the lines, and looks whether they are flat from the first point on: what is allocated once is by then.
    ///
    /// # Panics
    /// When one of them rises.
    #[track_caller]
    pub fn assert_flat(&self) {
        println!(
            "{}\nround files  threads  mappings  resident KiB",
            self.what
        );
        for (number, usage) in &self.points {
            println!("{number:>5} {usage}");
        }
        let (_, first) = self.points.first().expect("a point");
        for (number, usage) in &self.points {
            let rise = (
                usage.files.saturating_sub(first.files),
                usage.threads.saturating_sub(first.threads),
                usage.maps.saturating_sub(first.maps),
                usage.resident_kib.saturating_sub(first.resident_kib),
            );
            let is_flat = rise.0 <= FILES_MAX
                && rise.1 <= THREADS_MAX
                && rise.2 <= MAPS_MAX
                && rise.3 <= RESIDENT_KIB_MAX;
            assert!(
                is_flat,
                "{}: round {number} is {rise:?} above the first",
                self.what
            );
        }
    }
}
