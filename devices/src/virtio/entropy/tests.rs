use std::time::Duration;

use super::*;
use crate::limiter::BucketOptions;
use crate::test_support::{Buffer, HIGH_RAM, LOW_RAM, Machine, readable, writable};

fn machine() -> Machine {
    let mut machine = Machine::new(Box::new(Entropy::new("rng".into())));
    machine.init();
    machine
}

#[test]
fn a_request_is_filled_with_bytes_that_differ() {
    let mut machine = machine();
    let address = machine.alloc(256);
    assert_eq!(
        machine.request(0, &[writable(address, 100), writable(HIGH_RAM, 156)]),
        256
    );
    let first = machine.get(address, 100);
    assert_eq!(machine.request(0, &[writable(address, 100)]), 100);
    assert_ne!(machine.get(address, 100), first);
    assert_ne!(machine.get(HIGH_RAM, 156), vec![0; 156]);
    let counters = machine.counters();
    assert_eq!((counters.reads, counters.bytes_to_guest), (2, 356));
}

#[test]
fn a_huge_request_gets_64_kib() {
    // Firecracker PR 5762: host memory grew with the request.
    let mut machine = machine();
    let address = machine.alloc(1 << 20);
    let buffers: Vec<Buffer> = (0..64).map(|_| writable(address, 1 << 20)).collect();
    assert_eq!(machine.request(0, &buffers), 65_536);
    let buffers: Vec<Buffer> = (0..256).map(|_| writable(address, 1 << 20)).collect();
    machine.add_indirect(0, &buffers);
    machine.kick(0);
    assert_eq!(machine.take_used(0).map(|(_, used)| used), Some(65_536));
}

#[test]
fn buffers_that_cannot_be_filled_are_given_back() {
    let mut machine = machine();
    let address = machine.alloc(64);
    for (buffers, used) in [
        (&[readable(address, 64)][..], 0),
        (&[writable(address, 0)], 0),
        (&[writable(LOW_RAM - 1, 2)], 0),
        (&[writable(u64::MAX, 2)], 0),
        (&[readable(address, 8), writable(address, 8)], 8),
    ] {
        assert_eq!(machine.request(0, buffers), used, "{buffers:x?}");
    }
    assert_eq!(machine.counters().guest_faults, 4);
}

#[test]
fn a_turn_is_bounded_in_requests_and_bytes() {
    let mut machine = machine();
    let address = machine.alloc(65_536);
    for (bytes, served) in [(1, ENTROPY_REQUESTS_PER_TURN), (65_536, 4)] {
        for _ in 0..40 {
            machine.add(0, &[writable(address, bytes)]);
        }
        let progress = machine.device.lock().unwrap().process_queue(0).unwrap();
        assert_eq!(progress, Progress::More);
        assert_eq!(
            std::iter::from_fn(|| machine.take_used(0)).count(),
            served,
            "{bytes}"
        );
        machine.kick(0);
        while machine.take_used(0).is_some() {}
    }
}

#[test]
fn a_limited_source_serves_when_its_time_has_come() {
    let mut source = Entropy::new("rng".into());
    source.change_limits(LimiterOptions {
        bytes: Some(BucketOptions {
            size: 100,
            refill: Duration::from_secs(1000),
            burst: 0,
        }),
        operations: None,
    });
    let mut machine = Machine::new(Box::new(source));
    machine.init();
    let address = machine.alloc(256);
    assert_eq!(machine.request(0, &[writable(address, 100)]), 100);
    machine.add(0, &[writable(address, 100)]);
    machine.kick(0);
    assert_eq!(machine.take_used(0), None);
    let wait = machine.device.lock().unwrap().wake_at();
    let wait = wait.unwrap().duration_since(Instant::now());
    assert!(wait <= Duration::from_secs(10), "{wait:?}");
    assert_eq!(machine.counters().throttled_from_guest, 1);
}
