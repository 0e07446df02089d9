//! A device as the aim of attacks: what is particular to its kind, and how it is driven when it is driven well.

use alloc::string::String;

use super::device::{
    Descriptor, NEXT, Outcome, PAGE_BYTES, Raw, WRITE, Why, check, pages, reg, status, why,
};
use super::flips::Flipper;
use crate::mmio::Window;

/// What a device is (virtio 1.2 §5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Net,
    Block,
    Entropy,
    Balloon,
    Vsock,
    Console,
}

/// Pages of memory for requests.
const DATA_PAGES: usize = 32;
/// Where in them buffers for the device to fill lie.
const BUFFERS_AT: usize = 16 * PAGE_BYTES;
/// Number of those, a page each.
const BUFFERS: u16 = 8;
/// Packets and frames of others that are passed over. The metadata service alone may have 64 frames waiting for its half-open
/// connections, which go before what the host says.
const OTHERS_MAX: usize = 256;
/// Times that the host is asked for its address.
const QUESTIONS_MAX: usize = 4;

/// Bytes of a sector.
pub const SECTOR_BYTES: u32 = 512;
/// Bytes of the header of a disk request.
pub const BLOCK_HEADER_BYTES: u32 = 16;
/// A sector that tests may write: the first ones hold the host's pattern.
pub const FREE_SECTOR: u64 = 64;
/// `VIRTIO_BLK_F_RO`.
const BLOCK_READ_ONLY: u64 = 1 << 5;

/// Types of disk requests (virtio 1.2 §5.2.6).
pub mod block {
    pub const IN: u32 = 0;
    pub const OUT: u32 = 1;
    pub const FLUSH: u32 = 4;
    pub const GET_ID: u32 = 8;
    pub const DISCARD: u32 = 11;
    pub const WRITE_ZEROES: u32 = 13;
}

/// Bytes of the header before a frame.
pub const NET_HEADER_BYTES: usize = 12;
/// Bytes of a frame that asks for an address, with that header.
const ARP_BYTES: u32 = 12 + 14 + 28;

/// Bytes of the header of a packet.
pub const VSOCK_HEADER_BYTES: u32 = 44;
/// The host's context id.
pub const HOST_CID: u64 = 2;
/// A port of the host on which somebody listens.
pub const OPEN_PORT: u32 = 5000;
/// One on which nobody does.
pub const CLOSED_PORT: u32 = 9;

/// Queues of messages about ports (virtio 1.2 §5.3.2).
const CONSOLE_MESSAGES_IN: u16 = 2;
pub const CONSOLE_MESSAGES_OUT: u16 = 3;
const CONSOLE_MESSAGE_BYTES: u32 = 8;

/// What packets do (virtio 1.2 §5.10.6).
pub mod op {
    pub const REQUEST: u16 = 1;
    pub const RESPONSE: u16 = 2;
    pub const RST: u16 = 3;
    pub const SHUTDOWN: u16 = 4;
    pub const RW: u16 = 5;
    pub const CREDIT_UPDATE: u16 = 6;
    pub const CREDIT_REQUEST: u16 = 7;
}

/// A packet's header (virtio 1.2 §5.10.6).
#[derive(Clone, Copy)]
pub struct Packet {
    pub src_cid: u64,
    pub dst_cid: u64,
    pub src_port: u32,
    pub dst_port: u32,
    pub len: u32,
    pub socket_type: u16,
    pub op: u16,
    pub flags: u32,
    pub buf_alloc: u32,
    pub fwd_cnt: u32,
}

/// The device, memory for it, and the second CPU.
pub struct Target {
    pub name: String,
    pub kind: Kind,
    pub raw: Raw,
    pub data: Window,
    /// End of the RAM below the hole.
    pub ram_end: u64,
    pub flipper: Flipper,
}

impl Target {
    /// The device `raw`, if its kind is known here.
    pub fn new(raw: Raw, ram_end: u64, flipper: Flipper) -> Option<Self> {
        let (kind, name) = match raw.id {
            1 => (Kind::Net, "net"),
            2 => (Kind::Block, "block"),
            3 => (Kind::Console, "console"),
            4 => (Kind::Entropy, "entropy"),
            5 => (Kind::Balloon, "balloon"),
            19 => (Kind::Vsock, "vsock"),
            _ => return None,
        };
        Some(Self {
            name: String::from(name),
            kind,
            raw,
            data: pages(DATA_PAGES),
            ram_end,
            flipper,
        })
    }

