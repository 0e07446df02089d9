use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::*;
use crate::limits::NET_FRAMES_PER_TURN;
use crate::test_support::{Machine, process_all, readable, writable};
use crate::virtio::device::VirtioDevice as _;
use crate::virtio::feature::COMMON;
use crate::virtio::net::config::feature;
use crate::virtio::net::{MacAddress, Net, NetOptions, RECEIVE_QUEUE, TRANSMIT_QUEUE};

#[derive(Debug)]
struct Host;

impl StreamPeer for Host {
    fn name(&self) -> &'static str {
        "the switch"
    }

    fn why_gone(&mut self) -> String {
        "it ended".to_owned()
    }
}

/// A running guest with a card whose network is the other end of a socket pair.
struct Bench {
    machine: Machine,
    host: UnixStream,
}

impl Bench {
    fn new(features: u64) -> Self {
        let (host, ours) = UnixStream::pair().unwrap();
        host.set_nonblocking(true).unwrap();
        let stream = FrameStream::new(OwnedFd::from(ours), Box::new(Host)).unwrap();
        let net = Net::new(NetOptions {
            id: "eth0".into(),
            backend: stream.into(),
            mac: MacAddress::from_id("eth0"),
            mtu: None,
        });
        assert_eq!(net.features() & (feature::TSO | feature::USO), 0);
        let mut machine = Machine::new(Box::new(net));
        machine.init_with(COMMON | feature::MAC | features);
        Self { machine, host }
    }

    /// Puts a frame of `bytes` into the ring, in two buffers with its header.
    fn offer_frame(&mut self, bytes: usize, fill: u8) {
        let first = self.machine.put(&[&[0; 12][..], &[fill; 10]].concat());
        let rest = bytes - 10;
        let second = self.machine.put(&vec![fill; rest]);
        let buffers = [
            readable(first, 22),
            readable(second, u32::try_from(rest).unwrap()),
        ];
        self.machine.add(TRANSMIT_QUEUE, &buffers);
        self.machine.kick(TRANSMIT_QUEUE);
    }

    fn offer_buffer(&mut self, bytes: u32) -> u64 {
        let address = self.machine.alloc(bytes as usize);
        self.machine.add(RECEIVE_QUEUE, &[writable(address, bytes)]);
        self.machine.kick(RECEIVE_QUEUE);
        address
    }

    /// All that the host can read now, the device served in between.
    fn drain(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        let mut piece = vec![0; 1 << 20];
        loop {
            match self.host.read(&mut piece) {
                Ok(bytes) => all.extend_from_slice(&piece[..bytes]),
                Err(_) if self.is_readable() => self.machine.serve_backend(1),
                Err(_) => return all,
            }
        }
    }

    /// Whether the loop would call the device.
    fn is_readable(&self) -> bool {
        let device = self.machine.device.lock().unwrap();
        let fd = device.backend_fd().unwrap();
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        device.wants_backend() && poll(&mut fds, Some(&Timespec::default())).unwrap() == 1
    }

    fn used(&mut self, queue: usize) -> Vec<u32> {
        std::iter::from_fn(|| self.machine.take_used(queue).map(|(_, bytes)| bytes)).collect()
    }
}

fn with_length(frame: &[u8]) -> Vec<u8> {
    let length = u32::try_from(frame.len()).unwrap();
    [&length.to_be_bytes()[..], frame].concat()
}

/// The frames in what was sent.
fn frames(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk() {
        let (frame, rest) = rest.split_at(u32::from_be_bytes(*length) as usize);
        frames.push(frame.to_vec());
        bytes = rest;
    }
    frames
}

#[test]
fn frames_of_the_guest_come_whole_after_their_length() {
    let mut bench = Bench::new(0);
    bench.offer_frame(60, 1);
    bench.offer_frame(1514, 2);
    let sent = bench.drain();
    assert_eq!(frames(&sent), [vec![1; 60], vec![2; 1514]]);
    assert_eq!(bench.used(TRANSMIT_QUEUE), [0, 0]);
}

#[test]
fn a_host_that_does_not_read_holds_the_guest_up_and_nothing_is_lost_or_torn() {
    let mut bench = Bench::new(0);
    let sizes: Vec<usize> = (0..40).map(|number| 20_000 + 37 * number).collect();
    for (fill, &bytes) in (0..).zip(&sizes) {
        bench.offer_frame(bytes, fill);
    }
    let early = bench.used(TRANSMIT_QUEUE).len();
    assert!((1..sizes.len()).contains(&early), "{early} taken");
    assert!(!bench.is_readable(), "it waits for room, without a spin");
    let sent = frames(&bench.drain());
    for (fill, &bytes) in (0..).zip(&sizes) {
        assert!(sent[usize::from(fill)] == vec![fill; bytes], "frame {fill}");
    }
    assert_eq!(sent.len(), sizes.len());
    assert_eq!(bench.used(TRANSMIT_QUEUE).len(), sizes.len() - early);
}

