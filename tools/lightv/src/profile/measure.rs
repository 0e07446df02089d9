//! Starts an image again and again, and once under strace.

use std::ffi::OsString;
use std::fs;
use std::io::{self, BufRead as _, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use lightv_api::exit;
use lightv_api::timings::StartTimings;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use rustix::time::{ClockId, clock_gettime};

use super::spans::{ends, middle, spans};
use super::system_calls::{self, Began, OPTIONS};
use super::{Profile, STEPS, StepProfile, Traced, median};
use crate::failure::Coded;

/// Starts before the first that counts: the page cache settles.
const WARM_UP: u32 = 1;
/// A guest that has given out nothing by then will not: a Linux guest takes half a minute to boot where its kernel is emulated.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long a guest that has given out its first byte may go on; then it is ended.
const END_PATIENCE: Duration = Duration::from_millis(200);
/// How long it may take to be ended.
const GRACE: Duration = Duration::from_secs(2);
/// KVM takes a machine apart after its process has ended, and that would disturb the next start.
const PAUSE: Duration = Duration::from_millis(20);

/// What is started.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The program `lightv-vmm`.
    pub(crate) monitor: PathBuf,
    pub(crate) image: PathBuf,
    pub(crate) is_cold: bool,
    /// Instead of those in the image.
    pub(crate) args: Option<Vec<OsString>>,
    /// How often, at least once.
    pub(crate) starts: u32,
    /// Whether system calls are counted.
    pub(crate) is_traced: bool,
}

/// Why there is no profile.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MeasureError {
    #[error("Cannot start {}", program.display())]
    Start {
        program: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error(
        "System calls are counted by strace, and there is none. Install it (Debian: apt-get install strace), or leave them \
         out: --no-system-calls"
    )]
    NoStrace,
    #[error("Cannot wait for the microVM")]
    Wait(#[source] io::Error),
    #[error("Cannot keep strace's log in {}", path.display())]
    Log {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("The microVM gave out no byte: {message}")]
    Silent { message: String, exit_code: u8 },
    #[error("The microVM gave out no byte in {} seconds: there is no start to be profiled", PATIENCE.as_secs())]
    Late,
    #[error("strace did not trace it: {message}")]
    Untraced { message: String },
}

impl Coded for MeasureError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Silent { exit_code, .. } => *exit_code,
            Self::Late => exit::FAILURE,
            _ => exit::HOST_FAILURE,
        }
    }
}

/// A start that was measured.
struct Start {
    timings: StartTimings,
    /// Page faults of the process to its end.
    faults: Option<u64>,
}

/// Starts it as often as is planned; `progress` is told how many starts are done, and of how many.
pub(crate) fn measure(
    plan: &Plan,
    mut progress: impl FnMut(u32, u32),
) -> Result<Profile, MeasureError> {
    let all = WARM_UP + plan.starts + u32::from(plan.is_traced);
    // First of all: without strace nothing is measured in vain.
    let traced = plan.is_traced.then(|| trace(plan)).transpose()?;
    let before = u32::from(plan.is_traced);
    let mut starts = Vec::new();
    for number in 0..WARM_UP + plan.starts {
        progress(before + number, all);
        let mut command = Command::new(&plan.monitor);
        let start = run(command.args(plan.monitor_args(monotonic_ns())), None)?;
        if number >= WARM_UP {
            starts.push(start);
        }
        thread::sleep(PAUSE);
    }
    progress(all, all);
    Ok(profile(plan, &starts, traced))
}

impl Plan {
    fn monitor_args(&self, started_at_ns: u64) -> Vec<OsString> {
        let way = if self.is_cold { "--boot" } else { "--restore" };
        let mut args: Vec<OsString> = vec![way.into(), self.image.clone().into()];
        args.extend(["--timings", "--profile", "--started-at-ns"].map(OsString::from));
        args.push(started_at_ns.to_string().into());
        if let Some(given) = &self.args {
            args.push("--".into());
            args.extend_from_slice(given);
        }
        args
    }
}

