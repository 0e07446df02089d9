//! The second CPU: it changes a word of memory back and forth while the first one waits for a device.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::chains::GOOD_TABLE;
use super::device::{
    DESCRIPTOR_BYTES, Descriptor, INDIRECT, NEXT, Outcome, PAGE_BYTES, WRITE, Why, check, feature,
    put_descriptor, why,
};
use super::target::{CONSOLE_MESSAGES_OUT, FREE_SECTOR, Kind, Packet, Target, block, op};
use crate::apic;
use crate::apps::smp;

unsafe extern "C" {
    /// Whether another CPU that comes up is to change words: else it sleeps.
    static flip_wanted: AtomicU32;
    /// Where the word is; 0: none.
    static flip_address: AtomicU64;
    /// What it is in turn.
    static flip_values: [AtomicU64; 2];
    /// Counts while there is no word.
    static flip_idle: AtomicU64;
    /// Counts changes.
    static flip_count: AtomicU64;
}

/// Kicks of one attack.
const KICKS: u32 = 25;
/// Chains of one kick: all are the same one.
const CHAINS: u16 = 16;
/// Looks at the ring for one at the status.
const LOOKS: u32 = 2000;
/// Restarts after which an attack has shown enough.
const RESTARTS_MAX: u32 = 10;

/// The second CPU, if it has come up.
#[derive(Clone, Copy)]
pub struct Flipper(bool);

/// A word and what it is in turn.
#[derive(Clone, Copy)]
struct Word {
    address: u64,
    values: [u64; 2],
}

impl Flipper {
    /// None yet.
    pub const NONE: Self = Self(false);

    /// Starts the second CPU; it spins until [`stop_all`](Self::stop_all).
    pub fn start() -> Self {
        // SAFETY: an aligned word that only this CPU writes, and another reads.
        unsafe { &flip_wanted }.store(1, Ordering::SeqCst);
        let before = smp::online();
        smp::bring_up(Some(before + 1));
        Self(smp::online() > before)
    }

    pub const fn is_there(self) -> bool {
        self.0
    }

    /// Puts the second CPU to sleep for good.
    pub fn stop_all(self) {
        if self.0 {
            apic::init_others();
        }
    }

    /// Returns when the other CPU has begun to change the word: a host may not run it at once.
    fn begin(word: Word) {
        let before = Self::count();
        // SAFETY: aligned words that only this CPU writes.
        let values = unsafe { &flip_values };
        for (place, value) in values.iter().zip(word.values) {
            place.store(value, Ordering::SeqCst);
        }
        // SAFETY: the same.
        unsafe { &flip_address }.store(word.address, Ordering::SeqCst);
        while Self::count() == before {
            core::hint::spin_loop();
        }
    }

    /// Returns when the other CPU does not touch the word any more.
    fn stop() {
        // SAFETY: an aligned word that only this CPU writes.
        unsafe { &flip_address }.store(0, Ordering::SeqCst);
        // SAFETY: an aligned word that only the other CPU writes.
        let idle = unsafe { &flip_idle };
        let before = idle.load(Ordering::SeqCst);
        while idle.load(Ordering::SeqCst).wrapping_sub(before) < 2 {
            core::hint::spin_loop();
        }
    }

    fn count() -> u64 {
        // SAFETY: an aligned word that only the other CPU writes.
        unsafe { &flip_count }.load(Ordering::SeqCst)
    }
}

type Attack = fn(&mut Target) -> Outcome;

/// Of every device.
pub const COMMON: &[(&str, Attack)] = &[
    ("flip-length", length),
    ("flip-address", address),
    ("flip-address-at-the-end", address_at_the_end),
    ("flip-address-to-registers", address_to_registers),
    ("flip-next", next),
    ("flip-direction", direction),
    ("flip-indirect", indirect),
    ("flip-indirect-table", indirect_table),
    ("flip-head", head),
    ("flip-available-index", available_index),
    ("flip-used-index", used_index),
];

pub const BLOCK: &[(&str, Attack)] = &[
    ("flip-type", block_type),
    ("flip-type-to-unknown", block_unknown),
    ("flip-sector", block_sector),
    ("flip-data-length", block_data_length),
];

