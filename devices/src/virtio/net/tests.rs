use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;

use proptest::prelude::*;

use super::*;
use crate::limits::NET_FRAMES_PER_TURN;
use crate::test_support::{Buffer, HIGH_RAM, LOW_RAM, Machine, readable, writable};
use crate::virtio::feature::COMMON;

const PLAIN: u64 = COMMON | feature::MAC;
const MERGEABLE: u64 = PLAIN | feature::MRG_RXBUF;
const LARGE: u64 = PLAIN | feature::GUEST_CSUM | feature::GUEST_TSO4 | feature::GUEST_TSO6;

/// A running guest with a card whose tap is one end of a socket pair.
struct Bench {
    machine: Machine,
    host: UnixDatagram,
}

fn card(mtu: Option<u16>) -> (Net, UnixDatagram) {
    let (host, tap) = UnixDatagram::pair().unwrap();
    for end in [&host, &tap] {
        end.set_nonblocking(true).unwrap();
    }
    let tap = Tap::from_frame_socket(OwnedFd::from(tap));
    let mac = "06:00:ac:10:00:02".parse().unwrap();
    (
        Net::new(NetOptions {
            id: "eth0".into(),
            backend: tap.into(),
            mac,
            mtu,
        }),
        host,
    )
}

impl Bench {
    fn new(features: u64) -> Self {
        let (net, host) = card(None);
        let mut machine = Machine::new(Box::new(net));
        machine.init_with(features);
        Self { machine, host }
    }

    /// A frame from the guest in buffers of these lengths; the rest of it goes in the last.
    fn send(&mut self, frame: &[u8], lengths: &[usize]) {
        let mut rest = frame;
        let mut buffers = Vec::new();
        for &length in lengths.iter().chain([&usize::MAX]) {
            let (now, later) = rest.split_at(length.min(rest.len()));
            if !now.is_empty() {
                buffers.push(readable(
                    self.machine.put(now),
                    u32::try_from(now.len()).unwrap(),
                ));
            }
            rest = later;
        }
        assert_eq!(self.machine.request(TRANSMIT_QUEUE, &buffers), 0);
    }

    /// What the host received.
    fn received(&self) -> Option<Vec<u8>> {
        let mut frame = vec![0; 70_000];
        let length = self.host.recv(&mut frame).ok()?;
        frame.truncate(length);
        Some(frame)
    }

    fn offer_buffers(&mut self, buffers: &[Buffer]) {
        self.machine.add(RECEIVE_QUEUE, buffers);
        self.machine.kick(RECEIVE_QUEUE);
    }

    /// Offers a buffer of `bytes`; returns its address.
    fn offer_buffer(&mut self, bytes: u32) -> u64 {
        let address = self.machine.alloc(bytes as usize);
        self.offer_buffers(&[writable(address, bytes)]);
        address
    }

    fn arrive(&mut self, frame: &[u8]) {
        self.host.send(frame).unwrap();
        self.machine.serve_backend(1);
    }

    fn assert_works(&mut self) {
        let sent = frame(100, 0x5a);
        self.send(&sent, &[12]);
        let received = self.received();
        assert_eq!(received, Some(sent), "sending works");
        assert_eq!(self.received(), None);
    }
}

/// A frame of `bytes` after an empty header.
fn frame(bytes: usize, fill: u8) -> Vec<u8> {
    [vec![0; 12], vec![fill; bytes]].concat()
}

/// What the guest is to find: the frame with its header's buffer count.
fn with_count(frame: &[u8], count: u16) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[10..12].copy_from_slice(&count.to_le_bytes());
    frame
}

#[test]
fn the_configuration_tells_address_and_mtu() {
    let (net, _host) = card(Some(1400));
    assert_eq!(
        net.config(),
        [6, 0, 0xac, 0x10, 0, 2, 0, 0, 0, 0, 0x78, 0x05]
    );
    assert_ne!(net.features() & feature::MTU, 0);
    let (net, _host) = card(None);
    assert_eq!(net.features() & feature::MTU, 0);
}

#[test]
fn a_frame_of_the_guest_reaches_the_host_however_it_is_split() {
    let mut bench = Bench::new(PLAIN);
    let sent = frame(1500, 0x11);
    for lengths in [&[12][..], &[], &[1, 11, 1], &[6, 20], &[700, 700]] {
        bench.send(&sent, lengths);
        assert_eq!(bench.received().as_ref(), Some(&sent), "{lengths:?}");
    }
    assert_eq!(bench.machine.counters().writes, 5);
}

