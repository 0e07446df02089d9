//! Descriptors and indices that break the rules, on every queue (virtio 1.2 §2.7). The device gives a bad chain back empty, and
//! gives up on a ring that it cannot follow.

use super::device::{
    DESCRIPTOR_BYTES, Descriptor, INDIRECT, NEXT, Outcome, WRITE, check, feature, put_descriptor,
};
use super::target::{Kind, Target};

/// Where in a target's data tables of descriptors lie.
pub const GOOD_TABLE: usize = 8 * 4096;

pub type Attack = fn(&mut Target, u16) -> Outcome;

/// Of each queue of every device.
pub const CHAINS: &[(&str, Attack)] = &[
    ("chain-of-itself", |t, q| bad(t, q, &[to(0)])),
    ("chain-of-two-in-a-loop", |t, q| bad(t, q, &[to(1), to(0)])),
    ("chain-through-all-in-a-loop", loop_of_all),
    ("chain-that-comes-back-to-its-middle", |t, q| {
        bad(t, q, &[to(1), to(2), to(1)])
    }),
    ("next-outside-the-table", |t, q| bad(t, q, &[to(256)])),
    ("next-far-outside-the-table", |t, q| {
        bad(t, q, &[to(u16::MAX)])
    }),
    ("readable-after-writable", |t, q| {
        bad(
            t,
            q,
            &[
                Descriptor {
                    flags: NEXT | WRITE,
                    ..to(1)
                },
                last(0),
            ],
        )
    }),
    ("writable-readable-writable", |t, q| {
        let writable = |next| Descriptor {
            flags: NEXT | WRITE,
            ..to(next)
        };
        bad(t, q, &[writable(1), to(2), last(WRITE)])
    }),
    ("more-than-4-gib", |t, q| {
        let huge = |flags, next| Descriptor {
            len: u32::MAX,
            flags,
            ..to(next)
        };
        bad(t, q, &[huge(NEXT, 1), huge(0, 0)])
    }),
    ("nothing-to-read", |t, q| {
        bad(t, q, &[Descriptor { len: 0, ..last(0) }])
    }),
    ("nothing-to-write", |t, q| {
        bad(
            t,
            q,
            &[Descriptor {
                len: 0,
                ..last(WRITE)
            }],
        )
    }),
    ("empty-buffers-in-a-row", empty_buffers),
    ("the-wrong-direction", wrong_direction),
    ("indirect-without-the-feature", |t, q| {
        bad(t, q, &[table(16)])
    }),
    ("indirect-of-no-length", |t, q| {
        bad_indirect(t, q, table(0), &[])
    }),
    ("indirect-of-15-bytes", |t, q| {
        bad_indirect(t, q, table(15), &[last(0)])
    }),
    ("indirect-of-17-bytes", |t, q| {
        bad_indirect(t, q, table(17), &[last(0)])
    }),
    ("indirect-with-a-next", |t, q| {
        let flags = INDIRECT | NEXT;
        bad_indirect(t, q, Descriptor { flags, ..table(16) }, &[last(0)])
    }),
    ("indirect-in-indirect", |t, q| {
        bad_indirect(t, q, table(32), &[table(16), last(0)])
    }),
    ("indirect-that-is-itself", |t, q| {
        bad_indirect(t, q, table(16), &[table(16)])
    }),
    ("indirect-in-a-loop", |t, q| {
        bad_indirect(t, q, table(32), &[to(1), to(0)])
    }),
    ("indirect-next-outside", |t, q| {
        bad_indirect(t, q, table(16), &[to(1)])
    }),
    ("indirect-outside-ram", |t, q| {
        let address = u64::MAX - 15;
        bad_indirect(
            t,
            q,
            Descriptor {
                address,
                ..table(16)
            },
            &[],
        )
    }),
    ("indirect-at-registers", |t, q| {
        let address = t.raw.base as u64;
        bad_indirect(
            t,
            q,
            Descriptor {
                address,
                ..table(32)
            },
            &[],
        )
    }),
    ("indirect-longer-than-the-queue", indirect_long),
    ("indirect-of-4-gib", |t, q| {
        bad_indirect(t, q, table(0xffff_fff0), &[to(0)])
    }),
    ("a-buffer-at-the-end-of-ram", |t, q| {
        place(t, q, |t| (t.ram_end - 1, 512))
    }),
    ("a-buffer-after-the-end-of-ram", |t, q| {
        place(t, q, |t| (t.ram_end, 512))
    }),
    ("a-buffer-over-the-edge-of-the-hole", |t, q| {
        place(t, q, |_| (0xc000_0000 - 256, 512))
    }),
    ("a-buffer-over-the-end-of-the-hole", |t, q| {
        place(t, q, |_| (0x1_0000_0000 - 256, 512))
    }),
    ("a-buffer-from-ram-over-the-hole", |t, q| {
        place(t, q, |t| (t.ram_end - 256, 0x4100_0000))
    }),
    ("a-buffer-of-registers", |t, q| {
        place(t, q, |t| (t.raw.base as u64, 512))
    }),
    ("a-buffer-of-the-control-device", |t, q| {
        place(t, q, |_| (0xc000_0000, 512))
    }),
    ("a-buffer-of-the-local-apic", |t, q| {
        place(t, q, |_| (0xfee0_0000, 512))
    }),
    ("a-buffer-that-wraps", |t, q| {
        place(t, q, |_| (0xffff_ffff_ffff_ff00, 512))
    }),
    ("a-buffer-that-ends-at-2-64", |t, q| {
        place(t, q, |_| (0xffff_ffff_ffff_fe00, 512))
    }),
    ("a-buffer-of-the-last-byte", |t, q| {
        place(t, q, |_| (u64::MAX, 1))
    }),
    ("a-buffer-beyond-52-bits", |t, q| {
        place(t, q, |_| (1 << 52, 512))
    }),
    ("a-buffer-of-the-upper-half", |t, q| {
        place(t, q, |_| (1 << 63, 512))
    }),
    ("many-bad-chains-at-once", many_bad),
    ("head-outside-the-table", |t, q| {
        lost(t, q, |t, q| t.raw.ring(q).offer(256))
    }),
    ("head-far-outside-the-table", |t, q| {
        lost(t, q, |t, q| t.raw.ring(q).offer(u16::MAX))
    }),
    ("index-ahead-by-one-more-than-the-size", |t, q| {
        jump(t, q, 257)
    }),
    ("index-ahead-by-half", |t, q| jump(t, q, 0x8000)),
    ("index-ahead-by-all-but-one", |t, q| jump(t, q, u16::MAX)),
    ("index-jumps-many-times", jump_often),
];

