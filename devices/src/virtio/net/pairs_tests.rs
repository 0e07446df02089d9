//! A card with several pairs of queues.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use super::control::{CLASS_MQ, VQ_PAIRS_SET};
use super::*;
use crate::limiter::BucketOptions;
use crate::limits::{NET_COMMANDS_PER_TURN, NET_FRAMES_PER_TURN};
use crate::mmds::{DEFAULT_ADDRESS, Version};
use crate::test_support::{Buffer, LOW_RAM, Machine, process_all, readable, writable};
use crate::virtio::feature::COMMON;

const ONE: u64 = COMMON | feature::MAC;
const SEVERAL: u64 = ONE | feature::CTRL_VQ | feature::MQ;

const OK: u8 = 0;
const ERR: u8 = 1;

/// A card, and the host's end of each of its pairs.
fn card(pairs: usize) -> (Net, Vec<UnixDatagram>) {
    let (hosts, mut taps): (Vec<_>, Vec<_>) = (0..pairs)
        .map(|_| {
            let (host, tap) = UnixDatagram::pair().unwrap();
            for end in [&host, &tap] {
                end.set_nonblocking(true).unwrap();
            }
            (host, OwnedFd::from(tap))
        })
        .unzip();
    let tap = Tap::from_frame_socket(taps.remove(0));
    let net = Net::new(NetOptions {
        id: "eth0".into(),
        backend: tap.with_further(taps).unwrap().into(),
        mac: "06:00:ac:10:00:02".parse().unwrap(),
        mtu: None,
    });
    (net, hosts)
}

struct Bench {
    machine: Machine,
    hosts: Vec<UnixDatagram>,
}

const fn receive(pair: usize) -> usize {
    2 * pair
}

const fn transmit(pair: usize) -> usize {
    2 * pair + 1
}

impl Bench {
    fn new(pairs: usize, features: u64) -> Self {
        let (net, hosts) = card(pairs);
        Self::with(net, hosts, features)
    }

    fn with(net: Net, hosts: Vec<UnixDatagram>, features: u64) -> Self {
        let mut machine = Machine::new(Box::new(net));
        machine.init_with(features);
        Self { machine, hosts }
    }

    /// A command in `queue` of these parts, and what it is answered.
    fn command_in(&mut self, queue: usize, parts: &[&[u8]]) -> u8 {
        let mut buffers: Vec<Buffer> = Vec::new();
        for part in parts {
            let length = u32::try_from(part.len()).unwrap();
            buffers.push(readable(self.machine.put(part), length));
        }
        let answer = self.machine.put(&[0xee]);
        buffers.push(writable(answer, 1));
        assert_eq!(self.machine.request(queue, &buffers), 1, "{parts:?}");
        self.machine.get(answer, 1)[0]
    }

    fn use_pairs(&mut self, pairs: u16) -> u8 {
        let control = self.machine.rings.len() - 1;
        let number = pairs.to_le_bytes();
        self.command_in(control, &[&[CLASS_MQ, VQ_PAIRS_SET], &number])
    }

    fn send(&mut self, pair: usize, fill: u8) {
        let address = self.machine.put(&frame(fill));
        let buffers = [readable(address, 72)];
        assert_eq!(self.machine.request(transmit(pair), &buffers), 0);
    }

    /// Which host's end has a frame with this in it.
    fn found(&self, fill: u8) -> Option<usize> {
        let mut found = [0; 100];
        let expected = frame(fill);
        self.hosts.iter().position(|host| {
            host.recv(&mut found)
                .is_ok_and(|bytes| found[..bytes] == expected)
        })
    }

    fn offer(&mut self, pair: usize) {
        let address = self.machine.alloc(128);
        self.machine.add(receive(pair), &[writable(address, 128)]);
        self.machine.kick(receive(pair));
    }

    /// Frames that the guest has received by each pair.
    fn received(&mut self) -> Vec<usize> {
        (0..self.hosts.len())
            .map(|pair| std::iter::from_fn(|| self.machine.take_used(receive(pair))).count())
            .collect()
    }

    fn arrive(&mut self, pair: usize) {
        self.hosts[pair].send(&frame(1)).unwrap();
    }

    /// Whether the loop would be told that there is something for the card.
    fn is_woken(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let device = self.machine.device.lock().unwrap();
        let fd = device.backend_fd().filter(|_| device.wants_backend());
        fd.is_some_and(|fd| {
            let mut fds = [PollFd::new(&fd, PollFlags::IN)];
            poll(&mut fds, Some(&Timespec::default())).unwrap() == 1
        })
    }
}

