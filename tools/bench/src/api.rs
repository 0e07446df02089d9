//! `lightv bench api`: the round trip of `GET /`, next to an echo over a socket of the same kind, and what the server takes.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::process;
use crate::report::{self, Case};
use crate::stats::Sample;

/// Rounds before the first that counts.
const WARM_UP_ROUNDS: u32 = 50;
/// How long the monitor may take until it serves.
const PATIENCE: Duration = Duration::from_secs(10);
/// The monitor gives back the pages that only its start needed after a second of nothing to do.
const SETTLED: Duration = Duration::from_millis(1500);

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// What is measured.
#[derive(Debug, Clone)]
pub struct ApiBench {
    /// The program `lightv-vmm`.
    pub monitor: PathBuf,
    /// An image of a guest that sleeps.
    pub image: PathBuf,
    /// A folder for sockets.
    pub work: PathBuf,
    /// Rounds that count.
    pub rounds: u32,
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum ApiBenchError {
    /// The monitor could not be started.
    #[error("Cannot start {}", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// It does not serve.
    #[error("The monitor does not serve {}", socket.display())]
    Silent {
        /// Its socket.
        socket: PathBuf,
    },
    /// A socket failed.
    #[error("Cannot {what}")]
    Io {
        /// What was done.
        what: &'static str,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// No round was asked for.
    #[error("The number of rounds must be at least 1")]
    NoRounds,
}

/// Measures `api.get` (a kept connection) and `api.get.new` (a connection for each request) against `echo` and
/// `echo.new`, in turn, in microseconds; then processor time a request, and memory of the idle monitor.
///
/// # Errors
/// [`ApiBenchError`]: an answer that is none is no measurement.
pub fn measure(bench: &ApiBench) -> Result<Vec<Case>, ApiBenchError> {
    let monitor = Monitor::start(bench)?;
    thread::sleep(SETTLED);
    let pss_idle = monitor.pss_kib()?;
    let echo = bench.work.join("echo.sock");
    let answer_bytes = call_new(&monitor.socket)?;
    serve_echo(&echo, answer_bytes)?;
    let sides = [&monitor.socket, &echo];
    let mut kept = Vec::new();
    for side in sides {
        kept.push(UnixStream::connect(side).map_err(failed("connect"))?);
    }
    let mut samples: [Vec<f64>; 4] = std::array::from_fn(|_| Vec::new());
    let [get, echo_kept, get_new, echo_new] = &mut samples;
    let before = monitor.server_cpu_us()?;
    for round in 0..bench.rounds + WARM_UP_ROUNDS {
        for (stream, sample) in kept.iter_mut().zip([&mut *get, &mut *echo_kept]) {
            let began = Instant::now();
            call(stream)?;
            note(sample, round, began);
        }
        for (side, sample) in sides.iter().zip([&mut *get_new, &mut *echo_new]) {
            let began = Instant::now();
            call_new(side)?;
            note(sample, round, began);
        }
    }
    let requests = f64::from(2 * (bench.rounds + WARM_UP_ROUNDS));
    let cpu_us = (monitor.server_cpu_us()? - before) / requests;
    thread::sleep(SETTLED);
    let pss_after = monitor.pss_kib()?;
    let mut cases = Vec::new();
    for pair in [
        [("api.get", &*get), ("echo", &*echo_kept)],
        [("api.get.new", &*get_new), ("echo.new", &*echo_new)],
    ] {
        cases.extend(report::cases("us", &sampled(pair)?));
    }
    cases.extend(report::cases("us", &one("api.cpu", cpu_us)?));
    cases.extend(report::cases("KiB", &one("api.pss.idle", pss_idle)?));
    cases.extend(report::cases("KiB", &one("api.pss.used", pss_after)?));
    Ok(cases)
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> ApiBenchError {
    move |cause| ApiBenchError::Io { what, cause }
}

fn note(sample: &mut Vec<f64>, round: u32, began: Instant) {
    if round >= WARM_UP_ROUNDS {
        sample.push(began.elapsed().as_secs_f64() * 1e6);
    }
}

fn sampled<'a>(pair: [(&'a str, &Vec<f64>); 2]) -> Result<Vec<(&'a str, Sample)>, ApiBenchError> {
    let sample = |(name, values): (&'a str, &Vec<f64>)| Some((name, Sample::new(values.clone())?));
    let samples: Option<Vec<_>> = pair.into_iter().map(sample).collect();
    samples.ok_or(ApiBenchError::NoRounds)
}

fn one(name: &str, value: f64) -> Result<Vec<(&str, Sample)>, ApiBenchError> {
    let sample = Sample::new(vec![value]).ok_or(ApiBenchError::NoRounds)?;
    Ok(vec![(name, sample)])
}

/// Sends a request on a connection of its own; gives the answer's length.
fn call_new(socket: &Path) -> Result<usize, ApiBenchError> {
    let mut stream = UnixStream::connect(socket).map_err(failed("connect"))?;
    call(&mut stream)
}

/// Sends a request and reads the whole answer; gives its length.
fn call(stream: &mut UnixStream) -> Result<usize, ApiBenchError> {
    stream.write_all(REQUEST).map_err(failed("ask"))?;
    let mut answer = [0; 2048];
    let mut length = 0;
    loop {
        let rest = answer.get_mut(length..).unwrap_or_default();
        let read = stream.read(rest).map_err(failed("read an answer"))?;
        length += read;
        let so_far = answer.get(..length).unwrap_or_default();
        // The body of `GET /` ends with its only closing brace.
        if so_far.ends_with(b"}") {
            return Ok(length);
        }
        if read == 0 {
            let cause = io::ErrorKind::UnexpectedEof.into();
            return Err(failed("read an answer")(cause));
        }
    }
}

/// Answers every request with `answer_bytes` bytes, each connection on a thread of its own, until the process ends.
fn serve_echo(socket: &Path, answer_bytes: usize) -> Result<(), ApiBenchError> {
    let listener = UnixListener::bind(socket).map_err(failed("listen"))?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || echo(stream, answer_bytes));
        }
    });
    Ok(())
}