/// Of the main queue of every device: they take longer.
pub const LONG: &[(&str, Attack)] = &[
    ("index-back-by-one", index_back),
    ("index-goes-round", index_round),
    ("one-chain-in-every-entry", one_chain_everywhere),
    ("event-index-is-nonsense", event_index),
    ("a-flood-of-bad-chains", flood),
];

/// Kicks of a flood; as many bad chains as the ring has go with each.
const FLOOD_KICKS: u32 = 100;

/// Kicks after which an index that has not gone round never will: the queue is short.
const ROUNDS_MAX: u32 = 1024;

/// A buffer that another one follows. What is in it does not matter.
const fn to(next: u16) -> Descriptor {
    Descriptor::new(0x10_0000, 16, NEXT, next)
}

const fn last(flags: u16) -> Descriptor {
    Descriptor::new(0x10_0000, 16, flags, 0)
}

/// A table of descriptors, whose place is filled in when it is used.
const fn table(len: u32) -> Descriptor {
    Descriptor::new(0, len, INDIRECT, 0)
}

/// The chain comes back empty.
fn bad(target: &mut Target, queue: u16, chain: &[Descriptor]) -> Outcome {
    target.raw.start()?;
    target.describe(queue, chain);
    comes_back_empty(target, queue)
}

fn comes_back_empty(target: &mut Target, queue: u16) -> Outcome {
    let (head, bytes) = target.exchange(queue)?;
    check(head == 0, "another chain came back", head)?;
    check(bytes == 0, "bytes of a bad chain", bytes)
}

fn bad_indirect(
    target: &mut Target,
    queue: u16,
    mut head: Descriptor,
    chain: &[Descriptor],
) -> Outcome {
    let own = target.data.address(GOOD_TABLE);
    let at_own = |descriptor: Descriptor| match descriptor.address {
        0 => Descriptor {
            address: own,
            ..descriptor
        },
        _ => descriptor,
    };
    target.raw.wanted |= feature::INDIRECT;
    head = at_own(head);
    for (index, descriptor) in chain.iter().enumerate() {
        let place = GOOD_TABLE / DESCRIPTOR_BYTES + index;
        put_descriptor(target.data, place, at_own(*descriptor));
    }
    bad(target, queue, &[head])
}

fn loop_of_all(target: &mut Target, queue: u16) -> Outcome {
    target.raw.start()?;
    let size = target.raw.ring(queue).size;
    for index in 0..size {
        let next = (index + 1) % size;
        target.raw.ring(queue).describe(index, to(next));
    }
    comes_back_empty(target, queue)
}

/// Buffers of no length, as many as a chain may have.
fn empty_buffers(target: &mut Target, queue: u16) -> Outcome {
    target.raw.start()?;
    let size = target.raw.ring(queue).size;
    for index in 0..size {
        let is_last = index + 1 == size;
        let flags = if is_last { 0 } else { NEXT };
        let empty = Descriptor {
            len: 0,
            flags,
            ..to(index + 1)
        };
        target.raw.ring(queue).describe(index, empty);
    }
    comes_back_empty(target, queue)
}

fn wrong_direction(target: &mut Target, queue: u16) -> Outcome {
    let flags = if target.fills(queue) { 0 } else { WRITE };
    let address = target.data.address(0);
    match target.kind {
        // The status byte is all that it has; it must not be written as data.
        Kind::Block => bad(target, queue, &[Descriptor { address, ..last(0) }]),
        _ => bad(target, queue, &[Descriptor::new(address, 512, flags, 0)]),
    }
}

