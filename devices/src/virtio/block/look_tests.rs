//! Disks whose rings are looked at instead of waiting for a notification.

use std::time::Duration;

use vm_memory::{Bytes as _, GuestAddress};

use super::*;

/// Whether a driver would notify for the next chain: by the flags of the used ring (virtio 1.2 §2.7.10), or by the index that the
/// device wants to know of.
pub(super) fn is_to_notify(bench: &Bench, queue: usize, event_idx: bool) -> bool {
    let rings = &bench.machine.rings[queue];
    let field = |address: u64| -> u16 {
        let field: u16 = bench.machine.mem.read_obj(GuestAddress(address)).unwrap();
        u16::from_le(field)
    };
    if event_idx {
        let wanted = field(rings.used + 4 + 8 * u64::from(rings.size));
        return wanted == rings.available_index;
    }
    field(rings.used) & 1 == 0
}

/// A guest with two queues on a disk; its driver accepts all, or all but indices of notifications.
fn bench(event_idx: bool) -> Bench {
    let file = image(512 * SECTORS);
    let block = Block::open(&options(file.path())).unwrap().with_queues(2);
    let mut bench = Bench::with(block, file);
    if !event_idx {
        bench.machine.set_status(0);
        let features = bench.machine.offered() & !crate::virtio::feature::RING_EVENT_IDX;
        bench.machine.init_with(features);
    }
    // As after the first turn.
    (0..2).for_each(|queue| bench.machine.kick(queue));
    bench
}

fn look(bench: &Bench) -> Vec<Sight> {
    let mut seen = Vec::new();
    let mut device = bench.machine.device.lock().unwrap();
    device.look(&mut |sight| seen.push(sight));
    seen
}

/// Looks until something has been seen, and serves it.
fn serve_what_is_seen(bench: &Bench) {
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(20) {
        if let Some(sight) = look(bench).into_iter().next() {
            let mut device = bench.machine.device.lock().unwrap();
            match sight {
                Sight::Queue(queue) => drop(device.process_queue(queue).unwrap()),
                Sight::Backend => device.process_backend().unwrap(),
            }
            return;
        }
    }
    panic!("nothing was seen");
}

#[test]
fn who_is_looked_at_is_served_without_a_notification() {
    for event_idx in [false, true] {
        let mut bench = bench(event_idx);
        assert!(look(&bench).is_empty());
        assert!(bench.machine.device.lock().unwrap().begin_looking());
        for (queue, sector) in [(0, 3), (1, 5), (0, 7), (1, 9)] {
            bench.queue = queue;
            bench.add_write(sector, 0xa5);
            assert_eq!(look(&bench), [Sight::Queue(queue)]);
            while bench.machine.take_used(queue).is_none() {
                serve_what_is_seen(&bench);
            }
            // Also after it was served: the caller goes on looking.
            assert!(!is_to_notify(&bench, queue, event_idx));
            assert!(look(&bench).is_empty());
            assert_eq!(bench.on_host(sector), vec![0xa5; 512]);
        }
    }
}

#[test]
fn who_is_looked_at_no_more_is_to_notify_and_what_has_come_is_seen() {
    for event_idx in [false, true] {
        let mut bench = bench(event_idx);
        bench.machine.device.lock().unwrap().begin_looking();
        bench.add_write(1, 0xa5);
        bench.machine.device.lock().unwrap().end_looking();
        assert_eq!(look(&bench), [Sight::Queue(0)]);
        while bench.machine.take_used(0).is_none() {
            serve_what_is_seen(&bench);
        }
        assert!(is_to_notify(&bench, 0, event_idx));
        assert!(is_to_notify(&bench, 1, event_idx));
    }
}

#[test]
fn a_disk_that_was_looked_at_asks_for_notifications_after_a_reset() {
    let mut bench = bench(false);
    bench.machine.device.lock().unwrap().begin_looking();
    assert!(!is_to_notify(&bench, 0, false));
    bench.machine.set_status(0);
    assert!(!bench.machine.device.lock().unwrap().begin_looking());
    assert!(look(&bench).is_empty());
    bench.machine.init();
    bench.machine.kick(0);
    assert!(is_to_notify(&bench, 0, true));
    assert_eq!(bench.write(2, &[9; 512]), 0);
    assert_eq!(bench.on_host(2), vec![9; 512]);
}

#[test]
fn what_a_limiter_holds_up_is_not_seen() {
    let file = image(512 * SECTORS);
    let mut block = Block::open(&options(file.path())).unwrap();
    block.change_limits(one_an_hour());
    let mut bench = Bench::with(block, file);
    bench.machine.device.lock().unwrap().begin_looking();
    bench.add_write(1, 0xa5);
    bench.add_write(2, 0xa5);
    while bench.machine.take_used(0).is_none() {
        serve_what_is_seen(&bench);
    }
    // The second waits for its time, by the clock.
    let progress = bench.machine.device.lock().unwrap().process_queue(0);
    assert_eq!(progress.unwrap(), Progress::Done);
    assert!(look(&bench).is_empty());
    assert!(bench.machine.device.lock().unwrap().wake_at().is_some());
    bench.machine.device.lock().unwrap().end_looking();
    assert!(look(&bench).is_empty());
}