    /// Calls a disk by its id, too.
    pub fn name_by_id(&mut self) -> Outcome {
        if self.kind != Kind::Block {
            return Ok(());
        }
        self.restart()?;
        let id = self.data.address(PAGE_BYTES);
        self.block_request((block::GET_ID, 0), Descriptor::new(id, 20, WRITE, 0), 0)?;
        self.name.push('-');
        for at in 0..20 {
            let byte: u8 = self.data.read(PAGE_BYTES + at);
            if byte != 0 {
                self.name.push(char::from(byte));
            }
        }
        Ok(())
    }

    /// The queue of what a driver asks for.
    pub const fn main_queue(&self) -> u16 {
        match self.kind {
            Kind::Net | Kind::Vsock => 1,
            Kind::Block | Kind::Entropy | Kind::Balloon => 0,
            Kind::Console => CONSOLE_MESSAGES_OUT,
        }
    }

    /// Whether the device writes the buffers of `queue`.
    pub const fn fills(&self, queue: u16) -> bool {
        match self.kind {
            Kind::Entropy => true,
            Kind::Block => false,
            Kind::Net => queue == 0,
            Kind::Vsock => queue != 1,
            Kind::Balloon => queue == 4,
            Kind::Console => queue.is_multiple_of(2),
        }
    }

    /// Whether `queue` is attacked: of a console those of its first port, of messages, and of one port for output alone. The
    /// others are like these, or have no use.
    pub const fn uses(&self, queue: u16) -> bool {
        match self.kind {
            Kind::Console => matches!(queue, 0..=3 | 5),
            _ => true,
        }
    }

    /// Whether the host sends what has to be taken.
    pub const fn is_answered(&self) -> bool {
        matches!(self.kind, Kind::Net | Kind::Vsock)
    }

    /// Resets and starts it.
    pub fn restart(&mut self) -> Outcome {
        self.raw.reset()?;
        self.raw.start()
    }

    /// Whether it has been started, and has not given up since.
    pub fn is_at_work(&self) -> bool {
        self.raw.read(reg::STATUS) == status::WORKING
    }

    /// Has the device look at what `queue` offers.
    pub fn kick(&mut self, queue: u16) -> Outcome {
        self.raw.kick(queue);
        if self.kind == Kind::Net && queue == 0 {
            // It looks when a frame comes: the answer to this one.
            self.offer_arp()?;
        }
        Ok(())
    }

    /// Drives it well, once, from a start on.
    pub fn prove(&mut self) -> Outcome {
        match self.kind {
            Kind::Block => self.prove_block(),
            Kind::Entropy => self.prove_entropy(),
            Kind::Net => self.prove_net(),
            Kind::Vsock => self.prove_vsock(),
            Kind::Balloon => self.prove_balloon(),
            Kind::Console => self.prove_console(),
        }
    }

    /// Offers the chain at descriptor 0 of `queue`, and gives what comes back.
    pub fn exchange(&mut self, queue: u16) -> Result<(u32, u32), Why> {
        self.raw.ring(queue).offer(0);
        self.kick(queue)?;
        self.raw.wait_used(queue)
    }

    /// Describes a chain from descriptor 0 on.
    pub fn describe(&mut self, queue: u16, chain: &[Descriptor]) {
        let ring = self.raw.ring(queue);
        for (index, descriptor) in (0..ring.size).zip(chain) {
            ring.describe(index, *descriptor);
        }
    }

    pub const fn is_read_only(&self) -> bool {
        self.raw.usual & BLOCK_READ_ONLY != 0
    }

    /// Describes a disk request of type `kind` at `sector`, with `data` between its header and its status byte.
    pub fn describe_block(&mut self, (kind, sector): (u32, u64), data: Descriptor) {
        self.data.write(0, u64::from(kind));
        self.data.write(8, sector);
        self.data.write(2 * PAGE_BYTES, 0xff_u8);
        let header = Descriptor::new(self.data.address(0), BLOCK_HEADER_BYTES, NEXT, 1);
        let data = Descriptor {
            flags: data.flags | NEXT,
            next: 2,
            ..data
        };
        let status = Descriptor::new(self.data.address(2 * PAGE_BYTES), 1, WRITE, 0);
        self.describe(0, &[header, data, status]);
    }

    /// Makes that request; its status byte must be `status`.
    pub fn block_request(&mut self, what: (u32, u64), data: Descriptor, status: u8) -> Outcome {
        self.describe_block(what, data);
        self.exchange(0)?;
        let found: u8 = self.data.read(2 * PAGE_BYTES);
        check(found == status, "status byte", found)
    }

    /// The buffer of one sector of data.
    pub fn sector(&self, flags: u16) -> Descriptor {
        Descriptor::new(self.data.address(PAGE_BYTES), SECTOR_BYTES, flags, 0)
    }

