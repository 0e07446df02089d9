//! `lightv bench fork`: how long a machine that writes stands still while another begins from it, how soon that one answers, and
//! for how long its own program does not come to run.

use std::io::{self, BufRead as _, BufReader};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use lightv_api::contract::snapshot::{ForkSpec, SnapshotLoad};
use lightv_api_client::{Client, ClientError};

use crate::report::{self, Case};
use crate::stats::Sample;

/// What the guest writes, in MiB.
const DIRTY_MIB: [u32; 3] = [8, 64, 128];
/// How often the guest says how it is, in milliseconds.
const INTERVAL_MS: u32 = 20;
/// How long a monitor or a guest may take for anything.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// What is measured.
#[derive(Debug, Clone)]
pub struct ForkBench {
    /// The program `lightv-vmm`.
    pub monitor: PathBuf,
    /// An image of the app `dirty` with more than 128 MiB.
    pub image: PathBuf,
    /// A folder for sockets and states.
    pub work: PathBuf,
    /// Rounds that count, of each size.
    pub rounds: u32,
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum ForkBenchError {
    /// The monitor could not be started.
    #[error("Cannot start {}", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// It cannot be asked, or refuses.
    #[error(transparent)]
    Ask(#[from] ClientError),
    /// It does not serve, or its guest says nothing.
    #[error("Nothing was heard of {what} for {} s", PATIENCE.as_secs())]
    Silent {
        /// Of what.
        what: &'static str,
    },
    /// The guest found memory that it had not written.
    #[error("The guest says: {line}")]
    Wrong {
        /// Its line.
        line: String,
    },
    /// The metrics have no such number.
    #[error("The machine's metrics do not say how long it stood still")]
    NoPause,
    /// No round was asked for.
    #[error("The number of rounds must be at least 1")]
    NoRounds,
}

/// Measures, in microseconds: `fork.pause.*`, how long the machine stands still; `fork.answer.*`, from the call to the first line
/// of the machine that begins from it, whose monitor was started before; `fork.gap.*`, the longest time in which the guest of the
/// first did not come to write a page.
///
/// # Errors
/// [`ForkBenchError`].
pub fn measure(bench: &ForkBench) -> Result<Vec<Case>, ForkBenchError> {
    let mut cases = Vec::new();
    for mib in DIRTY_MIB {
        let [pause, answer, gap] = measure_size(bench, mib)?;
        let named = [("pause", pause), ("answer", answer), ("gap", gap)];
        for (name, values) in named {
            let name = format!("fork.{name}.{mib}m");
            let sample = Sample::new(values).ok_or(ForkBenchError::NoRounds)?;
            cases.extend(report::cases("us", &[(name.as_str(), sample)]));
        }
    }
    Ok(cases)
}

fn measure_size(bench: &ForkBench, mib: u32) -> Result<[Vec<f64>; 3], ForkBenchError> {
    let args = [mib.to_string(), INTERVAL_MS.to_string()];
    let image = bench.image.to_string_lossy();
    let args = ["--restore", &image, "--", &args[0], &args[1]];
    let source = Monitor::start(bench, "source", &args)?;
    source.wait_for_round(2.0)?;
    let mut found = [Vec::new(), Vec::new(), Vec::new()];
    // One more to warm up.
    for round in 0..=bench.rounds {
        let values = fork(bench, &source)?;
        if round > 0 {
            found
                .iter_mut()
                .zip(values)
                .for_each(|(all, value)| all.push(value));
        }
    }
    Ok(found)
}

/// One round.
fn fork(bench: &ForkBench, source: &Monitor) -> Result<[f64; 3], ForkBenchError> {
    let clone = Monitor::start(bench, "clone", &[])?;
    let (state, memory) = (bench.work.join("state"), bench.work.join("memory.sock"));
    source.skip();
    let paused_before = source.paused_us()?;
    let began = Instant::now();
    let spec = ForkSpec {
        snapshot_path: state.clone(),
        mem_socket_path: memory.clone(),
        clones: 1,
    };
    source.client.put("/fork", &spec)?;
    clone.client.put(
        "/snapshot/load",
        &SnapshotLoad::of_fork(state, memory.clone()),
    )?;
    clone.line()?;
    let answer_us = began.elapsed().as_secs_f64() * 1e6;
    let pause_us = source.paused_us()? - paused_before;
    // What it says next is of the time up to then: twice, to have all of it.
    let gap_us = source.gap_us()?.max(source.gap_us()?);
    drop(clone);
    let ended = || !memory.exists();
    wait_for("frozen memory", ended)?;
    Ok([pause_us, answer_us, gap_us])
}

fn wait_for(what: &'static str, is_there: impl Fn() -> bool) -> Result<(), ForkBenchError> {
    let began = Instant::now();
    while !is_there() {
        if began.elapsed() > PATIENCE {
            return Err(ForkBenchError::Silent { what });
        }
        thread::sleep(POLL_INTERVAL);
    }
    Ok(())
}

/// A monitor with its API; killed when it is dropped.
struct Monitor {
    child: Child,
    client: Client,
    lines: Receiver<String>,
}

impl Monitor {
    fn start(bench: &ForkBench, name: &str, args: &[&str]) -> Result<Self, ForkBenchError> {
        let socket = bench.work.join(format!("{name}.sock"));
        let failed = |cause| ForkBenchError::Start {
            program: bench.monitor.clone(),
            cause,
        };
        let mut command = Command::new(&bench.monitor);
        command
            .arg("--api-sock")
            .arg(&socket)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut child = command.spawn().map_err(failed)?;
        let stdout = child.stdout.take();
        let (sender, lines) = channel();
        // It ends with the monitor.
        thread::spawn(move || {
            let lines = stdout
                .map(BufReader::new)
                .into_iter()
                .flat_map(|out| out.lines());
            lines.flatten().try_for_each(|line| sender.send(line).ok())
        });
        let monitor = Self {
            child,
            client: Client::with_patience(&socket, PATIENCE),
            lines,
        };
        let is_served = || UnixStream::connect(&socket).is_ok();
        wait_for("a monitor", is_served)?;
        Ok(monitor)
    }

    fn line(&self) -> Result<String, ForkBenchError> {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => Ok(line),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                Err(ForkBenchError::Silent { what: "a guest" })
            }
        }
    }

