//! `disk-bench`: how fast a disk is, with one request or many under way.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

use lightv_workloads::disk::{Order, Plan};
use virtio_drivers::Error;

use super::{Refusal, STATUS_FAILED, STATUS_OK};
use crate::boot::to_usize;
use crate::deep_disk::{DEPTH_MAX, DeepDisk, Direction, Slot};
use crate::machine::{BadNumber, Machine};
use crate::{eprintln, println, time};

const USAGE: &str =
    "disk-bench read|write seq|rand REQUEST_BYTES DEPTH COUNT SEED, or disk-bench doorbell COUNT";
/// What direct I/O of a host needs of addresses at most.
const ALIGN: usize = 4096;

/// What is to be measured.
enum Job {
    Requests(Run),
    /// So many writes to QueueNotify that announce nothing: what a request pays at least.
    Doorbell(u64),
}

struct Run {
    direction: Direction,
    plan: Plan,
    depth: usize,
    count: u64,
}

/// What was measured.
struct Measured {
    ns: u64,
    /// Of each request, sorted.
    latencies_ns: Vec<u32>,
}

impl Measured {
    fn new(ns: u64, mut latencies_ns: Vec<u32>) -> Self {
        latencies_ns.sort_unstable();
        Self { ns, latencies_ns }
    }
}

pub fn run(machine: &mut Machine) -> Result<u8, Refusal> {
    time::init();
    machine.ready();
    let job = read_args(machine)?;
    let place = machine.devices.disk_places.first().copied();
    let place = place.ok_or(Refusal::NoDevice("block"))?;
    // SAFETY: the driver of `Devices` was found there, and nothing calls it in this app.
    let taken = unsafe { DeepDisk::take(place) };
    let Some(Ok(mut disk)) = taken else {
        return Err(Refusal::NoDevice("block"));
    };
    match job {
        Job::Doorbell(count) => {
            print(count, 0, &ring(count, &mut disk));
            Ok(STATUS_OK)
        }
        Job::Requests(run) => Ok(run_requests(run, &mut disk)),
    }
}

fn run_requests(mut run: Run, disk: &mut DeepDisk) -> u8 {
    run.plan.disk_bytes = disk.capacity_bytes();
    match measure(&run, disk) {
        Ok(measured) => {
            print(run.count, run.plan.request_bytes, &measured);
            STATUS_OK
        }
        Err(error) => {
            eprintln!("disk-bench error: {error}");
            STATUS_FAILED
        }
    }
}

fn read_args(machine: &Machine) -> Result<Job, Refusal> {
    let mut args = machine.args();
    let usage = || Refusal::Usage(USAGE);
    let direction = match args.next() {
        Some("read") => Direction::Read,
        Some("write") => Direction::Write,
        Some("doorbell") => {
            let count = args.next().ok_or_else(usage)?;
            let count: u64 = count.parse().map_err(|_| BadNumber(count))?;
            return Ok(Job::Doorbell(count.max(1)));
        }
        _ => return Err(usage()),
    };
    let order = args.next().ok_or_else(usage)?;
    let mut number = || -> Result<u64, Refusal> {
        let text = args.next().ok_or_else(usage)?;
        Ok(text.parse().map_err(|_| BadNumber(text))?)
    };
    let (request_bytes, depth, count, seed) = (number()?, number()?, number()?, number()?);
    let order = match order {
        "seq" => Order::Sequential,
        "rand" => Order::Random(seed),
        _ => return Err(usage()),
    };
    let is_whole = request_bytes > 0 && request_bytes % 512 == 0;
    if !is_whole || count == 0 || depth == 0 || to_usize(depth) > DEPTH_MAX {
        return Err(usage());
    }
    let plan = Plan {
        request_bytes,
        disk_bytes: 0,
        order,
    };
    Ok(Job::Requests(Run {
        direction,
        plan,
        depth: to_usize(depth),
        count,
    }))
}

fn slots(run: &Run) -> Vec<&'static mut Slot> {
    let bytes = to_usize(run.plan.request_bytes);
    let slot = |number: usize| {
        let room = vec![0x5a; bytes + ALIGN].leak();
        let start = room.as_ptr().align_offset(ALIGN);
        let data = &mut room[start..start + bytes];
        // Touched before the clock runs, and different in each.
        data.fill(number.to_le_bytes()[0]);
        &mut *Box::leak(Box::new(Slot::new(data, run.direction)))
    };
    (0..run.depth).map(slot).collect()
}

fn measure(run: &Run, disk: &mut DeepDisk) -> Result<Measured, Error> {
    let slots = slots(run);
    let mut latencies_ns = Vec::with_capacity(to_usize(run.count));
    let mut places = run.plan.places();
    let mut left = run.count;
    let mut begin = |disk: &mut DeepDisk, slot| {
        let Some(others) = left.checked_sub(1) else {
            return Ok(());
        };
        left = others;
        disk.begin(slot, places.next().ok_or(Error::InvalidParam)?)
    };
    let start_ns = time::now_ns();
    for slot in slots {
        begin(disk, slot)?;
    }
    while latencies_ns.len() < to_usize(run.count) {
        // One notification for all that have begun, if the device wants any.
        disk.notify();
        disk.wait();
        while let Some(finished) = disk.finish() {
            let (slot, ns) = finished?;
            latencies_ns.push(u32::try_from(ns).unwrap_or(u32::MAX));
            // At once: a device that looks has something to do while the others are finished.
            begin(disk, slot)?;
        }
    }
    Ok(Measured::new(time::now_ns() - start_ns, latencies_ns))
}

fn ring(count: u64, disk: &mut DeepDisk) -> Measured {
    let mut latencies_ns = Vec::with_capacity(to_usize(count));
    let start_ns = time::now_ns();
    for _ in 0..count {
        let began_ns = time::now_ns();
        disk.ring_doorbell();
        let ns = time::now_ns() - began_ns;
        latencies_ns.push(u32::try_from(ns).unwrap_or(u32::MAX));
    }
    Measured::new(time::now_ns() - start_ns, latencies_ns)
}

fn print(count: u64, request_bytes: u64, measured: &Measured) {
    let Measured { ns, latencies_ns } = measured;
    let bytes = count * request_bytes;
    let at = |percent: usize| {
        let rank = (latencies_ns.len() * percent).div_ceil(100);
        latencies_ns[rank.saturating_sub(1)]
    };
    let (p50, p99) = (at(50), at(99));
    println!("requests={count} bytes={bytes} ns={ns} p50_ns={p50} p99_ns={p99}");
}
