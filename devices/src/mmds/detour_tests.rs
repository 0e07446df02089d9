use std::collections::VecDeque;

use proptest::prelude::*;
use serde_json::{Value, json};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant as TcpInstant;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetFrame, HardwareAddress, IpCidr, Ipv4Cidr, Ipv4Repr,
    TcpControl, TcpRepr, TcpSeqNumber,
};

use super::super::link::MAC;
use super::super::service::{DEFAULT_ADDRESS, Version};
use super::*;
use crate::limits::{
    MMDS_ANSWERS_BYTES_MAX, MMDS_CONNECTIONS_MAX, MMDS_FRAMES_WAITING_MAX, MMDS_REQUEST_BYTES_MAX,
};

const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const GUEST_MAC: [u8; 6] = [0xaa, 1, 2, 3, 4, 5];
const OPTIONS: MmdsOptions = MmdsOptions {
    version: Version::V1,
    address: DEFAULT_ADDRESS,
    imds_compat: false,
};

fn detour() -> Detour {
    let mmds = Mmds::default();
    let Value::Object(data) = json!({"a": {"b": "c"}, "long": "x".repeat(40_000)}) else {
        panic!("a test's data is an object");
    };
    mmds.put(data);
    Detour::new(mmds, OPTIONS)
}

fn give(detour: &mut Detour, bytes: &[u8]) {
    let head = &bytes[..bytes.len().min(PEEK_BYTES)];
    assert!(detour.takes(head), "{bytes:x?}");
    detour.accept(TakenFrame {
        bytes,
        is_without_checksum: false,
    });
}

fn take(detour: &mut Detour) -> Option<Vec<u8>> {
    let frame = detour.next_frame()?.to_vec();
    detour.note_given();
    Some(frame)
}

/// A wire from a guest's TCP to the service.
struct Wire {
    detour: Detour,
    /// Frames of the guest that nobody has taken yet.
    sent: VecDeque<Vec<u8>>,
}

struct Frame(Vec<u8>);
struct Leave<'a>(&'a mut VecDeque<Vec<u8>>);

impl RxToken for Frame {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

impl TxToken for Leave<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, bytes: usize, write: F) -> R {
        let mut frame = vec![0; bytes];
        let result = write(&mut frame);
        self.0.push_back(frame);
        result
    }
}

impl Device for Wire {
    type RxToken<'a> = Frame;
    type TxToken<'a> = Leave<'a>;

    fn receive(&mut self, _: TcpInstant) -> Option<(Frame, Leave<'_>)> {
        let frame = take(&mut self.detour)?;
        Some((Frame(frame), Leave(&mut self.sent)))
    }