pub const NET: &[(&str, Attack)] = &[
    ("flip-offload", |target| net_header(target, 0, u64::MAX)),
    ("flip-checksum-start", |target| {
        net_header(target, 1, 0x0001_ffff_ffff_0001)
    }),
    ("flip-destination", |target| net_header(target, 2, 0)),
];

pub const VSOCK: &[(&str, Attack)] = &[
    ("flip-payload-length", vsock_length),
    ("flip-operation", vsock_operation),
    ("flip-source", vsock_source),
    ("flip-destination", vsock_destination),
    ("flip-credit", vsock_credit),
];

pub const CONSOLE: &[(&str, Attack)] = &[
    ("flip-message", |target| message(target, u64::MAX)),
    ("flip-port", |target| message(target, 0x0001_0006_0000_0001)),
];

pub const BALLOON: &[(&str, Attack)] = &[("flip-page-numbers", balloon_numbers)];

/// Describes a chain on the main queue that the device serves, whatever its kind.
fn describe_good(target: &mut Target) {
    match target.kind {
        Kind::Block => {
            let data = target.sector(WRITE);
            target.describe_block((block::IN, 1), data);
        }
        Kind::Net => {
            let frame = target.arp();
            target.describe(1, &[frame]);
        }
        Kind::Entropy => {
            let buffer = Descriptor::new(target.data.address(0), 64, WRITE, 0);
            target.describe(0, &[buffer]);
        }
        Kind::Vsock => {
            // It needs no answer.
            let packet = target.packet(op::RST, 77);
            target.put_packet(packet);
            target.describe(1, &[Descriptor::new(target.data.address(0), 44, 0, 0)]);
        }
        Kind::Balloon => {
            let numbers = target.put_page_numbers(2);
            target.describe(0, &[numbers]);
        }
        Kind::Console => {
            // It needs no answer.
            let message = target.put_message(77, 3);
            target.describe(CONSOLE_MESSAGES_OUT, &[message]);
        }
    }
}

fn begin(target: &mut Target, prepare: fn(&mut Target)) -> Outcome {
    target.raw.reset()?;
    // It may want a feature.
    prepare(target);
    target.raw.start()?;
    if target.is_answered() {
        target.offer_buffers();
    }
    Ok(())
}

/// Has the device serve what `prepare` describes while the second CPU changes `word`.
fn flip(target: &mut Target, prepare: fn(&mut Target), word: impl Fn(&Target) -> Word) -> Outcome {
    check(target.flipper.is_there(), "no second CPU", 0_u8)?;
    begin(target, prepare)?;
    let before = Flipper::count();
    let mut restarts = 0;
    for _ in 0..KICKS {
        prepare(target);
        Flipper::begin(word(target));
        let served = kick_many(target);
        Flipper::stop();
        if !served? {
            restarts += 1;
            if restarts == RESTARTS_MAX {
                break;
            }
            begin(target, prepare)?;
        }
    }
    let changes = Flipper::count().wrapping_sub(before);
    check(changes > 0, "changes by the second CPU", changes)
}

/// Offers chain 0 many times, and waits for all. False if the device wants to be reset instead.
fn kick_many(target: &mut Target) -> Result<bool, Why> {
    let queue = target.main_queue();
    let size = target.raw.ring(queue).size;
    for _ in 0..CHAINS.min(size) {
        target.raw.ring(queue).offer(0);
    }
    target.raw.kick(queue);
    let wanted = target.raw.ring(queue).offered;
    let is_answered = target.is_answered();
    loop {
        let mut looks = 0_u32;
        let is_there = target.raw.wait(|raw| {
            let ring = &raw.rings[usize::from(queue)];
            let has_used = ring.used_index() == wanted;
            let is_held_up = is_answered && raw.rings[0].used_index() != raw.rings[0].taken;
            // A look at the status may leave the guest.
            looks = looks.wrapping_add(1);
            has_used || is_held_up || (looks.is_multiple_of(LOOKS) && raw.needs_reset())
        });
        if is_answered {
            target.drain();
        }
        let used = target.raw.ring(queue).used_index();
        if used == wanted {
            target.raw.ring(queue).taken = wanted;
            return Ok(true);
        }
        if target.raw.needs_reset() {
            return Ok(false);
        }
        if !is_there {
            return Err(why("chains that do not come back, used index", used));
        }
    }
}

