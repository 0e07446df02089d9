//! Packets against the rules (virtio 1.2 §5.10.6).

use super::device::{Descriptor, Outcome, WRITE, check};
use super::target::{CLOSED_PORT, HOST_CID, OPEN_PORT, Packet, Target, VSOCK_HEADER_BYTES, op};

type Attack = fn(&mut Target) -> Outcome;

pub const ATTACKS: &[(&str, Attack)] = &[
    ("operation-0", |t| refused(t, |p| Packet { op: 0, ..p })),
    ("operation-8", |t| refused(t, |p| Packet { op: 8, ..p })),
    ("operation-of-all-ones", |t| {
        refused(t, |p| Packet { op: u16::MAX, ..p })
    }),
    ("type-0", |t| {
        refused(t, |p| Packet {
            socket_type: 0,
            ..p
        })
    }),
    ("type-of-datagrams", |t| {
        refused(t, |p| Packet {
            socket_type: 3,
            ..p
        })
    }),
    ("type-99", |t| {
        refused(t, |p| Packet {
            socket_type: 99,
            ..p
        })
    }),
    ("to-context-0", |t| {
        refused(t, |p| Packet { dst_cid: 0, ..p })
    }),
    ("to-context-1", |t| {
        refused(t, |p| Packet { dst_cid: 1, ..p })
    }),
    ("to-context-77", |t| {
        refused(t, |p| Packet { dst_cid: 77, ..p })
    }),
    ("to-itself", |t| {
        refused(t, |p| Packet {
            dst_cid: p.src_cid,
            ..p
        })
    }),
    ("to-a-context-of-64-bits", |t| {
        refused(t, |p| Packet {
            dst_cid: HOST_CID | 1 << 32,
            ..p
        })
    }),
    ("from-the-host", |t| {
        dropped(t, |p| Packet {
            src_cid: HOST_CID,
            ..p
        })
    }),
    ("from-another-guest", |t| {
        dropped(t, |p| Packet {
            src_cid: p.src_cid + 1,
            ..p
        })
    }),
    ("from-a-context-of-64-bits", |t| {
        dropped(t, |p| Packet {
            src_cid: p.src_cid | 1 << 32,
            ..p
        })
    }),
    ("bytes-of-no-connection", |t| {
        refused(t, |p| Packet { op: op::RW, ..p })
    }),
    ("response-unasked", |t| {
        refused(t, |p| Packet {
            op: op::RESPONSE,
            ..p
        })
    }),
    ("shutdown-of-no-connection", |t| {
        refused(t, |p| Packet {
            op: op::SHUTDOWN,
            flags: 3,
            ..p
        })
    }),
    ("credit-of-no-connection", |t| {
        refused(t, |p| Packet {
            op: op::CREDIT_UPDATE,
            ..p
        })
    }),
    ("credit-asked-of-no-connection", |t| {
        refused(t, |p| Packet {
            op: op::CREDIT_REQUEST,
            ..p
        })
    }),
    ("reset-of-no-connection", |t| {
        dropped(t, |p| Packet { op: op::RST, ..p })
    }),
    ("header-short", header_short),
    ("header-of-4-gib", header_huge),
    ("length-more-than-there-is", |t| {
        broken(t, |p| Packet { len: 5000, ..p })
    }),
    ("length-of-4-gib", |t| {
        broken(t, |p| Packet { len: u32::MAX, ..p })
    }),
    ("length-one-more-than-the-buffer", |t| {
        broken(t, |p| Packet { len: 65, ..p })
    }),
    ("connected-twice", |t| {
        broken(t, |p| Packet {
            op: op::REQUEST,
            len: 0,
            ..p
        })
    }),
    ("response-twice", |t| {
        broken(t, |p| Packet {
            op: op::RESPONSE,
            len: 0,
            ..p
        })
    }),
    ("unknown-operation-of-a-connection", |t| {
        broken(t, |p| Packet {
            op: 99,
            len: 0,
            ..p
        })
    }),
    ("shutdown-of-all-bits", |t| {
        ends(t, |p| Packet {
            op: op::SHUTDOWN,
            flags: u32::MAX,
            len: 0,
            ..p
        })
    }),
    ("bytes-after-the-end", bytes_after_end),
    ("credit-of-nothing", |t| {
        lives(t, |p| Packet { buf_alloc: 0, ..p })
    }),
    ("credit-that-jumps", |t| {
        lives(t, |p| Packet {
            fwd_cnt: 0x8000_0000,
            ..p
        })
    }),
    ("credit-of-4-gib", |t| {
        lives(t, |p| Packet {
            buf_alloc: u32::MAX,
            fwd_cnt: u32::MAX,
            ..p
        })
    }),
    ("credit-asked-all-the-time", credit_asked),
    ("more-than-its-credit", more_than_credit),
    ("5000-connections-to-nobody", |t| requests(t, CLOSED_PORT)),
    ("5000-connections-to-somebody", |t| requests(t, OPEN_PORT)),
    ("a-flood-of-resets", flood_of_resets),
    ("answers-are-not-taken", not_taken),
    ("buffers-smaller-than-a-header", small_buffers),
    ("buffers-of-one-byte-more-than-a-header", tiny_buffers),
];