    fn transmit(&mut self, _: TcpInstant) -> Option<Leave<'_>> {
        Some(Leave(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

/// A guest with a TCP of its own.
struct Guest {
    wire: Wire,
    interface: Interface,
    sockets: SocketSet<'static>,
    next_port: u16,
    now_ms: i64,
}

impl Guest {
    fn new(detour: Detour) -> Self {
        let mut wire = Wire {
            detour,
            sent: VecDeque::new(),
        };
        let config = Config::new(HardwareAddress::Ethernet(EthernetAddress(GUEST_MAC)));
        let mut interface = Interface::new(config, &mut wire, TcpInstant::ZERO);
        interface.update_ip_addrs(|addresses| {
            addresses
                .push(IpCidr::Ipv4(Ipv4Cidr::new(GUEST, 0)))
                .unwrap();
        });
        Self {
            wire,
            interface,
            sockets: SocketSet::new(Vec::new()),
            next_port: 50_000,
            now_ms: 0,
        }
    }

    fn connect(&mut self) -> SocketHandle {
        let buffer = || SocketBuffer::new(vec![0; 16 << 10]);
        let mut socket = Socket::new(buffer(), buffer());
        self.next_port += 1;
        let context = self.interface.context();
        socket
            .connect(context, (DEFAULT_ADDRESS, 80), self.next_port)
            .unwrap();
        self.sockets.add(socket)
    }

    fn socket(&mut self, handle: SocketHandle) -> &mut Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Moves frames both ways, as the loop does.
    fn step(&mut self) {
        self.now_ms += 1;
        let now = TcpInstant::from_millis(self.now_ms);
        self.interface.poll(now, &mut self.wire, &mut self.sockets);
        while let Some(frame) = self.wire.sent.pop_front() {
            give(&mut self.wire.detour, &frame);
        }
        self.wire.detour.serve();
    }

    /// Sends `request` and gives what comes back until the service has closed, or `until` says that it is enough.
    fn ask(&mut self, request: &[u8], until: impl Fn(&[u8]) -> bool) -> String {
        let handle = self.connect();
        let (mut rest, mut answer) = (request, Vec::new());
        for _ in 0..2000 {
            self.step();
            let socket = self.socket(handle);
            if socket.can_send() {
                let sent = socket.send_slice(rest).unwrap();
                rest = &rest[sent..];
            }
            while socket.can_recv() {
                socket
                    .recv(|bytes| {
                        answer.extend_from_slice(bytes);
                        (bytes.len(), ())
                    })
                    .unwrap();
            }
            let state = socket.state();
            if until(&answer) || matches!(state, State::CloseWait | State::Closed) {
                break;
            }
        }
        self.socket(handle).close();
        (0..5).for_each(|_| self.step());
        String::from_utf8(answer).unwrap()
    }

    fn counts(&self) -> super::super::MmdsCounts {
        self.wire.detour.mmds.counts()
    }
}

const NEVER: fn(&[u8]) -> bool = |_| false;

#[test]
fn a_guest_finds_the_service_and_is_answered() {
    let mut guest = Guest::new(detour());
    let answer = guest.ask(b"GET /a HTTP/1.0\r\n\r\n", NEVER);
    assert!(answer.starts_with("HTTP/1.0 200 OK\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\nb"), "{answer}");
    let counts = guest.counts();
    assert_eq!(
        (counts.connections_created, counts.connections_destroyed),
        (1, 1)
    );
    assert_eq!(
        (
            counts.rx_accepted_err,
            counts.rx_accepted_unusual,
            counts.tx_errors
        ),
        (0, 0, 0)
    );
    // All but the ARP request are segments.
    assert_eq!(counts.rx_accepted, counts.rx_count + 1);
    assert_eq!(counts.tx_frames, counts.tx_count);
    assert!(
        counts.tx_bytes > 100 && counts.rx_no_token == 1,
        "{counts:?}"
    );
}

#[test]
fn answers_larger_than_a_window_come_whole() {
    let mut guest = Guest::new(detour());
    let answer = guest.ask(b"GET /long HTTP/1.1\r\nConnection: close\r\n\r\n", NEVER);
    assert!(
        answer.ends_with(&"x".repeat(40_000)),
        "{} bytes",
        answer.len()
    );
    assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 1);
}

#[test]
fn several_requests_go_over_one_connection() {
    let mut guest = Guest::new(detour());
    let request = b"GET /a/b HTTP/1.1\r\n\r\n".repeat(20);
    let end = |answer: &[u8]| {
        answer.ends_with(b"c") && answer.windows(4).filter(|four| four == b"HTTP").count() == 20
    };
    let answer = guest.ask(&request, end);
    assert_eq!(answer.matches("200 OK").count(), 20, "{answer}");
    assert_eq!(guest.counts().connections_created, 1);
}

#[test]
fn what_is_too_large_is_refused_and_ends_the_connection() {
    let head = format!(
        "GET / HTTP/1.1\r\na: {}\r\n",
        "b".repeat(2 * MMDS_REQUEST_BYTES_MAX)
    );
    let lines = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(1000));
    let body = format!(
        "PUT /latest/api/token HTTP/1.1\r\nContent-Length: 9000\r\n\r\n{}",
        "b".repeat(9000)
    );
    for (request, expected) in [
        (head.as_str(), "HTTP/1.1 431 "),
        (&lines, "HTTP/1.1 431 "),
        (&body, "HTTP/1.1 413 "),
        ("\r\n\0\r\n\r\n", "HTTP/1.1 400 "),
    ] {
        let mut guest = Guest::new(detour());
        let answer = guest.ask(request.as_bytes(), NEVER);
        assert!(answer.starts_with(expected), "{answer}");
        assert!(answer.contains("\r\nConnection: close\r\n"), "{answer}");
        let again = guest.ask(b"GET /a/b HTTP/1.0\r\n\r\n", NEVER);
        assert!(again.ends_with('c'), "the service goes on: {again}");
    }
}

#[test]
fn answers_that_nobody_reads_are_not_made_without_end() {
    let mut guest = Guest::new(detour());
    for _ in 0..MMDS_CONNECTIONS_MAX {
        let handle = guest.connect();
        while !guest.socket(handle).can_send() {
            guest.step();
        }
        let request = b"GET /long HTTP/1.1\r\n\r\n".repeat(100);
        guest.socket(handle).send_slice(&request).unwrap();
    }
    // The guest takes in what its windows hold, and reads none of it.
    (0..500).for_each(|_| guest.step());
    let stack = guest.wire.detour.stack.as_ref().unwrap();
    let waiting = stack.waiting_bytes();
    assert!(waiting >= MMDS_ANSWERS_BYTES_MAX, "{waiting}");
    assert!(waiting < MMDS_ANSWERS_BYTES_MAX + 50_000, "{waiting}");
}

/// A TCP segment by hand.
struct Hand {
    from: Ipv4Addr,
    port: u16,
    to_port: u16,
    control: TcpControl,
    sequence: i32,
    ack: Option<i32>,
    payload: Vec<u8>,
}

impl Default for Hand {
    fn default() -> Self {
        Self {
            from: GUEST,
            port: 1000,
            to_port: 80,
            control: TcpControl::Syn,
            sequence: 7,
            ack: None,
            payload: Vec::new(),
        }
    }
}

impl Hand {
    fn frame(&self) -> Vec<u8> {
        let tcp = TcpRepr {
            src_port: self.port,
            dst_port: self.to_port,
            control: self.control,
            seq_number: TcpSeqNumber(self.sequence),
            ack_number: self.ack.map(TcpSeqNumber),
            window_len: 1000,
            window_scale: None,
            max_seg_size: None,
            sack_permitted: false,
            sack_ranges: [None; 3],
            timestamp: None,
            payload: &self.payload,
        };
        let ip = Ipv4Repr {
            src_addr: self.from,
            dst_addr: DEFAULT_ADDRESS,
            next_header: IpProtocol::Tcp,
            payload_len: tcp.buffer_len(),
            hop_limit: 64,
        };
        let checksums = ChecksumCapabilities::default();
        let mut packet = vec![0; ip.buffer_len() + tcp.buffer_len()];
        ip.emit(&mut Ipv4Packet::new_unchecked(&mut packet), &checksums);
        tcp.emit(
            &mut TcpPacket::new_unchecked(&mut packet[ip.buffer_len()..]),
            &IpAddress::Ipv4(self.from),
            &IpAddress::Ipv4(DEFAULT_ADDRESS),
            &checksums,
        );
        ethernet(ETHERTYPE_IPV4, &packet)
    }
}

fn ethernet(ethertype: [u8; 2], payload: &[u8]) -> Vec<u8> {
    [&[0xff; 6][..], &GUEST_MAC, &ethertype, payload].concat()
}

/// A segment that came back: its ports, control bits, sequence number and payload.
fn read(frame: &[u8]) -> (u16, u16, &'static str, i32, Vec<u8>) {
    let frame = EthernetFrame::new_checked(frame).unwrap();
    assert_eq!(frame.src_addr(), EthernetAddress(MAC));
    let packet = Ipv4Packet::new_checked(frame.payload()).unwrap();
    assert!(packet.verify_checksum());
    let segment = TcpPacket::new_checked(packet.payload()).unwrap();
    let ends = (
        IpAddress::Ipv4(packet.src_addr()),
        IpAddress::Ipv4(packet.dst_addr()),
    );
    assert!(segment.verify_checksum(&ends.0, &ends.1));
    let control = match (segment.syn(), segment.rst(), segment.fin()) {
        (true, false, false) => "syn",
        (false, true, false) => "rst",
        (false, false, true) => "fin",
        _ => "",
    };
    let payload = segment.payload().to_vec();
    (
        segment.src_port(),
        segment.dst_port(),
        control,
        segment.seq_number().0,
        payload,
    )
}

/// What comes back after `frame`, but for the first.
fn answers(detour: &mut Detour, frame: &[u8]) -> Vec<Vec<u8>> {
    give(detour, frame);
    detour.serve();
    std::iter::from_fn(|| take(detour)).collect()
}

#[test]
fn only_the_services_frames_are_taken() {
    let detour = detour();
    let arp = |operation, target: Ipv4Addr| {
        let packet = ArpRepr::EthernetIpv4 {
            operation,
            source_hardware_addr: EthernetAddress(GUEST_MAC),
            source_protocol_addr: GUEST,
            target_hardware_addr: EthernetAddress([0; 6]),
            target_protocol_addr: target,
        };
        let mut bytes = [0; 28];
        packet.emit(&mut ArpPacket::new_unchecked(&mut bytes[..]));
        ethernet(ETHERTYPE_ARP, &bytes)
    };
    let mut other = Hand::default().frame();
    other[33] ^= 1;
    let mut tagged = Hand::default().frame();
    tagged.splice(12..12, [0x81, 0, 0, 1]);
    let elsewhere = Ipv4Addr::new(169, 254, 169, 253);
    for (frame, expected) in [
        (Hand::default().frame(), true),
        (arp(ArpOperation::Request, DEFAULT_ADDRESS), true),
        (arp(ArpOperation::Reply, DEFAULT_ADDRESS), false),
        (arp(ArpOperation::Request, elsewhere), false),
        (other, false),
        (tagged, false),
        (ethernet([0x86, 0xdd], &[0; 40]), false),
    ] {
        let head = &frame[..frame.len().min(PEEK_BYTES)];
        assert_eq!(detour.takes(head), expected, "{head:x?}");
        for bytes in 0..head.len().min(IPV4_TO_AT + 4) {
            assert!(!detour.takes(&head[..bytes]), "{bytes} of {head:x?}");
        }
    }
}

#[test]
fn an_answer_goes_to_the_mac_address_that_asked() {
    let mut detour = detour();
    for (last, mac) in [
        (2, [2, 0, 0, 0, 0, 1]),
        (3, [2, 0, 0, 0, 0, 2]),
        (2, [2, 0, 0, 0, 0, 3]),
    ] {
        let mut frame = Hand {
            from: Ipv4Addr::new(10, 0, 0, last),
            port: u16::from(mac[5]),
            ..Hand::default()
        }
        .frame();
        frame[6..12].copy_from_slice(&mac);
        let answers = answers(&mut detour, &frame);
        assert_eq!(answers.len(), 1);
        assert_eq!(answers[0][..6], mac);
        assert_eq!(read(&answers[0]).2, "syn");
    }
    let mut group = Hand::default().frame();
    group[6] |= 1;
    assert_eq!(answers(&mut detour, &group), [[0; 0]; 0]);
}

#[test]
fn damaged_frames_are_counted_and_not_answered() {
    let mut detour = detour();
    let good = Hand::default().frame();
    let mut bad = 0;
    for at in (ETHERNET_BYTES..IPV4_TO_AT).chain(34..good.len()) {
        let mut frame = good.clone();
        frame[at] ^= 0x10;
        assert_eq!(answers(&mut detour, &frame), [[0; 0]; 0], "{at}");
        bad += 1;
    }
    for bytes in IPV4_TO_AT + 4..good.len() {
        assert_eq!(answers(&mut detour, &good[..bytes]), [[0; 0]; 0], "{bytes}");
        bad += 1;
    }
    let counts = detour.mmds.counts();
    assert_eq!(counts.rx_accepted, bad);
    assert_eq!(counts.rx_accepted_err + counts.rx_accepted_unusual, bad);
    assert_eq!((counts.rx_count, counts.connections_created), (0, 0));
}

#[test]
fn a_checksum_that_is_left_to_the_device_is_not_looked_at() {
    let mut detour = detour();
    let mut frame = Hand::default().frame();
    frame[50] ^= 0xff;
    detour.accept(TakenFrame {
        bytes: &frame,
        is_without_checksum: true,
    });
    detour.serve();
    assert_eq!(read(&take(&mut detour).unwrap()).2, "syn");
}

#[test]
fn other_protocols_are_dropped_and_other_ports_refused() {
    let mut detour = detour();
    let mut udp = Hand::default().frame();
    udp[23] = 17;
    udp[24..26].copy_from_slice(&[0, 0]);
    let mut header = Ipv4Packet::new_unchecked(&mut udp[14..]);
    header.fill_checksum();
    let mut fragment = Hand::default().frame();
    let mut header = Ipv4Packet::new_unchecked(&mut fragment[14..]);
    header.set_more_frags(true);
    header.fill_checksum();
    for frame in [udp, fragment] {
        assert_eq!(answers(&mut detour, &frame), [[0; 0]; 0]);
    }
    assert_eq!(detour.mmds.counts().rx_accepted_unusual, 2);
    let other = Hand {
        to_port: 22,
        ..Hand::default()
    };
    let answers = answers(&mut detour, &other.frame());
    assert_eq!(read(&answers[0]).2, "rst");
}

#[test]
fn segments_out_of_order_are_put_in_order() {
    let mut detour = detour();
    let opened = answers(&mut detour, &Hand::default().frame());
    let (.., sequence, _) = read(&opened[0]);
    let ack = Some(sequence.wrapping_add(1));
    let segment = |from: usize, to: usize| Hand {
        control: TcpControl::None,
        sequence: 8 + i32::try_from(from).unwrap(),
        ack,
        payload: b"GET /a/b HTTP/1.0\r\n\r\n"[from..to].to_vec(),
        ..Hand::default()
    };
    for (from, to) in [(10, 21), (5, 10), (5, 12)] {
        let answers = answers(&mut detour, &segment(from, to).frame());
        assert!(answers.iter().all(|frame| read(frame).4.is_empty()));
    }
    let answers = answers(&mut detour, &segment(0, 5).frame());
    let text: Vec<u8> = answers.iter().flat_map(|frame| read(frame).4).collect();
    assert!(
        text.ends_with(b"\r\n\r\nc"),
        "{}",
        String::from_utf8_lossy(&text)
    );
}

#[test]
fn a_flood_of_connections_is_bounded_and_does_not_keep_others_out() {
    let mut guest = Guest::new(detour());
    for port in 1..2000 {
        let frame = Hand {
            from: Ipv4Addr::from(0x0a00_0000 + u32::from(port) * 7),
            port,
            ..Hand::default()
        };
        give(&mut guest.wire.detour, &frame.frame());
        let stack = guest.wire.detour.stack.as_ref().unwrap();
        assert!(stack.connections() <= MMDS_CONNECTIONS_MAX);
        let waiting = stack.link.waiting_frames();
        assert!(waiting <= MMDS_FRAMES_WAITING_MAX, "{waiting}");
        if port % 64 == 0 {
            guest.wire.detour.serve();
        }
    }
    while take(&mut guest.wire.detour).is_some() {}
    let answer = guest.ask(b"GET /a/b HTTP/1.0\r\n\r\n", NEVER);
    assert!(answer.ends_with('c'), "{answer}");
    let counts = guest.counts();
    let open = counts.connections_created - counts.connections_destroyed;
    assert!(open <= MMDS_CONNECTIONS_MAX as u64, "{counts:?}");
    assert!(
        counts.tx_errors > 0 || counts.rx_accepted_err > 0,
        "{counts:?}"
    );
}

#[test]
fn there_is_nothing_to_wait_for_without_connections() {
    let mut detour = detour();
    assert_eq!(detour.deadline(), None);
    let other = Hand {
        to_port: 22,
        ..Hand::default()
    };
    let _ = answers(&mut detour, &other.frame());
    assert_eq!(detour.deadline(), None);
    // The answer to a SYN may have to be sent again.
    let _ = answers(&mut detour, &Hand::default().frame());
    let wait = detour.deadline().unwrap() - Instant::now();
    assert!(
        wait > Duration::ZERO && wait <= Duration::from_secs(30),
        "{wait:?}"
    );
}

proptest! {
    #[test]
    fn no_segments_are_too_much(segments in prop::collection::vec(
        (0..4_u16, 0..5_usize, any::<i32>(), prop::option::of(any::<i32>()), 0..600_usize, any::<bool>()),
        1..150,
    )) {
        let mut detour = detour();
        let mut last = 0;
        for (port, control, number, ack, bytes, is_near) in segments {
            let control = [
                TcpControl::Syn, TcpControl::None, TcpControl::Psh, TcpControl::Fin, TcpControl::Rst,
            ][control];
            let hand = Hand {
                port: 1000 + port,
                control,
                sequence: if is_near { 8 + number.rem_euclid(2000) } else { number },
                ack: if is_near { Some(last) } else { ack },
                payload: vec![b'G'; bytes],
                ..Hand::default()
            };
            for frame in answers(&mut detour, &hand.frame()) {
                last = read(&frame).3.wrapping_add(1);
            }
        }
    }

    #[test]
    fn no_frames_are_too_much(tail in prop::collection::vec(any::<u8>(), 0..200), is_arp: bool) {
        let mut detour = detour();
        let ethertype = if is_arp { ETHERTYPE_ARP } else { ETHERTYPE_IPV4 };
        let frame = ethernet(ethertype, &tail);
        if detour.takes(&frame[..frame.len().min(PEEK_BYTES)]) {
            give(&mut detour, &frame);
        }
        detour.accept(TakenFrame { bytes: &frame, is_without_checksum: true });
        detour.serve();
    }

    #[test]
    fn no_tcp_headers_are_too_much(
        headers in prop::collection::vec((prop::collection::vec(any::<u8>(), 20..100), 0..3_u8, 5..16_u8), 1..40),
    ) {
        let mut detour = detour();
        for (header, port, words) in headers {
            let mut packet = Hand::default().frame()[ETHERNET_BYTES..34].to_vec();
            packet.extend(&header);
            packet[20..24].copy_from_slice(&[3, port, 0, 80]);
            packet[32] = words << 4;
            let mut ip = Ipv4Packet::new_unchecked(&mut packet[..]);
            ip.set_total_len(u16::try_from(20 + header.len()).unwrap());
            ip.fill_checksum();
            let frame = ethernet(ETHERTYPE_IPV4, &packet);
            detour.accept(TakenFrame { bytes: &frame, is_without_checksum: true });
            detour.serve();
            while take(&mut detour).is_some() {}
        }
        let counts = detour.mmds.counts();
        prop_assert!(counts.rx_count + counts.rx_accepted_err == counts.rx_accepted);
    }
}
