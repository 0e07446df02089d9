//! A card by which the guest reaches the metadata service: what goes there, and what goes to the tap.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use super::*;
use crate::limiter::BucketOptions;
use crate::mmds::{DEFAULT_ADDRESS, Version};
use crate::test_support::{Machine, readable, writable};
use crate::virtio::feature::COMMON;

const PLAIN: u64 = COMMON | feature::MAC;
const MERGEABLE: u64 = PLAIN | feature::MRG_RXBUF;

/// Who has 169.254.169.254? Tell 10.0.0.2.
pub(super) const ARP_REQUEST: [u8; 42] = [
    0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 6, 0, 0xac, 0x10, 0, 2, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 6, 0,
    0xac, 0x10, 0, 2, 10, 0, 0, 2, 0, 0, 0, 0, 0, 0, 169, 254, 169, 254,
];
/// 169.254.169.254 is at 06:01:23:45:67:01.
const ARP_REPLY: [u8; 42] = [
    6, 0, 0xac, 0x10, 0, 2, 6, 1, 0x23, 0x45, 0x67, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 2, 6, 1, 0x23,
    0x45, 0x67, 1, 169, 254, 169, 254, 6, 0, 0xac, 0x10, 0, 2, 10, 0, 0, 2,
];

struct Bench {
    machine: Machine,
    host: UnixDatagram,
    mmds: Mmds,
}

impl Bench {
    fn new(features: u64) -> Self {
        Self::limited(features, LimiterOptions::default())
    }

    /// What goes to the tap is limited.
    fn limited(features: u64, transmit: LimiterOptions) -> Self {
        let (host, tap) = UnixDatagram::pair().unwrap();
        for end in [&host, &tap] {
            end.set_nonblocking(true).unwrap();
        }
        let mmds = Mmds::default();
        let mut net = Net::new(NetOptions {
            id: "eth0".into(),
            backend: Tap::from_frame_socket(OwnedFd::from(tap)).into(),
            mac: "06:00:ac:10:00:02".parse().unwrap(),
            mtu: None,
        });
        let options = MmdsOptions {
            version: Version::V2,
            address: DEFAULT_ADDRESS,
            imds_compat: false,
        };
        net.reach_metadata(mmds.clone(), options);
        net.change_limits(LimiterOptions::default(), transmit);
        let mut machine = Machine::new(Box::new(net));
        machine.init_with(features);
        Self {
            machine,
            host,
            mmds,
        }
    }

    /// A frame of the guest, without header, in buffers of `step` bytes.
    fn send(&mut self, frame: &[u8], step: usize) {
        let frame = [&[0; 12][..], frame].concat();
        let buffers: Vec<_> = frame
            .chunks(step)
            .map(|part| readable(self.machine.put(part), u32::try_from(part.len()).unwrap()))
            .collect();
        assert_eq!(self.machine.request(TRANSMIT_QUEUE, &buffers), 0);
    }

    fn offer(&mut self, bytes: u32) -> u64 {
        let address = self.machine.alloc(bytes as usize);
        self.machine.add(RECEIVE_QUEUE, &[writable(address, bytes)]);
        self.machine.kick(RECEIVE_QUEUE);
        address
    }

    /// What has come to the tap, without header.
    fn on_tap(&self) -> Option<Vec<u8>> {
        let mut frame = vec![0; 2000];
        let length = self.host.recv(&mut frame).ok()?;
        frame.truncate(length);
        Some(frame.split_off(12))
    }

    fn wake_at(&self) -> Option<Instant> {
        self.machine.device.lock().unwrap().wake_at()
    }
}

/// The beginning of a connection to the service from 10.0.0.2:1000.
fn syn() -> Vec<u8> {
    segment(SYN)
}

const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// A segment to the service from 10.0.0.2:1000, checksums right.
fn segment(flags: u8) -> Vec<u8> {
    let mut frame = vec![
        6, 1, 0x23, 0x45, 0x67, 1, 6, 0, 0xac, 0x10, 0, 2, 8, 0, 0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6,
        0, 0, 10, 0, 0, 2, 169, 254, 169, 254, 3, 0xe8, 0, 80, 0, 0, 0, 7, 0, 0, 0, 0, 0x50, flags,
        4, 0, 0, 0, 0, 0,
    ];
    let sum = |parts: &[&[u8]]| {
        let words = parts.concat();
        let sum: u32 = words
            .chunks(2)
            .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
            .sum();
        let folded = (sum & 0xffff) + (sum >> 16);
        (!u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap()).to_be_bytes()
    };
    let ip = sum(&[&frame[14..34]]);
    frame[24..26].copy_from_slice(&ip);
    let tcp = sum(&[&frame[26..34], &[0, 6, 0, 20], &frame[34..]]);
    frame[50..52].copy_from_slice(&tcp);
    frame
}

