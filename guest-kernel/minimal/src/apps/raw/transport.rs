//! Registers, status, features, ring addresses and notifications against the rules (virtio 1.2 §2.1, §3.1, §4.2).

use super::device::{Descriptor, NEXT, Outcome, Places, Raw, Ring, check, feature, reg, status};
use super::target::Target;

pub type Attack = fn(&mut Target) -> Outcome;

/// Of every device.
pub const ATTACKS: &[(&str, Attack)] = &[
    ("registers-of-every-width-and-place", every_width),
    ("configuration-of-every-width", configuration),
    ("read-only-registers-are-written", read_only),
    ("queue-select-outside", queue_select),
    ("queue-sizes", queue_sizes),
    ("queue-of-one-entry", queue_of_one),
    ("queue-ready-values", queue_ready),
    ("queue-changed-while-ready", change_while_ready),
    ("queue-changed-at-work", change_at_work),
    ("shared-memory-registers", shared_memory),
    ("interrupt-acknowledged-unasked", acknowledge),
    ("feature-select-outside", feature_select),
    ("features-that-are-not-offered", |t| {
        refused_features(t, |offered| !offered)
    }),
    ("features-all", |t| refused_features(t, |_| u64::MAX)),
    ("features-without-version-1", without_version),
    ("features-after-features-ok", features_late),
    ("features-at-work", features_at_work),
    ("status-driver-ok-at-once", |t| {
        stays(t, status::WORKING & !status::FEATURES_OK, 3)
    }),
    ("status-features-ok-first", |t| {
        stays(t, status::FEATURES_OK, 0)
    }),
    ("status-driver-ok-first", |t| stays(t, status::DRIVER_OK, 0)),
    ("status-unknown-bits", |t| stays(t, 0xffff_ff30, 0)),
    ("status-needs-reset-by-the-driver", needs_reset_by_driver),
    ("status-bits-cleared", clear_bits),
    ("status-failed", failed),
    ("status-driver-ok-twice", driver_ok_twice),
    ("status-in-a-row", status_row),
    ("no-queue-at-all", no_queue),
    ("kick-without-a-start", |t| kicks(t, |raw| raw.reset())),
    ("kick-before-driver-ok", |t| kicks(t, begin_and_set_up)),
    ("kick-of-no-queue", |t| kicks(t, |raw| raw.start())),
    ("kick-of-every-width", kick_widths),
    ("kick-with-nothing-offered", kick_nothing),
    ("kick-a-flood", kick_flood),
    ("reset-twice", reset_twice),
    ("reset-a-thousand-times", reset_often),
    ("start-50-times-under-load", start_often),
    ("reset-in-flight", reset_in_flight),
];

/// Bytes of a window; and of the part that has registers and configuration.
const WINDOW_BYTES: usize = 0x1000;
const USED_BYTES: usize = 0x180;
/// Beyond that, between two places that are tried.
const SPARSE_STEP: usize = 0x3d;
const KICKS: u32 = 1000;
const RESETS: u32 = 1000;
const STARTS: u32 = 50;
const RESETS_IN_FLIGHT: u32 = 10;

/// Each register, and what lies between and after them, is read and written in each width, aligned or not.
fn every_width(target: &mut Target) -> Outcome {
    target.raw.start()?;
    let raw = &target.raw;
    let sparse = (USED_BYTES..WINDOW_BYTES - 8).step_by(SPARSE_STEP);
    for offset in (0..USED_BYTES)
        .chain(sparse)
        .chain(WINDOW_BYTES - 8..WINDOW_BYTES)
    {
        for width in [1, 2, 4, 8] {
            if offset + width > WINDOW_BYTES {
                continue;
            }
            let is_register = width == 4 && offset % 4 == 0;
            raw.peek(offset, width);
            // A whole register is written as it is by other attacks.
            if !is_register {
                raw.poke(offset, width, 0x1122_3344_5566_7788);
            }
        }
    }
    identity(raw)
}

fn identity(raw: &Raw) -> Outcome {
    let (magic, version) = (raw.read(reg::MAGIC), raw.read(reg::VERSION));
    check(magic == 0x7472_6976, "the magic number", magic)?;
    check(version == 2, "the version", version)?;
    check(
        raw.read(reg::DEVICE_ID) == raw.id,
        "the device id",
        raw.read(reg::DEVICE_ID),
    )
}

