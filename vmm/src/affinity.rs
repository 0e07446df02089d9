//! Which CPUs of the host the process and its threads use.

use std::collections::BTreeSet;
use std::fs;
use std::io;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// CPUs that the calling thread may use, by number.
///
/// # Errors
/// The kernel's: the host has more than [`CpuSet::MAX_CPU`].
pub fn own() -> io::Result<BTreeSet<u32>> {
    let set = sched_getaffinity(None)?;
    let is_own = |cpu: &u32| usize::try_from(*cpu).is_ok_and(|cpu| set.is_set(cpu));
    let end = u32::try_from(CpuSet::MAX_CPU).unwrap_or(u32::MAX);
    Ok((0..end).filter(is_own).collect())
}

/// Whether the calling thread may use more than one.
#[must_use]
pub fn has_several() -> bool {
    sched_getaffinity(None).is_ok_and(|set| set.count() > 1)
}

/// How many CPUs the host has online, where it can be read.
#[must_use]
pub fn online() -> Option<usize> {
    let text = fs::read_to_string("/sys/devices/system/cpu/online").ok()?;
    count(text.trim())
}

/// How many numbers a list like `0-3,8` has.
fn count(list: &str) -> Option<usize> {
    let range = |text: &str| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        last.checked_sub(first)?.checked_add(1)
    };
    list.split(',').map(range).sum()
}

/// Holds the calling thread, and those that it starts, to `cpu`.
///
/// # Errors
/// The kernel's; `EINVAL` for a CPU that it may not use, or that is not there.
pub fn pin(cpu: u32) -> io::Result<()> {
    let cpu = usize::try_from(cpu)
        .ok()
        .filter(|cpu| *cpu < CpuSet::MAX_CPU);
    let cpu = cpu.ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus_are_counted() {
        for (list, expected) in [
            ("0", Some(1)),
            ("0-1", Some(2)),
            ("0-3,8,10-11", Some(7)),
            ("", None),
            ("3-1", None),
        ] {
            assert_eq!(count(list), expected, "{list}");
        }
        assert!(online().is_none_or(|online| online > 0));
    }

    #[test]
    fn a_thread_is_held_to_one_cpu_and_refused_what_is_not_there() {
        let pinned = std::thread::spawn(|| {
            let first = own().unwrap().into_iter().next().unwrap();
            pin(first).unwrap();
            assert_eq!(own().unwrap(), [first].into());
            assert!(!has_several());
            for missing in [1023, 1024, u32::MAX] {
                assert_eq!(pin(missing).unwrap_err().raw_os_error(), Some(libc::EINVAL));
            }
        });
        pinned.join().unwrap();
    }
}