#[test]
fn the_services_frames_are_answered_and_never_reach_the_tap() {
    for (features, step) in [(PLAIN, 12), (PLAIN, 1000), (MERGEABLE, 7)] {
        let mut bench = Bench::new(features);
        let address = bench.offer(2048);
        bench.send(&ARP_REQUEST, step);
        assert_eq!(bench.machine.take_used(RECEIVE_QUEUE).unwrap().1, 12 + 42);
        let header = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
        assert_eq!(bench.machine.get(address, 12), header);
        assert_eq!(bench.machine.get(address + 12, 42), ARP_REPLY);
        let address = bench.offer(2048);
        bench.send(&syn(), step);
        assert!(bench.machine.take_used(RECEIVE_QUEUE).is_some());
        // SYN and ACK, from port 80.
        assert_eq!(bench.machine.get(address + 12 + 34, 4), [0, 80, 3, 0xe8]);
        assert_eq!(bench.machine.get(address + 12 + 47, 1), [SYN | ACK]);
        assert_eq!(bench.on_tap(), None);
        let counts = bench.mmds.counts();
        assert_eq!((counts.rx_accepted, counts.tx_frames), (2, 2));
        assert_eq!(bench.machine.counters().bytes_from_guest, 0);
        assert!(bench.machine.take_interrupts() > 0);
    }
}

#[test]
fn all_else_goes_to_the_tap_and_back_as_without_the_service() {
    let mut bench = Bench::new(PLAIN);
    let mut other = ARP_REQUEST;
    other[41] = 1;
    for frame in [
        &other[..],
        &[0x5a; 14],
        &[0x5a; 43],
        &[0x5a; 1514],
        &[8; 60],
    ] {
        for step in [5, 12, 53, 54, 55, 2000] {
            bench.send(frame, step.max(frame.len() / 100));
            assert_eq!(bench.on_tap().unwrap(), frame, "{step}");
        }
    }
    let sent = (14 + 42 + 43 + 1514 + 60) * 6;
    assert_eq!(bench.machine.counters().bytes_from_guest, sent);
    assert!(!bench.machine.wants_backend());
    let address = bench.offer(2048);
    assert!(bench.machine.wants_backend());
    bench
        .host
        .send(&[[0; 12].as_slice(), &[7; 60]].concat())
        .unwrap();
    bench.machine.serve_backend(1);
    assert_eq!(bench.machine.take_used(RECEIVE_QUEUE).unwrap().1, 72);
    assert_eq!(bench.machine.get(address + 12, 60), [7; 60]);
    assert!(!bench.machine.wants_backend(), "no buffers");
    assert_eq!(bench.mmds.counts(), crate::mmds::MmdsCounts::default());
}

#[test]
fn what_goes_to_the_service_is_no_traffic_that_is_limited() {
    let one = BucketOptions {
        size: 1,
        refill: Duration::from_secs(3600),
        burst: 0,
    };
    let mut bench = Bench::limited(
        PLAIN,
        LimiterOptions {
            bytes: None,
            operations: Some(one),
        },
    );
    for _ in 0..3 {
        bench.offer(100);
        bench.send(&ARP_REQUEST, 100);
        assert!(bench.machine.take_used(RECEIVE_QUEUE).is_some());
    }
    bench.send(&[0x5a; 60], 100);
    assert!(bench.on_tap().is_some());
}