const REQUESTS: u32 = 5000;
/// Packets that nobody takes the answers of.
const UNTAKEN: u16 = 250;

fn begin(target: &mut Target) -> Outcome {
    target.raw.start()?;
    target.offer_buffers();
    Ok(())
}

/// A packet that changes nothing by itself.
fn plain(target: &Target) -> Packet {
    target.packet(op::CREDIT_UPDATE, CLOSED_PORT)
}

/// It is answered by RST.
fn refused(target: &mut Target, change: fn(Packet) -> Packet) -> Outcome {
    begin(target)?;
    let packet = change(plain(target));
    target.send_packet(packet, 0)?;
    let found = target.next_op(packet.src_port)?;
    check(found == op::RST, "the answer", found)
}

/// It is not answered: the answer to what comes after it is the first.
fn dropped(target: &mut Target, change: fn(Packet) -> Packet) -> Outcome {
    begin(target)?;
    let packet = change(plain(target));
    target.send_packet(packet, 0)?;
    let next = Packet {
        src_port: 2000,
        ..plain(target)
    };
    target.send_packet(next, 0)?;
    let at = target.next_filled()?;
    let port: u32 = target.data.read(at + 20);
    check(port == 2000, "an answer to", port)
}

fn header_short(target: &mut Target) -> Outcome {
    begin(target)?;
    target.put_packet(plain(target));
    for len in 1..VSOCK_HEADER_BYTES {
        target.describe(1, &[Descriptor::new(target.data.address(0), len, 0, 0)]);
        target.exchange(1)?;
    }
    Ok(())
}

fn header_huge(target: &mut Target) -> Outcome {
    begin(target)?;
    target.put_packet(plain(target));
    target.describe(
        1,
        &[Descriptor::new(target.data.address(0), u32::MAX, 0, 0)],
    );
    target.exchange(1).map(|_| ())
}

/// A connection to who listens.
fn connect(target: &mut Target, port: u32) -> Result<Packet, super::device::Why> {
    let packet = Packet {
        src_port: port,
        ..target.packet(op::REQUEST, OPEN_PORT)
    };
    target.send_packet(packet, 0)?;
    let found = target.next_op(port)?;
    check(found == op::RESPONSE, "the answer of who listens", found)?;
    Ok(Packet {
        op: op::RW,
        ..packet
    })
}

/// In a connection it is answered by RST.
fn broken(target: &mut Target, change: fn(Packet) -> Packet) -> Outcome {
    begin(target)?;
    let packet = connect(target, 3000)?;
    target.send_packet(change(Packet { len: 64, ..packet }), 64)?;
    let found = target.next_op(3000)?;
    check(found == op::RST, "the answer", found)
}

/// The connection is over, and its end is confirmed.
fn ends(target: &mut Target, change: fn(Packet) -> Packet) -> Outcome {
    broken(target, change)
}

