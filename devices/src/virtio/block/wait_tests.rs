//! What waits for a time, for room or for another turn is not forgotten, whatever is done meanwhile.

use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::look::is_to_notify;
use super::*;
use crate::limits::BLOCK_SUBMIT_PATIENCE;
use crate::virtio::feature::RING_EVENT_IDX;

const QUEUES: u16 = 2;

/// A running guest with a disk of two queues that the test calls itself, as the loop does.
struct Direct {
    bench: Bench,
    block: Block,
    features: u64,
    statuses: Vec<u64>,
}

impl Direct {
    fn new(event_idx: bool) -> Self {
        let file = image(512 * SECTORS);
        let block = Block::open(&options(file.path())).unwrap();
        Self::with(block, file, event_idx)
    }

    fn with(block: Block, file: NamedTempFile, event_idx: bool) -> Self {
        // Its driver's side is used alone.
        let stand_in = Block::open(&options(file.path())).unwrap();
        let mut bench = Bench::with(stand_in.with_queues(QUEUES), file);
        let mut features = bench.machine.offered();
        if !event_idx {
            features &= !RING_EVENT_IDX;
        }
        bench.machine.init_with(features);
        let queues = bench.machine.device.lock().unwrap().deactivate();
        let mut direct = Self {
            bench,
            block: *with_engine(block.with_queues(QUEUES)),
            features,
            statuses: Vec::new(),
        };
        direct.activate(queues);
        direct
    }

    fn activate(&mut self, queues: Vec<Queue>) {
        let machine = &self.bench.machine;
        let activation = Activation {
            mem: Arc::clone(&machine.mem),
            queues,
            interrupt: machine.interrupt.clone(),
            acked_features: self.features,
        };
        self.block.activate(activation).unwrap();
        self.ring_all();
    }

    fn ring_all(&mut self) {
        self.block.rung();
        (0..usize::from(QUEUES)).for_each(|queue| self.serve(queue));
    }

    /// A doorbell of one queue, and what follows of it.
    fn serve(&mut self, queue: usize) {
        while matches!(self.block.process_queue(queue), Ok(Progress::More)) {}
    }

    /// Asks for a sector, without a notification.
    fn add(&mut self, queue: usize, kind: u32, sector: u64) {
        let header = self.bench.header(kind, sector);
        let address = self.bench.machine.put(&[0xa5; 512]);
        let data = match kind {
            0 => writable(address, 512),
            _ => readable(address, 512),
        };
        let status = self.bench.machine.put(&[0xee]);
        self.statuses.push(status);
        let buffers = [header, data, writable(status, 1)];
        self.bench.machine.add_indirect(queue, &buffers);
    }

    /// Requests that have been given back.
    fn used(&mut self, queue: usize) -> usize {
        std::iter::from_fn(|| self.bench.machine.take_used(queue)).count()
    }

    fn statuses(&self) -> Vec<u8> {
        let machine = &self.bench.machine;
        let statuses = self.statuses.iter();
        statuses.map(|status| machine.get(*status, 1)[0]).collect()
    }

    fn is_due(&self) -> bool {
        let time = self.block.wake_at();
        time.is_some_and(|time| time <= Instant::now())
    }

    /// What the loop does while no driver notifies: nothing but what the device has said.
    fn run(&mut self) {
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(20) {
            if self.is_due() {
                self.ring_all();
                continue;
            }
            let is_busy = self.block.uring.as_ref().is_some_and(Uring::is_busy);
            if !is_busy {
                return;
            }
            let fd = self.block.backend_fd().unwrap();
            let mut fds = [PollFd::new(&fd, PollFlags::IN)];
            let second = Timespec {
                tv_sec: 1,
                tv_nsec: 0,
            };
            if poll(&mut fds, Some(&second)).unwrap() > 0 {
                // What fails is told, and the loop goes on.
                let _ = self.block.process_backend();
            }
        }
        panic!("it does not come to an end");
    }

    fn look(&mut self) -> Vec<Sight> {
        let mut seen = Vec::new();
        self.block.look(&mut |sight| seen.push(sight));
        seen
    }

