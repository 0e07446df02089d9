//! `raw [DEVICE…]`: a hostile guest. It drives every device by hand and breaks the rules of each in every way that is listed here; after
//! each attack other devices must work, and the device itself after a reset.
//!
//! The devices' turns begin when somebody presses Ctrl-Alt-Del, so that the host can look at the monitor between them.

mod card;
mod chains;
mod device;
mod disk;
mod flips;
mod memory;
mod places;
mod platform;
mod ports;
mod sockets;
mod target;
mod transport;

use alloc::vec::Vec;
use core::fmt;

use self::device::{Outcome, Raw};
use self::flips::Flipper;
use self::platform::Platform;
use self::target::{Kind, Target};
use super::{Refusal, STATUS_FAILED, STATUS_OK};
use crate::machine::Machine;
use crate::{eprintln, println, time};

type Attack = fn(&mut Target) -> Outcome;
type Attacks = &'static [(&'static str, Attack)];

/// What is no virtio device, as a name.
const PLATFORM: &str = "platform";
/// What comes after the last device.
const END: &str = "end";
/// End of what is RAM below the hole, at most.
const HOLE_START: u64 = 3 << 30;

pub fn run(machine: &mut Machine) -> Result<u8, Refusal> {
    time::init();
    let ram_end = (machine.ram_bytes as u64).min(HOLE_START);
    let raws = machine.cmdline.mmio_devices().filter_map(Raw::take);
    let mut targets: Vec<Target> = raws
        .filter_map(|raw| Target::new(raw, ram_end, Flipper::NONE))
        .collect();
    let mut failures = 0;
    for target in &mut targets {
        if let Err(why) = target.name_by_id().and_then(|()| target.restart()) {
            eprintln!("{} does not start: {why}", target.name);
            failures += 1;
        }
    }
    machine.ready();
    for index in 0..targets.len() {
        if !is_wanted(machine, &targets[index].name) {
            continue;
        }
        let mut batch = Batch {
            targets: &mut targets,
            index,
            attacks: 0,
            failures: 0,
        };
        batch.run();
        failures += batch.failures;
    }
    if is_wanted(machine, PLATFORM) {
        failures += attack_platform(&mut targets, ram_end);
    }
    // The host looks at the monitor once more.
    println!("ready {END}");
    platform::wait_for_keys();
    Ok(if failures == 0 {
        STATUS_OK
    } else {
        STATUS_FAILED
    })
}

/// Whether a device is to be attacked: all are where none is named.
fn is_wanted(machine: &Machine, name: &str) -> bool {
    machine.args().next().is_none() || machine.args().any(|wanted| wanted == name)
}

/// The attacks on one of the devices.
struct Batch<'a> {
    targets: &'a mut [Target],
    index: usize,
    attacks: u32,
    failures: u32,
}

impl Batch<'_> {
    fn run(&mut self) {
        println!("ready {}", self.target().name);
        platform::wait_for_keys();
        for (name, attack) in transport::ATTACKS.iter().chain(places::ATTACKS) {
            self.attempt(name, None, *attack);
        }
        for queue in 0..self.target().raw.queues() {
            let is_used = self.target().uses(queue);
            for (name, attack) in chains::CHAINS.iter().filter(|_| is_used) {
                self.attempt(name, Some(queue), |target| attack(target, queue));
            }
        }
        let main = self.target().main_queue();
        for (name, attack) in chains::LONG {
            self.attempt(name, Some(main), |target| attack(target, main));
        }
        let (own, flips): (Attacks, Attacks) = match self.target().kind {
            Kind::Block => (disk::ATTACKS, flips::BLOCK),
            Kind::Net => (card::ATTACKS, flips::NET),
            Kind::Vsock => (sockets::ATTACKS, flips::VSOCK),
            Kind::Balloon => (memory::BALLOON, flips::BALLOON),
            Kind::Entropy => (memory::ENTROPY, &[]),
            Kind::Console => (ports::ATTACKS, flips::CONSOLE),
        };
        for (name, attack) in own {
            self.attempt(name, None, *attack);
        }
        self.target().flipper = Flipper::start();
        for (name, attack) in flips::COMMON.iter().chain(flips) {
            self.attempt(name, None, *attack);
        }
        self.target().flipper.stop_all();
        let (attacks, failures) = (self.attacks, self.failures);
        println!(
            "done {} attacks={attacks} failures={failures}",
            self.target().name
        );
    }

    fn target(&mut self) -> &mut Target {
        &mut self.targets[self.index]
    }

    /// Attacks the device, looks whether others work, and whether it does after a reset.
    fn attempt(&mut self, name: &str, queue: Option<u16>, attack: impl Fn(&mut Target) -> Outcome) {
        let began_ns = time::now_ns();
        let target = self.target();
        let attacked = target.raw.reset().and_then(|()| attack(target));
        let all = attacked
            .and_then(|()| witnesses(self.targets, Some(self.index)))
            .and_then(|()| self.target().restart())
            .and_then(|()| self.target().prove());
        self.attacks += 1;
        let target = &self.targets[self.index];
        self.failures += report(&target.name, (name, queue), began_ns, &all);
    }
}

/// Whether the entropy source and the first disk, but for the device that is attacked, work on without a reset.
fn witnesses(targets: &mut [Target], attacked: Option<usize>) -> Outcome {
    let mut has_disk = false;
    for (index, target) in targets.iter_mut().enumerate() {
        let is_asked = match target.kind {
            Kind::Entropy => true,
            Kind::Block => !has_disk,
            _ => false,
        };
        if is_asked && Some(index) != attacked {
            has_disk |= target.kind == Kind::Block;
            if !target.is_at_work() {
                target.restart()?;
            }
            target.prove()?;
        }
    }
    Ok(())
}

fn attack_platform(targets: &mut [Target], ram_end: u64) -> u32 {
    println!("ready {PLATFORM}");
    platform::wait_for_keys();
    let mut platform = Platform::new(ram_end);
    let mut failures = 0;
    for (name, attack) in platform::ATTACKS {
        let began_ns = time::now_ns();
        let outcome = attack(&mut platform).and_then(|()| witnesses(targets, None));
        failures += report(PLATFORM, (name, None), began_ns, &outcome);
    }
    let attacks = platform::ATTACKS.len();
    println!("done {PLATFORM} attacks={attacks} failures={failures}");
    failures
}

/// Says what has come of an attack, and how long that took; 1 if it has failed.
fn report(
    device: &str,
    (attack, queue): (&str, Option<u16>),
    began_ns: u64,
    outcome: &Outcome,
) -> u32 {
    let us = (time::now_ns() - began_ns) / 1000;
    let queue = Queue(queue);
    match outcome {
        Ok(()) => println!("ok {device} {attack}{queue} us={us}"),
        Err(why) => eprintln!("FAIL {device} {attack}{queue} us={us}: {why}"),
    }
    outcome.is_err().into()
}

/// A queue, if an attack is on one.
struct Queue(Option<u16>);

impl fmt::Display for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |queue| write!(f, " queue={queue}"))
    }
}
