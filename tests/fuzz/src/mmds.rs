//! The metadata service: frames of the guest, by a network card, and a TCP of the guest that keeps to the rules as far as
//! the input wants it.

mod segment;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;

use arbitrary::Result;
use lightv_devices::mmds::{DEFAULT_ADDRESS, Mmds, MmdsOptions, Version};
use lightv_devices::virtio::net::{
    MacAddress, Net, NetOptions, RECEIVE_QUEUE, TRANSMIT_QUEUE, Tap,
};
use serde_json::json;

use self::segment::{Segment, flags};
use crate::script::{Input, bytes, number, queue};
use crate::support::{Machine, readable, writable};

/// Steps of one input: fewer than there may be connections, so that a guest that behaves finds one afterwards.
const STEPS_MAX: usize = 24;
/// Buffers that the guest offers, and their length.
const BUFFERS: usize = 32;
const BUFFER_BYTES: u32 = 2048;
/// Bytes of the header before a frame (virtio 1.2 §5.1.6).
const HEADER_BYTES: usize = 12;
/// The first of the guest's ports.
const PORT: u16 = 50_000;
/// Its port for the last request.
const LAST_PORT: u16 = 60_000;

/// Where a connection of the guest stands.
#[derive(Debug, Clone, Copy, Default)]
struct Connection {
    /// The next byte that it sends.
    next: u32,
    /// The next byte that it expects.
    expected: u32,
}

struct Guest {
    machine: Machine,
    connections: BTreeMap<u16, Connection>,
    /// What has come on the last port.
    answer: Vec<u8>,
    /// The other end of the tap.
    tap: UnixDatagram,
}

impl Guest {
    fn new(version: Version, imds_compat: bool) -> Self {
        let (tap, ours) = UnixDatagram::pair().expect("there are descriptors");
        for end in [&tap, &ours] {
            end.set_nonblocking(true).expect("a socket can be set");
        }
        let mut net = Net::new(NetOptions {
            id: "eth0".into(),
            backend: Tap::from_frame_socket(OwnedFd::from(ours)).into(),
            mac: MacAddress::from_id("eth0"),
            mtu: None,
        });
        let mmds = Mmds::default();
        let data = json!({"a": {"b": "c", "list": [1, "x"]}, "n": 7, "long": "x".repeat(20_000)});
        mmds.put(data.as_object().cloned().unwrap_or_default());
        let options = MmdsOptions {
            version,
            address: DEFAULT_ADDRESS,
            imds_compat,
        };
        net.reach_metadata(mmds, options);
        let mut guest = Self {
            machine: Machine::new(Box::new(net)),
            connections: BTreeMap::new(),
            answer: Vec::new(),
            tap,
        };
        guest.begin();
        guest
    }

    fn begin(&mut self) {
        self.machine.init();
        for _ in 0..BUFFERS {
            let address = self.machine.alloc(BUFFER_BYTES as usize);
            let buffer = writable(address, BUFFER_BYTES);
            self.machine.add(RECEIVE_QUEUE, &[buffer]);
        }
        self.machine.kick(RECEIVE_QUEUE);
    }

    fn send(&mut self, header: [u8; HEADER_BYTES], frame: &[u8]) {
        let frame = [&header, frame].concat();
        let address = self.machine.put(&frame);
        let length = u32::try_from(frame.len()).unwrap_or(0);
        self.machine
            .add(TRANSMIT_QUEUE, &[readable(address, length)]);
        self.machine.kick(TRANSMIT_QUEUE);
        // What is not the service's goes to the tap.
        let _ = self.tap.recv(&mut [0; 64]);
    }

    /// Takes what has come, and gives the buffers back.
    fn take(&mut self) {
        while let Some((head, length)) = self.machine.take_used(RECEIVE_QUEUE) {
            let table = self.machine.rings[RECEIVE_QUEUE].table;
            let address = self.machine.get(table + 16 * u64::from(head), 8);
            let address = u64::from_le_bytes(address.try_into().unwrap_or_default());
            let length = (length as usize).min(BUFFER_BYTES as usize);
            let bytes = self.machine.get(address, length);
            self.read(bytes.get(HEADER_BYTES..).unwrap_or_default());
            let buffer = writable(address, BUFFER_BYTES);
            self.machine.add(RECEIVE_QUEUE, &[buffer]);
        }
        self.machine.kick(RECEIVE_QUEUE);
    }

