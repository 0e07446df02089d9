//! What breaks the rules of the balloon (virtio 1.2 §5.5) and of the entropy source (§5.4).

use super::device::{Descriptor, NEXT, Outcome, PAGE_BYTES, WRITE, check, reg};
use super::target::Target;
use crate::time;

type Attack = fn(&mut Target) -> Outcome;

pub const ENTROPY: &[(&str, Attack)] = &[
    ("one-page-256-times-a-mib", same_page),
    ("4-gib-in-one-buffer", |t| at_most(t, u32::MAX)),
    ("one-byte-more-than-a-request", |t| {
        at_most(t, (64 << 10) + 1)
    }),
    ("a-readable-buffer-before", readable_before),
    ("the-second-buffer-outside-ram", second_outside),
    ("random-bytes-on-the-rings", on_the_rings),
    ("a-flood-of-requests", flood),
];

pub const BALLOON: &[(&str, Attack)] = &[
    ("numbers-outside-ram", |t| {
        numbers(t, 0, |t| t.ram_end / 4096)
    }),
    ("numbers-of-all-ones", |t| {
        numbers(t, 0, |_| u64::from(u32::MAX))
    }),
    ("numbers-of-registers", |t| {
        numbers(t, 0, |t| t.raw.base as u64 / 4096)
    }),
    ("numbers-of-the-control-device", |t| {
        numbers(t, 0, |_| 0xc_0000)
    }),
    ("numbers-of-the-local-apic", |t| numbers(t, 0, |_| 0xf_ee00)),
    ("deflated-outside-ram", |t| {
        numbers(t, 1, |t| t.ram_end / 4096)
    }),
    ("deflated-never-inflated", |t| {
        numbers(t, 1, |t| t.data.address(0) / 4096)
    }),
    ("no-number", |t| array(t, 0)),
    ("half-a-number", |t| array(t, 2)),
    ("a-number-and-a-half", |t| array(t, 6)),
    ("4097-numbers", |t| array(t, 4 * 4097)),
    ("4-gib-of-numbers", |t| array(t, u32::MAX - 3)),
    ("one-page-4096-times", one_page_often),
    ("one-page-in-and-out", in_and_out),
    ("numbers-in-single-bytes", single_bytes),
    ("the-page-of-its-own-numbers", own_page),
    ("the-pages-of-its-rings", own_rings),
    ("a-flood-of-scattered-pages", scattered),
    ("statistics-of-nothing", |t| statistics(t, 0)),
    ("statistics-of-nine-bytes", |t| statistics(t, 9)),
    ("statistics-of-unknown-tags", |t| statistics(t, 160)),
    ("statistics-of-64-kib", |t| statistics(t, 65_536)),
    ("statistics-unasked", statistics_unasked),
    ("hint-of-a-short-command", |t| hint(t, 3)),
    ("hint-of-a-long-command", |t| hint(t, 5)),
    ("hint-of-a-run-that-is-none", |t| hint(t, 4)),
    ("reported-half-a-page", |t| {
        report(t, |t| (t.data.address(0x1_0000), 2048))
    }),
    ("reported-unaligned", |t| {
        report(t, |t| (t.data.address(0x1_0000) + 8, 4096))
    }),
    ("reported-after-the-end-of-ram", |t| {
        report(t, |t| (t.ram_end, 4096))
    }),
    ("reported-over-the-end-of-ram", |t| {
        report(t, |t| (t.ram_end - 4096, 8192))
    }),
    ("reported-registers", |t| {
        report(t, |t| (t.raw.base as u64, 4096))
    }),
    ("reported-to-the-last-address", |t| {
        report(t, |_| (0xffff_ffff_ffff_f000, 4096))
    }),
    ("reported-4-gib", |t| report(t, |_| (0, 0xffff_f000))),
    ("reported-readable", report_readable),
    ("actual-of-all-ones", actual),
    ("wanted-is-written", wanted),
];

const FLOOD: u32 = 200;

fn entropy(target: &mut Target, chain: &[Descriptor]) -> Result<u32, super::device::Why> {
    target.raw.start()?;
    target.describe(0, chain);
    target.exchange(0).map(|(_, used)| used)
}

const REQUEST_BYTES_MAX: u32 = 64 << 10;

fn same_page(target: &mut Target) -> Outcome {
    // As many as the queue has entries. What it names beyond the first page of each lies in memory that nobody uses.
    let size = target.raw.ring(0).size;
    let address = target.data.address(0);
    let mut chain = [Descriptor::default(); 256];
    for (index, descriptor) in (0..size).zip(&mut chain) {
        let next = if index + 1 == size {
            (0, 0)
        } else {
            (NEXT, index + 1)
        };
        *descriptor = Descriptor::new(address, 1 << 20, WRITE | next.0, next.1);
    }
    let used = entropy(target, &chain[..usize::from(size)])?;
    check(used <= REQUEST_BYTES_MAX, "bytes of one request", used)
}

