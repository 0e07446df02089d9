//! What the host has.

use std::fs;
use std::thread;

use lightv_api::agent::host::HostInfo;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Processors that this process may use.
#[must_use]
pub fn cpus() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// The host as `GET /` shows it. What it does not say is 0.
#[must_use]
pub fn info() -> HostInfo {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    HostInfo {
        cpus: cpus() as u64,
        memory_mib: meminfo_mib(&text, "MemTotal:").unwrap_or(0),
        available_mib: meminfo_mib(&text, "MemAvailable:").unwrap_or(0),
    }
}

/// Memory that could be used, in MiB; `None` if the host does not say.
#[must_use]
pub fn available_mib() -> Option<u64> {
    meminfo_mib(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")
}

fn meminfo_mib(text: &str, name: &str) -> Option<u64> {
    Some(meminfo_kib(text, name)? / 1024)
}

/// A line of `/proc/meminfo`, in KiB.
pub(crate) fn meminfo_kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// The host's name.
#[must_use]
pub fn name() -> String {
    let system = rustix::system::uname();
    system.nodename().to_string_lossy().into_owned()
}

/// Descriptors that this process has open, without that which looks.
#[must_use]
pub fn open_files() -> u64 {
    let entries = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    entries.saturating_sub(1) as u64
}

/// Lets this process have as many descriptors as the host allows; gives how many that are.
pub fn allow_files() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if setrlimit(Resource::Nofile, raised).is_ok() {
        return limit.maximum.unwrap_or(u64::MAX);
    }
    limit.current.unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_mib() {
        let text = "MemTotal:  24105000 kB\nMemFree: 1 kB\nMemAvailable:\t2048 kB\n";
        assert_eq!(meminfo_mib(text, "MemAvailable:"), Some(2));
        assert_eq!(meminfo_mib(text, "MemTotal:"), Some(23540));
        assert_eq!(meminfo_mib(text, "Swap:"), None);
    }
}