    /// What was said before does not count.
    fn skip(&self) {
        while self.lines.try_recv().is_ok() {}
    }

    fn wait_for_round(&self, least: f64) -> Result<(), ForkBenchError> {
        loop {
            let line = self.line()?;
            if number(&line, "round").is_some_and(|round| round >= least) {
                return Ok(());
            }
        }
    }

    /// Of the next interval.
    fn gap_us(&self) -> Result<f64, ForkBenchError> {
        let line = self.line()?;
        let is_right = number(&line, "wrong") == Some(0.0);
        let gap = number(&line, "gap_us").filter(|_| is_right);
        gap.ok_or(ForkBenchError::Wrong { line })
    }

    /// How long it has stood still for forks so far.
    fn paused_us(&self) -> Result<f64, ForkBenchError> {
        const SUM: &str =
            "lightv_operation_duration_seconds_sum{operation=\"snapshot_live_pause\"} ";
        let answer = self.client.call("GET", "/metrics", None)?;
        let sum = answer.body.lines().find_map(|line| line.strip_prefix(SUM));
        let seconds: Option<f64> = sum.and_then(|text| text.parse().ok());
        Ok(seconds.ok_or(ForkBenchError::NoPause)? * 1e6)
    }
}

/// The number after the word `name`.
fn number(line: &str, name: &str) -> Option<f64> {
    let mut words = line.split(' ');
    words.find(|word| *word == name)?;
    words.next()?.parse().ok()
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