fn at_most(target: &mut Target, len: u32) -> Outcome {
    let buffer = Descriptor::new(target.data.address(0), len, WRITE, 0);
    let used = entropy(target, &[buffer])?;
    check(used <= REQUEST_BYTES_MAX, "bytes of one request", used)
}

fn readable_before(target: &mut Target) -> Outcome {
    let readable = Descriptor::new(target.data.address(4096), 64, NEXT, 1);
    let buffer = Descriptor::new(target.data.address(0), 64, WRITE, 0);
    let used = entropy(target, &[readable, buffer])?;
    check(used == 64, "bytes", used)
}

fn second_outside(target: &mut Target) -> Outcome {
    let first = Descriptor::new(target.data.address(0), 4096, WRITE | NEXT, 1);
    let second = Descriptor::new(target.raw.base as u64, 4096, WRITE, 0);
    let used = entropy(target, &[first, second])?;
    check(used <= 4096, "bytes", used)
}

fn on_the_rings(target: &mut Target) -> Outcome {
    for at in 0..3 {
        target.restart()?;
        let places = target.raw.places(0);
        let address = [places.table, places.available, places.used][at];
        target.describe(0, &[Descriptor::new(address, 2048, WRITE, 0)]);
        target.raw.ring(0).offer(0);
        (0..50).for_each(|_| target.raw.kick(0));
    }
    Ok(())
}

/// As fast as they go, the longest ones.
fn flood(target: &mut Target) -> Outcome {
    let buffer = Descriptor::new(target.data.address(0), REQUEST_BYTES_MAX, WRITE, 0);
    entropy(target, &[buffer])?;
    let size = target.raw.ring(0).size;
    for _ in 0..8 {
        for _ in 0..size {
            target.raw.ring(0).offer(0);
        }
        target.raw.kick(0);
        for _ in 0..size {
            target.raw.wait_used(0)?;
        }
    }
    Ok(())
}

/// Puts `number` where page numbers are read, often.
fn put_numbers(target: &Target, number: u64, count: usize) {
    let [a, b, c, d, ..] = number.to_le_bytes();
    for index in 0..count {
        target
            .data
            .write(4 * index, u32::from_le_bytes([a, b, c, d]));
    }
}

/// An array of numbers that are `number`: it comes back.
fn numbers(target: &mut Target, queue: u16, number: fn(&Target) -> u64) -> Outcome {
    target.raw.start()?;
    let number = number(target);
    put_numbers(target, number, 256);
    target.describe(
        queue,
        &[Descriptor::new(target.data.address(0), 1024, 0, 0)],
    );
    target.exchange(queue).map(|_| ())
}

/// An array of `len` bytes.
fn array(target: &mut Target, len: u32) -> Outcome {
    target.raw.start()?;
    target.put_page_numbers(4096);
    for queue in 0..2 {
        target.describe(queue, &[Descriptor::new(target.data.address(0), len, 0, 0)]);
        target.exchange(queue)?;
    }
    Ok(())
}

fn one_page_often(target: &mut Target) -> Outcome {
    target.raw.start()?;
    let numbers = target.put_page_numbers(4096);
    target.describe(0, &[numbers]);
    for _ in 0..20 {
        target.exchange(0)?;
    }
    Ok(())
}

fn in_and_out(target: &mut Target) -> Outcome {
    target.raw.start()?;
    let numbers = target.put_page_numbers(1);
    for queue in 0..2 {
        target.describe(queue, &[numbers]);
    }
    for _ in 0..FLOOD {
        target.exchange(0)?;
        target.exchange(1)?;
    }
    Ok(())
}

fn single_bytes(target: &mut Target) -> Outcome {
    target.raw.start()?;
    let numbers = target.put_page_numbers(8);
    for index in 0..32_u16 {
        let flags = if index == 31 { 0 } else { NEXT };
        let address = numbers.address + u64::from(index);
        target
            .raw
            .ring(0)
            .describe(index, Descriptor::new(address, 1, flags, index + 1));
    }
    target.exchange(0).map(|_| ())
}

/// The array's page goes with the others.
fn own_page(target: &mut Target) -> Outcome {
    target.raw.start()?;
    put_numbers(target, target.data.address(0) / PAGE_BYTES as u64, 256);
    target.describe(0, &[Descriptor::new(target.data.address(0), 1024, 0, 0)]);
    target.exchange(0)?;
    let found: u32 = target.data.read(0);
    check(found == 0, "what was given back", found)
}

/// Table and rings are zero from then on: what the device says of them afterwards is as good as any.
fn own_rings(target: &mut Target) -> Outcome {
    target.raw.start()?;
    let places = target.raw.places(0);
    for (index, address) in [places.table, places.available, places.used]
        .into_iter()
        .enumerate()
    {
        let [a, b, c, d, ..] = (address / PAGE_BYTES as u64).to_le_bytes();
        target
            .data
            .write(4 * index, u32::from_le_bytes([a, b, c, d]));
    }
    target.describe(0, &[Descriptor::new(target.data.address(0), 12, 0, 0)]);
    target.raw.ring(0).offer(0);
    (0..20).for_each(|_| target.raw.kick(0));
    Ok(())
}