/// The configuration is what it was, whatever is written to it; the balloon's `actual` is the driver's own.
fn configuration(target: &mut Target) -> Outcome {
    target.raw.start()?;
    let raw = &target.raw;
    let is_drivers = |at: usize| raw.id == 5 && (4..8).contains(&at);
    let read = |at: usize| raw.peek(reg::CONFIG + at, 1);
    let before: [u64; 128] = core::array::from_fn(read);
    for at in 0..128 {
        for width in [1, 2, 4, 8] {
            raw.poke(reg::CONFIG + at, width, u64::MAX);
            raw.peek(reg::CONFIG + at, width);
        }
    }
    for (at, before) in before.into_iter().enumerate() {
        let now = read(at);
        check(
            now == before || is_drivers(at),
            "the configuration has changed",
            now,
        )?;
    }
    Ok(())
}

fn read_only(target: &mut Target) -> Outcome {
    let raw = &target.raw;
    for offset in (0..reg::CONFIG).step_by(4) {
        let is_written = matches!(
            offset,
            0x014 | 0x020 | 0x024 | 0x030 | 0x038 | 0x044 | 0x050 | 0x064 | 0x070 | 0x080..=0x0ac
        );
        if !is_written {
            for value in [0, 1, u32::MAX] {
                raw.write(offset, value);
            }
        }
    }
    identity(raw)?;
    let found = raw.read(reg::STATUS);
    check(found == 0, "status", found)
}

fn queue_select(target: &mut Target) -> Outcome {
    target.raw.begin()?;
    let raw = &target.raw;
    for queue in [
        u32::from(raw.queues()),
        16,
        0xffff,
        0x1_0000,
        0x8000_0000,
        u32::MAX,
    ] {
        raw.set_up(queue, 16, raw.places(0));
        raw.write(reg::QUEUE_SELECT, queue);
        let (size, ready) = (raw.read(reg::QUEUE_SIZE_MAX), raw.read(reg::QUEUE_READY));
        check(size == 0, "the size of no queue", size)?;
        check(ready == 0, "a ready queue that is none", ready)?;
    }
    Ok(())
}

/// A size that a queue cannot have is not taken: it keeps the one that it had.
fn queue_sizes(target: &mut Target) -> Outcome {
    target.raw.begin()?;
    let raw = &target.raw;
    raw.set_up_all(|queue| queue == 0);
    let places = raw.places(0);
    raw.write(reg::QUEUE_SELECT, 0);
    raw.write(reg::QUEUE_SIZE, target.raw.rings[0].size.into());
    for size in [
        0,
        3,
        6,
        255,
        257,
        512,
        0x8000,
        0xffff,
        0x1_0000,
        0x1_0100,
        u32::MAX,
    ] {
        raw.write(reg::QUEUE_SIZE, size);
    }
    raw.set_up(0_u16, 3, places);
    raw.go();
    let found = raw.read(reg::STATUS);
    check(found == status::WORKING, "status", found)?;
    target.prove()
}

/// One entry is a size like any other; it has room for chains of one buffer.
fn queue_of_one(target: &mut Target) -> Outcome {
    target.raw.begin()?;
    let queue = target.main_queue();
    target.raw.set_up_all(|other| other == queue);
    target.raw.set_up(queue, 1, target.raw.places(queue));
    target.raw.go();
    let size = core::mem::replace(&mut target.raw.ring(queue).size, 1);
    let chain = [Descriptor::new(0x10_0000, 16, NEXT, 0)];
    target.describe(queue, &chain);
    let back = (0..100).try_for_each(|_| target.exchange(queue).map(|_| ()));
    target.raw.ring(queue).size = size;
    back
}

fn queue_ready(target: &mut Target) -> Outcome {
    target.raw.begin()?;
    let raw = &target.raw;
    raw.write(reg::QUEUE_SELECT, 0);
    for value in [2, 3, 0x100, 0x8000_0000, u32::MAX] {
        raw.write(reg::QUEUE_READY, value);
        let found = raw.read(reg::QUEUE_READY);
        check(found == 0, "ready", found)?;
    }
    for value in [1, 0, 1, 0] {
        raw.write(reg::QUEUE_READY, value);
        let found = raw.read(reg::QUEUE_READY);
        check(found == value, "ready", found)?;
    }
    raw.set_up_all(|_| false);
    raw.go();
    target.prove()
}

/// The addresses of a queue that is ready stay.
fn change_while_ready(target: &mut Target) -> Outcome {
    target.raw.begin()?;
    target.raw.set_up_all(|_| false);
    let nowhere = Places {
        table: 0,
        available: 0,
        used: 0,
    };
    for queue in 0..target.raw.queues() {
        target.raw.set_up(queue, 1, nowhere);
    }
    target.raw.go();
    target.prove()
}

