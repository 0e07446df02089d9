//! Disk requests against the rules (virtio 1.2 §5.2.6).

use super::device::{Descriptor, NEXT, Outcome, PAGE_BYTES, WRITE, check, reg};
use super::target::{BLOCK_HEADER_BYTES, FREE_SECTOR, SECTOR_BYTES, Target, block};

type Attack = fn(&mut Target) -> Outcome;

pub const ATTACKS: &[(&str, Attack)] = &[
    ("read-after-the-end", |t| {
        request(t, |t| (block::IN, t.sectors()), sector, IOERR)
    }),
    ("read-over-the-end", |t| {
        request(
            t,
            |t| (block::IN, t.sectors() - 1),
            |t| bytes(t, 1024),
            IOERR,
        )
    }),
    ("read-far-after-the-end", |t| {
        request(t, |_| (block::IN, u64::MAX), sector, IOERR)
    }),
    ("read-at-a-sector-whose-byte-wraps", |t| {
        request(t, |_| (block::IN, 1 << 55), sector, IOERR)
    }),
    ("write-after-the-end", |t| {
        request(t, |t| (block::OUT, t.sectors()), from_guest, IOERR)
    }),
    ("write-at-the-last-number", |t| {
        request(t, |_| (block::OUT, u64::MAX), from_guest, IOERR)
    }),
    ("read-of-a-part-of-a-sector", |t| {
        request(t, |_| (block::IN, 0), |t| bytes(t, 511), IOERR)
    }),
    ("read-of-a-sector-and-a-byte", |t| {
        request(t, |_| (block::IN, 0), |t| bytes(t, 513), IOERR)
    }),
    ("read-of-4-gib", |t| {
        request(t, |_| (block::IN, 0), |t| bytes(t, 0xffff_fe00), IOERR)
    }),
    ("read-of-nothing", |t| {
        request(t, |_| (block::IN, 0), |t| bytes(t, 0), OK)
    }),
    ("read-into-registers", |t| {
        request(
            t,
            |_| (block::IN, 0),
            |t| elsewhere(t.raw.base as u64),
            IOERR,
        )
    }),
    ("read-over-the-end-of-ram", |t| {
        request(t, |_| (block::IN, 0), |t| elsewhere(t.ram_end - 4), IOERR)
    }),
    ("read-to-where-addresses-wrap", |t| {
        request(t, |_| (block::IN, 0), |_| elsewhere(u64::MAX - 255), IOERR)
    }),
    ("write-from-the-local-apic", |t| {
        request(
            t,
            |_| (block::OUT, FREE_SECTOR),
            |_| readable(0xfee0_0000),
            IOERR,
        )
    }),
    ("write-from-over-the-end-of-ram", |t| {
        request(
            t,
            |_| (block::OUT, FREE_SECTOR),
            |t| readable(t.ram_end - 4),
            IOERR,
        )
    }),
    ("unknown-type-2", |t| request(t, |_| (2, 0), sector, UNSUPP)),
    ("unknown-type-3", |t| request(t, |_| (3, 0), sector, UNSUPP)),
    ("unknown-type-of-all-ones", |t| {
        request(t, |_| (u32::MAX, 0), sector, UNSUPP)
    }),
    ("type-with-the-old-barrier-bit", |t| {
        request(t, |_| (1 << 31, 0), sector, UNSUPP)
    }),
    ("id-into-19-bytes", |t| {
        request(t, |_| (block::GET_ID, 0), |t| bytes(t, 19), IOERR)
    }),
    ("id-into-registers", |t| {
        request(
            t,
            |_| (block::GET_ID, 0),
            |t| Descriptor {
                len: 20,
                ..elsewhere(t.raw.base as u64)
            },
            IOERR,
        )
    }),
    ("id-of-a-sector", |t| {
        request(t, |_| (block::GET_ID, u64::MAX), sector, OK)
    }),
    ("flush-with-data-and-a-sector", |t| {
        request(t, |_| (block::FLUSH, u64::MAX), sector, OK)
    }),
    ("discard-of-no-range", |t| {
        range(t, block::DISCARD, |_| [], 0)
    }),
    ("discard-of-a-short-range", |t| {
        range(t, block::DISCARD, |_| [0; 1], 8)
    }),
    ("discard-of-two-ranges", |t| {
        range(t, block::DISCARD, |_| [0, 1, 0, 1], 32)
    }),
    ("discard-after-the-end", |t| {
        range(t, block::DISCARD, |t| [t.sectors(), 1], 16)
    }),
    ("discard-over-the-end", |t| {
        range(t, block::DISCARD, |t| [t.sectors() - 1, 2], 16)
    }),
    ("discard-that-wraps", |t| {
        range(t, block::DISCARD, |_| [u64::MAX, 2], 16)
    }),
    ("discard-of-2-tib", |t| {
        range(t, block::DISCARD, |_| [0, 0xffff_ffff], 16)
    }),
    ("discard-with-an-unknown-flag", |t| {
        range(
            t,
            block::DISCARD,
            |_| [FREE_SECTOR, 1 | 0x8000_0000 << 32],
            16,
        )
    }),
    ("discard-with-the-flag-of-the-other", |t| {
        range(t, block::DISCARD, |_| [FREE_SECTOR, 1 | 1 << 32], 16)
    }),
    ("zeroes-after-the-end", |t| {
        range(t, block::WRITE_ZEROES, |t| [t.sectors(), 1], 16)
    }),
    ("zeroes-that-wrap", |t| {
        range(t, block::WRITE_ZEROES, |_| [u64::MAX, u64::MAX], 16)
    }),
    ("zeroes-with-an-unknown-flag", |t| {
        range(t, block::WRITE_ZEROES, |_| [FREE_SECTOR, 1 | 2 << 32], 16)
    }),
    ("header-in-16-pieces", header_in_pieces),
    ("header-short", |t| header(t, 15)),
    ("header-long", |t| header(t, 17)),
    ("header-in-registers", header_in_registers),
    ("status-in-registers", |t| {
        status_at(t, |t| t.raw.base as u64)
    }),
    ("status-after-the-end-of-ram", |t| {
        status_at(t, |t| t.ram_end)
    }),
    ("status-at-the-last-address", |t| status_at(t, |_| u64::MAX)),
    ("no-status", no_status),
    ("status-that-is-only-readable", readable_status),
    ("data-in-both-directions", both_directions),
    ("data-on-its-own-header", data_on_header),
    ("data-on-its-own-rings", data_on_rings),
    ("as-many-buffers-as-entries", many_buffers),
    ("a-flood-of-zeroes", |t| flood(t, block::WRITE_ZEROES)),
    ("a-flood-of-discards", |t| flood(t, block::DISCARD)),
    ("a-flood-of-flushes", flood_of_flushes),
    ("large-reads-and-a-reset", large_reads),
];

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;
/// `VIRTIO_BLK_F_DISCARD`.
const DISCARDS: u64 = 1 << 13;
/// Sectors of the longest range: 1 GiB.
const RANGE_SECTORS_MAX: u64 = 2 << 20;