/// A start under strace.
fn trace(plan: &Plan) -> Result<Traced, MeasureError> {
    let log = tempfile::NamedTempFile::new().map_err(|cause| MeasureError::Log {
        path: std::env::temp_dir(),
        cause,
    })?;
    let clocks_apart_ns = nanoseconds(ClockId::Realtime) - nanoseconds(ClockId::Monotonic);
    let spawned_ns = monotonic_ns();
    let mut command = Command::new("strace");
    command.args(OPTIONS).arg("-o").arg(log.path());
    command
        .arg(&plan.monitor)
        .args(plan.monitor_args(spawned_ns));
    let read = || {
        fs::read(log.path())
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .map_err(|cause| MeasureError::Log {
                path: log.path().to_owned(),
                cause,
            })
    };
    let traced_process = || system_calls::process_of(&read().ok()?);
    let start = match run(&mut command, Some(&traced_process)) {
        Err(MeasureError::Start { cause, .. }) if cause.kind() == io::ErrorKind::NotFound => {
            return Err(MeasureError::NoStrace);
        }
        Err(MeasureError::Silent { message, .. }) if message.contains("strace:") => {
            return Err(MeasureError::Untraced { message });
        }
        start => start?,
    };
    let began = Began {
        clocks_apart_ns,
        spawned_ns,
    };
    Ok(Traced {
        total_us: start.timings.total_us,
        calls: system_calls::sum_up(&read()?, &start.timings, began),
    })
}

/// Runs `command`, a monitor that writes its timings to standard error, until the guest has given out its first byte, and a
/// little longer. Of one that is traced, `traced` knows the process.
fn run(
    command: &mut Command,
    traced: Option<&dyn Fn() -> Option<i32>>,
) -> Result<Start, MeasureError> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let child = command.spawn().map_err(|cause| MeasureError::Start {
        program: command.get_program().into(),
        cause,
    })?;
    let mut child = Kept(child);
    let mut running = Running::of(&mut child.0).map_err(MeasureError::Wait)?;
    let timings = running.wait_for_timings();
    if timings.is_ok() {
        let _ = running
            .ends_within(END_PATIENCE)
            .map_err(MeasureError::Wait)?;
    }
    running.end(traced).map_err(MeasureError::Wait)?;
    let faults = faults_of(child.0.id());
    let status = child.0.wait().map_err(MeasureError::Wait)?;
    match timings {
        Ok(timings) => Ok(Start {
            timings: *timings,
            faults,
        }),
        Err(Missing::Late) => Err(MeasureError::Late),
        Err(Missing::Ended { message }) => Err(MeasureError::Silent {
            message: match message.is_empty() {
                true => format!("it ended with {status}"),
                false => message,
            },
            exit_code: status
                .code()
                .and_then(|code| u8::try_from(code).ok())
                .filter(|code| *code != 0)
                .unwrap_or(exit::FAILURE),
        }),
    }
}

/// Why there are no timings.
enum Missing {
    Late,
    /// With what the monitor said instead.
    Ended {
        message: String,
    },
}

/// A child that is killed when this is dropped, unless it has been waited for.
struct Kept(Child);

impl Drop for Kept {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A child that runs.
struct Running {
    pid: Pid,
    end: OwnedFd,
    said: Receiver<String>,
}

impl Running {
    fn of(child: &mut Child) -> io::Result<Self> {
        let pid = Pid::from_child(child);
        let end = pidfd_open(pid, PidfdFlags::empty())?;
        let (sender, said) = channel();
        let stderr: Box<dyn Read + Send> = match child.stderr.take() {
            Some(stderr) => Box::new(stderr),
            None => Box::new(io::empty()),
        };
        thread::spawn(move || {
            let lines = BufReader::new(stderr).lines().map_while(Result::ok);
            // Nobody may listen any more; then the rest is read and forgotten, so that the child does not wait for it.
            lines.for_each(|line| drop(sender.send(line)));
        });
        Ok(Self { pid, end, said })
    }

