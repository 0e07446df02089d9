//! What the sandboxes take of the host: read from the kernel when somebody asks, and not more often than can be seen.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs;
use std::rc::Rc;
use std::time::Instant;

use lightv_api::agent::stats::{HostUsage, SandboxUsage};
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;

use crate::{host, limits};

/// Milliseconds of a tick of processor time (proc(5)): USER_HZ is 100 on every platform that there is.
const TICK_MS: u64 = 10;
/// Bytes of a page, the unit of `statm`.
const PAGE_BYTES: u64 = 4096;

/// A look at the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Look {
    /// What the host has, and is busy with.
    pub host: HostUsage,
    /// What each sandbox takes.
    pub usage: Vec<SandboxUsage>,
    /// Processor time that sandboxes were seen to take since the agent's start, in milliseconds. It never falls: the time of
    /// those that have ended since is in it.
    pub cpu_ms: u64,
}

/// Looks, and remembers the last one.
#[derive(Debug, Default)]
pub struct Meter {
    /// Who looks; the others wait for what comes of it.
    turn: Mutex<()>,
    last: RefCell<Option<(Instant, Rc<Look>)>>,
}

impl Meter {
    /// A look at the processes of `sandboxes`, each an id and a process id; or the last one, if it is fresh.
    ///
    /// A thousand processes take some 20 ms to look at, on another thread than the one that serves.
    pub async fn look(&self, sandboxes: impl FnOnce() -> Vec<(String, u32)>) -> Rc<Look> {
        let _turn = self.turn.lock().await;
        let last = self.last.borrow().clone();
        let before = match last {
            Some((at, look)) if at.elapsed() < limits::LOOK_INTERVAL_MIN => return look,
            Some((_, look)) => look,
            None => Rc::default(),
        };
        let sandboxes = sandboxes();
        let looked = spawn_blocking(move || (host_usage(), usage(sandboxes))).await;
        // Nothing in there panics; if it did, there would be nothing to tell.
        let (host, usage) = looked.unwrap_or_default();
        let cpu_ms = before.cpu_ms + growth(&before.usage, &usage);
        let look = Rc::new(Look {
            host,
            usage,
            cpu_ms,
        });
        *self.last.borrow_mut() = Some((Instant::now(), Rc::clone(&look)));
        look
    }
}

/// Processor time that was taken between two looks; of a sandbox that is new, all.
fn growth(before: &[SandboxUsage], now: &[SandboxUsage]) -> u64 {
    let known: HashMap<&str, u64> = before
        .iter()
        .map(|it| (it.id.as_str(), it.cpu_ms))
        .collect();
    let grown = now.iter().map(|it| {
        let old = known.get(it.id.as_str()).copied().unwrap_or(0);
        it.cpu_ms.saturating_sub(old)
    });
    grown.sum()
}

/// What processes take. One that is gone takes nothing.
fn usage(sandboxes: Vec<(String, u32)>) -> Vec<SandboxUsage> {
    let looked = sandboxes.into_iter().filter_map(|(id, pid)| {
        let read = |file| fs::read_to_string(format!("/proc/{pid}/{file}"));
        Some(SandboxUsage {
            id,
            cpu_ms: cpu_ms(&read("stat").ok()?)?,
            memory_bytes: own_bytes(&read("statm").ok()?)?,
        })
    });
    looked.collect()
}

/// Processor time in `stat` of a process: `utime` and `stime`, the 14th and 15th field. The second one, the name in
/// parentheses, may have spaces and parentheses in it.
fn cpu_ms(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut times = fields.split_whitespace().skip(11);
    let mut next = || times.next()?.parse::<u64>().ok();
    Some((next()? + next()?).saturating_mul(TICK_MS))
}

/// Memory in `statm` of a process that is neither a file's nor shared: what is resident without what may be shared.
fn own_bytes(statm: &str) -> Option<u64> {
    let mut pages = statm.split_whitespace().skip(1);
    let mut next = || pages.next()?.parse::<u64>().ok();
    let (resident, shared) = (next()?, next()?);
    Some(resident.saturating_sub(shared).saturating_mul(PAGE_BYTES))
}

fn host_usage() -> HostUsage {
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let bytes = |name| host::meminfo_kib(&memory, name).unwrap_or(0) * 1024;
    let times = fs::read_to_string("/proc/stat").unwrap_or_default();
    HostUsage {
        cpus: host::cpus() as u64,
        cpu_busy_ms: busy_ms(&times).unwrap_or(0),
        memory_bytes: bytes("MemTotal:"),
        memory_available_bytes: bytes("MemAvailable:"),
    }
}

/// Time that processors were busy, in `/proc/stat`: user, nice, system, then idle and waiting, which are left out, then
/// interrupts of two kinds and what a hypervisor took. Guests' time is in the user's.
fn busy_ms(stat: &str) -> Option<u64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks = line.split_whitespace().take(8).enumerate();
    let mut busy = 0_u64;
    for (place, text) in ticks {
        if !matches!(place, 3 | 4) {
            busy = busy.saturating_add(text.parse().ok()?);
        }
    }
    Some(busy.saturating_mul(TICK_MS))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn took(id: &str, cpu_ms: u64) -> SandboxUsage {
        SandboxUsage {
            id: id.to_owned(),
            cpu_ms,
            memory_bytes: 0,
        }
    }

    #[test]
    fn times_are_found_behind_any_name() {
        let stat = "7 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 21 34 0 0 20 0 1 0 99";
        assert_eq!(cpu_ms(stat), Some(550));
        assert_eq!(cpu_ms("7 (a) S 1 2"), None);
        assert_eq!(cpu_ms(""), None);
    }

    #[test]
    fn own_memory_is_what_is_not_shared() {
        assert_eq!(own_bytes("900 300 100 1 0 2 0"), Some(200 * 4096));
        assert_eq!(own_bytes("900 100 300 1 0 2 0"), Some(0));
        assert_eq!(own_bytes("900"), None);
    }

    #[test]
    fn a_host_is_busy_when_it_is_not_idle_and_does_not_wait() {
        let stat = "cpu  1 2 4 1000 1000 8 16 32 64 128\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        assert_eq!(busy_ms(stat), Some(630));
        assert_eq!(busy_ms("cpu  1 x"), None);
    }

    #[test]
    fn what_has_ended_stays_in_the_sum() {
        assert_eq!(growth(&[took("a", 10), took("b", 90)], &[took("b", 95)]), 5);
        assert_eq!(growth(&[took("b", 95)], &[took("b", 95), took("c", 7)]), 7);
        // Its process is another one.
        assert_eq!(growth(&[took("b", 95)], &[took("b", 1)]), 0);
    }

    #[test]
    fn our_own_process_is_seen_and_one_that_is_gone_is_left_out() {
        let found = usage(vec![
            ("a".to_owned(), std::process::id()),
            ("b".to_owned(), u32::MAX),
        ]);
        assert_eq!(found.len(), 1);
        assert!(found[0].id == "a" && found[0].memory_bytes > 0, "{found:?}");
        let host = host_usage();
        assert!(host.cpus > 0 && host.cpu_busy_ms > 0, "{host:?}");
        assert!(host.memory_available_bytes <= host.memory_bytes, "{host:?}");
    }
}