    /// Whether the next request is heard of: by a notification, or because it is seen.
    fn assert_is_heard(&mut self, queue: usize, what: &str) {
        let event_idx = self.features & RING_EVENT_IDX != 0;
        let is_told = is_to_notify(&self.bench, queue, event_idx);
        self.add(queue, 1, 9);
        let is_seen = self.look().contains(&Sight::Queue(queue));
        assert!(is_told || is_seen, "{what}: queue {queue}, {event_idx}");
        self.serve(queue);
        self.run();
        assert_eq!(self.used(queue), 1, "{what}: queue {queue}, {event_idx}");
    }
}

/// A disk whose writes fail, of which the first queue has as many under way as there is room for, and three wait in the second.
fn without_room() -> Direct {
    let file = image(512 * SECTORS);
    let disk = Disk::open(file.path(), true).unwrap().pretend_writable();
    let block = Block::new("d".into(), CacheType::Unsafe, disk);
    let mut direct = Direct::with(block, file, true);
    (0..BLOCK_QUEUE_SIZE).for_each(|_| direct.add(0, 1, 5));
    direct.serve(0);
    (0..3).for_each(|_| direct.add(1, 1, 5));
    direct.serve(1);
    assert!(!direct.block.uring.as_ref().unwrap().has_room());
    direct
}