/// The connection lives on: who asks for its credit is told.
fn lives(target: &mut Target, change: fn(Packet) -> Packet) -> Outcome {
    begin(target)?;
    let packet = connect(target, 3001)?;
    for kind in [op::CREDIT_UPDATE, op::RW, op::CREDIT_UPDATE] {
        target.send_packet(change(Packet { op: kind, ..packet }), 0)?;
    }
    target.send_packet(
        change(Packet {
            op: op::CREDIT_REQUEST,
            ..packet
        }),
        0,
    )?;
    let found = target.next_op(3001)?;
    check(found != op::RST, "the answer", found)
}

fn bytes_after_end(target: &mut Target) -> Outcome {
    begin(target)?;
    let packet = connect(target, 3002)?;
    target.send_packet(
        Packet {
            op: op::SHUTDOWN,
            flags: 2,
            ..packet
        },
        0,
    )?;
    target.send_packet(Packet { len: 8, ..packet }, 8)?;
    for _ in 0..4 {
        if target.next_op(3002)? == op::RST {
            return Ok(());
        }
    }
    check(false, "bytes after the end were taken", 0_u8)
}

fn credit_asked(target: &mut Target) -> Outcome {
    begin(target)?;
    let packet = connect(target, 3003)?;
    for _ in 0..500 {
        target.send_packet(
            Packet {
                op: op::CREDIT_REQUEST,
                ..packet
            },
            0,
        )?;
        target.drain();
    }
    Ok(())
}

/// The host's program does not read, or not as fast: what is beyond the credit ends the connection, or fits after all.
fn more_than_credit(target: &mut Target) -> Outcome {
    begin(target)?;
    let packet = connect(target, 3004)?;
    for _ in 0..200 {
        target.send_packet(
            Packet {
                len: 32_768,
                ..packet
            },
            32_768,
        )?;
        target.drain();
    }
    Ok(())
}

/// Connections from different ports, of which none is ended.
fn requests(target: &mut Target, port: u32) -> Outcome {
    begin(target)?;
    for source in 0..REQUESTS {
        let packet = Packet {
            src_port: 10_000 + source,
            ..target.packet(op::REQUEST, port)
        };
        target.send_packet(packet, 0)?;
        target.drain();
    }
    Ok(())
}

fn flood_of_resets(target: &mut Target) -> Outcome {
    begin(target)?;
    for source in 0..REQUESTS {
        let packet = Packet {
            src_port: source,
            ..target.packet(op::RST, OPEN_PORT)
        };
        target.send_packet(packet, 0)?;
    }
    Ok(())
}

/// Packets that have to be answered, without a buffer for the answers; then there are some, and all comes.
fn not_taken(target: &mut Target) -> Outcome {
    target.raw.start()?;
    target.put_packet(plain(target));
    target.describe(
        1,
        &[Descriptor::new(
            target.data.address(0),
            VSOCK_HEADER_BYTES,
            0,
            0,
        )],
    );
    for _ in 0..UNTAKEN {
        target.raw.ring(1).offer(0);
    }
    target.raw.kick(1);
    target.offer_buffers();
    for _ in 0..UNTAKEN {
        let found = target.next_op(1024)?;
        check(found == op::RST, "the answer", found)?;
    }
    Ok(())
}

fn small_buffers(target: &mut Target) -> Outcome {
    target.raw.start()?;
    let buffer = Descriptor::new(target.data.address(4096), VSOCK_HEADER_BYTES, WRITE, 0);
    target.describe(0, &[buffer]);
    let (_, used) = target.exchange(0)?;
    check(used == 0, "bytes", used)
}

fn tiny_buffers(target: &mut Target) -> Outcome {
    target.raw.start()?;
    let buffer = Descriptor::new(
        target.data.address(0x1_0000),
        VSOCK_HEADER_BYTES + 1,
        WRITE,
        0,
    );
    target.describe(0, &[buffer]);
    for _ in 0..target.raw.ring(0).size {
        target.raw.ring(0).offer(0);
    }
    target.raw.kick(0);
    let packet = plain(target);
    target.send_packet(packet, 0)?;
    let (_, used) = target.raw.wait_used(0)?;
    check(used == VSOCK_HEADER_BYTES, "bytes", used)
}