/// The word of descriptor `index` of the main queue that is its length, flags and next one.
fn second_word(target: &Target, index: usize, values: [Descriptor; 2]) -> Word {
    let places = target.raw.places(target.main_queue());
    Word {
        address: places.table + (index * DESCRIPTOR_BYTES) as u64 + 8,
        values: values.map(Descriptor::word),
    }
}

/// The first descriptor of what `describe_good` describes.
fn first(target: &Target) -> Descriptor {
    let (len, flags, next) = match target.kind {
        Kind::Block => (16, NEXT, 1),
        Kind::Net => (54, 0, 0),
        Kind::Entropy => (64, WRITE, 0),
        Kind::Vsock => (44, 0, 0),
        Kind::Balloon | Kind::Console => (8, 0, 0),
    };
    Descriptor::new(target.data.address(0), len, flags, next)
}

fn length(target: &mut Target) -> Outcome {
    flip(target, describe_good, |target| {
        let good = first(target);
        let len = if target.kind == Kind::Entropy {
            0x8000
        } else {
            u32::MAX
        };
        second_word(target, 0, [good, Descriptor { len, ..good }])
    })
}

fn first_address(target: &mut Target, bad: fn(&Target) -> u64) -> Outcome {
    flip(target, describe_good, |target| Word {
        address: target.raw.places(target.main_queue()).table,
        values: [target.data.address(0), bad(target)],
    })
}

fn address(target: &mut Target) -> Outcome {
    first_address(target, |_| 0xffff_ffff_ffff_f000)
}

fn address_at_the_end(target: &mut Target) -> Outcome {
    first_address(target, |target| target.ram_end - 1)
}

fn address_to_registers(target: &mut Target) -> Outcome {
    first_address(target, |target| target.raw.base as u64)
}

fn next(target: &mut Target) -> Outcome {
    flip(target, describe_good, |target| {
        let good = first(target);
        let flags = good.flags | NEXT;
        second_word(
            target,
            0,
            [
                good,
                Descriptor {
                    flags,
                    next: 0,
                    ..good
                },
            ],
        )
    })
}

fn direction(target: &mut Target) -> Outcome {
    flip(target, describe_good, |target| {
        let good = first(target);
        let flags = good.flags ^ WRITE;
        second_word(target, 0, [good, Descriptor { flags, ..good }])
    })
}

fn indirect(target: &mut Target) -> Outcome {
    flip(target, describe_good, |target| {
        let good = first(target);
        let flags = good.flags ^ INDIRECT;
        second_word(target, 0, [good, Descriptor { flags, ..good }])
    })
}

/// A table of one descriptor, which changes.
fn indirect_table(target: &mut Target) -> Outcome {
    fn prepare(target: &mut Target) {
        target.raw.wanted |= feature::INDIRECT;
        let queue = target.main_queue();
        describe_good(target);
        let good = Descriptor {
            flags: first(target).flags & !NEXT,
            ..first(target)
        };
        put_descriptor(target.data, GOOD_TABLE / DESCRIPTOR_BYTES, good);
        let table = Descriptor::new(target.data.address(GOOD_TABLE), 16, INDIRECT, 0);
        target.describe(queue, &[table]);
    }
    flip(target, prepare, |target| {
        let good = first(target);
        let bad = Descriptor {
            flags: NEXT | INDIRECT,
            next: 0,
            ..good
        };
        Word {
            address: target.data.address(GOOD_TABLE + 8),
            values: [good.word(), bad.word()],
        }
    })
}

/// The heads in the ring: 0, and one outside the table.
fn head(target: &mut Target) -> Outcome {
    flip(target, describe_good, |target| Word {
        address: target.raw.places(target.main_queue()).available + 8,
        values: [0, 0xffff_0000_0000_0000],
    })
}