/// What may happen to a disk, by name.
type Happening = (&'static str, fn(&mut Direct));

const FULL: usize = BLOCK_QUEUE_SIZE as usize;

#[test]
fn a_queue_that_waits_for_room_has_its_errors_although_another_has_failed() {
    if engine() == IoEngine::Sync {
        return;
    }
    let mut direct = without_room();
    direct.run();
    assert_eq!((direct.used(0), direct.used(1)), (FULL, 3));
    assert_eq!(direct.statuses(), vec![1; FULL + 3]);
}

#[test]
fn what_waits_for_room_is_served_from_the_disk_that_comes_in_its_place() {
    if engine() == IoEngine::Sync {
        return;
    }
    let mut direct = without_room();
    let other = image(512 * SECTORS);
    direct
        .block
        .replace_disk(Disk::open(other.path(), false).unwrap());
    assert!(direct.is_due());
    direct.run();
    assert_eq!((direct.used(0), direct.used(1)), (FULL, 3));
    let (old, new) = (vec![1; FULL], vec![0; 3]);
    assert_eq!(direct.statuses(), [old, new].concat());
    assert_eq!(direct.bench.on_host(5), vec![5; 512]);
    let mut sector = [0; 512];
    other.as_file().read_exact_at(&mut sector, 5 * 512).unwrap();
    assert_eq!(sector, [0xa5; 512]);
}

#[test]
fn a_doorbell_of_one_queue_does_not_end_what_a_turn_has_left_over_in_another() {
    if engine() == IoEngine::Sync {
        return;
    }
    let mut direct = Direct::new(true);
    let count = BLOCK_REQUESTS_PER_TURN + 16;
    for queue in [0, 1] {
        (0..count).for_each(|_| direct.add(queue, 0, 5));
    }
    direct.block.process_backend().unwrap();
    direct.serve(0);
    assert!(direct.is_due());
    direct.run();
    assert_eq!((direct.used(0), direct.used(1)), (count, count));
}

#[test]
fn what_is_held_up_is_called_although_another_queue_is_served_first() {
    for new_size in [0, 1000] {
        let mut direct = Direct::new(true);
        direct.block.change_limits(one_an_hour());
        for _ in 0..3 {
            direct.add(1, 1, 5);
            direct.serve(1);
            // Of what is complete nothing is counted.
            direct.run();
        }
        assert_eq!(direct.used(1), 1);
        assert!(direct.block.wake_at().is_some() && !direct.is_due());
        let throttled = direct.block.counters().snapshot().throttled_from_guest;
        assert_eq!(throttled, 1);
        let operations = one_an_hour().operations.map(|bucket| BucketOptions {
            size: new_size,
            ..bucket
        });
        direct.block.change_limits(LimiterOptions {
            bytes: None,
            operations,
        });
        direct.add(0, 1, 6);
        direct.serve(0);
        assert!(direct.is_due(), "{new_size}");
        direct.run();
        assert_eq!((direct.used(0), direct.used(1)), (1, 2), "{new_size}");
        assert_eq!(direct.block.wake_at(), None);
    }
}

#[test]
fn queues_of_a_disk_that_was_looked_at_while_it_was_held_up_are_heard_of_when_its_time_comes() {
    for event_idx in [false, true] {
        let mut direct = Direct::new(event_idx);
        direct.block.change_limits(one_an_hour());
        assert!(direct.block.begin_looking());
        for _ in 0..2 {
            direct.add(1, 1, 5);
            direct.serve(1);
        }
        direct.block.end_looking();
        direct.block.change_limits(LimiterOptions {
            bytes: None,
            operations: Some(BucketOptions::default()),
        });
        // Its doorbell was on the way.
        direct.add(0, 1, 6);
        direct.serve(0);
        direct.run();
        assert_eq!((direct.used(0), direct.used(1)), (1, 2));
        for queue in [0, 1] {
            assert!(is_to_notify(&direct.bench, queue, event_idx), "{queue}");
        }
    }
}

fn pause(direct: &mut Direct) {
    let queues = direct.block.deactivate();
    direct.activate(queues);
}

fn replace(direct: &mut Direct) {
    let disk = Disk::open(direct.bench.file.path(), false).unwrap();
    direct.block.replace_disk(disk);
}

fn limit(direct: &mut Direct) {
    direct.block.change_limits(one_an_hour());
    (0..2).for_each(|_| direct.add(0, 1, 5));
    direct.serve(0);
    direct.run();
    direct.block.change_limits(LimiterOptions {
        bytes: None,
        operations: Some(BucketOptions::default()),
    });
    direct.run();
    assert_eq!(direct.used(0), 2);
}

fn break_the_first_queue(direct: &mut Direct) {
    let machine = &mut direct.bench.machine;
    let index = machine.rings[0].available_index;
    machine.set_available_index(0, index.wrapping_add(1000));
    direct.serve(0);
    assert!(direct.bench.machine.interrupt.needs_reset());
}

#[test]
fn who_is_looked_at_is_heard_of_whatever_happens_to_the_disk() {
    let happenings: [Happening; 4] = [
        ("pause", pause),
        ("replace", replace),
        ("limit", limit),
        ("break", break_the_first_queue),
    ];
    for event_idx in [false, true] {
        for (what, happens) in happenings {
            let mut direct = Direct::new(event_idx);
            assert!(direct.block.begin_looking());
            happens(&mut direct);
            direct.run();
            let first = usize::from(direct.bench.machine.interrupt.needs_reset());
            for queue in first..2 {
                direct.assert_is_heard(queue, what);
            }
            direct.block.end_looking();
            assert!(direct.look().is_empty(), "{what}");
            for queue in first..2 {
                assert!(is_to_notify(&direct.bench, queue, event_idx), "{what}");
                direct.assert_is_heard(queue, what);
            }
        }
    }
}

#[test]
fn a_host_that_refuses_to_begin_requests_for_a_moment_begins_them_before_a_pause() {
    if engine() == IoEngine::Sync {
        return;
    }
    let mut direct = Direct::new(true);
    (0..20).for_each(|sector| direct.add(0, 1, sector));
    let uring = direct.block.uring.as_ref().unwrap();
    uring.refusals.set(6);
    let progress = direct.block.process_queue(0);
    assert_eq!(progress.unwrap(), Progress::More, "it is tried again");
    drop(direct.block.deactivate());
    assert_eq!(direct.used(0), 20);
    assert_eq!(direct.statuses(), vec![0; 20]);
    assert_eq!(direct.bench.on_host(19), vec![0xa5; 512]);
}

#[test]
fn requests_that_the_host_does_not_begin_fail_and_the_disk_goes_on_without() {
    if engine() == IoEngine::Sync {
        return;
    }
    let mut direct = Direct::new(true);
    (0..20).for_each(|sector| direct.add(0, 1, sector));
    let uring = direct.block.uring.as_ref().unwrap();
    uring.refusals.set(u32::MAX);
    let _ = direct.block.process_queue(0);
    let begin = Instant::now();
    let queues = direct.block.deactivate();
    assert!(begin.elapsed() >= BLOCK_SUBMIT_PATIENCE);
    assert_eq!((direct.used(0), direct.statuses()), (20, vec![1; 20]));
    assert_eq!(direct.bench.on_host(19), vec![19; 512], "nothing of it is");
    direct.activate(queues);
    assert!(!direct.block.wants_backend());
    direct.add(0, 1, 19);
    direct.serve(0);
    direct.run();
    assert_eq!((direct.used(0), direct.statuses()[20]), (1, 0));
    assert_eq!(direct.bench.on_host(19), vec![0xa5; 512]);
}