    fn read(&mut self, frame: &[u8]) {
        let Some(segment) = Segment::parse(frame) else {
            return;
        };
        let connection = self.connections.entry(segment.port).or_default();
        connection.expected = segment.end();
        if segment.port == LAST_PORT {
            self.answer.extend_from_slice(segment.payload);
        }
    }

    /// Sends a segment of connection `port` and takes what comes of it.
    fn say(&mut self, port: u16, flags: u8, payload: &[u8]) {
        let connection = self.connections.entry(port).or_default();
        let segment = Segment {
            port,
            sequence: connection.next,
            acknowledged: connection.expected,
            flags,
            window: 8192,
            payload,
        };
        connection.next = segment.end();
        self.send([0; HEADER_BYTES], &segment.frame());
        self.take();
    }

    fn odd_segment(&mut self, port: u16, input: &mut Input<'_>) -> Result<()> {
        let connection = self.connections.get(&port).copied().unwrap_or_default();
        let shift = |number: u64| i8::from_le_bytes([number.to_le_bytes()[0]]);
        let sequence = connection
            .next
            .wrapping_add_signed(shift(number(input)?).into());
        let acknowledged = connection
            .expected
            .wrapping_add_signed(shift(number(input)?).into());
        let segment = Segment {
            port,
            sequence,
            acknowledged,
            flags: input.arbitrary()?,
            window: input.arbitrary()?,
            payload: bytes(input)?,
        };
        self.send([0; HEADER_BYTES], &segment.frame());
        self.take();
        Ok(())
    }

    /// A frame to the service's address that begins well.
    fn odd_frame(&mut self, input: &mut Input<'_>) -> Result<()> {
        let kind: u8 = input.arbitrary()?;
        let mut frame = match kind % 3 {
            0 => segment::ARP_REQUEST.to_vec(),
            1 => Segment::default().frame(),
            _ => Vec::new(),
        };
        // Some of it is otherwise, and something follows.
        let from = usize::from(input.arbitrary::<u8>()?).min(frame.len());
        let data = bytes(input)?;
        for (place, byte) in frame.iter_mut().skip(from).zip(data) {
            *place = *byte;
        }
        let rest = data.len().min(frame.len() - from);
        frame.extend_from_slice(data.get(rest..).unwrap_or_default());
        // The driver may leave the checksum to the device (VIRTIO_NET_HDR_F_NEEDS_CSUM).
        let mut header = [0; HEADER_BYTES];
        header[0] = (kind >> 2) & 1;
        self.send(header, &frame);
        self.take();
        Ok(())
    }

    fn step(&mut self, input: &mut Input<'_>) -> Result<()> {
        let kind: u8 = input.arbitrary()?;
        let port = PORT + u16::from(kind >> 4) % 4;
        match kind % 10 {
            0 => {
                self.connections.remove(&port);
                self.say(port, flags::SYN, &[]);
                self.say(port, flags::ACK, &[]);
            }
            1..=3 => self.say(port, flags::ACK | flags::PSH, bytes(input)?),
            4 => self.say(port, flags::ACK, &[]),
            5 => self.say(port, flags::ACK | flags::FIN, &[]),
            6 => self.say(port, flags::RST, &[]),
            7 => self.odd_segment(port, input)?,
            8 => self.odd_frame(input)?,
            _ => {
                let queue = queue(&self.machine, input)?;
                self.machine.kick(queue);
            }
        }
        Ok(())
    }

    /// A guest that behaves is answered.
    fn assert_answers(&mut self) {
        self.say(LAST_PORT, flags::SYN, &[]);
        self.say(LAST_PORT, flags::ACK, &[]);
        let request = b"GET /a/b HTTP/1.1\r\nAccept: application/json\r\n\r\n";
        self.say(LAST_PORT, flags::ACK | flags::PSH, request);
        self.say(LAST_PORT, flags::ACK, &[]);
        let answer = String::from_utf8_lossy(&self.answer);
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.ends_with("\"c\""),
            "{answer:?}"
        );
    }
}

/// The first byte says how the service is asked; the rest are steps.
pub fn run(input: &[u8]) {
    let Some((kind, script)) = input.split_first() else {
        return;
    };
    let version = if kind & 1 == 0 {
        Version::V1
    } else {
        Version::V2
    };
    let mut guest = Guest::new(version, kind & 2 != 0);
    let mut input = Input::new(script);
    for _ in 0..STEPS_MAX {
        if input.is_empty() || guest.step(&mut input).is_err() {
            break;
        }
    }
    guest.begin();
    if version == Version::V1 && kind & 2 == 0 {
        guest.assert_answers();
    }
}