fn available_index(target: &mut Target) -> Outcome {
    flip(target, describe_good, |target| {
        let queue = target.main_queue();
        let Some(ring) = target.raw.rings.get(usize::from(queue)) else {
            return Word {
                address: 0,
                values: [0; 2],
            };
        };
        let index = |more: u16| u64::from(ring.offered.wrapping_add(more)) << 16;
        Word {
            address: target.raw.places(queue).available,
            values: [index(CHAINS), index(CHAINS + 0x7000)],
        }
    })
}

fn used_index(target: &mut Target) -> Outcome {
    // Four entries of the used ring are the device's alone; their words are changed under it.
    flip(target, describe_good, |target| Word {
        address: target.raw.places(target.main_queue()).used + 8,
        values: [0, u64::MAX],
    })
}

fn block_type(target: &mut Target) -> Outcome {
    fn prepare(target: &mut Target) {
        let data = target.sector(WRITE);
        target.describe_block((block::IN, FREE_SECTOR), data);
    }
    flip(target, prepare, |target| Word {
        address: target.data.address(0),
        values: [block::IN.into(), block::OUT.into()],
    })
}

fn block_unknown(target: &mut Target) -> Outcome {
    flip(target, describe_good, |target| Word {
        address: target.data.address(0),
        values: [block::FLUSH.into(), u64::from(u32::MAX)],
    })
}

fn block_sector(target: &mut Target) -> Outcome {
    flip(target, describe_good, |target| Word {
        address: target.data.address(8),
        values: [1, u64::MAX >> 9],
    })
}

fn block_data_length(target: &mut Target) -> Outcome {
    flip(target, describe_good, |target| {
        let good = Descriptor::new(0, 512, WRITE | NEXT, 2);
        second_word(
            target,
            1,
            [
                good,
                Descriptor {
                    len: 0xffff_fe00,
                    ..good
                },
            ],
        )
    })
}

/// Word `index` of a frame and its header.
fn net_header(target: &mut Target, index: usize, bad: u64) -> Outcome {
    flip(target, describe_good, |target| Word {
        address: target.data.address(8 * index),
        values: [target.data.read(8 * index), bad],
    })
}

/// A word of a packet that is `good` or `bad`.
fn packets(target: &mut Target, at: usize, packets: fn(&Target) -> [Packet; 2]) -> Outcome {
    flip(target, describe_good, |target| {
        let values = packets(target).map(|packet| {
            target.put_packet(packet);
            target.data.read(at)
        });
        Word {
            address: target.data.address(at),
            values,
        }
    })
}

fn vsock_length(target: &mut Target) -> Outcome {
    packets(target, 24, |target| {
        let good = target.packet(op::RW, 77);
        [
            good,
            Packet {
                len: u32::MAX,
                ..good
            },
        ]
    })
}

fn vsock_operation(target: &mut Target) -> Outcome {
    packets(target, 24, |target| {
        let good = target.packet(op::REQUEST, 5000);
        [
            good,
            Packet {
                op: op::RW,
                socket_type: 99,
                ..good
            },
        ]
    })
}

fn vsock_source(target: &mut Target) -> Outcome {
    packets(target, 0, |target| {
        let good = target.packet(op::RST, 77);
        [good, Packet { src_cid: 2, ..good }]
    })
}

fn vsock_destination(target: &mut Target) -> Outcome {
    packets(target, 8, |target| {
        let good = target.packet(op::RW, 77);
        [
            good,
            Packet {
                dst_cid: u64::MAX,
                ..good
            },
        ]
    })
}

fn vsock_credit(target: &mut Target) -> Outcome {
    packets(target, 32, |target| {
        let good = target.packet(op::CREDIT_UPDATE, 5000);
        [
            good,
            Packet {
                buf_alloc: 0,
                flags: u32::MAX,
                ..good
            },
        ]
    })
}

/// A message that needs no answer, and another one.
fn message(target: &mut Target, other: u64) -> Outcome {
    flip(target, describe_good, |target| Word {
        address: target.data.address(0),
        values: [target.data.read(0), other],
    })
}

fn balloon_numbers(target: &mut Target) -> Outcome {
    flip(target, describe_good, |target| Word {
        address: target.data.address(0),
        values: [target.data.read(0), u64::MAX],
    })
}

const _: () = assert!(GOOD_TABLE + PAGE_BYTES <= 16 * PAGE_BYTES);
