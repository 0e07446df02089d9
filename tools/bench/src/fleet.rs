//! Many machines of one image at a time, each of which answers on its vsock.

use std::io::{self, BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::process::{self, Scheduled};

/// The guest's port on which what is sent comes back.
const PORT: u32 = 7;
/// How long a machine may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a socket that is not there yet is looked for.
const AGAIN: Duration = Duration::from_micros(200);

/// A machine that runs.
#[derive(Debug)]
struct Member {
    child: Child,
    socket: PathBuf,
}

/// Machines that run; killed when they are dropped.
#[derive(Debug, Default)]
pub(crate) struct Fleet {
    members: Vec<Member>,
}

/// What is started.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Recipe<'a> {
    /// The program `lightv`.
    pub(crate) lightv: &'a Path,
    /// An image whose guest sends back what comes to [`PORT`].
    pub(crate) image: &'a Path,
    /// A folder for the machines' sockets.
    pub(crate) work: &'a Path,
    /// Options of `lightv run`.
    pub(crate) options: &'a [&'a str],
}

/// How starting went.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) fleet: Fleet,
    /// From before the spawn to the answer, in microseconds, of those that answered.
    pub(crate) latencies_us: Vec<f64>,
    /// Machines that did not answer.
    pub(crate) failures: u32,
}

impl Fleet {
    /// Starts `count` machines, as many at a time as there are `callers`, each of which waits for its machine's answer before
    /// it starts another. `progress` is told of each; it ends the whole when it says so.
    ///
    /// # Errors
    /// A process cannot be started.
    pub(crate) fn start(
        recipe: Recipe<'_>,
        count: u32,
        callers: u32,
        progress: &(dyn Fn() -> bool + Sync),
    ) -> io::Result<Started> {
        let next = AtomicU32::new(0);
        let started = Mutex::new(Started {
            fleet: Self::default(),
            latencies_us: Vec::new(),
            failures: 0,
        });
        let lock = || started.lock().unwrap_or_else(|broken| broken.into_inner());
        let caller = || -> io::Result<()> {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count || !progress() {
                    return Ok(());
                }
                let began = Instant::now();
                let member = Member::start(recipe, number)?;
                let answer = ask(&member.socket, number);
                let us = began.elapsed().as_secs_f64() * 1e6;
                let mut started = lock();
                started.fleet.members.push(member);
                match answer {
                    Ok(()) => started.latencies_us.push(us),
                    Err(_) => started.failures += 1,
                }
            }
        };
        by_callers(callers, caller)?;
        Ok(started
            .into_inner()
            .unwrap_or_else(|broken| broken.into_inner()))
    }

    /// How many of the machines at `places` do not answer.
    pub(crate) fn silent(&self, places: impl Iterator<Item = usize>) -> u32 {
        let is_silent = |place: &usize| {
            let nonce = u32::try_from(*place).unwrap_or(u32::MAX);
            let member = self.members.get(*place);
            member.is_none_or(|member| ask(&member.socket, !nonce).is_err())
        };
        u32::try_from(places.filter(is_silent).count()).unwrap_or(u32::MAX)
    }

    pub(crate) fn len(&self) -> usize {
        self.members.len()
    }

    /// Processor time that all threads of all machines have had.
    pub(crate) fn cpu(&self) -> io::Result<Duration> {
        Ok(self.scheduled()?.iter().map(|each| each.cpu).sum())
    }

    /// What the threads of each machine have had.
    pub(crate) fn scheduled(&self) -> io::Result<Vec<Scheduled>> {
        let scheduled = |member: &Member| process::scheduled(member.child.id());
        self.members.iter().map(scheduled).collect()
    }

    /// Threads of each machine.
    pub(crate) fn threads(&self) -> io::Result<Vec<f64>> {
        let threads = |member: &Member| process::threads(member.child.id());
        let counts = self.members.iter().map(threads);
        counts
            .map(|count| count.map(|count| count as f64))
            .collect()
    }

    /// Open files of each machine of which they are told.
    pub(crate) fn files(&self) -> Vec<f64> {
        let files = |member: &Member| process::files(member.child.id());
        self.members
            .iter()
            .filter_map(files)
            .map(|count| count as f64)
            .collect()
    }

    /// Memory of each machine's process in KiB, with its share of what several have.
    pub(crate) fn pss_kib(&self) -> io::Result<Vec<f64>> {
        let pss = |member: &Member| process::pss_kib(member.child.id());
        self.members.iter().map(pss).collect()
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // All before the first is waited for: KVM takes them apart at the same time.
        for member in &mut self.members {
            // One that has ended already needs none.
            let _ = member.child.kill();
        }
        for member in &mut self.members {
            let _ = member.child.wait();
        }
    }
}

impl Member {
    fn start(recipe: Recipe<'_>, number: u32) -> io::Result<Self> {
        let socket = recipe.work.join(format!("{number}.sock"));
        let mut command = Command::new(recipe.lightv);
        command.arg("run").args(recipe.options);
        command.args(["--no-tty", "--vsock"]).arg(&socket);
        command.arg(recipe.image);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = command.spawn()?;
        Ok(Self { child, socket })
    }
}

/// Sends a number to a machine and waits until it comes back.
fn ask(socket: &Path, nonce: u32) -> io::Result<()> {
    let mut stream = connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    writeln!(stream, "CONNECT {PORT}")?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    if !line.starts_with("OK ") {
        return Err(ErrorKind::ConnectionRefused.into());
    }
    stream.write_all(&nonce.to_le_bytes())?;
    let mut answer = [0; 4];
    reader.read_exact(&mut answer)?;
    if u32::from_le_bytes(answer) == nonce {
        Ok(())
    } else {
        Err(ErrorKind::InvalidData.into())
    }
}

/// Connects to a socket that may not be there yet.
fn connect(socket: &Path) -> io::Result<UnixStream> {
    let until = Instant::now() + PATIENCE;
    loop {
        match UnixStream::connect(socket) {
            Err(cause)
                if matches!(
                    cause.kind(),
                    ErrorKind::NotFound | ErrorKind::ConnectionRefused
                ) && Instant::now() < until =>
            {
                thread::sleep(AGAIN);
            }
            done => return done,
        }
    }
}

/// Has `callers` threads, at least one, do the same, and waits for all.
///
/// # Errors
/// The first one's.
pub(crate) fn by_callers<E: Send>(
    callers: u32,
    body: impl Fn() -> Result<(), E> + Sync,
) -> Result<(), E> {
    thread::scope(|scope| {
        let callers: Vec<_> = (0..callers.max(1)).map(|_| scope.spawn(&body)).collect();
        let end = |caller: thread::ScopedJoinHandle<'_, _>| {
            caller
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        // All have ended before the first error is told.
        let ends: Vec<Result<(), E>> = callers.into_iter().map(end).collect();
        ends.into_iter().collect()
    })
}
