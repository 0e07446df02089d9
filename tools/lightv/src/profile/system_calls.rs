//! System calls of a start, from a log of strace: which, by whom, in which step, how often and how long.

use std::collections::BTreeMap;

use lightv_api::timings::StartTimings;
use serde::Serialize;

use super::spans::step_at;

/// Calls of one kind.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct SystemCall {
    /// The step in which they began.
    pub(crate) step: &'static str,
    pub(crate) thread: String,
    /// Its name; of an ioctl, the request's too.
    pub(crate) name: String,
    pub(crate) count: u64,
    /// From entry to return, in microseconds in all, what strace adds included.
    pub(crate) us: f64,
}

/// How strace is to write its log.
pub(crate) const OPTIONS: [&str; 5] = [
    "-f",
    "-qq",
    "--signal=none",
    "--absolute-timestamps=format:unix,precision:ns",
    "--syscall-times=ns",
];

/// When a start began, by both clocks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Began {
    /// CLOCK_REALTIME minus CLOCK_MONOTONIC, in nanoseconds: strace's clock is the first, the timings' the second.
    pub(crate) clocks_apart_ns: i128,
    /// CLOCK_MONOTONIC just before the spawn.
    pub(crate) spawned_ns: u64,
}

/// A line of the log.
#[derive(Debug, PartialEq)]
struct Line<'a> {
    thread: &'a str,
    at_ns: i128,
    /// Name and arguments, or what is resumed.
    rest: &'a str,
}

fn parse(line: &str) -> Option<Line<'_>> {
    let (thread, rest) = line.split_once(' ')?;
    let (time, rest) = rest.trim_start().split_once(' ')?;
    let (seconds, nanoseconds) = time.split_once('.')?;
    let at_ns = seconds.parse::<i128>().ok()? * 1_000_000_000 + nanoseconds.parse::<i128>().ok()?;
    Some(Line {
        thread,
        at_ns,
        rest: rest.trim_start(),
    })
}

/// `<0.000012345>` at the end of a line, in microseconds.
fn time_of(rest: &str) -> Option<f64> {
    let (_, time) = rest.strip_suffix('>')?.rsplit_once('<')?;
    Some(time.parse::<f64>().ok()? * 1e6)
}

/// The name of a call, with the request of an ioctl.
fn name_of(rest: &str) -> Option<String> {
    let (name, arguments) = rest.split_once('(')?;
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if name.is_empty() || !name.bytes().all(is_name) {
        return None;
    }
    let request = arguments.split([',', ')']).nth(1).map(str::trim);
    match (name, request) {
        ("ioctl", Some(request)) if !request.is_empty() => {
            // `_IOC(…)` of a request that strace does not know has commas of its own.
            Some(format!(
                "ioctl {}",
                request.trim_end_matches(" <unfinished ...>")
            ))
        }
        _ => Some(name.to_owned()),
    }
}

/// The name that a thread gives itself.
fn thread_name(rest: &str) -> Option<&str> {
    rest.strip_prefix("prctl(PR_SET_NAME, \"")?
        .split('"')
        .next()
}

/// The process that strace started, by its log.
pub(crate) fn process_of(log: &str) -> Option<i32> {
    parse(log.lines().next()?)?.thread.parse().ok()
}