fn frame(fill: u8) -> Vec<u8> {
    [[0; 12].as_slice(), &[fill; 60]].concat()
}

#[test]
fn a_card_says_how_many_pairs_it_has_and_one_with_one_says_nothing() {
    for (pairs, said, queues) in [(1, 0, 2), (2, 2, 5), (8, 8, 17)] {
        let (net, _hosts) = card(pairs);
        assert_eq!(net.config()[8..10], [said, 0]);
        let offered = net.features() & (feature::MQ | feature::CTRL_VQ);
        assert_eq!(offered != 0, pairs > 1);
        assert_eq!(net.queue_sizes().len(), queues);
    }
}

#[test]
fn each_pair_in_use_has_its_own_queue_of_the_tap() {
    let mut bench = Bench::new(3, SEVERAL);
    assert_eq!(bench.use_pairs(3), OK);
    for pair in [1, 0, 2] {
        bench.send(pair, 5);
        assert_eq!(bench.found(5), Some(pair));
        bench.offer(pair);
        assert!(!bench.is_woken());
        bench.arrive(pair);
        assert!(bench.is_woken(), "pair {pair}");
        bench.machine.serve_backend(1);
        let mut expected = vec![0; 3];
        expected[pair] = 1;
        assert_eq!(bench.received(), expected);
    }
    let counters = bench.machine.counters();
    assert_eq!((counters.reads, counters.writes), (3, 3), "of all together");
    assert_eq!(counters.guest_faults, 0);
}

#[test]
fn only_pairs_in_use_receive_and_the_others_still_send() {
    let mut bench = Bench::new(3, SEVERAL);
    for (asked, used) in [
        (None, 1),
        (Some(3), 3),
        (Some(2), 2),
        (Some(1), 1),
        (Some(2), 2),
    ] {
        if let Some(asked) = asked {
            assert_eq!(bench.use_pairs(asked), OK);
        }
        for pair in 0..3 {
            bench.offer(pair);
            bench.arrive(pair);
            assert_eq!(bench.is_woken(), pair < used, "{pair} of {asked:?}");
            bench.machine.serve_backend(1);
            assert_eq!(bench.received()[pair], usize::from(pair < used));
            bench.send(pair, 9);
            assert_eq!(bench.found(9), Some(if pair < used { pair } else { 0 }));
        }
        // What a tap would not have given to a queue that takes no part.
        assert_eq!(bench.use_pairs(3), OK);
        bench.machine.serve_backend(1);
        let late = bench.received();
        assert_eq!(late.iter().sum::<usize>(), 3 - used, "{late:?}");
        if let Some(asked) = asked {
            assert_eq!(bench.use_pairs(asked), OK);
        }
    }
}

#[test]
fn commands_that_make_no_sense_change_nothing() {
    let mut bench = Bench::new(2, SEVERAL);
    assert_eq!(bench.use_pairs(2), OK);
    let control = 4;
    let cases: [&[&[u8]]; 13] = [
        &[&[CLASS_MQ, VQ_PAIRS_SET, 0, 0]],
        &[&[CLASS_MQ, VQ_PAIRS_SET, 3, 0]],
        &[&[CLASS_MQ, VQ_PAIRS_SET, 1, 1]],
        &[&[CLASS_MQ, VQ_PAIRS_SET, 0xff, 0xff]],
        &[&[CLASS_MQ, VQ_PAIRS_SET, 1]],
        &[&[CLASS_MQ, VQ_PAIRS_SET, 1, 0, 0]],
        &[&[CLASS_MQ, VQ_PAIRS_SET], &[0; 4096]],
        &[&[CLASS_MQ, VQ_PAIRS_SET]],
        &[&[CLASS_MQ]],
        &[],
        &[&[CLASS_MQ, 1, 1, 0]],
        // The modes of reception, and the address.
        &[&[0, 0], &[1]],
        &[&[1, 1], &[2, 0, 0, 0, 0, 1]],
    ];
    for (faults, parts) in (1..).zip(cases) {
        assert_eq!(bench.command_in(control, parts), ERR, "{parts:?}");
        assert_eq!(bench.machine.counters().guest_faults, faults, "{parts:?}");
    }
    let good = bench.machine.put(&[CLASS_MQ, VQ_PAIRS_SET, 1, 0]);
    for buffers in [
        // What cannot be answered is not done.
        &[readable(good, 4)][..],
        &[readable(good, 4), writable(LOW_RAM, 1)],
        &[readable(good, 4), writable(u64::MAX, 1)],
        &[writable(good, 4)],
        &[readable(LOW_RAM, 4), writable(good + 4, 1)],
    ] {
        let used = bench.machine.request(control, buffers);
        assert!(used <= 1, "{buffers:x?}");
    }
    assert_eq!(bench.pairs_saved(), 2);
    // In as many pieces as one likes, and with more room for the answer than it needs.
    assert_eq!(
        bench.command_in(control, &[&[CLASS_MQ], &[0], &[1], &[0]]),
        OK
    );
    let answer = bench.machine.put(&[0xee; 4]);
    let good = bench.machine.put(&[CLASS_MQ, VQ_PAIRS_SET, 2, 0]);
    let buffers = [readable(good, 4), writable(answer, 4)];
    assert_eq!(bench.machine.request(control, &buffers), 1);
    assert_eq!(bench.machine.get(answer, 4), [OK, 0xee, 0xee, 0xee]);
    bench.send(1, 3);
    assert_eq!(bench.found(3), Some(1));
}