/// Each second page of memory that is not used, in arrays of the longest allowed length: no two are neighbours.
fn scattered(target: &mut Target) -> Outcome {
    target.raw.start()?;
    let first = (64 << 20) / PAGE_BYTES as u64;
    for index in 0..4096_u64 {
        let [a, b, c, d, ..] = (first + 2 * index).to_le_bytes();
        let at = usize::try_from(4 * index).unwrap_or(0);
        target.data.write(at, u32::from_le_bytes([a, b, c, d]));
    }
    target.describe(
        0,
        &[Descriptor::new(target.data.address(0), 4 * 4096, 0, 0)],
    );
    for _ in 0..16 {
        target.raw.ring(0).offer(0);
    }
    target.raw.kick(0);
    (0..16).try_for_each(|_| target.raw.wait_used(0).map(|_| ()))
}

const STATISTICS_QUEUE: u16 = 2;
const HINT_QUEUE: u16 = 3;
const REPORT_QUEUE: u16 = 4;

/// The device keeps a report until the next one is due, and gives back at once what is none.
fn statistics(target: &mut Target, len: u32) -> Outcome {
    target.raw.start()?;
    for at in 0..65_536 / 8 {
        target.data.write(8 * at, 0x7fff_7fff_7fff_7fff_u64);
    }
    target.describe(
        STATISTICS_QUEUE,
        &[Descriptor::new(target.data.address(0), len, 0, 0)],
    );
    for _ in 0..3 {
        target.raw.ring(STATISTICS_QUEUE).offer(0);
    }
    target.raw.kick(STATISTICS_QUEUE);
    // Of several reports all but the last one come back.
    target.raw.wait_used(STATISTICS_QUEUE)?;
    target.raw.wait_used(STATISTICS_QUEUE).map(|_| ())
}

fn statistics_unasked(target: &mut Target) -> Outcome {
    target.raw.start()?;
    target.describe(
        STATISTICS_QUEUE,
        &[Descriptor::new(target.data.address(0), 40, 0, 0)],
    );
    for _ in 0..FLOOD {
        target.raw.ring(STATISTICS_QUEUE).offer(0);
        target.raw.kick(STATISTICS_QUEUE);
    }
    (1..FLOOD).try_for_each(|_| target.raw.wait_used(STATISTICS_QUEUE).map(|_| ()))
}

fn hint(target: &mut Target, len: u32) -> Outcome {
    target.raw.start()?;
    for command in [0, 1, 2, 77, u32::MAX] {
        target.data.write(0, command);
        let command = Descriptor::new(target.data.address(0), len, NEXT, 1);
        let pages = Descriptor::new(target.data.address(0x1_0000), 4096, WRITE, 0);
        target.describe(HINT_QUEUE, &[command, pages]);
        target.data.write(0x1_0000, 0x5a_u8);
        target.exchange(HINT_QUEUE)?;
        let found: u8 = target.data.read(0x1_0000);
        check(
            found == 0x5a,
            "a page that nobody asked for was taken",
            found,
        )?;
    }
    Ok(())
}

fn report(target: &mut Target, buffer: fn(&Target) -> (u64, u32)) -> Outcome {
    target.raw.start()?;
    target.data.write(0x1_0000, 0x5a_u8);
    let (address, len) = buffer(target);
    target.describe(REPORT_QUEUE, &[Descriptor::new(address, len, WRITE, 0)]);
    target.exchange(REPORT_QUEUE)?;
    let found: u8 = target.data.read(0x1_0000);
    check(found == 0x5a, "a page that was not reported is gone", found)
}

fn report_readable(target: &mut Target) -> Outcome {
    target.raw.start()?;
    target.data.write(0x1_0000, 0x5a_u8);
    let address = target.data.address(0x1_0000);
    target.describe(REPORT_QUEUE, &[Descriptor::new(address, 4096, 0, 0)]);
    target.exchange(REPORT_QUEUE)?;
    let found: u8 = target.data.read(0x1_0000);
    check(found == 0x5a, "a page that was not reported is gone", found)
}

/// What the driver says of the balloon's size is its own word: the host looks at it with RAM's size in mind.
fn actual(target: &mut Target) -> Outcome {
    target.raw.start()?;
    let end = time::now_ns() + 1_000_000;
    while time::now_ns() < end {
        for value in [0, 1, 0x8000_0000, u32::MAX] {
            target.raw.write(reg::CONFIG + 4, value);
        }
    }
    Ok(())
}

fn wanted(target: &mut Target) -> Outcome {
    target.raw.start()?;
    let before = target.raw.read(reg::CONFIG);
    for at in [0, 8, 12, 16] {
        target.raw.write(reg::CONFIG + at, u32::MAX);
    }
    let found = target.raw.read(reg::CONFIG);
    check(found == before, "what is wanted", found)
}