/// So does all of it once the device works.
fn change_at_work(target: &mut Target) -> Outcome {
    target.raw.start()?;
    let nowhere = Places {
        table: u64::MAX,
        available: u64::MAX,
        used: u64::MAX,
    };
    for queue in 0..target.raw.queues() {
        target.raw.write(reg::QUEUE_SELECT, queue.into());
        target.raw.write(reg::QUEUE_READY, 0);
        target.raw.set_up(queue, 2, nowhere);
    }
    target.prove()
}

fn shared_memory(target: &mut Target) -> Outcome {
    let raw = &target.raw;
    for select in [0, 1, 255, u32::MAX] {
        raw.write(reg::SHM_SELECT, select);
        for half in [0, 4, 8, 12] {
            let found = raw.read(reg::SHM_LENGTH + half);
            check(found == u32::MAX, "shared memory that is not there", found)?;
        }
    }
    Ok(())
}

fn acknowledge(target: &mut Target) -> Outcome {
    target.raw.start()?;
    for value in [0, 1, 2, 3, 4, 0x8000_0000, u32::MAX] {
        for _ in 0..20 {
            target.raw.write(reg::INTERRUPT_ACK, value);
        }
    }
    target.prove()
}

fn feature_select(target: &mut Target) -> Outcome {
    let raw = &target.raw;
    raw.write(reg::STATUS, status::ACKNOWLEDGE);
    raw.write(reg::STATUS, status::ACKNOWLEDGE | status::DRIVER);
    for select in [2, 3, 4, 0x8000_0000, u32::MAX] {
        raw.write(reg::DEVICE_FEATURES_SELECT, select);
        let found = raw.read(reg::DEVICE_FEATURES);
        check(found == 0, "features beyond the 64th", found)?;
        raw.write(reg::DRIVER_FEATURES_SELECT, select);
        raw.write(reg::DRIVER_FEATURES, u32::MAX);
    }
    // None of them was accepted.
    target.restart()
}

fn refused_features(target: &mut Target, features: fn(u64) -> u64) -> Outcome {
    let raw = &target.raw;
    let features = features(raw.offered_features());
    raw.write(reg::STATUS, status::ACKNOWLEDGE);
    raw.write(reg::STATUS, status::ACKNOWLEDGE | status::DRIVER);
    raw.accept(features | feature::VERSION_1);
    raw.write(reg::STATUS, status::WORKING & !status::DRIVER_OK);
    let found = raw.read(reg::STATUS);
    check(found & status::FEATURES_OK == 0, "FEATURES_OK", found)?;
    raw.set_up_all(|_| false);
    raw.go();
    let found = raw.read(reg::STATUS);
    check(found & status::DRIVER_OK == 0, "DRIVER_OK", found)
}

fn without_version(target: &mut Target) -> Outcome {
    let raw = &target.raw;
    raw.write(reg::STATUS, status::ACKNOWLEDGE);
    raw.write(reg::STATUS, status::ACKNOWLEDGE | status::DRIVER);
    raw.accept(raw.usual);
    raw.write(reg::STATUS, status::WORKING & !status::DRIVER_OK);
    let found = raw.read(reg::STATUS);
    check(found & status::FEATURES_OK == 0, "FEATURES_OK", found)
}

fn features_late(target: &mut Target) -> Outcome {
    target.raw.begin()?;
    target.raw.accept(u64::MAX);
    target.raw.accept(0);
    target.raw.set_up_all(|_| false);
    target.raw.go();
    target.prove()
}

fn features_at_work(target: &mut Target) -> Outcome {
    target.raw.start()?;
    target.raw.accept(0);
    target.raw.accept(u64::MAX);
    target.prove()
}

/// After a write of `value` to Status it is `wanted`.
fn stays(target: &mut Target, value: u32, wanted: u32) -> Outcome {
    target.raw.write(reg::STATUS, value);
    let found = target.raw.read(reg::STATUS);
    check(found == wanted, "status", found)
}

fn needs_reset_by_driver(target: &mut Target) -> Outcome {
    target.raw.start()?;
    target
        .raw
        .write(reg::STATUS, status::WORKING | status::NEEDS_RESET);
    let found = target.raw.read(reg::STATUS);
    check(found == status::WORKING, "status", found)?;
    target.prove()
}

fn clear_bits(target: &mut Target) -> Outcome {
    target.raw.start()?;
    for value in [1, 2, 3, 4, 7, 8, 11, 14, 0x100, 0x8000_0000] {
        target.raw.write(reg::STATUS, value);
    }
    let found = target.raw.read(reg::STATUS);
    check(found == status::WORKING, "status", found)?;
    target.prove()
}

