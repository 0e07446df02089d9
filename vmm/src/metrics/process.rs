//! What the kernel knows of this process: read only when somebody asks.

use std::fs;

use rustix::param::clock_ticks_per_second;

/// Resident memory by kind, in bytes (proc_pid_status(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemoryUse {
    /// Its own, guest RAM that was written included.
    pub anonymous: u64,
    /// Pages of files: the program, and guest RAM that is still as in its file.
    pub file: u64,
    /// Shared memory.
    pub shared: u64,
}

impl MemoryUse {
    /// All of it.
    #[must_use]
    pub const fn resident(&self) -> u64 {
        self.anonymous + self.file + self.shared
    }
}

/// What this process's memory is now; zeros where the kernel does not say.
#[must_use]
pub fn memory_use() -> MemoryUse {
    parse_status(&fs::read_to_string("/proc/self/status").unwrap_or_default())
}

fn parse_status(text: &str) -> MemoryUse {
    let field = |name| kib_of(text, name).unwrap_or(0).saturating_mul(1024);
    MemoryUse {
        anonymous: field("RssAnon:"),
        file: field("RssFile:"),
        shared: field("RssShmem:"),
    }
}

/// The number after `name` in the text of a process's `status`, of KiB there.
#[must_use]
pub(crate) fn kib_of(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Processor time of a thread.
#[derive(Debug, Clone, PartialEq)]
pub struct ThreadTime {
    /// Its name; threads of one name are added up.
    pub name: String,
    /// In user and kernel mode, guests included, in seconds.
    pub seconds: f64,
}

/// Processor time of this process's threads, in the order of their names.
#[must_use]
pub fn thread_times() -> Vec<ThreadTime> {
    let mut times: Vec<ThreadTime> = Vec::new();
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten();
    for task in tasks.flatten() {
        let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        let Some(thread) = parse_stat(&stat) else {
            continue;
        };
        match times.iter_mut().find(|known| known.name == thread.name) {
            Some(known) => known.seconds += thread.seconds,
            None => times.push(thread),
        }
    }
    times.sort_by(|a, b| a.name.cmp(&b.name));
    times
}

/// Fields 2, 14 and 15 of proc_pid_stat(5).
#[expect(clippy::cast_precision_loss, reason = "2^52 ticks are a million years")]
fn parse_stat(stat: &str) -> Option<ThreadTime> {
    let (_, rest) = stat.split_once('(')?;
    let (name, fields) = rest.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(ThreadTime {
        name: name.to_owned(),
        seconds: user.saturating_add(system) as f64 / clock_ticks_per_second() as f64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_and_threads() {
        assert!(memory_use().anonymous > 0 && memory_use().file > 0);
        assert!(!thread_times().is_empty());
    }

    #[test]
    fn a_name_may_hold_anything() {
        let stat = "7 (a (b) c) S 1 7 7 0 -1 4 1 0 0 0 150 50 0 0 20 0 1 0 9 0 0";
        let found = parse_stat(stat).unwrap();
        assert_eq!(found.name, "a (b) c");
        assert!((found.seconds - 2.0).abs() < 0.001, "{found:?}");
        assert_eq!(parse_stat("7 x"), None);
    }
}