    fn prove_block(&mut self) -> Outcome {
        self.block_request((block::IN, 1), self.sector(WRITE), 0)?;
        for at in 0..SECTOR_BYTES as usize {
            let byte: u8 = self.data.read(PAGE_BYTES + at);
            check(
                byte == pattern(SECTOR_BYTES as usize + at),
                "a byte of the disk",
                byte,
            )?;
        }
        if self.is_read_only() {
            return Ok(());
        }
        for at in (0..SECTOR_BYTES as usize).step_by(8) {
            self.data.write(PAGE_BYTES + at, at as u64 ^ 0x5555);
        }
        self.block_request((block::OUT, FREE_SECTOR), self.sector(0), 0)?;
        self.data.write(PAGE_BYTES, 0_u64);
        self.block_request((block::IN, FREE_SECTOR), self.sector(WRITE), 0)?;
        let word: u64 = self.data.read(PAGE_BYTES);
        check(word == 0x5555, "what was written to the disk", word)
    }

    fn prove_entropy(&mut self) -> Outcome {
        let len = 64;
        for at in 0..8 {
            self.data.write(8 * at, 0_u64);
        }
        self.describe(0, &[Descriptor::new(self.data.address(0), len, WRITE, 0)]);
        let (_, used) = self.exchange(0)?;
        check(used == len, "random bytes", used)?;
        let words: u64 = (0..8)
            .map(|at| self.data.read::<u64>(8 * at))
            .fold(0, |all, word| all | word);
        check(words != 0, "random bits", words)
    }

    /// Gives the queue of what the host sends buffers of a page.
    pub fn offer_buffers(&mut self) {
        for index in 0..BUFFERS {
            let at = BUFFERS_AT + usize::from(index) * PAGE_BYTES;
            let buffer = Descriptor::new(self.data.address(at), 4096, WRITE, 0);
            self.raw.ring(0).describe(index, buffer);
            self.raw.ring(0).offer(index);
        }
        self.raw.kick(0);
    }

    /// The next of those that the host has filled: where it lies in `data`. It is offered again by the next call.
    pub fn next_filled(&mut self) -> Result<usize, Why> {
        let (index, _) = self.raw.wait_used(0)?;
        let index = u16::try_from(index).ok().filter(|index| *index < BUFFERS);
        let index = index.ok_or_else(|| why("a buffer that was not offered", 0_u8))?;
        self.raw.ring(0).offer(index);
        self.raw.kick(0);
        Ok(BUFFERS_AT + usize::from(index) * PAGE_BYTES)
    }

    /// Offers all again that the host has filled.
    pub fn drain(&mut self) {
        let mut has_taken = false;
        while let Some((index, _)) = self.raw.ring(0).take() {
            self.raw
                .ring(0)
                .offer(u16::try_from(index).unwrap_or(0) % BUFFERS);
            has_taken = true;
        }
        if has_taken {
            self.raw.kick(0);
        }
    }

    /// Writes the frame that asks for the host's address; gives its descriptor.
    pub fn arp(&self) -> Descriptor {
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            for byte in bytes {
                self.data.write(at, *byte);
                at += 1;
            }
        };
        let mac: [u8; 6] = core::array::from_fn(|index| {
            let value = self.raw.peek(reg::CONFIG + index, 1);
            value.to_le_bytes()[0]
        });
        put(&[0; NET_HEADER_BYTES]);
        put(&[0xff; 6]);
        put(&mac);
        put(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        put(&mac);
        put(&[10, 0, 0, 2]);
        put(&[0; 6]);
        put(&[10, 0, 0, 1]);
        Descriptor::new(self.data.address(0), ARP_BYTES, 0, 0)
    }

    fn offer_arp(&mut self) -> Outcome {
        let frame = self.arp();
        self.describe(1, &[frame]);
        self.raw.ring(1).offer(0);
        self.raw.kick(1);
        self.raw.wait_used(1).map(|_| ())
    }

    fn prove_net(&mut self) -> Outcome {
        self.offer_buffers();
        // A host may lose a frame, as any network.
        for _ in 0..QUESTIONS_MAX {
            self.offer_arp()?;
            for _ in 0..OTHERS_MAX {
                let at = self.next_filled()? + NET_HEADER_BYTES;
                let kind: u16 = self.data.read(at + 12);
                let operation: u16 = self.data.read(at + 20);
                if u16::from_be(kind) == 0x0806 && u16::from_be(operation) == 2 {
                    return Ok(());
                }
            }
        }
        Err(why("no answer of the host's", 0_u8))
    }

    /// A packet of ours for `port` of the host.
    pub fn packet(&self, op: u16, port: u32) -> Packet {
        Packet {
            src_cid: u64::from(self.raw.read(reg::CONFIG)),
            dst_cid: HOST_CID,
            src_port: 1024,
            dst_port: port,
            len: 0,
            socket_type: 1,
            op,
            flags: 0,
            buf_alloc: 64 << 10,
            fwd_cnt: 0,
        }
    }

