//! `lightv bench disk`: a guest's disk and the file that it is, read and written by the same plan, in turn.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Instant;

use lightv_workloads::disk::{Order, Plan};

use crate::guest::{Exits, Guest, GuestError};
use crate::report::{self, Case};
use crate::stats::Sample;
use crate::sys::{Completion, Ring};

/// Seed of the places of random requests; the round is added.
const SEED: u64 = 1;
/// What direct I/O needs of addresses at most.
const ALIGN: usize = 4096;

/// How often the doorbell is rung in a round.
const DOORBELLS: u32 = 2000;

/// What is measured.
#[derive(Debug, Clone)]
pub struct DiskBench {
    /// The disk: a file of zeroes or whatever else.
    pub file: PathBuf,
    /// A guest whose disk it is, by the host's page cache.
    pub cached: Guest,
    /// A guest whose disk it is, past the host's page cache and with the asynchronous engine; `None` where the file system has
    /// no direct I/O.
    pub direct: Option<Guest>,
    /// Rounds that count.
    pub rounds: u32,
    /// Bytes that a case moves in a round.
    pub bytes: u64,
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum DiskBenchError {
    /// The guest's side failed.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// Our side failed.
    #[error("Cannot {what} {}", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
}

/// One way of using a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Way {
    order: &'static str,
    request_bytes: u64,
    writes: bool,
    direct: bool,
    depth: usize,
}

impl Way {
    fn name(&self) -> String {
        let direction = if self.writes { "write" } else { "read" };
        let cache = if self.direct { "direct" } else { "cached" };
        format!("disk.{}.{direction}.{cache}.qd{}", self.order, self.depth)
    }

    /// Direct requests take a hundred times as long as cached ones: fewer of the small ones.
    fn count(&self, bytes: u64) -> u64 {
        let is_slow = self.direct && self.order == "rand";
        let bytes = if is_slow { bytes / 16 } else { bytes };
        (bytes / self.request_bytes).max(1)
    }
}

fn ways(has_direct: bool) -> Vec<Way> {
    let mut ways = Vec::new();
    for direct in [false, true]
        .into_iter()
        .filter(|direct| has_direct || !direct)
    {
        for (order, request_bytes) in [("seq", 1 << 20), ("rand", 4096)] {
            for writes in [false, true] {
                for depth in [1, 32] {
                    ways.push(Way {
                        order,
                        request_bytes,
                        writes,
                        direct,
                        depth,
                    });
                }
            }
        }
    }
    ways
}

/// What one side of a round found.
#[derive(Debug, Clone, Copy)]
struct Measured {
    mb_per_s: f64,
    p50_us: f64,
    p99_us: f64,
    /// Processor seconds for a GB; the host's own side is not told apart from ours.
    cpu_s_per_gb: Option<f64>,
    /// For each request; the host has none.
    exits: Option<Exits>,
}

/// Measures every way in the guest and here, in turn. The unit is MB/s; `….p50` and `….p99` are the latencies of requests,
/// `….cpu` processor time, `….exits` and `….exits.user` exits for each request. `disk.doorbell` is what the guest's write to
/// QueueNotify takes by itself: no request can be quicker. `progress` is told after each round of a way.
///
/// # Errors
/// [`DiskBenchError`].
pub fn measure(
    bench: &DiskBench,
    progress: impl Fn(u32, u32),
) -> Result<Vec<Case>, DiskBenchError> {
    warm_up(&bench.file)?;
    let ways = ways(bench.direct.is_some());
    let of = u32::try_from(ways.len()).unwrap_or(0) * (bench.rounds + 1);
    let at_rest = AtRest::measure(bench)?;
    let mut done = 0;
    let mut cases = Vec::new();
    for way in &ways {
        let mut sides: [Vec<Measured>; 2] = [Vec::new(), Vec::new()];
        for round in 0..=bench.rounds {
            let guest = in_guest(bench, way, round, at_rest.of(way))?;
            let host = here(bench, way, round)?;
            done += 1;
            progress(done, of);
            // The first one does not count.
            if round > 0 {
                let [guests, hosts] = &mut sides;
                guests.push(guest);
                hosts.push(host);
            }
        }
        cases.extend(summed_up(&way.name(), &sides));
    }
    cases.extend(doorbell(bench)?);
    Ok(cases)
}

