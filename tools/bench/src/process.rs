//! What processes take of the host, as the kernel counts it (proc(5)).

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read as _};
use std::path::Path;
use std::time::Duration;

/// Processor time that the threads of process `pid` have had so far (Documentation/scheduler/sched-stats.rst).
///
/// # Errors
/// The kernel's: there is no such process. A thread that ends meanwhile is none.
pub fn cpu(pid: u32) -> io::Result<Duration> {
    cpu_of(pid, |_| true)
}

/// The same, of those threads that `counts` says so of by their folder in proc.
fn cpu_of(pid: u32, counts: impl Fn(&Path) -> bool) -> io::Result<Duration> {
    let mut ns = 0_u64;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?.path();
        if !counts(&task) {
            continue;
        }
        // Three numbers: a read, where `read_to_string` takes two, and asks for the size before.
        let mut bytes = [0; 64];
        let read = File::open(task.join("schedstat")).and_then(|mut file| file.read(&mut bytes));
        let Ok(length) = read else {
            continue;
        };
        let text = std::str::from_utf8(&bytes[..length]).ok();
        let first = text.and_then(|text| text.split_whitespace().next());
        let first: Option<u64> = first.and_then(|word| word.parse().ok());
        ns = ns.saturating_add(first.ok_or(ErrorKind::InvalidData)?);
    }
    Ok(Duration::from_nanos(ns))
}

/// The same, of those threads whose name `counts`.
pub(crate) fn cpu_of_named(pid: u32, counts: impl Fn(&str) -> bool) -> io::Result<Duration> {
    cpu_of(pid, |task| {
        let name = fs::read_to_string(task.join("comm"));
        name.is_ok_and(|name| counts(name.trim_end()))
    })
}

/// Memory of process `pid` in KiB, with its share of what several have; guest memory too.
pub(crate) fn pss_kib(pid: u32) -> io::Result<f64> {
    number_of(&format!("/proc/{pid}/smaps_rollup"), "Pss:")
}

/// Memory that the host has for new processes, in KiB.
pub(crate) fn available_kib() -> io::Result<f64> {
    number_of("/proc/meminfo", "MemAvailable:")
}

fn number_of(path: &str, name: &str) -> io::Result<f64> {
    let number = number_after(&fs::read_to_string(path)?, name);
    number.ok_or_else(|| ErrorKind::InvalidData.into())
}

fn number_after(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_by_their_names() {
        let text = "Rss:  12 kB\nPss:         845 kB\nPss_Dirty: 1 kB\n";
        assert_eq!(number_after(text, "Pss:"), Some(845.0));
        assert_eq!(number_after(text, "Swap:"), None);
        assert!(available_kib().is_ok_and(|kib| kib > 0.0));
    }

    #[test]
    fn a_process_that_is_gone_has_no_time() {
        let own = std::process::id();
        assert!(cpu(own).is_ok_and(|cpu| cpu > Duration::ZERO));
        assert!(cpu_of_named(own, |_| false).is_ok_and(|cpu| cpu == Duration::ZERO));
        assert!(cpu(u32::MAX).is_err());
        assert!(pss_kib(own).is_ok_and(|kib| kib > 0.0));
    }
}
