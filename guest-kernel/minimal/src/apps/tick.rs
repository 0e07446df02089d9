//! `tick [COUNT [INTERVAL_MS]]`: prints `tick N` at every interval, asleep in between. COUNT 0 = for ever.

use super::{Refusal, STATUS_OK};
use crate::machine::{Epoch, Machine};
use crate::{println, time};

const INTERVAL_MS: u64 = 100;
const NS_PER_MS: u64 = 1_000_000;

pub fn run(machine: &mut Machine) -> Result<u8, Refusal> {
    time::init();
    let mut epoch = Epoch::now();
    machine.ready();
    let mut settings = Settings::read(machine)?;
    let mut next_ns = time::now_ns() + settings.interval_ns;
    let mut tick = 1_u64;
    loop {
        if sleep(next_ns, &mut epoch) == Wake::Restored {
            settings = Settings::read(machine)?;
            next_ns = time::now_ns();
        }
        println!("tick {tick}");
        if tick == settings.count {
            return Ok(STATUS_OK);
        }
        tick += 1;
        // Late by more than an interval: the ticks in between are not made up for.
        next_ns = (next_ns + settings.interval_ns).max(time::now_ns());
    }
}

#[derive(PartialEq)]
enum Wake {
    Time,
    Restored,
}

/// Until it is time, or the guest finds itself restored, perhaps on a host whose counter stands elsewhere.
fn sleep(until_ns: u64, epoch: &mut Epoch) -> Wake {
    loop {
        if epoch.changed() {
            return Wake::Restored;
        }
        if time::now_ns() >= until_ns {
            return Wake::Time;
        }
        time::wait_until(until_ns);
    }
}

struct Settings {
    count: u64,
    interval_ns: u64,
}

impl Settings {
    fn read(machine: &Machine) -> Result<Self, Refusal> {
        let interval_ms = machine.number(1, INTERVAL_MS)?;
        Ok(Self {
            count: machine.number(0, 0)?,
            interval_ns: interval_ms.saturating_mul(NS_PER_MS),
        })
    }
}
