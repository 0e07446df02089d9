//! Discards, direct I/O, and what is under way.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vm_memory::{Bytes as _, GuestAddress};

use super::*;

/// Sends a discard (11) or a write of zeroes (13); returns the status.
fn range_request(bench: &mut Bench, kind: u32, range: (u64, u32, u32)) -> u8 {
    let (sector, sectors, flags) = range;
    let data = [
        &sector.to_le_bytes()[..],
        &sectors.to_le_bytes(),
        &flags.to_le_bytes(),
    ]
    .concat();
    let address = bench.machine.put(&data);
    bench.request(kind, 0, &[readable(address, 16)]).0
}

#[test]
fn what_is_discarded_becomes_a_hole_and_zeroes_need_not_be_sent() {
    let file = image(512 * SECTORS * 64);
    file.as_file().sync_all().unwrap();
    let disk = Disk::open(file.path(), false).unwrap().with_discard();
    let block = Block::new("d".into(), CacheType::Unsafe, disk);
    let mut machine = Machine::new(with_engine(block));
    assert_eq!(machine.offered() & (3 << 13), 3 << 13);
    machine.init();
    let limits = [0x124, 0x128, 0x12c, 0x130, 0x134].map(|at| machine.read32(at));
    assert_eq!(limits, [2 << 20, 1, 1, 2 << 20, 1]);
    let mut bench = Bench {
        machine,
        file,
        queue: 0,
    };
    let blocks = |bench: &Bench| {
        std::os::unix::fs::MetadataExt::blocks(&bench.file.as_file().metadata().unwrap())
    };
    let before = blocks(&bench);
    assert_eq!(range_request(&mut bench, 11, (1024, 1024, 0)), 0);
    assert!(blocks(&bench) + 1000 < before);
    assert_eq!(bench.read(1024, 512), (0, vec![0; 512]));
    assert_eq!(bench.read(1023, 512).1, bench.on_host(1023));
    assert_ne!(bench.on_host(1023), vec![0; 512]);
    for (sector, unmap) in [(8, 0), (16, 1)] {
        assert_eq!(range_request(&mut bench, 13, (sector, 2, unmap)), 0);
        assert_eq!(bench.on_host(sector + 1), vec![0; 512]);
        assert_ne!(bench.on_host(sector + 2), vec![0; 512]);
    }
    assert_eq!(bench.machine.counters().discards, 3);
    // Past the end, too long, and flags that nobody knows.
    let end = (SECTORS * 64) as u64;
    assert_eq!(range_request(&mut bench, 11, (end - 1, 2, 0)), 1);
    assert_eq!(range_request(&mut bench, 11, (u64::MAX, 1, 0)), 1);
    assert_eq!(range_request(&mut bench, 13, (0, u32::MAX, 0)), 1);
    assert_eq!(range_request(&mut bench, 11, (0, 1, 1)), 2);
    assert_eq!(range_request(&mut bench, 13, (0, 1, 2)), 2);
    let address = bench.machine.alloc(32);
    assert_eq!(bench.request(11, 0, &[readable(address, 32)]).0, 1);
    assert_eq!(bench.machine.counters().guest_faults, 6);
}

#[test]
fn stretches_that_become_zero_are_as_much_of_a_turn_as_data() {
    const STRETCH_BYTES: u64 = 128 << 20;
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(STRETCH_BYTES).unwrap();
    let disk = Disk::open(file.path(), false).unwrap().with_discard();
    let block = Block::new("d".into(), CacheType::Unsafe, disk);
    let mut bench = Bench::with(block, file);
    for kind in [11_u32, 13] {
        let header = [&kind.to_le_bytes()[..], &[0; 12]].concat();
        let header = readable(bench.machine.put(&header), 16);
        let sectors = STRETCH_BYTES / 512;
        let range = [0, sectors].map(u64::to_le_bytes).concat();
        let range = readable(bench.machine.put(&range), 16);
        let status = writable(bench.machine.alloc(1), 1);
        for _ in 0..3 {
            bench.machine.add(0, &[header, range, status]);
        }
        let device = Arc::clone(&bench.machine.device);
        for _ in 0..3 {
            let progress = device.lock().unwrap().process_queue(0).unwrap();
            assert_eq!(progress, Progress::More);
            assert!(bench.machine.take_used(0).is_some());
            assert!(bench.machine.take_used(0).is_none());
        }
        let progress = device.lock().unwrap().process_queue(0).unwrap();
        assert_eq!(progress, Progress::Done);
    }
    assert_eq!(bench.machine.counters().discards, 6);
}

#[test]
fn a_disk_that_does_not_discard_knows_no_such_request() {
    let mut bench = Bench::new(|_| {});
    assert_eq!(bench.machine.offered() & (3 << 13), 0);
    assert_eq!(range_request(&mut bench, 11, (0, 1, 0)), 2);
    assert_eq!(bench.on_host(1), vec![1; 512]);
    let disk = Disk::open(bench.file.path(), true).unwrap().with_discard();
    assert!(!disk.discards());
}