/// Sums up `log`, of the start that `timings` tells of. A line that is none of strace's is passed over.
pub(crate) fn sum_up(log: &str, timings: &StartTimings, began: Began) -> Vec<SystemCall> {
    let mut names: BTreeMap<&str, String> = BTreeMap::new();
    // Of each thread: the call that has begun and not ended.
    let mut open: BTreeMap<&str, (&'static str, String)> = BTreeMap::new();
    let mut sums: BTreeMap<(&'static str, &str, String), (u64, f64)> = BTreeMap::new();
    for Line {
        thread,
        at_ns,
        rest,
    } in log.lines().filter_map(parse)
    {
        if names.is_empty() {
            names.insert(thread, "main".to_owned());
        }
        if let Some(name) = thread_name(rest) {
            names.entry(thread).or_insert_with(|| name.to_owned());
        }
        let (call, is_new) = match (name_of(rest), rest.starts_with("<...")) {
            (Some(name), false) => ((step_of(at_ns, timings, began), name), true),
            (_, true) => match open.remove(thread) {
                Some(call) => (call, false),
                None => continue,
            },
            (None, false) => continue,
        };
        let sum = sums.entry((call.0, thread, call.1.clone())).or_default();
        sum.0 += u64::from(is_new);
        sum.1 += time_of(rest).unwrap_or(0.0);
        if rest.ends_with("<unfinished ...>") {
            open.insert(thread, call);
        }
    }
    let name = |thread: &str| {
        let name = names.get(thread).cloned();
        name.unwrap_or_else(|| thread.to_owned())
    };
    let calls = sums.into_iter();
    calls
        .map(|((step, thread, call), (count, us))| SystemCall {
            step,
            thread: name(thread),
            name: call,
            count,
            us,
        })
        .collect()
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a start takes far less than 2^52 ns"
)]
fn step_of(at_ns: i128, timings: &StartTimings, began: Began) -> &'static str {
    let from_spawn_ns = at_ns - began.clocks_apart_ns - i128::from(began.spawned_ns);
    step_at(timings, from_spawn_ns as f64 / 1000.0 - timings.spawn_us)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
7 100.000001000 execve(\"/usr/bin/lightv-vmm\", [\"lightv-vmm\"], 0x7ffd /* 9 vars */) = 0 <0.000200000>
7  100.000020000 prctl(PR_SET_NAME, \"lightv-vmm\") = 0 <0.000001000>
8  100.000021000 prctl(PR_SET_NAME, \"control\") = 0 <0.000001000>
8  100.000022000 ioctl(5, KVM_CREATE_VM, 0) = 6 <0.000250000>
7  100.000025000 futex(0x1, FUTEX_WAIT, 1, NULL <unfinished ...>
8  100.000030000 futex(0x1, FUTEX_WAKE, 1) = 1 <0.000002000>
7  100.000031000 <... futex resumed>) = 0 <0.000006000>
7  100.000040000 ioctl(9, KVM_RUN <unfinished ...>
7  100.000050000 <... ioctl resumed>, 0) = 0 <0.000010000>
7  100.000200000 exit_group(0) = ?
8  100.000201000 +++ exited with 0 +++
garbage
";

    #[test]
    fn calls_are_counted_by_step_thread_and_name() {
        let timings = StartTimings {
            spawn_us: 10.0,
            image_load_us: 20.0,
            sandbox_us: 20.0,
            ..StartTimings::default()
        };
        // The spawn was at 5 s of the timings' clock.
        let began = Began {
            clocks_apart_ns: 95_000_000_000,
            spawned_ns: 5_000_000_000,
        };
        let calls = sum_up(LOG, &timings, began);
        let found: Vec<_> = calls
            .iter()
            .map(|call| {
                (
                    call.step,
                    call.thread.as_str(),
                    call.name.as_str(),
                    call.count,
                    call.us.round(),
                )
            })
            .collect();
        let expected = [
            ("after", "main", "exit_group", 1, 0.0),
            ("image_load", "main", "futex", 1, 6.0),
            ("image_load", "main", "prctl", 1, 1.0),
            ("image_load", "control", "futex", 1, 2.0),
            ("image_load", "control", "ioctl KVM_CREATE_VM", 1, 250.0),
            ("image_load", "control", "prctl", 1, 1.0),
            ("sandbox", "main", "ioctl KVM_RUN", 1, 10.0),
            ("spawn", "main", "execve", 1, 200.0),
        ];
        assert_eq!(found, expected);
        assert_eq!(process_of(LOG), Some(7));
        assert_eq!(process_of(""), None);
    }
}