#[test]
fn a_turn_of_commands_is_bounded() {
    let mut bench = Bench::new(2, SEVERAL);
    let address = bench.machine.put(&[CLASS_MQ, VQ_PAIRS_SET, 2, 0, 0]);
    for _ in 0..=NET_COMMANDS_PER_TURN {
        let buffers = [readable(address, 4), writable(address + 4, 1)];
        bench.machine.add(4, &buffers);
    }
    let mut device = bench.machine.device.lock().unwrap();
    assert_eq!(device.process_queue(4).unwrap(), Progress::More);
    assert_eq!(device.process_queue(4).unwrap(), Progress::Done);
    assert_eq!(device.process_queue(5).unwrap(), Progress::Done);
}

#[test]
fn a_driver_that_knows_of_one_pair_has_one() {
    // Without MQ the control queue is the third (virtio 1.2 §5.1.2).
    let mut bench = Bench::new(2, ONE | feature::CTRL_VQ);
    let command = [CLASS_MQ, VQ_PAIRS_SET, 1, 0];
    assert_eq!(bench.command_in(2, &[&command]), ERR);
    // Without a control queue there is nobody to ask for more.
    for features in [ONE, ONE | feature::MQ, ONE | feature::CTRL_VQ] {
        bench.machine.init_with(features);
        bench.send(0, 1);
        assert_eq!(bench.found(1), Some(0));
        bench.offer(0);
        bench.arrive(0);
        bench.machine.serve_backend(1);
        assert_eq!(bench.received(), [1, 0]);
        let (transport, _) = bench.machine.save();
        assert_eq!(transport.queues.len(), 5);
    }
}

#[test]
fn the_pairs_in_use_outlive_a_save_and_a_restore_onto_other_taps() {
    let mut bench = Bench::new(4, SEVERAL);
    assert_eq!(bench.use_pairs(3), OK);
    (0..4).for_each(|pair| bench.offer(pair));
    let (transport, state) = bench.machine.save();
    let DeviceState::Net(saved) = &state else {
        panic!("{state:?}")
    };
    assert_eq!(saved.active_pairs, 3);
    let restore = |pairs| {
        let (made, hosts) = card(pairs);
        let Net { backend, .. } = made;
        (Net::from_state("eth0".into(), saved, backend), hosts)
    };
    let (net, hosts) = restore(4);
    let mem = Arc::clone(&bench.machine.mem);
    let mut restored = Machine::with_mem(Box::new(net.unwrap()), mem, Some(&transport));
    restored.rings.clone_from(&bench.machine.rings);
    bench = Bench {
        machine: restored,
        hosts,
    };
    for pair in 0..3 {
        bench.send(pair, 7);
        assert_eq!(bench.found(7), Some(pair));
        bench.arrive(pair);
    }
    bench.machine.serve_backend(1);
    assert_eq!(bench.received(), [1, 1, 1, 0]);
    let (_, again) = bench.machine.save();
    assert_eq!(again, state);
    let (refused, _hosts) = restore(2);
    assert!(
        matches!(
            refused,
            Err(RestoreDeviceError::QueuePairs {
                saved: 3,
                found: 2,
                ..
            })
        ),
        "{refused:?}"
    );
}

#[test]
fn a_driver_that_comes_later_uses_one_pair_until_it_asks() {
    let (mut net, hosts) = card(2);
    net.active_pairs = 2;
    net.forget_driver();
    assert_eq!(net.active_pairs, 1);
    // Nor does one that does not know of several, whatever a saved state says.
    net.active_pairs = 2;
    let mut bench = Bench::with(net, hosts, ONE);
    assert_eq!(bench.pairs_saved(), 1);
}

