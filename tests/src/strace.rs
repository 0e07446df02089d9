//! System calls that fail, or kill the process, at a chosen moment: strace injects that. A process sees what it would see of
//! a disk that fails, and dies where it would by `kill -9`, but each time at the same place.

use std::path::Path;
use std::process::Command;

use crate::process::{DEADLINE, Process, after_script, wait_for};

/// What is called in place of a call that is to fail. By itself strace would call number -1, which a system call filter does
/// not let pass.
const NOTHING: &str = "getpid";

/// What happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It fails with this error, by name.
    Error(&'static str),
    /// The process is killed before it.
    Kill,
}

/// A call of a thread: its name, and how many of this name came up to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moment {
    /// Name of the call.
    pub call: String,
    /// From 1.
    pub number: usize,
}

impl Moment {
    /// The option of strace by which `fate` befalls the call.
    #[must_use]
    pub fn option(&self, fate: Fate) -> String {
        let Self { call, number } = self;
        match fate {
            Fate::Error(error) => {
                format!("--inject={call}:error={error}:syscall={NOTHING}:when={number}")
            }
            Fate::Kill => format!("--inject={call}:signal=KILL:when={number}"),
        }
    }
}

/// `command` under strace with `options`; of what it does, the calls named by `calls` are written to the file `log`.
///
/// # Panics
/// When `log` is no text.
#[must_use]
pub fn traced(command: &Command, calls: &str, log: &Path, options: &[&str]) -> Command {
    let log = log.to_str().expect("a path in text");
    let trace = format!("--trace={calls}");
    let strace = ["strace", "-f", "-qq", "-o", log, &trace];
    after_script(&[&strace, options].concat(), ":", command)
}

/// Has strace look on at the process `pid` with all its threads, and waits until it does.
///
/// # Panics
/// When it cannot.
#[must_use]
pub fn attached(pid: u32, calls: &str, log: &Path, options: &[&str]) -> Process {
    let mut command = Command::new("strace");
    command.args(["-f", "-o"]).arg(log);
    command.args([&format!("--trace={calls}"), "-p", &pid.to_string()]);
    command.args(options);
    let process = Process::start(&mut command).with_deadline(DEADLINE);
    process.wait_stderr(|text| text.contains("attached").then_some(()));
    wait_for("strace at all threads", || {
        let folder = format!("/proc/{pid}/task");
        let tasks = std::fs::read_dir(folder).expect("a process").flatten();
        let mut statuses =
            tasks.filter_map(|task| std::fs::read_to_string(task.path().join("status")).ok());
        // A thread of the kernel's own, KVM's, is nobody's to trace.
        let is_traced =
            |status: String| status.contains("Name:\tkvm-") || !status.contains("TracerPid:\t0\n");
        statuses.all(is_traced).then_some(())
    });
    process
}

/// The calls in a log of `strace -f`, in order: the thread, the name, and the rest of the line behind the bracket. What goes on
/// (`<... fsync resumed>`), signals and ends are none.
///
/// # Panics
/// When it is none of strace's.
pub fn calls(log: &str) -> impl Iterator<Item = (&str, &str, &str)> {
    let is_name = |call: &str| {
        call.bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    log.lines().filter_map(move |line| {
        let (thread, rest) = line.split_once(' ').expect("a thread");
        let (call, rest) = rest.trim_start().split_once('(')?;
        is_name(call).then_some((thread, call, rest))
    })
}

/// The calls in a log of strace, in order, each counted within its thread.
///
/// # Panics
/// When it is none of strace's.
#[must_use]
pub fn moments(log: &str) -> Vec<Moment> {
    let mut found: Vec<(&str, Moment)> = Vec::new();
    for (thread, call, _) in calls(log) {
        let earlier = found
            .iter()
            .filter(|(other, moment)| *other == thread && moment.call == call);
        let number = earlier.count() + 1;
        let call = call.to_owned();
        found.push((thread, Moment { call, number }));
    }
    found.into_iter().map(|(_, moment)| moment).collect()
}
