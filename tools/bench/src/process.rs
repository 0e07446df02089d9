//! What processes take of the host, as the kernel counts it (proc(5)).

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read as _};
use std::path::Path;
use std::time::Duration;

use crate::sys;

/// Processor time that process `pid` has had so far, by its own clock: one question for all of its threads.
///
/// # Errors
/// The kernel's: there is no such process.
pub fn cpu(pid: u32) -> io::Result<Duration> {
    sys::cpu_of(pid)
}

/// Processor time of those threads of process `pid` whose name `counts` (Documentation/scheduler/sched-stats.rst). A thread that ends
/// meanwhile is none.
pub(crate) fn cpu_of_named(pid: u32, counts: impl Fn(&str) -> bool) -> io::Result<Duration> {
    let of_thread = |task: &Path| {
        let name = fs::read_to_string(task.join("comm"));
        name.is_ok_and(|name| counts(name.trim_end()))
    };
    Ok(scheduled_of(pid, of_thread)?.cpu)
}

/// What the scheduler has given to the threads of a process so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Scheduled {
    /// Processor time.
    pub(crate) cpu: Duration,
    /// How often one of them was put on a CPU.
    pub(crate) runs: u64,
}

/// What the threads of process `pid` have had so far.
pub(crate) fn scheduled(pid: u32) -> io::Result<Scheduled> {
    scheduled_of(pid, |_| true)
}

/// The same, of those threads that `counts` says so of by their folder in proc.
fn scheduled_of(pid: u32, counts: impl Fn(&Path) -> bool) -> io::Result<Scheduled> {
    let (mut ns, mut runs) = (0_u64, 0_u64);
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
        let text = std::str::from_utf8(&bytes[..length]).unwrap_or_default();
        // On a CPU, waiting for one, and how often.
        let numbers = text.split_whitespace().map(|word| word.parse().ok());
        let numbers: Option<Vec<u64>> = numbers.collect();
        let Some(&[on_cpu, _, count]) = numbers.as_deref() else {
            return Err(ErrorKind::InvalidData.into());
        };
        ns = ns.saturating_add(on_cpu);
        runs = runs.saturating_add(count);
    }
    Ok(Scheduled {
        cpu: Duration::from_nanos(ns),
        runs,
    })
}

/// Threads of process `pid`: each has a process id.
///
/// # Errors
/// The kernel's: there is no such process.
pub(crate) fn threads(pid: u32) -> io::Result<usize> {
    Ok(fs::read_dir(format!("/proc/{pid}/task"))?.count())
}

/// Open files of process `pid`; `None` where another user may not know them.
pub(crate) fn files(pid: u32) -> Option<usize> {
    Some(fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count())
}

/// What the host's kernel has for itself, by its names in /proc/meminfo, in KiB; what it does not tell is left out.
pub(crate) fn kernel_kib() -> io::Result<Vec<(&'static str, f64)>> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let each = KERNEL_MEMORY.into_iter();
    Ok(each
        .filter_map(|(name, key)| Some((name, number_after(&text, key)?)))
        .collect())
}

/// How a report calls it, and how the kernel does: its objects, tables of processes' pages, tables of KVM's, stacks of threads,
/// memory that each CPU has.
const KERNEL_MEMORY: [(&str, &str); 5] = [
    ("slab", "Slab:"),
    ("page_tables", "PageTables:"),
    ("kvm_page_tables", "SecPageTables:"),
    ("stacks", "KernelStack:"),
    ("per_cpu", "Percpu:"),
];

/// Memory of process `pid` in KiB, with its share of what several have; guest memory too.
pub(crate) fn pss_kib(pid: u32) -> io::Result<f64> {
    number_of(&format!("/proc/{pid}/smaps_rollup"), "Pss:")
}

/// Memory that the host has for new processes, in KiB.
pub(crate) fn available_kib() -> io::Result<f64> {
    number_of("/proc/meminfo", "MemAvailable:")
}

/// The number after `name` in the file `path` of the kernel's; the first one, if there is no name.
#[must_use]
pub fn host_number(path: &str, name: &str) -> Option<f64> {
    number_after(&fs::read_to_string(path).ok()?, name)
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
