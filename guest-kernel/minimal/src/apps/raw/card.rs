//! Frames against the rules (virtio 1.2 §5.1.6), to the tap and to the metadata service.

use super::device::{Descriptor, NEXT, Outcome, WRITE, check};
use super::target::{NET_HEADER_BYTES, Target};

type Attack = fn(&mut Target) -> Outcome;

pub const ATTACKS: &[(&str, Attack)] = &[
    ("frame-without-a-header", |t| frame(t, 11, &[])),
    ("frame-of-nothing", |t| frame(t, 12, &[])),
    ("frame-of-13-bytes", |t| frame(t, 12 + 13, &[])),
    ("frame-longer-than-64-kib", |t| frame(t, 65_536 + 40, &[])),
    ("frame-of-4-gib", |t| frame(t, u32::MAX, &[])),
    ("checksum-start-outside", |t| {
        frame(t, 1000, &[1, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0])
    }),
    ("checksum-offset-outside", |t| {
        frame(t, 1000, &[1, 0, 0, 0, 0, 0, 34, 0, 0xff, 0xff])
    }),
    ("checksum-sum-wraps", |t| {
        frame(t, 1000, &[1, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff])
    }),
    ("checksum-at-the-last-byte", |t| {
        frame(t, 112, &[1, 0, 0, 0, 0, 0, 99, 0, 0, 0])
    }),
    ("segments-of-no-size", |t| {
        frame(t, 4000, &[1, 1, 54, 0, 0, 0, 34, 0, 16, 0])
    }),
    ("segments-without-a-checksum", |t| {
        frame(t, 4000, &[0, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0])
    }),
    ("segments-of-one-byte", |t| {
        any_frame(t, 60_000, &[1, 1, 54, 0, 1, 0, 34, 0, 16, 0])
    }),
    ("segments-larger-than-the-frame", |t| {
        any_frame(t, 100, &[1, 1, 54, 0, 0xff, 0xff, 34, 0, 16, 0])
    }),
    ("segments-of-ipv6-in-ipv4", |t| {
        any_frame(t, 4000, &[1, 4, 54, 0, 0xb4, 5, 34, 0, 16, 0])
    }),
    ("segments-of-udp", |t| {
        any_frame(t, 4000, &[1, 5, 42, 0, 1, 0, 34, 0, 6, 0])
    }),
    ("segments-of-an-unknown-kind", |t| {
        frame(t, 4000, &[1, 2, 54, 0, 0xb4, 5, 34, 0, 16, 0])
    }),
    ("segments-with-ecn", |t| {
        frame(t, 4000, &[1, 0x81, 54, 0, 0xb4, 5, 34, 0, 16, 0])
    }),
    ("header-length-outside", |t| {
        frame(t, 100, &[0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0])
    }),
    ("all-bits-of-the-header", |t| frame(t, 1000, &[0xff; 12])),
    ("number-of-buffers-is-nonsense", |t| {
        any_frame(t, 100, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff])
    }),
    ("frame-with-a-writable-end", writable_end),
    ("frame-in-single-bytes", single_bytes),
    ("frame-over-the-end-of-ram", over_the_end),
    ("buffers-too-small-for-a-frame", small_buffers),
    ("buffers-of-one-byte-each", |t| buffers(t, 1)),
    ("buffers-of-13-bytes", |t| buffers(t, 13)),
    ("buffers-on-the-used-ring", buffers_on_used),
    ("metadata-cut-short", |t| metadata(t, 12 + 14 + 3)),
    ("metadata-without-tcp", |t| metadata(t, 12 + 14 + 20)),
    ("metadata-with-a-wrong-length", |t| {
        metadata(t, 12 + 14 + 40)
    }),
    ("metadata-longer-than-it-reads", |t| {
        metadata(t, 12 + 14 + 20_000)
    }),
    ("metadata-a-flood-of-connections", metadata_flood),
    ("a-flood-of-frames", flood),
];

/// The metadata service's address.
const SERVICE: [u8; 4] = [169, 254, 169, 254];
const FLOOD: u16 = 4000;

fn put_header(target: &Target, header: &[u8]) {
    target.arp();
    for at in 0..NET_HEADER_BYTES {
        target.data.write(at, header.get(at).copied().unwrap_or(0));
    }
}

/// Sends `len` bytes that begin with `header`. They come back, of no use.
fn any_frame(target: &mut Target, len: u32, header: &[u8]) -> Outcome {
    target.raw.start()?;
    put_header(target, header);
    target.describe(1, &[Descriptor::new(target.data.address(0), len, 0, 0)]);
    let (_, used) = target.exchange(1)?;
    check(used == 0, "bytes", used)
}

/// The same of one that the device must not pass on: the host would see it, and answer the question in it.
fn frame(target: &mut Target, len: u32, header: &[u8]) -> Outcome {
    any_frame(target, len, header)
}