    /// The line with the timings.
    fn wait_for_timings(&mut self) -> Result<Box<StartTimings>, Missing> {
        let began = Instant::now();
        let mut message = String::new();
        loop {
            match self
                .said
                .recv_timeout(PATIENCE.saturating_sub(began.elapsed()))
            {
                Ok(line) => match serde_json::from_str(&line) {
                    Ok(timings) => return Ok(Box::new(timings)),
                    Err(_) => {
                        let line = line.trim_start_matches("lightv-vmm: ");
                        message = match message.is_empty() {
                            true => line.to_owned(),
                            false => format!("{message}; {line}"),
                        };
                    }
                },
                Err(RecvTimeoutError::Timeout) => return Err(Missing::Late),
                Err(RecvTimeoutError::Disconnected) => return Err(Missing::Ended { message }),
            }
        }
    }

    fn ends_within(&self, patience: Duration) -> io::Result<bool> {
        let began = Instant::now();
        loop {
            let left = patience.saturating_sub(began.elapsed());
            let timeout = Timespec::try_from(left).ok();
            match poll(
                &mut [PollFd::new(&self.end, PollFlags::IN)],
                timeout.as_ref(),
            ) {
                Ok(0) => return Ok(false),
                Ok(_) => return Ok(true),
                Err(Errno::INTR) => {}
                Err(cause) => return Err(cause.into()),
            }
        }
    }

    /// Ends it, if it has not ended.
    fn end(&self, traced: Option<&dyn Fn() -> Option<i32>>) -> io::Result<()> {
        // strace ends with what it traces.
        let traced = traced.and_then(|process| Pid::from_raw(process()?));
        for signal in [Signal::TERM, Signal::KILL] {
            if self.ends_within(Duration::ZERO)? {
                return Ok(());
            }
            // One that is gone has ended.
            let _ = kill_process(traced.unwrap_or(self.pid), signal);
            if self.ends_within(GRACE)? {
                return Ok(());
            }
        }
        let _ = kill_process(self.pid, Signal::KILL);
        self.ends_within(GRACE).map(drop)
    }
}

/// Page faults of a process that has ended and not been waited for: fields 10 and 12 of proc_pid_stat(5).
fn faults_of(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(7);
    let minor: u64 = fields.next()?.parse().ok()?;
    let major: u64 = fields.nth(1)?.parse().ok()?;
    Some(minor.saturating_add(major))
}

fn nanoseconds(clock: ClockId) -> i128 {
    let now = clock_gettime(clock);
    i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec)
}

fn monotonic_ns() -> u64 {
    u64::try_from(nanoseconds(ClockId::Monotonic)).unwrap_or(0)
}

fn profile(plan: &Plan, starts: &[Start], traced: Option<Traced>) -> Profile {
    let timings: Vec<StartTimings> = starts.iter().map(|start| start.timings.clone()).collect();
    let middle = middle(&timings).unwrap_or_default();
    let steps = (0..STEPS.len()).map(|step| step_of(step, starts, traced.as_ref()));
    // What a start touches is alike in all: that of one in the middle of all times.
    let typical = timings.iter().min_by(|a, b| {
        let away = |timings: &StartTimings| (timings.total_us - middle.total_us).abs();
        away(a).total_cmp(&away(b))
    });
    let touched = typical
        .and_then(|timings| timings.touched.clone())
        .unwrap_or_default();
    Profile {
        subject: plan.image.display().to_string(),
        way: middle.way.clone(),
        starts: starts.len(),
        total_us: middle.total_us,
        steps: steps.collect(),
        spans: spans(&timings),
        system_calls: traced,
        exits: touched.exits,
        kvm: touched.kvm,
        pages: touched.pages,
        devices: Vec::new(),
    }
}