impl Target {
    fn sectors(&self) -> u64 {
        let half = |at| u64::from(self.raw.read(reg::CONFIG + at));
        half(0) | half(4) << 32
    }

    const fn discards(&self) -> bool {
        self.raw.usual & DISCARDS != 0
    }
}

fn sector(target: &Target) -> Descriptor {
    target.sector(WRITE)
}

fn from_guest(target: &Target) -> Descriptor {
    target.sector(0)
}

fn bytes(target: &Target, len: u32) -> Descriptor {
    Descriptor {
        len,
        ..target.sector(WRITE)
    }
}

const fn elsewhere(address: u64) -> Descriptor {
    Descriptor::new(address, SECTOR_BYTES, WRITE, 0)
}

const fn readable(address: u64) -> Descriptor {
    Descriptor::new(address, SECTOR_BYTES, 0, 0)
}

/// The request is answered with `status`; where the disk cannot be written, a write is with an error.
fn request(
    target: &mut Target,
    what: fn(&Target) -> (u32, u64),
    data: fn(&Target) -> Descriptor,
    status: u8,
) -> Outcome {
    target.raw.start()?;
    let (what, data) = (what(target), data(target));
    target.block_request(what, data, status)
}

/// A discard or write of zeroes that names `words`, of which it has `len` bytes; it is refused.
fn range<const N: usize>(
    target: &mut Target,
    kind: u32,
    words: fn(&Target) -> [u64; N],
    len: u32,
) -> Outcome {
    target.raw.start()?;
    let words = words(target);
    for (index, word) in words.into_iter().enumerate() {
        target.data.write(PAGE_BYTES + 8 * index, word);
    }
    let is_flag = matches!(words.last(), Some(last) if last >> 32 != 0 && words[0] == FREE_SECTOR);
    let status = if is_flag || !target.discards() {
        UNSUPP
    } else {
        IOERR
    };
    let data = Descriptor {
        len,
        ..target.sector(0)
    };
    target.block_request((kind, 0), data, status)
}