fn failed(target: &mut Target) -> Outcome {
    target.raw.begin()?;
    let wanted = (status::WORKING & !status::DRIVER_OK) | status::FAILED;
    target.raw.write(reg::STATUS, wanted);
    target.raw.set_up_all(|_| false);
    target.raw.write(reg::STATUS, wanted | status::DRIVER_OK);
    let found = target.raw.read(reg::STATUS);
    check(found == wanted, "status", found)
}

fn driver_ok_twice(target: &mut Target) -> Outcome {
    target.raw.start()?;
    (0..20).for_each(|_| target.raw.go());
    target.prove()
}

/// Every value that Status can have, one after the other; then the same with a reset before each.
fn status_row(target: &mut Target) -> Outcome {
    for value in 0..=255 {
        target.raw.write(reg::STATUS, value);
    }
    for value in 0..=255 {
        target.raw.write(reg::STATUS, 0);
        target.raw.write(reg::STATUS, value);
    }
    Ok(())
}

fn no_queue(target: &mut Target) -> Outcome {
    target.raw.begin()?;
    target.raw.go();
    for queue in 0..target.raw.queues() {
        target.raw.kick(queue);
    }
    let found = target.raw.read(reg::STATUS);
    check(found == status::WORKING, "status", found)
}

fn begin_and_set_up(raw: &mut Raw) -> Outcome {
    raw.begin()?;
    raw.set_up_all(|_| false);
    Ok(())
}

/// Kicks of what is and what is not there; nothing is offered.
fn kicks(target: &mut Target, prepare: fn(&mut Raw) -> Outcome) -> Outcome {
    prepare(&mut target.raw)?;
    for value in (0..64).chain([0xff, 0x100, 0xffff, 0x1_0000, 0x8000_0000, u32::MAX]) {
        target.raw.write(reg::QUEUE_NOTIFY, value);
    }
    let used: u16 = target
        .raw
        .rings
        .iter()
        .map(Ring::used_index)
        .max()
        .unwrap_or(0);
    check(used == 0, "used entries", used)
}

fn kick_widths(target: &mut Target) -> Outcome {
    target.raw.start()?;
    for width in [1, 2, 8] {
        for value in [0, 1, 2, 0xff, u64::MAX] {
            target.raw.poke(reg::QUEUE_NOTIFY, width, value);
        }
    }
    for offset in 1..4 {
        target.raw.poke(reg::QUEUE_NOTIFY + offset, 1, 0);
    }
    target.prove()
}

fn kick_nothing(target: &mut Target) -> Outcome {
    target.raw.start()?;
    for queue in 0..target.raw.queues() {
        (0..50).for_each(|_| target.raw.kick(queue));
    }
    target.prove()
}

fn kick_flood(target: &mut Target) -> Outcome {
    target.raw.start()?;
    for number in 0..KICKS {
        target.raw.write(reg::QUEUE_NOTIFY, number % 8);
    }
    target.prove()
}

fn reset_twice(target: &mut Target) -> Outcome {
    target.raw.start()?;
    target.raw.reset()?;
    target.raw.reset()?;
    target.restart()?;
    target.prove()
}

fn reset_often(target: &mut Target) -> Outcome {
    target.raw.start()?;
    (0..RESETS).for_each(|_| target.raw.write(reg::STATUS, 0));
    target.restart()?;
    target.prove()
}

/// Starts it, has it work, and resets it before that is done.
fn start_often(target: &mut Target) -> Outcome {
    let queue = target.main_queue();
    for _ in 0..STARTS {
        target.restart()?;
        // Numbers of pages of ours: for a balloon that is what they are.
        let buffer = target.put_page_numbers(4);
        target.describe(queue, &[buffer]);
        for _ in 0..target.raw.ring(queue).size {
            target.raw.ring(queue).offer(0);
        }
        target.raw.kick(queue);
    }
    target.restart()?;
    target.prove()
}

/// After a reset nothing of what was asked for before comes back.
fn reset_in_flight(target: &mut Target) -> Outcome {
    let queue = target.main_queue();
    for _ in 0..RESETS_IN_FLIGHT {
        target.restart()?;
        target.prove()?;
        for _ in 0..target.raw.ring(queue).size {
            target.raw.ring(queue).offer(0);
        }
        target.raw.kick(queue);
        // Clears the rings when the device has stopped. Who starts another time would see what comes after that.
        target.raw.reset()?;
        target.raw.start()?;
        let used = target.raw.ring(queue).used_index();
        check(used == 0, "used entries after a reset", used)?;
    }
    Ok(())
}