#[test]
fn malformed_frames_are_dropped_and_valid_ones_follow_at_once() {
    // Firecracker PR 4526, CL 0.22.0; Cloud Hypervisor PR 8142, 4924.
    let mut bench = Bench::new(PLAIN | feature::CSUM | feature::HOST_TSO4);
    let header = |bytes: [u8; 12]| [&bytes[..], &[7; 1000]].concat();
    let bad: Vec<Vec<u8>> = vec![
        vec![0; 1],
        vec![0; 11],
        vec![0; 12],
        vec![0; 25],
        header([0, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        header([0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]),
        header([1, 1, 54, 0, 0, 0, 34, 0, 16, 0, 0, 0]),
        header([1, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0]),
        vec![0; 65_563],
        vec![0; 1 << 20],
    ];
    for (dropped, frame) in (1..).zip(&bad) {
        bench.send(frame, &[12]);
        assert_eq!(bench.received(), None, "frame {dropped}");
        assert_eq!(bench.machine.counters().frames_dropped_from_guest, dropped);
        bench.assert_works();
    }
}

#[test]
fn the_longest_frame_that_a_tap_takes_is_sent() {
    let mut bench = Bench::new(PLAIN);
    bench.send(&frame(65_550, 3), &[12]);
    assert_eq!(bench.received().map(|frame| frame.len()), Some(65_562));
}

#[test]
fn chains_that_are_no_frames_are_given_back() {
    let mut bench = Bench::new(PLAIN);
    let address = bench.machine.put(&frame(100, 0));
    let one_byte: Vec<Buffer> = (0..200).map(|at| readable(address + at % 100, 1)).collect();
    assert_eq!(bench.machine.request(TRANSMIT_QUEUE, &one_byte), 0);
    assert_eq!(
        bench.received().map(|frame| frame.len()),
        Some(200),
        "200 buffers are a frame"
    );
    for buffers in [
        &[writable(address, 112)][..],
        &[readable(address, 112), writable(address, 1)],
        &[readable(LOW_RAM - 12, 112)],
        &[readable(address, 12), readable(LOW_RAM - 1, 100)],
        &[readable(address, 12), readable(u64::MAX, 100)],
        &[readable(address, 12), readable(HIGH_RAM - 1, 100)],
        &[readable(address, 0)],
    ] {
        assert_eq!(
            bench.machine.request(TRANSMIT_QUEUE, buffers),
            0,
            "{buffers:x?}"
        );
        assert_eq!(bench.received(), None, "{buffers:x?}");
    }
    bench.assert_works();
}

#[test]
fn a_full_tap_drops_frames_and_never_stalls_the_guest() {
    let mut bench = Bench::new(PLAIN);
    for _ in 0..2000 {
        bench.send(&frame(1000, 0), &[12]);
    }
    let counters = bench.machine.counters();
    assert!(counters.frames_dropped_from_guest > 0);
    assert_eq!(counters.writes + counters.frames_dropped_from_guest, 2000);
    while bench.received().is_some() {}
    bench.assert_works();
}

#[test]
fn a_frame_for_the_guest_fills_one_buffer() {
    for features in [PLAIN, LARGE, MERGEABLE, LARGE | feature::MRG_RXBUF] {
        let mut bench = Bench::new(features);
        let address = bench.offer_buffer(1526);
        let arrived = frame(1514, 0x22);
        bench.arrive(&arrived);
        let (_, used) = bench.machine.take_used(RECEIVE_QUEUE).unwrap();
        assert_eq!(used, 1526, "{features:#x}");
        assert_eq!(
            bench.machine.get(address, 1526),
            with_count(&arrived, 1),
            "{features:#x}"
        );
        assert_eq!(bench.machine.counters().bytes_to_guest, 1514);
    }
}

#[test]
fn without_buffers_the_tap_is_not_watched_and_frames_wait() {
    let mut bench = Bench::new(PLAIN);
    assert!(!bench.machine.wants_backend());
    bench.host.send(&frame(60, 1)).unwrap();
    bench.machine.serve_backend(3);
    let address = bench.offer_buffer(2048);
    assert!(bench.machine.wants_backend());
    bench.machine.serve_backend(1);
    assert_eq!(bench.machine.get(address + 12, 60), vec![1; 60]);
    assert!(!bench.machine.wants_backend(), "the only buffer is used");
}

#[test]
fn a_frame_too_long_for_a_buffer_is_dropped_and_the_next_ones_are_not_blocked() {
    let mut bench = Bench::new(PLAIN);
    bench.offer_buffer(1526);
    let address = bench.offer_buffer(1526);
    bench.arrive(&frame(1515, 1));
    assert_eq!(
        bench.machine.take_used(RECEIVE_QUEUE).map(|(_, used)| used),
        Some(0)
    );
    assert_eq!(bench.machine.counters().frames_dropped_to_guest, 1);
    bench.arrive(&frame(1514, 2));
    assert_eq!(
        bench.machine.take_used(RECEIVE_QUEUE).map(|(_, used)| used),
        Some(1526)
    );
    assert_eq!(bench.machine.get(address + 12, 1514), vec![2; 1514]);
}

#[test]
fn large_frames_fill_a_large_buffer() {
    let mut bench = Bench::new(LARGE);
    let address = bench.offer_buffer(65_562);
    let arrived = frame(65_550, 9);
    bench.arrive(&arrived);
    assert_eq!(bench.machine.get(address, 65_562), with_count(&arrived, 1));
}

#[test]
fn mergeable_buffers_share_a_frame_and_are_given_back_together() {
    for features in [MERGEABLE, LARGE | feature::MRG_RXBUF] {
        for length in [1000, 1515, 4000, 20_000, 65_550] {
            let mut bench = Bench::new(features);
            let addresses: Vec<u64> = (0..60).map(|_| bench.offer_buffer(1526)).collect();
            let arrived: Vec<u8> = (0..length + 12)
                .map(|at| {
                    if at < 12 {
                        0
                    } else {
                        u8::try_from(at % 253).unwrap()
                    }
                })
                .collect();
            bench.arrive(&arrived);
            let count = arrived.len().div_ceil(1526);
            let mut found = Vec::new();
            for &address in &addresses[..count] {
                let (_, used) = bench.machine.take_used(RECEIVE_QUEUE).unwrap();
                found.extend(bench.machine.get(address, used as usize));
            }
            assert_eq!(bench.machine.take_used(RECEIVE_QUEUE), None);
            let count = u16::try_from(count).unwrap();
            assert!(
                found == with_count(&arrived, count),
                "{features:#x} {length}"
            );
        }
    }
}

#[test]
fn a_long_stream_through_mergeable_buffers_stays_whole() {
    let mut bench = Bench::new(LARGE | feature::MRG_RXBUF);
    let mut addresses: std::collections::VecDeque<u64> =
        (0..60).map(|_| bench.offer_buffer(1526)).collect();
    for number in 0..1000_usize {
        let fill = u8::try_from(number % 251).unwrap();
        let arrived = frame(60 + number * 37 % 9000, fill);
        bench.arrive(&arrived);
        let mut found = Vec::new();
        while let Some((_, used)) = bench.machine.take_used(RECEIVE_QUEUE) {
            found.extend(
                bench
                    .machine
                    .get(addresses.pop_front().unwrap(), used as usize),
            );
            addresses.push_back(bench.offer_buffer(1526));
        }
        let count = u16::try_from(arrived.len().div_ceil(1526)).unwrap();
        assert!(found == with_count(&arrived, count), "frame {number}");
    }
}

#[test]
fn a_frame_longer_than_all_mergeable_buffers_is_dropped_and_they_stay() {
    let mut bench = Bench::new(MERGEABLE);
    for _ in 0..3 {
        bench.offer_buffer(500);
    }
    bench.arrive(&frame(5000, 1));
    assert_eq!(bench.machine.take_used(RECEIVE_QUEUE), None);
    assert_eq!(bench.machine.counters().frames_dropped_to_guest, 1);
    bench.arrive(&frame(1000, 2));
    let used: Vec<u32> = std::iter::from_fn(|| bench.machine.take_used(RECEIVE_QUEUE))
        .map(|(_, used)| used)
        .collect();
    assert_eq!(used, [500, 500, 12]);
}

#[test]
fn useless_receive_buffers_are_given_back_and_good_ones_follow() {
    for features in [PLAIN, MERGEABLE] {
        let mut bench = Bench::new(features);
        let address = bench.machine.put(&[0; 2048]);
        for buffers in [
            &[writable(address, 1)][..],
            &[writable(address, 12)],
            &[writable(address, 0)],
            &[readable(address, 2048)],
            &[writable(LOW_RAM - 1, 2048)],
            &[writable(address, 1024), writable(u64::MAX - 4, 1024)],
        ] {
            bench.offer_buffers(buffers);
        }
        let good = bench.offer_buffer(2048);
        bench.arrive(&frame(60, 7));
        let used: Vec<u32> = std::iter::from_fn(|| bench.machine.take_used(RECEIVE_QUEUE))
            .map(|(_, used)| used)
            .collect();
        assert_eq!(used, [0, 0, 0, 0, 0, 0, 72], "{features:#x}");
        assert_eq!(bench.machine.get(good + 12, 60), vec![7; 60]);
        assert_eq!(bench.machine.counters().guest_faults, 6);
    }
}

#[test]
fn buffers_that_no_frame_has_used_go_back_to_the_driver_at_a_stop() {
    // A save with gathered chains: the restored device must use the same ones, each once.
    let mut bench = Bench::new(MERGEABLE);
    let addresses: Vec<u64> = (0..10).map(|_| bench.offer_buffer(1526)).collect();
    bench.arrive(&frame(60, 1));
    let (transport, _) = bench.machine.save();
    assert_eq!(transport.queues[0].next_available, 1);
    assert_eq!(transport.queues[0].next_used, 1);
    let (net, host) = card(None);
    let mem = Arc::clone(&bench.machine.mem);
    let rings = bench.machine.rings.clone();
    bench.machine = Machine::with_mem(Box::new(net), mem, Some(&transport));
    bench.machine.rings = rings;
    bench.host = host;
    bench.machine.take_used(RECEIVE_QUEUE).unwrap();
    bench.arrive(&frame(60, 2));
    assert_eq!(bench.machine.get(addresses[1] + 12, 60), vec![2; 60]);
    assert_eq!(
        bench.machine.take_used(RECEIVE_QUEUE).map(|(_, used)| used),
        Some(72)
    );
    bench.assert_works();
}

#[test]
fn a_turn_is_bounded_in_both_directions() {
    let mut bench = Bench::new(PLAIN);
    for _ in 0..100 {
        bench.offer_buffer(128);
    }
    let mut arrived = 0;
    while arrived < 100 && bench.host.send(&frame(60, 0)).is_ok() {
        arrived += 1;
        if arrived % 10 == 0 {
            bench.machine.serve_backend(1);
        }
    }
    bench.machine.serve_backend(5);
    assert_eq!(bench.machine.counters().reads, arrived);

    let address = bench.machine.put(&frame(60, 0));
    for _ in 0..100 {
        bench.machine.add(TRANSMIT_QUEUE, &[readable(address, 72)]);
    }
    let mut device = bench.machine.device.lock().unwrap();
    assert_eq!(
        device.process_queue(TRANSMIT_QUEUE).unwrap(),
        Progress::More
    );
    let counters = device.counters().snapshot();
    let seen = counters.writes + counters.frames_dropped_from_guest;
    assert_eq!(seen, NET_FRAMES_PER_TURN as u64);
    assert_eq!(
        device.process_queue(TRANSMIT_QUEUE).unwrap(),
        Progress::Done
    );
}

#[test]
fn one_interrupt_a_batch() {
    let mut bench = Bench::new(PLAIN);
    for _ in 0..8 {
        bench.offer_buffer(128);
    }
    bench.machine.take_interrupts();
    (0..8).for_each(|_| bench.host.send(&frame(60, 0)).map(drop).unwrap());
    bench.machine.serve_backend(1);
    assert_eq!(bench.machine.take_interrupts(), 1);
}

#[test]
fn a_tap_that_goes_away_is_not_watched_any_more() {
    let (host, tap) = std::os::unix::net::UnixStream::pair().unwrap();
    tap.set_nonblocking(true).unwrap();
    let tap = Tap::from_frame_socket(OwnedFd::from(tap));
    let mac = MacAddress::from_id("eth0");
    let net = Net::new(NetOptions {
        id: "eth0".into(),
        backend: tap.into(),
        mac,
        mtu: None,
    });
    let mut machine = Machine::new(Box::new(net));
    machine.init_with(PLAIN);
    let address = machine.alloc(2048);
    machine.add(RECEIVE_QUEUE, &[writable(address, 2048)]);
    machine.kick(RECEIVE_QUEUE);
    assert!(machine.wants_backend());
    drop(host);
    assert!(machine.device.lock().unwrap().process_backend().is_err());
    assert!(!machine.wants_backend());
    assert_eq!(machine.counters().host_faults, 1);
    let address = machine.put(&frame(60, 0));
    assert_eq!(machine.request(TRANSMIT_QUEUE, &[readable(address, 72)]), 0);
}

#[test]
fn offloads_are_set_at_each_start_to_what_was_accepted() {
    let (mut net, _host) = card(None);
    let mem = crate::test_support::guest_mem();
    for (acked_features, offload) in [
        (LARGE, 7),
        (PLAIN, 0),
        (LARGE | feature::USO, 0x67),
        (PLAIN | feature::GUEST_CSUM, 1),
    ] {
        let queues = (0..2).map(|_| {
            crate::virtio::queue_state::QueueStateV1::unused(256)
                .to_queue(256, &mem)
                .unwrap()
        });
        let irqfd = vmm_sys_util::eventfd::EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let interrupt = crate::interrupt::Interrupt::new(irqfd, Arc::clone(net.counters()));
        let queues = queues.collect();
        net.activate(Activation {
            mem: Arc::clone(&mem),
            queues,
            interrupt,
            acked_features,
        })
        .unwrap();
        let Backend::Tap(tap) = net.backend() else {
            panic!("a tap")
        };
        assert_eq!(tap.offload(), offload, "{acked_features:#x}");
        assert_eq!(net.deactivate().len(), 2);
    }
}

#[test]
fn a_restore_checks_address_and_mtu() {
    let tap = || Tap::from_frame_socket(OwnedFd::from(UnixDatagram::pair().unwrap().1));
    let good = NetStateV2 {
        mac: [2, 0, 0, 0, 0, 1],
        mtu: Some(1500),
        active_pairs: 1,
    };
    let net = Net::from_state("eth0".into(), &good, tap()).unwrap();
    assert_eq!(net.save(), DeviceState::Net(good));
    let state = NetStateV2 {
        mac: [0; 6],
        ..good
    };
    let found = Net::from_state("eth0".into(), &state, tap());
    assert!(
        matches!(found, Err(RestoreDeviceError::Mac { .. })),
        "{found:?}"
    );
    let state = NetStateV2 {
        mtu: Some(67),
        ..good
    };
    let found = Net::from_state("eth0".into(), &state, tap());
    assert!(
        matches!(found, Err(RestoreDeviceError::Mtu { .. })),
        "{found:?}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn frames_arrive_whole_or_not_at_all(
        buffers in proptest::collection::vec(proptest::collection::vec(1_u32..3000, 1..4), 1..40),
        frames in proptest::collection::vec(1_usize..9000, 1..6),
        is_mergeable: bool,
    ) {
        let mut bench = Bench::new(if is_mergeable { MERGEABLE } else { PLAIN });
        let mut offered = Vec::new();
        for lengths in &buffers {
            let parts: Vec<Buffer> =
                lengths.iter().map(|&bytes| writable(bench.machine.alloc(bytes as usize), bytes)).collect();
            let head = bench.machine.add(RECEIVE_QUEUE, &parts);
            offered.push((u32::from(head), parts));
        }
        bench.machine.kick(RECEIVE_QUEUE);
        for (number, &bytes) in (1_u8..).zip(&frames) {
            bench.host.send(&frame(bytes, number)).unwrap();
            bench.machine.serve_backend(1);
        }
        let mut used = std::iter::from_fn(|| bench.machine.take_used(RECEIVE_QUEUE)).collect::<Vec<_>>().into_iter();
        let mut last_number = 0;
        while let Some((head, used_bytes)) = used.next() {
            let contents = |head: u32, used_bytes: u32| {
                let parts = &offered.iter().find(|(offered, _)| *offered == head).unwrap().1;
                let mut all: Vec<u8> = parts.iter().flat_map(|part| bench.machine.get(part.address, part.bytes as usize)).collect();
                all.truncate(used_bytes as usize);
                all
            };
            if used_bytes == 0 {
                continue;
            }
            let mut found = contents(head, used_bytes);
            let count = u16::from_le_bytes([found[10], found[11]]);
            for _ in 1..count {
                let (head, used_bytes) = used.next().unwrap();
                found.extend(contents(head, used_bytes));
            }
            let number = found[12];
            prop_assert!(number > last_number, "in order");
            last_number = number;
            let expected = with_count(&frame(frames[usize::from(number) - 1], number), count);
            prop_assert!(found == expected);
        }
    }
}