fn echo(mut stream: UnixStream, answer_bytes: usize) {
    let mut answer = vec![b' '; answer_bytes];
    if let Some(last) = answer.last_mut() {
        *last = b'}';
    }
    let mut request = [0; REQUEST.len()];
    while stream.read_exact(&mut request).is_ok() && stream.write_all(&answer).is_ok() {}
}

/// A monitor with its API; killed when it is dropped.
struct Monitor {
    child: Child,
    socket: PathBuf,
}

impl Monitor {
    fn start(bench: &ApiBench) -> Result<Self, ApiBenchError> {
        let socket = bench.work.join("api.sock");
        let mut command = Command::new(&bench.monitor);
        command
            .arg("--api-sock")
            .arg(&socket)
            .arg("--restore")
            .arg(&bench.image)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let child = command.spawn().map_err(|cause| ApiBenchError::Start {
            program: bench.monitor.clone(),
            cause,
        })?;
        let monitor = Self { child, socket };
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            if UnixStream::connect(&monitor.socket).is_ok() {
                return Ok(monitor);
            }
            thread::sleep(Duration::from_millis(5));
        }
        Err(ApiBenchError::Silent {
            socket: monitor.socket.clone(),
        })
    }

    /// Proportional set size of all of it, guest memory too.
    fn pss_kib(&self) -> Result<f64, ApiBenchError> {
        process::pss_kib(self.child.id()).map_err(failed("read the monitor's memory"))
    }

    /// Processor time of the threads `api` and `api-machine` so far.
    fn server_cpu_us(&self) -> Result<f64, ApiBenchError> {
        let cpu = process::cpu_of_named(self.child.id(), |name| name.starts_with("api"));
        let cpu = cpu.map_err(failed("read the processor time of the monitor's threads"))?;
        Ok(cpu.as_secs_f64() * 1e6)
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