#[test]
fn answers_wait_for_the_guests_buffers() {
    let mut bench = Bench::new(PLAIN);
    bench.send(&ARP_REQUEST, 100);
    bench.send(&ARP_REQUEST, 100);
    assert!(bench.machine.take_used(RECEIVE_QUEUE).is_none());
    for _ in 0..2 {
        let address = bench.offer(100);
        assert!(bench.machine.take_used(RECEIVE_QUEUE).is_some());
        assert_eq!(bench.machine.get(address + 12, 42), ARP_REPLY);
    }
    // One that is too small is given back, and the answer is lost.
    bench.send(&ARP_REQUEST, 100);
    bench.offer(20);
    assert_eq!(bench.machine.take_used(RECEIVE_QUEUE).unwrap().1, 0);
    let counts = bench.mmds.counts();
    assert_eq!((counts.tx_frames, counts.tx_errors), (2, 1));
    assert_eq!(counts.tx_bytes, 84);
}

#[test]
fn answers_are_spread_over_small_buffers_if_the_driver_takes_that() {
    let mut bench = Bench::new(MERGEABLE);
    let addresses = [20, 20, 20].map(|bytes| bench.offer(bytes));
    bench.send(&ARP_REQUEST, 100);
    let mut found = Vec::new();
    for address in addresses {
        let (_, bytes) = bench.machine.take_used(RECEIVE_QUEUE).unwrap();
        found.extend(bench.machine.get(address, bytes as usize));
    }
    assert_eq!(found[10..12], [3, 0]);
    assert_eq!(found[12..], ARP_REPLY);
}

#[test]
fn what_was_lost_is_sent_again_when_its_time_has_come() {
    let mut bench = Bench::new(PLAIN);
    bench.offer(2048);
    bench.send(&syn(), 100);
    assert!(bench.machine.take_used(RECEIVE_QUEUE).is_some());
    let address = bench.offer(2048);
    while bench.machine.take_used(RECEIVE_QUEUE).is_none() {
        let wait = bench.wake_at().unwrap() - Instant::now();
        std::thread::sleep(wait);
        bench.machine.kick(RECEIVE_QUEUE);
    }
    assert_eq!(bench.machine.get(address + 12 + 47, 1), [SYN | ACK]);
}

#[test]
fn frames_that_are_none_or_too_long_are_counted() {
    let mut bench = Bench::new(PLAIN);
    bench.send(&[0; 13], 100);
    let mut long = syn();
    long.resize(20_000, 0);
    bench.send(&long, 30_000);
    let counts = bench.mmds.counts();
    assert_eq!((counts.rx_bad_eth, counts.rx_accepted_err), (1, 1));
    assert_eq!(bench.on_tap(), None);
    bench.send(&[0x5a; 60], 30);
    assert!(bench.on_tap().is_some());
}

#[test]
fn connections_outlive_a_pause_and_not_a_machine() {
    let mut bench = Bench::new(PLAIN);
    bench.offer(2048);
    bench.send(&syn(), 100);
    let (transport, state) = bench.machine.save();
    let DeviceState::Net(state) = state else {
        panic!("{state:?}");
    };
    assert_eq!(bench.wake_at(), None, "it stands still");
    assert_eq!(bench.mmds.counts().connections_created, 1);
    assert_eq!(bench.mmds.counts().connections_destroyed, 0);
    let clone = Bench::new(PLAIN);
    let (_host, tap) = UnixDatagram::pair().unwrap();
    let tap = Tap::from_frame_socket(OwnedFd::from(tap));
    let mut net = Net::from_state("eth0".into(), &state, tap).unwrap();
    net.reach_metadata(
        clone.mmds.clone(),
        MmdsOptions {
            version: Version::V2,
            address: DEFAULT_ADDRESS,
            imds_compat: false,
        },
    );
    let mem = Arc::clone(&bench.machine.mem);
    let mut restored = Machine::with_mem(Box::new(net), mem, Some(&transport));
    restored.rings.clone_from(&bench.machine.rings);
    // The guest goes on with a connection that there is none of.
    let frame = [&[0; 12][..], &segment(ACK)].concat();
    let buffer = readable(restored.put(&frame), u32::try_from(frame.len()).unwrap());
    let address = restored.alloc(2048);
    restored.add(RECEIVE_QUEUE, &[writable(address, 2048)]);
    restored.kick(RECEIVE_QUEUE);
    restored.request(TRANSMIT_QUEUE, &[buffer]);
    assert!(restored.take_used(RECEIVE_QUEUE).is_some());
    assert_eq!(restored.get(address + 12 + 47, 1), [RST]);
    assert_eq!(clone.mmds.counts().connections_created, 0);
}