#[test]
fn a_disk_past_the_page_cache_takes_aligned_and_other_requests() {
    // A file of the tree's own folder: /tmp may lie in memory, which has no direct I/O.
    let mut file = NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    file.write_all(&vec![7; 1 << 20]).unwrap();
    let Ok(disk) = Disk::open(file.path(), false).unwrap().into_direct() else {
        // This file system has none.
        return;
    };
    assert!(disk.is_direct());
    let block = Block::new("d".into(), CacheType::Writeback, disk);
    let mut machine = Machine::new(with_engine(block));
    machine.init();
    let mut bench = Bench {
        machine,
        file,
        queue: 0,
    };
    let aligned = HIGH_RAM;
    for (sector, address, bytes) in [
        (8, aligned, 4096),
        (16, aligned + 8, 4096),
        (1, aligned, 512),
        (3, aligned + 1, 512),
    ] {
        let pattern: Vec<u8> = (0..bytes)
            .map(|at| u8::try_from(at % 253).unwrap())
            .collect();
        bench
            .machine
            .mem
            .write_slice(&pattern, GuestAddress(address))
            .unwrap();
        let length = u32::try_from(bytes).unwrap();
        let data = [readable(address, length)];
        assert_eq!(bench.request(1, sector, &data).0, 0, "{sector}");
        bench
            .machine
            .mem
            .write_slice(&vec![0; bytes], GuestAddress(address))
            .unwrap();
        let data = [writable(address, length)];
        assert_eq!(bench.request(0, sector, &data).0, 0, "{sector}");
        assert_eq!(bench.machine.get(address, bytes), pattern, "{sector}");
        assert_eq!(bench.on_host(sector), pattern[..512], "{sector}");
    }
    assert_eq!(bench.machine.counters().host_faults, 0);
}

#[test]
fn what_is_under_way_is_waited_for_by_a_reset_a_save_and_the_end() {
    for end in 0..3 {
        let mut bench = Bench::new(|_| {});
        for sector in 0..20_u64 {
            bench.add_write(sector, 0xa5);
        }
        let device = Arc::clone(&bench.machine.device);
        assert_eq!(
            device.lock().unwrap().process_queue(0).unwrap(),
            Progress::Done
        );
        drop(device);
        match end {
            0 => drop(bench.machine.save()),
            1 => bench.machine.set_status(0),
            _ => {
                let Bench { machine, file, .. } = bench;
                drop(machine);
                let written = fs::read(file.path()).unwrap();
                assert_eq!(written[..512 * 20], [0xa5; 512 * 20]);
                continue;
            }
        }
        for sector in 0..20 {
            assert_eq!(bench.on_host(sector), vec![0xa5; 512]);
        }
        let mut used: Vec<u32> = std::iter::from_fn(|| bench.machine.take_used(0))
            .map(|(head, _)| head)
            .collect();
        used.sort_unstable();
        used.dedup();
        assert_eq!(used.len(), 20, "{end}");
    }
}

#[test]
fn completions_are_taken_from_the_backend_and_make_room_for_more() {
    if engine() == IoEngine::Sync {
        return;
    }
    let mut bench = Bench::new(|_| {});
    assert!(bench.machine.wants_backend());
    let mut sent = 0;
    for _ in 0..60 {
        bench.add_write(0, 0x5a);
        sent += 1;
    }
    let device = Arc::clone(&bench.machine.device);
    assert_eq!(
        device.lock().unwrap().process_queue(0).unwrap(),
        Progress::Done
    );
    let mut done = 0;
    while done < sent {
        let mut device = device.lock().unwrap();
        let fd = device.backend_fd().unwrap();
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        let second = Timespec {
            tv_sec: 20,
            tv_nsec: 0,
        };
        assert_eq!(poll(&mut fds, Some(&second)).unwrap(), 1);
        device.process_backend().unwrap();
        drop(device);
        done += std::iter::from_fn(|| bench.machine.take_used(0)).count();
    }
    assert_eq!(bench.on_host(0), vec![0x5a; 512]);
}

#[test]
fn a_queue_that_is_held_up_is_served_when_its_time_comes_whatever_the_others_do() {
    let file = image(512 * SECTORS);
    let mut block = Block::open(&options(file.path())).unwrap().with_queues(2);
    block.change_limits(one_an_hour());
    let mut bench = Bench::with(block, file);
    assert_eq!(bench.write(0, &[1; 512]), 0);
    let buffer = bench.machine.put(&[0; 64]);
    let buffers = [readable(buffer, 16), writable(buffer + 16, 17)];
    bench.machine.add(0, &buffers);
    let wake_at = |bench: &Bench| bench.machine.device.lock().unwrap().wake_at();
    bench.machine.kick(0);
    let due = wake_at(&bench);
    assert!(due.is_some(), "it is held up");
    bench.machine.kick(1);
    assert_eq!(wake_at(&bench), due);
}