    /// Writes `packet` as the first bytes of `data`.
    pub fn put_packet(&self, packet: Packet) {
        self.data.write(0, packet.src_cid);
        self.data.write(8, packet.dst_cid);
        for (at, word) in [
            (16, packet.src_port),
            (20, packet.dst_port),
            (24, packet.len),
            (
                28,
                u32::from(packet.socket_type) | u32::from(packet.op) << 16,
            ),
            (32, packet.flags),
            (36, packet.buf_alloc),
            (40, packet.fwd_cnt),
        ] {
            self.data.write(at, word);
        }
    }

    /// Sends `packet` with `extra` bytes after its header, and takes what the host sends meanwhile.
    pub fn send_packet(&mut self, packet: Packet, extra: u32) -> Outcome {
        self.put_packet(packet);
        let len = VSOCK_HEADER_BYTES + extra;
        self.describe(1, &[Descriptor::new(self.data.address(0), len, 0, 0)]);
        self.raw.ring(1).offer(0);
        self.raw.kick(1);
        self.raw.wait_used(1).map(|_| ())
    }

    /// The operation of the next packet for our port `port`.
    pub fn next_op(&mut self, port: u32) -> Result<u16, Why> {
        for _ in 0..OTHERS_MAX {
            let at = self.next_filled()?;
            if self.data.read::<u32>(at + 20) == port {
                return Ok(self.data.read(at + 30));
            }
        }
        Err(why("no packet for port", port))
    }

    fn prove_vsock(&mut self) -> Outcome {
        self.offer_buffers();
        let refused = self.packet(op::REQUEST, CLOSED_PORT);
        self.send_packet(refused, 0)?;
        let found = self.next_op(refused.src_port)?;
        check(found == op::RST, "the answer where nobody listens", found)?;
        let wanted = Packet {
            src_port: 1025,
            ..self.packet(op::REQUEST, OPEN_PORT)
        };
        self.send_packet(wanted, 0)?;
        let found = self.next_op(wanted.src_port)?;
        check(found == op::RESPONSE, "the answer of who listens", found)?;
        self.send_packet(
            Packet {
                op: op::RST,
                ..wanted
            },
            0,
        )
    }

    /// Writes a message of `event` about `port`, for the device.
    pub fn put_message(&self, port: u32, event: u16) -> Descriptor {
        self.data.write(0, port);
        self.data.write(4, u32::from(event) | 1 << 16);
        Descriptor::new(self.data.address(0), CONSOLE_MESSAGE_BYTES, 0, 0)
    }

    /// Says that the driver is ready; the device tells of its ports.
    fn prove_console(&mut self) -> Outcome {
        for index in 0..BUFFERS {
            let at = BUFFERS_AT + usize::from(index) * PAGE_BYTES;
            let buffer = Descriptor::new(self.data.address(at), 4096, WRITE, 0);
            self.raw.ring(CONSOLE_MESSAGES_IN).describe(index, buffer);
            self.raw.ring(CONSOLE_MESSAGES_IN).offer(index);
        }
        self.raw.kick(CONSOLE_MESSAGES_IN);
        let message = self.put_message(u32::MAX, 0);
        self.describe(CONSOLE_MESSAGES_OUT, &[message]);
        self.exchange(CONSOLE_MESSAGES_OUT)?;
        self.raw.wait_used(CONSOLE_MESSAGES_IN)?;
        let event: u16 = self.data.read(BUFFERS_AT + 4);
        check(event == 1, "the first message about ports", event)
    }

    /// Page numbers that are ours, in the first bytes of `data`: of a page that nothing else uses.
    pub fn put_page_numbers(&self, count: usize) -> Descriptor {
        let page = self.data.address(BUFFERS_AT) / PAGE_BYTES as u64;
        let [a, b, c, d, ..] = page.to_le_bytes();
        for index in 0..count {
            self.data.write(4 * index, u32::from_le_bytes([a, b, c, d]));
        }
        let bytes = u32::try_from(4 * count).unwrap_or(u32::MAX);
        Descriptor::new(self.data.address(0), bytes, 0, 0)
    }

    fn prove_balloon(&mut self) -> Outcome {
        self.data.write(BUFFERS_AT, 0x5a_u8);
        let numbers = self.put_page_numbers(2);
        self.describe(0, &[numbers]);
        self.exchange(0)?;
        let found: u8 = self.data.read(BUFFERS_AT);
        check(found == 0, "a byte of a page that was given back", found)?;
        self.describe(1, &[numbers]);
        self.exchange(1).map(|_| ())
    }
}

/// Byte `at` of the first sectors of each disk, as the host has written them.
pub fn pattern(at: usize) -> u8 {
    (at * 31 + 7).to_le_bytes()[0]
}