#[test]
fn limits_are_those_of_the_card_and_no_pair_has_them_all() {
    let operations = Some(BucketOptions {
        size: 1,
        refill: Duration::from_millis(1),
        burst: 0,
    });
    let options = LimiterOptions {
        bytes: None,
        operations,
    };
    let (mut net, hosts) = card(2);
    net.change_limits(options, LimiterOptions::default());
    let mut bench = Bench::with(net, hosts, SEVERAL);
    assert_eq!(bench.use_pairs(2), OK);
    for pair in [0, 1] {
        for _ in 0..20 {
            bench.offer(pair);
            if bench.hosts[pair].send(&frame(1)).is_err() {
                break;
            }
        }
    }
    let mut received = vec![0, 0];
    // Until a pair has had four frames.
    while received.iter().all(|count| *count < 4) {
        bench.machine.serve_backend(1);
        for (sum, more) in received.iter_mut().zip(bench.received()) {
            *sum += more;
        }
        std::thread::sleep(Duration::from_millis(2));
        // As the loop does when the wait is over.
        process_all(&bench.machine.device);
    }
    assert!(received.iter().all(|count| *count > 0), "{received:?}");
    assert!(received.iter().sum::<usize>() < NET_FRAMES_PER_TURN);
}

#[test]
fn a_pair_whose_frame_is_held_up_is_called_although_another_is_served_first() {
    let limit = |size| {
        let operations = Some(BucketOptions {
            size,
            refill: Duration::from_secs(3600),
            burst: 0,
        });
        LimiterOptions {
            bytes: None,
            operations,
        }
    };
    for new_size in [0, 1000] {
        let (mut net, hosts) = card(2);
        net.change_limits(LimiterOptions::default(), limit(1));
        net.active_pairs = 2;
        let (stand_in, _) = card(2);
        let mut bench = Bench::with(stand_in, hosts, SEVERAL);
        let machine = &mut bench.machine;
        let queues = machine.device.lock().unwrap().deactivate();
        let activation = Activation {
            mem: Arc::clone(&machine.mem),
            queues,
            interrupt: machine.interrupt.clone(),
            acked_features: SEVERAL,
        };
        net.activate(activation).unwrap();
        let mut add = |pair| {
            let address = machine.put(&frame(7));
            machine.add(transmit(pair), &[readable(address, 72)]);
        };
        add(1);
        add(1);
        assert_eq!(net.process_queue(transmit(1)).unwrap(), Progress::Done);
        assert!(net.wake_at().is_some(), "the second is held up");
        net.change_limits(LimiterOptions::default(), limit(new_size));
        add(0);
        assert_eq!(net.process_queue(transmit(0)).unwrap(), Progress::Done);
        assert!(net.wake_at() <= Some(Instant::now()) && net.wake_at().is_some());
        net.rung();
        for queue in 0..4 {
            assert_eq!(net.process_queue(queue).unwrap(), Progress::Done);
        }
        assert_eq!(net.wake_at(), None);
        let sent = std::iter::from_fn(|| bench.found(7));
        assert_eq!(sent.collect::<Vec<_>>(), [0, 1, 1]);
    }
}

#[test]
fn the_metadata_service_hears_each_pair_and_answers_by_the_first() {
    let (mut net, hosts) = card(2);
    let mmds = Mmds::default();
    net.reach_metadata(
        mmds.clone(),
        MmdsOptions {
            version: Version::V2,
            address: DEFAULT_ADDRESS,
            imds_compat: false,
        },
    );
    let mut bench = Bench::with(net, hosts, SEVERAL);
    assert_eq!(bench.use_pairs(2), OK);
    let request = [&[0; 12][..], &metadata_tests::ARP_REQUEST].concat();
    for pair in [0, 1] {
        bench.offer(0);
        bench.offer(1);
        let address = bench.machine.put(&request);
        let buffers = [readable(address, u32::try_from(request.len()).unwrap())];
        assert_eq!(bench.machine.request(transmit(pair), &buffers), 0);
        assert_eq!(bench.received(), [1, 0], "asked by {pair}");
    }
    assert_eq!(mmds.counts().tx_frames, 2);
    assert!(
        bench
            .hosts
            .iter()
            .all(|host| host.recv(&mut [0; 9]).is_err())
    );
}

impl Bench {
    fn pairs_saved(&mut self) -> u16 {
        let state = self.machine.device.lock().unwrap().save();
        match state {
            DeviceState::Net(state) => state.active_pairs,
            other => panic!("{other:?}"),
        }
    }
}
