//! Rings where no ring can be (virtio 1.2 §2.7): the device says at DRIVER_OK that it cannot work.

use super::device::{Descriptor, Outcome, Places, WRITE, check, reg, status};
use super::target::Target;

pub type Attack = fn(&mut Target) -> Outcome;

/// Of every device, each on all of its queues.
pub const ATTACKS: &[(&str, Attack)] = &[
    ("a-bad-start-then-a-kick", bad_start_then_kick),
    ("table-unaligned-by-1", |t| {
        misplaced(t, |p| Places {
            table: p.table + 1,
            ..p
        })
    }),
    ("table-unaligned-by-8", |t| {
        misplaced(t, |p| Places {
            table: p.table + 8,
            ..p
        })
    }),
    ("available-ring-unaligned", |t| {
        misplaced(t, |p| Places {
            available: p.available + 1,
            ..p
        })
    }),
    ("used-ring-unaligned", |t| {
        misplaced(t, |p| Places {
            used: p.used + 2,
            ..p
        })
    }),
    ("table-at-the-end-of-ram", |t| {
        end_of_ram(t, |p, end| Places {
            table: end - 16,
            ..p
        })
    }),
    ("available-ring-at-the-end-of-ram", |t| {
        end_of_ram(t, |p, end| Places {
            available: end - 4,
            ..p
        })
    }),
    ("used-ring-at-the-end-of-ram", |t| {
        end_of_ram(t, |p, end| Places { used: end - 4, ..p })
    }),
    ("table-at-registers", |t| {
        misplaced(t, |p| Places {
            table: 0xc001_0000,
            ..p
        })
    }),
    ("available-ring-at-registers", |t| {
        misplaced(t, |p| Places {
            available: 0xc001_0000,
            ..p
        })
    }),
    ("used-ring-at-registers", |t| {
        misplaced(t, |p| Places {
            used: 0xc001_0000,
            ..p
        })
    }),
    ("used-ring-on-the-control-device", |t| {
        misplaced(t, |p| Places {
            used: 0xc000_0000,
            ..p
        })
    }),
    ("table-over-the-hole", |t| {
        misplaced(t, |p| Places {
            table: 0xc000_0000 - 16,
            ..p
        })
    }),
    ("used-ring-into-high-ram", |t| {
        misplaced(t, |p| Places {
            used: 0x1_0000_0000 - 4,
            ..p
        })
    }),
    ("table-wraps", |t| {
        misplaced(t, |p| Places {
            table: u64::MAX - 15,
            ..p
        })
    }),
    ("available-ring-wraps", |t| {
        misplaced(t, |p| Places {
            available: u64::MAX - 3,
            ..p
        })
    }),
    ("used-ring-wraps", |t| {
        misplaced(t, |p| Places {
            used: u64::MAX - 3,
            ..p
        })
    }),
    ("table-near-the-top", |t| {
        misplaced(t, |p| Places {
            table: 0xffff_ffff_ffff_f000,
            ..p
        })
    }),
    ("available-ring-near-the-top", |t| {
        misplaced(t, |p| Places {
            available: 0xffff_ffff_ffff_f000,
            ..p
        })
    }),
    ("used-ring-near-the-top", |t| {
        misplaced(t, |p| Places {
            used: 0xffff_ffff_ffff_f000,
            ..p
        })
    }),
    ("available-ring-at-0", |t| {
        misplaced(t, |p| Places { available: 0, ..p })
    }),
    ("rings-all-equal", |t| {
        misplaced(t, |p| Places {
            available: p.table,
            used: p.table,
            ..p
        })
    }),
    ("table-is-the-used-ring", |t| {
        misplaced(t, |p| Places { used: p.table, ..p })
    }),
    ("table-is-the-available-ring", |t| {
        misplaced(t, |p| Places {
            available: p.table + 16,
            ..p
        })
    }),
    ("used-ring-is-the-available-ring", |t| {
        misplaced(t, |p| Places {
            used: p.available,
            ..p
        })
    }),
    ("all-queues-in-one-place", one_place),
];

/// A queue that cannot be.
fn misplaced(target: &mut Target, place: fn(Places) -> Places) -> Outcome {
    end_of_ram_of(target, &|places, _| place(places))
}

fn end_of_ram(target: &mut Target, place: fn(Places, u64) -> Places) -> Outcome {
    end_of_ram_of(target, &place)
}

fn end_of_ram_of(target: &mut Target, place: &dyn Fn(Places, u64) -> Places) -> Outcome {
    for queue in 0..target.raw.queues() {
        target.raw.reset()?;
        target.raw.begin()?;
        target.raw.set_up_all(|other| other == queue);
        let size = target.raw.rings[usize::from(queue)].size;
        let places = place(target.raw.places(queue), target.ram_end);
        target.raw.set_up(queue, size.into(), places);
        target.raw.go();
        let found = target.raw.read(reg::STATUS);
        let wanted = status::WORKING | status::NEEDS_RESET;
        check(found == wanted, "status of a start that cannot be", found)?;
        target.raw.kick(queue);
    }
    Ok(())
}

fn bad_start_then_kick(target: &mut Target) -> Outcome {
    misplaced(target, |places| Places {
        used: places.table,
        ..places
    })?;
    for queue in 0..target.raw.queues() {
        (0..100).for_each(|_| target.raw.kick(queue));
    }
    let found = target.raw.read(reg::STATUS);
    check(
        found == (status::WORKING | status::NEEDS_RESET),
        "status",
        found,
    )
}

/// Queues that lie on each other are the driver's affair: the device works on, and a reset makes it well.
fn one_place(target: &mut Target) -> Outcome {
    target.raw.begin()?;
    let places = target.raw.places(0);
    for queue in 0..target.raw.queues() {
        let size = target.raw.rings[usize::from(queue)].size;
        target.raw.set_up(queue, size.into(), places);
    }
    target.raw.go();
    let buffer = Descriptor::new(target.data.address(0), 64, WRITE, 0);
    target.describe(0, &[buffer]);
    for _ in 0..200 {
        target.raw.ring(0).offer(0);
        (0..target.raw.queues()).for_each(|queue| target.raw.kick(queue));
    }
    Ok(())
}