#[test]
fn a_torn_frame_is_finished_after_a_pause() {
    let mut bench = Bench::new(0);
    for fill in 0..40 {
        bench.offer_frame(20_000, fill);
    }
    let (transport, _) = bench.machine.save();
    // As a pause does: the same device goes on.
    let queues = transport
        .queues
        .iter()
        .map(|queue| queue.to_queue(256, &bench.machine.mem));
    let irqfd = vmm_sys_util::eventfd::EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let mut device = bench.machine.device.lock().unwrap();
    let interrupt = crate::interrupt::Interrupt::new(irqfd, device.counters().clone());
    let activation = crate::virtio::device::Activation {
        mem: bench.machine.mem.clone(),
        queues: queues.map(Result::unwrap).collect(),
        interrupt,
        acked_features: COMMON | feature::MAC,
    };
    device.activate(activation).unwrap();
    let _ = device.process_queue(TRANSMIT_QUEUE).unwrap();
    drop(device);
    let sent = frames(&bench.drain());
    let expected: Vec<Vec<u8>> = (0..40).map(|fill| vec![fill; 20_000]).collect();
    assert!(sent == expected, "{} frames", sent.len());
}

#[test]
fn frames_of_the_host_wait_for_buffers_and_come_in_order() {
    let mut bench = Bench::new(0);
    let all: Vec<u8> = (1..=3).flat_map(|fill| with_length(&[fill; 60])).collect();
    let (first, rest) = all.split_at(70);
    bench.host.write_all(first).unwrap();
    assert!(!bench.is_readable(), "no buffers yet");
    let one = bench.offer_buffer(128);
    assert_eq!(bench.used(RECEIVE_QUEUE), [72]);
    assert_eq!(bench.machine.get(one + 12, 60), vec![1; 60]);
    assert_eq!(
        bench.machine.get(one, 12),
        [[0; 10].as_slice(), &[1, 0]].concat()
    );
    bench.host.write_all(rest).unwrap();
    let two = bench.offer_buffer(128);
    // The third frame is in our own memory: no descriptor says so.
    let three = bench.offer_buffer(128);
    assert_eq!(bench.used(RECEIVE_QUEUE), [72, 72]);
    assert_eq!(bench.machine.get(two + 12, 60), vec![2; 60]);
    assert_eq!(bench.machine.get(three + 12, 60), vec![3; 60]);
}

#[test]
fn more_frames_than_a_turn_serves_are_served_without_the_host_saying_anything() {
    let mut bench = Bench::new(0);
    let count = NET_FRAMES_PER_TURN + 10;
    let all: Vec<u8> = (0..count).flat_map(|_| with_length(&[7; 60])).collect();
    for _ in 0..count {
        bench.offer_buffer(128);
    }
    bench.host.write_all(&all).unwrap();
    bench.machine.serve_backend(1);
    assert_eq!(bench.used(RECEIVE_QUEUE).len(), NET_FRAMES_PER_TURN);
    assert!(!bench.is_readable());
    let wake_at = || bench.machine.device.lock().unwrap().wake_at();
    assert!(wake_at().is_some_and(|time| time <= std::time::Instant::now()));
    process_all(&bench.machine.device);
    assert_eq!(bench.used(RECEIVE_QUEUE).len(), 10);
    assert_eq!(bench.machine.device.lock().unwrap().wake_at(), None);
}

#[test]
fn long_frames_are_spread_over_mergeable_buffers() {
    let mut bench = Bench::new(feature::MRG_RXBUF);
    let addresses: Vec<u64> = (0..4).map(|_| bench.offer_buffer(1024)).collect();
    bench.host.write_all(&with_length(&[9; 3000])).unwrap();
    bench.machine.serve_backend(1);
    assert_eq!(bench.used(RECEIVE_QUEUE), [1024, 1024, 964]);
    assert_eq!(bench.machine.get(addresses[0] + 10, 2), [3, 0]);
    assert_eq!(bench.machine.get(addresses[2], 964), vec![9; 964]);
}

