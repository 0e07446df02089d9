//! `lightv bench pool`: how long a machine that is ready takes from the request to its guest's first byte.

use std::fs::File;
use std::io::{self, Read as _};
use std::ops::ControlFlow;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use lightv_pool::{
    AssignError, Assignment, Exit, MachineError, News, Options, Ready, Template, TemplateError,
};

use crate::report::{self, Case};
use crate::stats::Sample;

/// Rounds before the first that counts.
const WARM_UP_ROUNDS: u32 = 10;
/// After the end of machines: KVM takes them apart after their processes have ended.
const PAUSE: Duration = Duration::from_millis(20);
/// For what takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is measured.
#[derive(Debug, Clone)]
pub struct PoolBench {
    /// The program `lightv-vmm`.
    pub vmm: PathBuf,
    /// The image; its guest prints something and ends.
    pub image: PathBuf,
    /// Requests one after the other.
    pub rounds: u32,
    /// How many come at the same time.
    pub callers: u32,
    /// How often they do.
    pub bursts: u32,
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum PoolBenchError {
    /// There is no template.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// There is no machine.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// It takes no work.
    #[error(transparent)]
    Assign(#[from] AssignError),
    /// Pipes cannot be made or read.
    #[error("Cannot use the standard streams of a machine")]
    Streams(#[source] io::Error),
    /// Its process cannot be waited for.
    #[error("Cannot wait for a machine's process")]
    Wait(#[source] io::Error),
    /// A machine failed: its time says nothing.
    #[error("A machine ended with {exit:?} after {news:?}")]
    Failed {
        /// How its process ended.
        exit: Exit,
        /// The first that it said.
        news: News,
    },
    /// It ended well but gave nothing out.
    #[error("A machine printed nothing")]
    Silent,
    /// It was to end.
    #[error("Stopped")]
    Stopped,
    /// No round was asked for.
    #[error("The number of rounds must be at least 1")]
    NoRounds,
}

/// Measures requests one after the other, then [`PoolBench::callers`] at the same time, each of which finds a machine ready.
/// `progress` is told of every round.
///
/// # Errors
/// [`PoolBenchError`]: the first failure ends the benchmark.
pub fn measure(
    bench: &PoolBench,
    progress: &mut dyn FnMut(u32, u32) -> ControlFlow<()>,
) -> Result<Vec<Case>, PoolBenchError> {
    let template = Template::start(&bench.vmm, &bench.image, &Options::default())?;
    template.wait_ready(PATIENCE)?;
    let (singles, bursts) = (bench.rounds + WARM_UP_ROUNDS, bench.bursts + 1);
    let mut done = 0;
    let mut next = || {
        done += 1;
        match progress(done, singles + bursts) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(PoolBenchError::Stopped),
        }
    };
    let (mut single_us, mut refill_us) = (Vec::new(), Vec::new());
    for round in 0..singles {
        let (ready, refill) = make(&template)?;
        let took = request(ready)?;
        if round >= WARM_UP_ROUNDS {
            single_us.push(us(took));
            refill_us.push(us(refill));
        }
        thread::sleep(PAUSE);
        next()?;
    }
    let (mut many_us, mut rates) = (Vec::new(), Vec::new());
    for burst in 0..bursts {
        let ready = (0..bench.callers).map(|_| make(&template).map(|(ready, _)| ready));
        let ready = ready.collect::<Result<Vec<_>, _>>()?;
        let took = at_once(ready)?;
        let last = took.iter().max().copied().unwrap_or_default();
        if burst > 0 {
            many_us.extend(took.into_iter().map(us));
            rates.push(f64::from(bench.callers) / last.as_secs_f64());
        }
        thread::sleep(PAUSE * bench.callers);
        next()?;
    }
    let sample = |values| Sample::new(values).ok_or(PoolBenchError::NoRounds);
    let many = format!("pool.{}", bench.callers);
    let rate = format!("{many}.rate");
    let mut cases = report::cases(
        "us",
        &[
            (many.as_str(), sample(many_us)?),
            ("pool.refill", sample(refill_us)?),
            ("pool.1", sample(single_us)?),
        ],
    );
    cases.extend(report::cases("starts/s", &[(&rate, sample(rates)?)]));
    Ok(cases)
}

/// A machine that is ready, and how long that took.
fn make(template: &Template) -> Result<(Ready, Duration), PoolBenchError> {
    let began = Instant::now();
    let ready = template.fork(PATIENCE)?.wait(PATIENCE)?;
    Ok((ready, began.elapsed()))
}

/// Gives a machine work, and waits for its first byte, and then for its end. The clock runs from before the request is written
/// to the byte.
fn request(ready: Ready) -> Result<Duration, PoolBenchError> {
    let (mut reader, writer) = io::pipe().map_err(PoolBenchError::Streams)?;
    let null = File::options().read(true).write(true).open("/dev/null");
    let null = null.map_err(PoolBenchError::Streams)?;
    let assignment = Assignment {
        id: "bench".to_owned(),
        ends_with_pool: true,
        ..Assignment::default()
    };
    let began = Instant::now();
    let streams = [null.as_fd(), writer.as_fd(), null.as_fd()];
    let mut running = ready.assign(&assignment, streams)?;
    drop(writer);
    let mut byte = [0];
    let bytes = reader.read(&mut byte).map_err(PoolBenchError::Streams)?;
    let took = began.elapsed();
    io::copy(&mut reader, &mut io::sink()).map_err(PoolBenchError::Streams)?;
    let exit = running.wait_exit(PATIENCE).map_err(PoolBenchError::Wait)?;
    if exit != Exit::Status(0) {
        let news = running.next()?.unwrap_or(News::Closed);
        return Err(PoolBenchError::Failed { exit, news });
    }
    match bytes {
        0 => Err(PoolBenchError::Silent),
        _ => Ok(took),
    }
}

/// Gives all of them work at once.
fn at_once(ready: Vec<Ready>) -> Result<Vec<Duration>, PoolBenchError> {
    let barrier = Barrier::new(ready.len());
    let call = |ready| {
        barrier.wait();
        request(ready)
    };
    thread::scope(|scope| {
        let ready = ready.into_iter();
        let callers: Vec<_> = ready.map(|ready| scope.spawn(|| call(ready))).collect();
        let end = |caller: thread::ScopedJoinHandle<'_, _>| {
            caller
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        // All have ended before the first error is told.
        let ends: Vec<_> = callers.into_iter().map(end).collect();
        ends.into_iter().collect()
    })
}

fn us(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
