//! `lightv bench cpu` and `mem`: the routines of `lightv-workloads` in a guest's user code and here, in turn.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use lightv_workloads::suite::{self, MemoryRoom};

use crate::guest::{Guest, GuestError};
use crate::report::{self, Case};
use crate::stats::Sample;

/// Which routines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suite {
    /// Of the CPU.
    Cpu,
    /// Of memory.
    Mem,
}

impl Suite {
    /// Its name, and the guest's app.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Mem => "mem",
        }
    }
}

/// What is measured.
#[derive(Debug, Clone)]
pub struct ComputeBench {
    /// A guest that runs the suite.
    pub guest: Guest,
    /// Which.
    pub suite: Suite,
    /// Rounds that count.
    pub rounds: u32,
    /// How long each routine is repeated on each side of a round.
    pub time: Duration,
}

/// Units of work a second, by routine, in the order of the suite.
type Rates = Vec<(String, f64)>;

/// Measures each routine in the guest and here, in turn; the guest's are compared with the host's. `progress` is told after
/// each round.
///
/// # Errors
/// [`GuestError`].
pub fn measure(bench: &ComputeBench, progress: impl Fn(u32, u32)) -> Result<Vec<Case>, GuestError> {
    let mut samples: BTreeMap<(usize, String), [Vec<f64>; 2]> = BTreeMap::new();
    // The first round warms caches and clocks up, and does not count.
    for round in 0..=bench.rounds {
        // Who is first has what the other has left in the caches: in turn.
        let (guest, host) = if round % 2 == 0 {
            let guest = in_guest(bench)?;
            (guest, here(bench))
        } else {
            let host = here(bench);
            (in_guest(bench)?, host)
        };
        progress(round, bench.rounds);
        if round == 0 {
            continue;
        }
        for (place, ((name, guest), (_, host))) in guest.into_iter().zip(host).enumerate() {
            let [guests, hosts] = samples.entry((place, name)).or_default();
            guests.push(guest / 1e6);
            hosts.push(host / 1e6);
        }
    }
    Ok(samples
        .into_iter()
        .flat_map(|((_, name), sides)| cases(bench.suite, &name, sides))
        .collect())
}

fn cases(suite: Suite, name: &str, [guest, host]: [Vec<f64>; 2]) -> Vec<Case> {
    let (Some(guest), Some(host)) = (Sample::new(guest), Sample::new(host)) else {
        return Vec::new();
    };
    let case = format!("{}.{name}", suite.name());
    let native = format!("native.{case}");
    report::cases("M/s", &[(&case, guest), (&native, host)])
}

fn in_guest(bench: &ComputeBench) -> Result<Rates, GuestError> {
    let ms = bench.time.as_millis().max(1).to_string();
    let printed = bench.guest.run(&[&format!("{ms}ms")])?;
    let rates = printed.records().map(|record| {
        let name = record.get("name").ok_or_else(|| printed.silent("name"))?;
        Ok(((*name).to_owned(), printed.number(&record, "rate")?))
    });
    rates.collect()
}

fn here(bench: &ComputeBench) -> Rates {
    let mut rates = Rates::new();
    let mut measure = |name: &str, units: u64, routine: &mut dyn FnMut()| {
        let began = Instant::now();
        let mut times = 0_u64;
        // Once at least, as in the guest.
        while times == 0 || began.elapsed() < bench.time {
            routine();
            times += 1;
        }
        let work = (times * units) as f64;
        rates.push((name.to_owned(), work / began.elapsed().as_secs_f64()));
    };
    match bench.suite {
        Suite::Cpu => {
            let mut sieve = vec![false; suite::SIEVE_LEN];
            suite::cpu(&vec![0x5a; suite::MESSAGE_BYTES], &mut sieve, &mut measure);
        }
        Suite::Mem => {
            let array = || vec![0.0; suite::ARRAY_BYTES_MAX / size_of::<f64>()];
            let (mut a, mut b, mut c) = (array(), array(), array());
            let mut next = vec![0; suite::ARRAY_BYTES_MAX / size_of::<u32>()];
            let room = MemoryRoom {
                a: &mut a,
                b: &mut b,
                c: &mut c,
                next: &mut next,
            };
            suite::mem(room, &mut measure);
        }
    }
    rates
}