/// The exit that a request cannot do without where the device sleeps.
fn doorbell(bench: &DiskBench) -> Result<Vec<Case>, GuestError> {
    let mut us = Vec::new();
    for _ in 0..bench.rounds {
        let printed = bench.cached.run(&["doorbell", &DOORBELLS.to_string()])?;
        let record = printed.records().next().unwrap_or_default();
        us.push(printed.number(&record, "p50_ns")? / 1000.0);
    }
    let sample = Sample::new(us).map(|sample| ("disk.doorbell", sample));
    Ok(report::cases("us", sample.as_slice()))
}

fn summed_up(name: &str, [guest, host]: &[Vec<Measured>; 2]) -> Vec<Case> {
    let native = format!("native.{name}");
    let mut cases = Vec::new();
    let mut add = |suffix: &str, unit: &str, of: &dyn Fn(&Measured) -> Option<f64>| {
        let sample = |side: &[Measured]| Sample::new(side.iter().filter_map(of).collect());
        let names = [name, &native].map(|name| format!("{name}{suffix}"));
        let [guest_name, host_name] = &names;
        let mut samples = Vec::new();
        samples.extend(sample(guest).map(|sample| (guest_name.as_str(), sample)));
        samples.extend(sample(host).map(|sample| (host_name.as_str(), sample)));
        cases.extend(report::cases(unit, &samples));
    };
    add("", "MB/s", &|side| Some(side.mb_per_s));
    add(".p50", "us", &|side| Some(side.p50_us));
    add(".p99", "us", &|side| Some(side.p99_us));
    add(".cpu", "s/GB", &|side| side.cpu_s_per_gb);
    let exits: Vec<Exits> = guest.iter().filter_map(|side| side.exits).collect();
    cases.extend(report::exits(name, "exits/request", &exits));
    cases
}

/// Exits of a run of one request, for each guest: what start and end of a run take.
struct AtRest {
    cached: Option<Exits>,
    direct: Option<Exits>,
}

impl AtRest {
    fn measure(bench: &DiskBench) -> Result<Self, GuestError> {
        let exits = |guest: &Guest| {
            let printed = guest.run(&["read", "seq", "4096", "1", "1", "1"])?;
            Ok(printed.exits)
        };
        Ok(Self {
            cached: exits(&bench.cached)?,
            direct: bench.direct.as_ref().map_or(Ok(None), exits)?,
        })
    }

    const fn of(&self, way: &Way) -> Option<Exits> {
        if way.direct { self.direct } else { self.cached }
    }
}

fn seed(round: u32) -> u64 {
    SEED + u64::from(round)
}

fn in_guest(
    bench: &DiskBench,
    way: &Way,
    round: u32,
    at_rest: Option<Exits>,
) -> Result<Measured, DiskBenchError> {
    let guest = match &bench.direct {
        Some(guest) if way.direct => guest,
        _ => &bench.cached,
    };
    let count = way.count(bench.bytes);
    let printed = guest.run(&[
        if way.writes { "write" } else { "read" },
        way.order,
        &way.request_bytes.to_string(),
        &way.depth.to_string(),
        &count.to_string(),
        &seed(round).to_string(),
    ])?;
    let record = printed.records().next().unwrap_or_default();
    let number = |name| printed.number(&record, name);
    let (bytes, ns) = (number("bytes")?, number("ns")?);
    Ok(Measured {
        mb_per_s: bytes / ns * 1000.0,
        p50_us: number("p50_ns")? / 1000.0,
        p99_us: number("p99_ns")? / 1000.0,
        cpu_s_per_gb: Some(printed.cpu.as_secs_f64() / bytes * 1e9),
        exits: printed
            .exits
            .zip(at_rest)
            .map(|(exits, at_rest)| exits.less(at_rest).per((count - 1).max(1) as f64)),
    })
}