fn writable_end(target: &mut Target) -> Outcome {
    target.raw.start()?;
    let frame = target.arp();
    let end = Descriptor::new(target.data.address(4096), 64, WRITE, 0);
    let first = Descriptor {
        flags: NEXT,
        next: 1,
        ..frame
    };
    target.describe(1, &[first, end]);
    let (_, used) = target.exchange(1)?;
    check(used == 0, "bytes", used)
}

/// How a frame is cut does not matter.
fn single_bytes(target: &mut Target) -> Outcome {
    target.raw.start()?;
    target.offer_buffers();
    let frame = target.arp();
    let len = u16::try_from(frame.len).unwrap_or(0);
    for index in 0..len {
        let flags = if index + 1 == len { 0 } else { NEXT };
        let address = frame.address + u64::from(index);
        target
            .raw
            .ring(1)
            .describe(index, Descriptor::new(address, 1, flags, index + 1));
    }
    target.exchange(1)?;
    // The host has understood it.
    target.next_filled().map(|_| ())
}

fn over_the_end(target: &mut Target) -> Outcome {
    target.raw.start()?;
    put_header(target, &[]);
    let header = Descriptor::new(target.data.address(0), 12, NEXT, 1);
    let frame = Descriptor::new(target.ram_end - 20, 100, 0, 0);
    target.describe(1, &[header, frame]);
    let (_, used) = target.exchange(1)?;
    check(used == 0, "bytes", used)
}

/// Buffers that hold no more than a header are of no use: they come back empty.
fn small_buffers(target: &mut Target) -> Outcome {
    target.raw.start()?;
    let buffer = Descriptor::new(target.data.address(4096), 12, WRITE, 0);
    target.describe(0, &[buffer]);
    let (_, used) = target.exchange(0)?;
    check(used == 0, "bytes", used)
}

/// Chains of `len` bytes, as many as there can be: a frame goes into several of them or is lost.
fn buffers(target: &mut Target, len: u32) -> Outcome {
    target.raw.start()?;
    let buffer = Descriptor::new(target.data.address(4096), len, WRITE, 0);
    target.describe(0, &[buffer]);
    for _ in 0..target.raw.ring(0).size {
        target.raw.ring(0).offer(0);
    }
    target.kick(0)?;
    target.raw.wait_used(0).map(|_| ())
}

/// Frames go where the device writes its used entries.
fn buffers_on_used(target: &mut Target) -> Outcome {
    target.raw.start()?;
    let used = target.raw.places(0).used;
    target.describe(0, &[Descriptor::new(used, 2048, WRITE, 0)]);
    target.raw.ring(0).offer(0);
    for _ in 0..10 {
        target.kick(0)?;
    }
    Ok(())
}

/// Checksum, offload and so on of a frame whose TCP checksum the device is to make: the service takes it for right.
const WITHOUT_CHECKSUM: [u8; 10] = [1, 0, 0, 0, 0, 0, 34, 0, 16, 0];

/// Writes a frame of `len` bytes, with its header, to the metadata service: TCP that says SYN from `port`.
fn put_syn(target: &Target, header: &[u8], len: u32, port: u16) -> Descriptor {
    put_header(target, header);
    let [high, low] = port.to_be_bytes();
    let [a, b, c, d] = SERVICE;
    let mut ip = [
        0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6, 0, 0, 10, 0, 0, 2, a, b, c, d,
    ];
    let pairs = ip.as_chunks::<2>().0.iter();
    let sum: u32 = pairs.map(|pair| u32::from(u16::from_be_bytes(*pair))).sum();
    let [_, _, c, d] = (!(sum + (sum >> 16))).to_be_bytes();
    (ip[10], ip[11]) = (c, d);
    let tcp = [
        high, low, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0x10, 0, 0, 0, 0, 0,
    ];
    let at = NET_HEADER_BYTES + 12;
    let bytes = [8, 0].into_iter().chain(ip).chain(tcp);
    for (index, byte) in bytes.enumerate() {
        target.data.write(at + index, byte);
    }
    Descriptor::new(target.data.address(0), len, 0, 0)
}

fn metadata(target: &mut Target, len: u32) -> Outcome {
    target.raw.start()?;
    target.offer_buffers();
    let frame = put_syn(target, &[], len, 1000);
    target.describe(1, &[frame]);
    (0..20).try_for_each(|_| target.exchange(1).map(|_| ()))
}

/// From each port.
fn metadata_flood(target: &mut Target) -> Outcome {
    target.raw.start()?;
    target.offer_buffers();
    for port in 1024..1024 + FLOOD / 4 {
        let frame = put_syn(target, &WITHOUT_CHECKSUM, 12 + 14 + 40, port);
        target.describe(1, &[frame]);
        target.exchange(1)?;
        target.drain();
    }
    Ok(())
}

fn flood(target: &mut Target) -> Outcome {
    target.raw.start()?;
    let frame = target.arp();
    target.describe(1, &[frame]);
    let size = target.raw.ring(1).size;
    for _ in 0..FLOOD / size {
        for _ in 0..size {
            target.raw.ring(1).offer(0);
        }
        target.raw.kick(1);
        for _ in 0..size {
            target.raw.wait_used(1)?;
        }
    }
    Ok(())
}