fn step_of(step: usize, starts: &[Start], traced: Option<&Traced>) -> StepProfile {
    let name = STEPS[step];
    let lengths = starts.iter().map(|start| {
        let timings = &start.timings;
        let ends = ends(timings);
        match step {
            0 => timings.spawn_us,
            1 => ends[0],
            _ => ends[step - 1] - ends[step - 2],
        }
    });
    let lengths: Vec<f64> = lengths.collect();
    let start_us = starts.iter().map(|start| match step {
        0 => -start.timings.spawn_us,
        1 => 0.0,
        _ => ends(&start.timings)[step - 2],
    });
    let end_us = starts.iter().map(|start| match step {
        0 => 0.0,
        _ => ends(&start.timings)[step - 1],
    });
    let calls = traced.map(|traced| {
        let calls = traced.calls.iter().filter(|call| call.step == name);
        calls.map(|call| call.count).sum()
    });
    StepProfile {
        name,
        start_us: median(start_us.collect()),
        end_us: median(end_us.collect()),
        median_us: median(lengths.clone()),
        min_us: lengths.iter().copied().fold(f64::INFINITY, f64::min),
        max_us: lengths.iter().copied().fold(0.0, f64::max),
        system_calls: calls,
        faults: faults_in(step, starts),
    }
}

/// Page faults in a step; in the last, all those that are in no other.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a start has far fewer than 2^52 faults"
)]
fn faults_in(step: usize, starts: &[Start]) -> Option<u64> {
    let faults = starts.iter().map(|start| {
        let known = &start.timings.touched.as_ref()?.faults;
        let found = known.iter().find(|faults| faults.step == STEPS[step]);
        match found {
            Some(faults) => Some(faults.faults as f64),
            None => {
                let sum: u64 = known.iter().map(|faults| faults.faults).sum();
                Some(start.faults?.saturating_sub(sum) as f64)
            }
        }
    });
    Some(median(faults.collect::<Option<Vec<_>>>()?) as u64)
}

#[cfg(test)]
mod tests {
    use lightv_api::timings::{StepFaults, Touched};

    use super::*;

    #[test]
    fn faults_of_the_last_step_are_those_in_no_other() {
        let faults = |step: &str, faults| StepFaults {
            step: step.to_owned(),
            faults,
        };
        let start = Start {
            timings: StartTimings {
                touched: Some(Touched {
                    faults: vec![faults("spawn", 40), faults("image_load", 5)],
                    ..Touched::default()
                }),
                ..StartTimings::default()
            },
            faults: Some(100),
        };
        let starts = [start];
        assert_eq!(faults_in(0, &starts), Some(40));
        assert_eq!(faults_in(4, &starts), Some(55));
    }

    #[test]
    fn a_process_that_has_ended_still_tells_its_faults() {
        let mut child = Command::new("true").spawn().expect("true");
        let running = Running::of(&mut child).expect("a child");
        assert!(running.ends_within(Duration::from_secs(60)).expect("poll"));
        assert!(faults_of(child.id()) > Some(0));
        child.wait().expect("its status");
        assert_eq!(faults_of(child.id()), None);
    }

    #[test]
    fn what_does_not_start_is_told_with_what_it_said() {
        let script = |script: &str| run(Command::new("sh").args(["-c", script]), None);
        let Err(MeasureError::Silent { message, exit_code }) =
            script("echo 'lightv-vmm: no such image' >&2; echo more >&2; exit 152")
        else {
            panic!("it was silent")
        };
        assert_eq!((message.as_str(), exit_code), ("no such image; more", 152));
        let json = serde_json::to_string(&StartTimings::default()).expect("JSON");
        let start = script(&format!("echo '{json}' >&2; sleep 1000")).map(|start| start.timings);
        assert_eq!(
            start.ok(),
            Some(StartTimings::default()),
            "it is not waited for"
        );
    }
}