fn here(bench: &DiskBench, way: &Way, round: u32) -> Result<Measured, DiskBenchError> {
    let failed = |what| {
        move |cause| DiskBenchError::File {
            what,
            path: bench.file.clone(),
            cause,
        }
    };
    let file = open(&bench.file, way).map_err(failed("open"))?;
    let disk_bytes = file.metadata().map_err(failed("find the length of"))?.len();
    let order = match way.order {
        "rand" => Order::Random(seed(round)),
        _ => Order::Sequential,
    };
    let plan = Plan {
        request_bytes: way.request_bytes,
        disk_bytes,
        order,
    };
    let count = usize::try_from(way.count(bench.bytes)).unwrap_or(usize::MAX);
    let mut latencies = Vec::with_capacity(count);
    let began = Instant::now();
    // What lies in memory is copied by the caller whatever the depth: a ring would only add to that.
    let moved = if way.direct && way.depth > 1 {
        let bytes = usize::try_from(way.request_bytes).unwrap_or(0);
        let ring = Ring::new(file, way.depth, bytes);
        ring.and_then(|ring| at_depth(ring, plan.places().take(count), way.writes, &mut latencies))
    } else {
        one_by_one(&file, plan.places().take(count), way, &mut latencies)
    };
    moved.map_err(failed("read or write"))?;
    let seconds = began.elapsed().as_secs_f64();
    let bytes = (count as u64 * way.request_bytes) as f64;
    let latency =
        |percent| Sample::new(latencies.clone()).map_or(0.0, |sample| sample.percentile(percent));
    Ok(Measured {
        mb_per_s: bytes / seconds / 1e6,
        p50_us: latency(50),
        p99_us: latency(99),
        cpu_s_per_gb: None,
        exits: None,
    })
}

fn open(path: &Path, way: &Way) -> io::Result<File> {
    let direct = if way.direct { libc::O_DIRECT } else { 0 };
    OpenOptions::new()
        .read(true)
        .write(way.writes)
        .custom_flags(direct)
        .open(path)
}

fn one_by_one(
    file: &File,
    places: impl Iterator<Item = u64>,
    way: &Way,
    latencies: &mut Vec<f64>,
) -> io::Result<()> {
    let bytes = usize::try_from(way.request_bytes).unwrap_or(0);
    // As many buffers as the guest has, in turn: one alone would stay in the CPU's cache.
    let stride = bytes.next_multiple_of(ALIGN);
    let mut memory = vec![0x5a; stride * way.depth + ALIGN];
    let first = memory.as_ptr().align_offset(ALIGN);
    for (number, place) in places.enumerate() {
        let start = first + number % way.depth * stride;
        let buffer = &mut memory[start..start + bytes];
        let began = Instant::now();
        if way.writes {
            file.write_all_at(buffer, place)?;
        } else {
            file.read_exact_at(buffer, place)?;
        }
        latencies.push(began.elapsed().as_secs_f64() * 1e6);
    }
    Ok(())
}

fn at_depth(
    mut ring: Ring,
    mut places: impl Iterator<Item = u64>,
    writes: bool,
    latencies: &mut Vec<f64>,
) -> io::Result<()> {
    let mut began = vec![Instant::now(); ring.depth()];
    let mut under_way = 0;
    let mut begin = |ring: &mut Ring, began: &mut [Instant], buffer: usize| {
        let Some(place) = places.next() else {
            return Ok(0);
        };
        began[buffer] = Instant::now();
        ring.prepare(buffer, place, writes).map(|()| 1)
    };
    for buffer in 0..ring.depth() {
        under_way += begin(&mut ring, &mut began, buffer)?;
    }
    while under_way > 0 {
        let Completion { buffer, result } = ring.wait()?;
        result?;
        latencies.push(began[buffer].elapsed().as_secs_f64() * 1e6);
        under_way -= 1;
        under_way += begin(&mut ring, &mut began, buffer)?;
    }
    Ok(())
}

/// Makes a file of `bytes` that holds something, so that no part of it is a hole.
///
/// # Errors
/// [`DiskBenchError::File`].
pub fn make_file(path: &Path, bytes: u64) -> Result<(), DiskBenchError> {
    let make = || {
        let mut file = File::create_new(path)?;
        let part = vec![0xa5; 1 << 20];
        let mut left = bytes;
        while left > 0 {
            let now = usize::try_from(left).unwrap_or(part.len()).min(part.len());
            file.write_all(&part[..now])?;
            left -= now as u64;
        }
        file.sync_all()
    };
    make().map_err(|cause| DiskBenchError::File {
        what: "write",
        path: path.into(),
        cause,
    })
}

/// Whether the file can be read past the host's page cache.
#[must_use]
pub fn has_direct(path: &Path) -> bool {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .is_ok()
}

/// Brings all of it into memory.
fn warm_up(path: &Path) -> Result<(), DiskBenchError> {
    let read = || {
        let mut file = File::open(path)?;
        let mut part = vec![0; 1 << 20];
        while file.read(&mut part)? > 0 {}
        Ok(())
    };
    read().map_err(|cause| DiskBenchError::File {
        what: "read",
        path: path.into(),
        cause,
    })
}