#[test]
fn impossible_lengths_and_an_end_are_told_once_and_the_guest_goes_on() {
    let end: &[u8] = &[];
    for (said, text) in [
        (&[0, 0, 0, 13][..], "13 bytes"),
        (&[0, 1, 0, 0x0f], "65551 bytes"),
        (&[0xff; 4], "4294967295 bytes"),
        (end, "it ended"),
    ] {
        let mut bench = Bench::new(0);
        bench.offer_buffer(128);
        bench.host.write_all(said).unwrap();
        if said.is_empty() {
            bench.host.shutdown(std::net::Shutdown::Both).unwrap();
        }
        assert!(bench.is_readable());
        let fault = bench.machine.device.lock().unwrap().process_backend();
        let fault = fault.unwrap_err().cause.to_string();
        assert!(
            fault.contains(text) && fault.contains("the switch"),
            "{fault}"
        );
        assert!(!bench.is_readable() && !bench.machine.wants_backend());
        assert_eq!(bench.machine.counters().host_faults, 1);
        bench.offer_frame(60, 1);
        assert_eq!(bench.used(TRANSMIT_QUEUE), [0], "a card without a cable");
        assert_eq!(bench.machine.counters().frames_dropped_from_guest, 1);
        assert_eq!(bench.machine.counters().host_faults, 1);
    }
}

#[test]
fn an_end_while_a_frame_is_being_sent_is_seen_and_the_rest_is_lost_without_another_kick() {
    const FRAMES: u8 = 100;
    let mut bench = Bench::new(0);
    for fill in 0..FRAMES {
        bench.offer_frame(20_000, fill);
    }
    let before = bench.used(TRANSMIT_QUEUE).len();
    bench.host.shutdown(std::net::Shutdown::Both).unwrap();
    assert!(bench.is_readable());
    let process = |bench: &Bench| bench.machine.device.lock().unwrap().process_backend();
    assert!(process(&bench).is_err());
    assert!(!bench.machine.wants_backend());
    let more = usize::from(FRAMES) - before - bench.used(TRANSMIT_QUEUE).len();
    assert!(more > 0, "a turn has an end");
    let wake_at = |bench: &Bench| bench.machine.device.lock().unwrap().wake_at();
    assert!(wake_at(&bench).is_some_and(|time| time <= std::time::Instant::now()));
    // As the loop does then.
    process_all(&bench.machine.device);
    assert_eq!(bench.used(TRANSMIT_QUEUE).len(), more);
    assert_eq!(wake_at(&bench), None);
}

/// A card of whose frames the host has taken none, with one that waits in the ring for room.
fn held_up() -> Bench {
    let mut bench = Bench::new(0);
    loop {
        bench.offer_frame(20_000, 1);
        if bench.used(TRANSMIT_QUEUE).is_empty() {
            return bench;
        }
    }
}

#[test]
fn a_doorbell_of_the_other_queue_does_not_end_what_a_turn_has_left_over() {
    const FRAMES: usize = NET_FRAMES_PER_TURN + 30;
    let mut bench = held_up();
    for _ in 1..FRAMES {
        bench.offer_frame(60, 2);
    }
    let mut piece = vec![0; 1 << 20];
    while bench.host.read(&mut piece).is_ok() {}
    assert!(bench.is_readable(), "there is room again");
    bench.machine.serve_backend(1);
    assert_eq!(bench.used(TRANSMIT_QUEUE).len(), NET_FRAMES_PER_TURN);
    assert!(
        !bench.is_readable(),
        "nothing is kept, and nothing has come"
    );
    // The same batch of events has it, before anybody looks at the time.
    bench.offer_buffer(128);
    let wake_at = bench.machine.device.lock().unwrap().wake_at();
    assert!(wake_at.is_some_and(|time| time <= std::time::Instant::now()));
    process_all(&bench.machine.device);
    assert_eq!(
        bench.used(TRANSMIT_QUEUE).len(),
        FRAMES - NET_FRAMES_PER_TURN
    );
}

#[test]
fn frames_that_wait_for_room_are_lost_when_the_end_is_seen_by_the_other_queue() {
    let mut bench = held_up();
    // It does not read either: the next frame would wait for ever.
    bench.host.shutdown(std::net::Shutdown::Write).unwrap();
    bench.offer_buffer(128);
    assert!(!bench.machine.wants_backend());
    let wake_at = bench.machine.device.lock().unwrap().wake_at();
    assert!(wake_at.is_some_and(|time| time <= std::time::Instant::now()));
    process_all(&bench.machine.device);
    assert_eq!(bench.used(TRANSMIT_QUEUE), [0]);
}