/// Describes a read of sector 1, then changes its chain.
fn read_with(
    target: &mut Target,
    change: impl Fn(&mut Target),
) -> Result<(u32, u32), super::device::Why> {
    target.raw.start()?;
    let data = target.sector(WRITE);
    target.describe_block((block::IN, 1), data);
    change(target);
    target.exchange(0)
}

fn status(target: &Target) -> u8 {
    target.data.read(2 * PAGE_BYTES)
}

/// How a request is cut does not matter (virtio 1.2 §2.7.4.1).
fn header_in_pieces(target: &mut Target) -> Outcome {
    let (_, used) = read_with(target, |target| {
        let ring = target.raw.ring(0);
        for index in 0..16_u16 {
            let address = target.data.address(usize::from(index));
            ring.describe(index, Descriptor::new(address, 1, NEXT, index + 1));
        }
        let data = target.data.address(PAGE_BYTES);
        ring.describe(16, Descriptor::new(data, 513, WRITE, 0));
    })?;
    check(used == 513, "bytes", used)
}

fn header(target: &mut Target, len: u32) -> Outcome {
    read_with(target, |target| {
        let header = Descriptor::new(target.data.address(0), len, NEXT, 1);
        target.raw.ring(0).describe(0, header);
    })?;
    let wanted = if len < BLOCK_HEADER_BYTES { IOERR } else { OK };
    check(status(target) == wanted, "status byte", status(target))
}

fn header_in_registers(target: &mut Target) -> Outcome {
    read_with(target, |target| {
        let header = Descriptor::new(target.raw.base as u64, 16, NEXT, 1);
        target.raw.ring(0).describe(0, header);
    })?;
    check(status(target) == IOERR, "status byte", status(target))
}

fn status_at(target: &mut Target, address: fn(&Target) -> u64) -> Outcome {
    let address = address(target);
    let (_, used) = read_with(target, |target| {
        target
            .raw
            .ring(0)
            .describe(2, Descriptor::new(address, 1, WRITE, 0));
    })?;
    check(used == 0, "bytes", used)
}

fn no_status(target: &mut Target) -> Outcome {
    let (_, used) = read_with(target, |target| {
        let header = Descriptor::new(target.data.address(0), 16, 0, 0);
        target.raw.ring(0).describe(0, header);
    })?;
    check(used == 0, "bytes", used)
}

fn readable_status(target: &mut Target) -> Outcome {
    let (_, used) = read_with(target, |target| {
        let status = target.data.address(2 * PAGE_BYTES);
        target
            .raw
            .ring(0)
            .describe(2, Descriptor::new(status, 1, 0, 0));
    })?;
    check(used == 0, "bytes", used)
}

/// Readable data with a read: it is a request of no use that does no harm.
fn both_directions(target: &mut Target) -> Outcome {
    read_with(target, |target| {
        let ring = target.raw.ring(0);
        ring.describe(1, Descriptor::new(target.data.address(0), 512, NEXT, 3));
        let data = target.data.address(PAGE_BYTES);
        ring.describe(3, Descriptor::new(data, 512, NEXT | WRITE, 2));
    })?;
    check(status(target) == OK, "status byte", status(target))
}

