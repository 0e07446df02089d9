//! `lightv bench pool`: how long a machine that is ready takes from the request to its guest's first byte, of a template of our own and
//! by a host agent.

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

use crate::host_agent::{HostAgent, HostAgentError, Programs};
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
    /// The program `lightv-agent`.
    pub agent: PathBuf,
    /// A folder for all that the agent has.
    pub work: PathBuf,
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
    /// The host agent fails, or a machine of it.
    #[error(transparent)]
    Agent(#[from] HostAgentError),
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

/// Measures requests one after the other, then [`PoolBench::callers`] at the same time, each of which finds a machine ready: of a
/// template of our own, and by a host agent, in turn. `progress` is told of every round.
///
/// # Errors
/// [`PoolBenchError`]: the first failure ends the benchmark.
pub fn measure(
    bench: &PoolBench,
    progress: &mut dyn FnMut(u32, u32) -> ControlFlow<()>,
) -> Result<Vec<Case>, PoolBenchError> {
    let template = Template::start(&bench.vmm, &bench.image, &Options::default())?;
    template.wait_ready(PATIENCE)?;
    let programs = Programs {
        agent: &bench.agent,
        monitor: &bench.vmm,
    };
    let mut agent = HostAgent::start(programs, &bench.work)?;
    agent.keep_ready(&bench.image, bench.callers)?;
    let (singles, bursts) = (bench.rounds + WARM_UP_ROUNDS, bench.bursts + 1);
    let mut done = 0;
    let mut next = || {
        done += 1;
        match progress(done, singles + bursts) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(PoolBenchError::Stopped),
        }
    };
    let mut found = Found::default();
    for round in 0..singles {
        let (ready, refill) = make(&template)?;
        let took = request(ready)?;
        thread::sleep(PAUSE);
        agent.wait_ready(bench.callers)?;
        let by_agent = agent.run()?;
        if round >= WARM_UP_ROUNDS {
            found.refill_us.push(us(refill));
            found.one_us[0].push(us(took));
            found.one_us[1].push(us(by_agent));
        }
        thread::sleep(PAUSE);
        next()?;
    }
    for burst in 0..bursts {
        let ready = (0..bench.callers).map(|_| make(&template).map(|(ready, _)| ready));
        let ready = ready.collect::<Result<Vec<_>, _>>()?;
        let own = at_once(ready, request)?;
        thread::sleep(PAUSE * bench.callers);
        agent.wait_ready(bench.callers)?;
        let callers = (0..bench.callers).collect();
        let by_agent = at_once(callers, |_| Ok(agent.run()?))?;
        if burst > 0 {
            found.note_burst([own, by_agent]);
        }
        thread::sleep(PAUSE * bench.callers);
        next()?;
    }
    found.cases(bench.callers)
}

/// What was found: by a template of our own, and by the agent.
#[derive(Default)]
struct Found {
    one_us: [Vec<f64>; 2],
    many_us: [Vec<f64>; 2],
    rates: [Vec<f64>; 2],
    refill_us: Vec<f64>,
}

impl Found {
    fn note_burst(&mut self, sides: [Vec<Duration>; 2]) {
        for (side, took) in sides.into_iter().enumerate() {
            let last = took.iter().max().copied().unwrap_or_default();
            self.rates[side].push(took.len() as f64 / last.as_secs_f64());
            self.many_us[side].extend(took.into_iter().map(us));
        }
    }

    fn cases(self, callers: u32) -> Result<Vec<Case>, PoolBenchError> {
        let sample = |values| Sample::new(values).ok_or(PoolBenchError::NoRounds);
        let [one, one_by_agent] = self.one_us;
        let [many, many_by_agent] = self.many_us;
        let [rate, rate_by_agent] = self.rates;
        let names = ["pool", "pool.agent"].map(|name| format!("{name}.{callers}"));
        let times = [
            (names[0].as_str(), sample(many)?),
            (names[1].as_str(), sample(many_by_agent)?),
            ("pool.refill", sample(self.refill_us)?),
            ("pool.agent.1", sample(one_by_agent)?),
            ("pool.1", sample(one)?),
        ];
        let mut cases = report::cases("us", &times);
        let names = names.map(|name| format!("{name}.rate"));
        let rates = [
            (names[1].as_str(), sample(rate_by_agent)?),
            (names[0].as_str(), sample(rate)?),
        ];
        cases.extend(report::cases("starts/s", &rates));
        Ok(cases)
    }
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

/// Does `call` with each at the same time.
fn at_once<T: Send>(
    each: Vec<T>,
    call: impl Fn(T) -> Result<Duration, PoolBenchError> + Sync,
) -> Result<Vec<Duration>, PoolBenchError> {
    let barrier = Barrier::new(each.len());
    let call = |one| {
        barrier.wait();
        call(one)
    };
    thread::scope(|scope| {
        let each = each.into_iter();
        let callers: Vec<_> = each.map(|one| scope.spawn(|| call(one))).collect();
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