/// One more than a chain may have.
fn indirect_long(target: &mut Target, queue: u16) -> Outcome {
    for index in 0..257_u16 {
        let place = GOOD_TABLE / DESCRIPTOR_BYTES + usize::from(index);
        let flags = if index == 256 { 0 } else { NEXT };
        put_descriptor(
            target.data,
            place,
            Descriptor {
                flags,
                ..to(index + 1)
            },
        );
    }
    bad_indirect(target, queue, table(257 * 16), &[])
}

/// A buffer outside RAM.
fn place(target: &mut Target, queue: u16, at: fn(&Target) -> (u64, u32)) -> Outcome {
    let (address, len) = at(target);
    let is_written = target.fills(queue) || target.kind == Kind::Block;
    let flags = if is_written { WRITE } else { 0 };
    target.raw.start()?;
    target.describe(queue, &[Descriptor::new(address, len, flags, 0)]);
    let (_, bytes) = target.exchange(queue)?;
    // A disk's status byte is the last one, which may lie in RAM.
    let most = u32::from(target.kind == Kind::Block);
    check(bytes <= most, "bytes of a buffer outside RAM", bytes)
}

fn many_bad(target: &mut Target, queue: u16) -> Outcome {
    target.raw.start()?;
    fill_with(target, queue, to(0))
}

/// Offers a chain that leaves the table as often as the ring has entries; all come back empty.
fn fill_with_bad(target: &mut Target, queue: u16) -> Outcome {
    fill_with(target, queue, to(u16::MAX))
}

fn fill_with(target: &mut Target, queue: u16, bad: Descriptor) -> Outcome {
    target.raw.ring(queue).describe(0, bad);
    let size = target.raw.ring(queue).size;
    for _ in 0..size {
        target.raw.ring(queue).offer(0);
    }
    target.kick(queue)?;
    for _ in 0..size {
        let (head, bytes) = target.raw.wait_used(queue)?;
        check((head, bytes) == (0, 0), "bytes of a bad chain", bytes)?;
    }
    Ok(())
}

/// After `offer` the device cannot follow the ring, says so, and does nothing more.
fn lost(target: &mut Target, queue: u16, offer: fn(&mut Target, u16)) -> Outcome {
    target.raw.start()?;
    offer(target, queue);
    let _ = target.kick(queue);
    target.raw.wait_needs_reset()?;
    let used = target.raw.ring(queue).used_index();
    check(used == 0, "used entries of a broken ring", used)
}

fn jump(target: &mut Target, queue: u16, by: u16) -> Outcome {
    target.raw.start()?;
    target.raw.ring(queue).describe(0, to(0));
    target.raw.ring(queue).set_available(by);
    let _ = target.kick(queue);
    target.raw.wait_needs_reset()
}

/// It is told once, however often the index jumps.
fn jump_often(target: &mut Target, queue: u16) -> Outcome {
    jump(target, queue, 1000)?;
    for index in 0..200_u16 {
        target
            .raw
            .ring(queue)
            .set_available(index.wrapping_mul(5003));
        target.raw.kick(queue);
    }
    check(target.raw.needs_reset(), "it forgot", 0_u8)
}

fn index_back(target: &mut Target, queue: u16) -> Outcome {
    target.raw.start()?;
    fill_with_bad(target, queue)?;
    let offered = target.raw.ring(queue).offered;
    target
        .raw
        .ring(queue)
        .set_available(offered.wrapping_sub(1));
    let _ = target.kick(queue);
    target.raw.wait_needs_reset()
}

/// More chains than an index counts.
fn index_round(target: &mut Target, queue: u16) -> Outcome {
    target.raw.start()?;
    let size = u32::from(target.raw.ring(queue).size);
    for _ in 0..=(0x1_0000 / size).min(ROUNDS_MAX) {
        fill_with_bad(target, queue)?;
    }
    Ok(())
}

/// Good or not, it is served as often as it is offered.
fn one_chain_everywhere(target: &mut Target, queue: u16) -> Outcome {
    target.raw.start()?;
    target.prove()?;
    // Descriptor 0 is of the last request that was made.
    let size = target.raw.ring(queue).size;
    for _ in 0..size {
        target.raw.ring(queue).offer(0);
    }
    target.raw.kick(queue);
    for _ in 0..size {
        target.raw.wait_used(queue)?;
    }
    Ok(())
}

fn event_index(target: &mut Target, queue: u16) -> Outcome {
    target.raw.wanted |= feature::EVENT_IDX;
    target.raw.start()?;
    for event in [0_u16, 1, 255, 256, 0x7fff, 0x8000, u16::MAX] {
        target.raw.ring(queue).set_used_event(event);
        fill_with_bad(target, queue)?;
    }
    Ok(())
}

fn flood(target: &mut Target, queue: u16) -> Outcome {
    target.raw.start()?;
    for _ in 0..FLOOD_KICKS {
        fill_with_bad(target, queue)?;
    }
    Ok(())
}