/// The header was read before the disk is.
fn data_on_header(target: &mut Target) -> Outcome {
    let (_, used) = read_with(target, |target| {
        let header = target.data.address(0);
        target
            .raw
            .ring(0)
            .describe(1, Descriptor::new(header, 512, NEXT | WRITE, 2));
    })?;
    check(
        (used, status(target)) == (513, OK),
        "status byte",
        status(target),
    )
}

/// The disk's contents become the rings': whatever the device makes of it, a reset makes it well.
fn data_on_rings(target: &mut Target) -> Outcome {
    for at in 0..3 {
        target.raw.reset()?;
        target.raw.start()?;
        let places = target.raw.places(0);
        let address = [places.table, places.available, places.used][at];
        target.describe_block((block::IN, 0), Descriptor::new(address, 4096, WRITE, 0));
        target.raw.ring(0).offer(0);
        (0..20).for_each(|_| target.raw.kick(0));
    }
    Ok(())
}

/// A chain through the whole table.
fn many_buffers(target: &mut Target) -> Outcome {
    read_with(target, |target| {
        let ring = target.raw.ring(0);
        let size = ring.size;
        let data = target.data.address(PAGE_BYTES);
        for index in 1..size {
            let next = if index + 1 == size {
                (0, 0)
            } else {
                (NEXT, index + 1)
            };
            ring.describe(index, Descriptor::new(data, 2, WRITE | next.0, next.1));
        }
        let last = target.data.address(2 * PAGE_BYTES);
        ring.describe(size - 1, Descriptor::new(last, 1, WRITE, 0));
    })?;
    // 254 buffers of two bytes are no whole sector.
    check(status(target) == IOERR, "status byte", status(target))
}

/// The longest ranges that are allowed, as many as the ring has entries.
fn flood(target: &mut Target, kind: u32) -> Outcome {
    target.raw.start()?;
    let first = FREE_SECTOR;
    let sectors = (target.sectors() - first).min(RANGE_SECTORS_MAX);
    target.data.write(PAGE_BYTES, first);
    target.data.write(PAGE_BYTES + 8, sectors);
    let data = Descriptor {
        len: 16,
        ..target.sector(0)
    };
    target.describe_block((kind, 0), data);
    all_come_back(target)
}

fn flood_of_flushes(target: &mut Target) -> Outcome {
    target.raw.start()?;
    let data = target.sector(WRITE);
    target.describe_block((block::FLUSH, 0), data);
    all_come_back(target)
}

/// Offers chain 0 as often as the ring has entries.
fn all_come_back(target: &mut Target) -> Outcome {
    let size = target.raw.ring(0).size;
    for _ in 0..size {
        target.raw.ring(0).offer(0);
    }
    target.raw.kick(0);
    (0..size).try_for_each(|_| target.raw.wait_used(0).map(|_| ()))
}

/// The longest reads, all into the same pages, as many as the ring has entries, and a reset at once.
fn large_reads(target: &mut Target) -> Outcome {
    const PIECE: u32 = 64 << 10;
    target.raw.start()?;
    let data = target.sector(WRITE);
    target.describe_block((block::IN, 0), data);
    let whole = target.sectors() * u64::from(SECTOR_BYTES) / u64::from(PIECE);
    let pieces = u16::try_from(whole.clamp(1, 250)).unwrap_or(1);
    let address = target.data.address(0x1_0000);
    let ring = target.raw.ring(0);
    for index in 0..pieces {
        let next = if index + 1 == pieces { 2 } else { index + 4 };
        let piece = Descriptor::new(address, PIECE, NEXT | WRITE, next);
        let place = if index == 0 { 1 } else { index + 3 };
        ring.describe(place, piece);
    }
    for _ in 0..ring.size {
        ring.offer(0);
    }
    target.raw.kick(0);
    target.raw.reset()
}
