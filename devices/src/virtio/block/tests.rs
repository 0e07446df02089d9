use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;

use tempfile::{NamedTempFile, TempDir};

use super::*;
use crate::limiter::BucketOptions;
use crate::test_support::{Buffer, HIGH_RAM, LOW_RAM, Machine, readable, writable};

const SECTORS: usize = 64;

/// All of this is run with either engine: by the module `tests`, and again by `async_tests`.
fn engine() -> IoEngine {
    if module_path!().ends_with("async_tests") {
        IoEngine::Async
    } else {
        IoEngine::Sync
    }
}

fn with_engine(mut block: Block) -> Box<Block> {
    block.set_engine(engine()).unwrap();
    Box::new(block)
}

fn image(bytes: usize) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    let data: Vec<u8> = (0..bytes)
        .map(|at| u8::try_from(at / 512 % 251).unwrap())
        .collect();
    file.write_all(&data).unwrap();
    file
}

fn options(path: &Path) -> BlockOptions {
    BlockOptions {
        id: "rootfs".into(),
        path: path.into(),
        read_only: false,
        cache: CacheType::Unsafe,
    }
}

/// The first request uses up all that there is for an hour.
fn one_an_hour() -> LimiterOptions {
    LimiterOptions {
        bytes: None,
        operations: Some(BucketOptions {
            size: 1,
            refill: std::time::Duration::from_secs(3600),
            burst: 0,
        }),
    }
}

/// A running guest with a disk on `file`.
struct Bench {
    machine: Machine,
    file: NamedTempFile,
    /// To which requests go.
    queue: usize,
}

impl Bench {
    fn new(change: impl FnOnce(&mut BlockOptions)) -> Self {
        let file = image(512 * SECTORS);
        let mut options = options(file.path());
        change(&mut options);
        Self::with(Block::open(&options).unwrap(), file)
    }

    fn with(block: Block, file: NamedTempFile) -> Self {
        let mut machine = Machine::new(with_engine(block));
        machine.init();
        Self {
            machine,
            file,
            queue: 0,
        }
    }

    fn header(&mut self, kind: u32, sector: u64) -> Buffer {
        let header = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
        readable(self.machine.put(&header), 16)
    }

    /// Puts a write of a sector of `byte` into the queue, and does not notify.
    fn add_write(&mut self, sector: u64, byte: u8) {
        let header = self.header(1, sector);
        let data = readable(self.machine.put(&[byte; 512]), 512);
        let status = writable(self.machine.put(&[0xee]), 1);
        self.machine.add(self.queue, &[header, data, status]);
    }

    /// Sends a request; returns status and used length.
    fn request(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> (u8, u32) {
        let header = self.header(kind, sector);
        let status = self.machine.put(&[0xee]);
        let buffers = [&[header], data, &[writable(status, 1)]].concat();
        let used = self.machine.request(self.queue, &buffers);
        (self.machine.get(status, 1)[0], used)
    }

    fn read(&mut self, sector: u64, bytes: usize) -> (u8, Vec<u8>) {
        let address = self.machine.alloc(bytes);
        let (status, _) = self.request(
            0,
            sector,
            &[writable(address, u32::try_from(bytes).unwrap())],
        );
        (status, self.machine.get(address, bytes))
    }

    fn write(&mut self, sector: u64, data: &[u8]) -> u8 {
        let address = self.machine.put(data);
        self.request(
            1,
            sector,
            &[readable(address, u32::try_from(data.len()).unwrap())],
        )
        .0
    }

    fn on_host(&self, sector: u64) -> Vec<u8> {
        let mut data = vec![0; 512];
        self.file
            .as_file()
            .read_exact_at(&mut data, sector * 512)
            .unwrap();
        data
    }
}

#[test]
fn each_of_several_queues_is_served_and_has_its_own_requests_back() {
    let file = image(512 * SECTORS);
    let block = Block::open(&options(file.path())).unwrap().with_queues(4);
    assert_eq!(block.config()[34..36], [4, 0], "num_queues");
    let mut bench = Bench::with(block, file);
    assert_ne!(bench.machine.offered() & feature::MQ, 0);
    for queue in 0..4_u8 {
        bench.queue = queue.into();
        assert_eq!(bench.write(u64::from(queue), &[queue; 512]), 0);
    }
    for queue in 0..4_u8 {
        bench.queue = (3 - queue).into();
        assert_eq!(bench.read(u64::from(queue), 512), (0, vec![queue; 512]));
    }
    let counters = bench.machine.counters();
    assert_eq!((counters.reads, counters.writes), (4, 4));
    let (transport, _) = bench.machine.save();
    assert_eq!(transport.queues.len(), 4);
}

#[test]
fn one_queue_is_as_it_always_was() {
    let file = image(512 * SECTORS);
    let block = Block::open(&options(file.path())).unwrap();
    assert_eq!(block.features() & feature::MQ, 0);
    assert_eq!(
        (block.queue_sizes(), block.config().len()),
        (&[256][..], 24)
    );
    let many = block.with_queues(u16::MAX);
    assert_eq!(many.queue_sizes().len(), usize::from(BLOCK_QUEUES_MAX));
}

#[test]
fn what_is_written_is_read_back_and_on_the_host() {
    let mut bench = Bench::new(|_| {});
    assert_eq!(bench.read(3, 512), (0, vec![3; 512]));
    assert_eq!(bench.write(5, &[0xab; 1024]), 0);
    assert_eq!(bench.read(5, 1024), (0, vec![0xab; 1024]));
    assert_eq!(bench.on_host(6), vec![0xab; 512]);
    assert_eq!(
        bench.read(7, 512),
        (0, vec![7; 512]),
        "the next sector is untouched"
    );
    let counters = bench.machine.counters();
    assert_eq!(
        (counters.reads, counters.writes, counters.guest_faults),
        (3, 1, 0)
    );
    assert_eq!(
        (counters.bytes_to_guest, counters.bytes_from_guest),
        (2048, 1024)
    );
}

#[test]
fn data_may_be_spread_over_buffers_also_in_high_ram() {
    let mut bench = Bench::new(|_| {});
    let low = bench.machine.alloc(1024);
    let parts = [
        writable(low, 100),
        writable(HIGH_RAM, 411),
        writable(low + 200, 513),
    ];
    assert_eq!(bench.request(0, 1, &parts), (0, 1025));
    assert_eq!(bench.machine.get(low, 100), vec![1; 100]);
    assert_eq!(bench.machine.get(HIGH_RAM, 411), vec![1; 411]);
    assert_eq!(
        bench.machine.get(low + 200, 513),
        [vec![1; 1], vec![2; 512]].concat()
    );
}

#[test]
fn header_data_and_status_may_share_a_buffer() {
    let mut bench = Bench::new(|_| {});
    let mut request = [&1_u32.to_le_bytes()[..], &[0; 4], &9_u64.to_le_bytes()].concat();
    request.extend_from_slice(&[0x77; 512]);
    let address = bench.machine.put(&request);
    let status = bench.machine.alloc(1);
    let used = bench
        .machine
        .request(0, &[readable(address, 528), writable(status, 1)]);
    assert_eq!((used, bench.on_host(9)), (1, vec![0x77; 512]));

    let header = bench.machine.put(&[0; 16]);
    let target = bench.machine.alloc(513);
    let used = bench
        .machine
        .request(0, &[readable(header, 16), writable(target, 513)]);
    assert_eq!((used, bench.machine.get(target, 513)), (513, vec![0; 513]));
}

#[test]
fn the_last_sector_works_and_the_one_past_it_does_not() {
    for bytes in [512 * SECTORS, 512 * SECTORS + 511] {
        let file = image(bytes);
        let block = Block::open(&options(file.path())).unwrap();
        assert_eq!(block.len_bytes(), bytes as u64);
        assert_eq!(block.disk().has_partial_sector(), bytes % 512 != 0);
        let mut machine = Machine::new(Box::new(block));
        machine.init();
        let mut bench = Bench {
            machine,
            file,
            queue: 0,
        };
        let last = SECTORS as u64 - 1;
        assert_eq!(bench.write(last, &[1; 512]), 0);
        assert_eq!(bench.read(last, 512), (0, vec![1; 512]));
        assert_eq!(bench.write(last + 1, &[1; 512]), 1);
        assert_eq!(bench.read(last + 1, 512).0, 1);
        let on_host = bench.file.as_file().metadata().unwrap().len();
        assert_eq!(on_host, bytes as u64, "the file keeps its length");
    }
}

#[test]
fn the_configuration_tells_capacity_and_buffers() {
    let bench = Bench::new(|_| {});
    let mut front = bench.machine.front;
    let mut config = [0xff; 24];
    front.read(0x100, &mut config);
    assert_eq!(config[..8], 64_u64.to_le_bytes());
    assert_eq!(config[12..16], 254_u32.to_le_bytes());
    assert_eq!(config[16..], [0; 8]);
}

#[test]
fn features_follow_the_options() {
    let offered = |read_only, cache| {
        let mut bench = Bench::new(|options| {
            options.read_only = read_only;
            options.cache = cache;
        });
        bench.machine.offered()
    };
    let always = (1 << 32) | (1 << 29) | (1 << 28) | (1 << 2);
    assert_eq!(offered(false, CacheType::Unsafe), always);
    assert_eq!(offered(false, CacheType::Writeback), always | (1 << 9));
    assert_eq!(offered(true, CacheType::Unsafe), always | (1 << 5));
}

#[test]
fn a_read_only_disk_refuses_writes_but_flushes_and_tells_its_id() {
    // Cloud Hypervisor 4888, 7546, 7697, 7698.
    for cache in [CacheType::Unsafe, CacheType::Writeback] {
        let mut bench = Bench::new(|options| {
            options.read_only = true;
            options.cache = cache;
        });
        // A driver that does not accept the read-only bit.
        let features = bench.machine.offered() & !feature::RO;
        bench.machine.init_with(features);
        assert_eq!(bench.write(0, &[1; 512]), 1);
        assert_eq!(bench.request(4, 0, &[]), (0, 1));
        let address = bench.machine.alloc(20);
        assert_eq!(bench.request(8, 0, &[writable(address, 20)]), (0, 21));
        assert_eq!(
            bench.machine.get(address, 20),
            b"rootfs\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
        );
        assert_eq!(bench.read(0, 512), (0, vec![0; 512]));
        assert_eq!(bench.on_host(0), vec![0; 512]);
    }
}

#[test]
fn a_long_id_is_cut_to_20_bytes() {
    let mut bench = Bench::new(|options| options.id = "0123456789abcdefghijk".into());
    let address = bench.machine.alloc(20);
    assert_eq!(bench.request(8, 0, &[writable(address, 20)]), (0, 21));
    assert_eq!(bench.machine.get(address, 20), b"0123456789abcdefghij");
}

#[test]
fn unknown_types_are_unsupported_and_the_device_goes_on() {
    let mut bench = Bench::new(|_| {});
    for kind in [2, 5, 11, 13, u32::MAX] {
        assert_eq!(bench.request(kind, 0, &[]), (2, 1), "{kind}");
    }
    assert_eq!(bench.machine.counters().guest_faults, 5);
    assert_eq!(bench.read(1, 512), (0, vec![1; 512]));
}

#[test]
fn buffers_outside_ram_give_an_error_and_write_nothing() {
    // CVE-2019-18960: only the first byte of a buffer was checked.
    let mut bench = Bench::new(|_| {});
    for (address, bytes) in [
        (LOW_RAM - 1, 512),
        (LOW_RAM - 256, 512),
        (LOW_RAM, 512),
        (HIGH_RAM - 256, 512),
        (0xffff_ffff_ffff_ff00, 512),
        (u64::MAX, 512),
        (0xc000_0000, 512),
        (0, 0xffff_fe00),
    ] {
        let found = bench.request(0, 0, &[writable(address, bytes)]);
        assert_eq!(found, (1, 1), "read {address:#x}+{bytes:#x}");
        let found = bench.request(1, 0, &[readable(address, bytes)]);
        assert_eq!(found, (1, 1), "write {address:#x}+{bytes:#x}");
    }
    assert_eq!(bench.on_host(0), vec![0; 512]);
    assert_eq!(bench.read(1, 512), (0, vec![1; 512]));
    assert!(!bench.machine.interrupt.needs_reset());
}

#[test]
fn a_status_byte_outside_ram_gives_the_chain_back_empty() {
    let mut bench = Bench::new(|_| {});
    let header = bench.machine.put(&[0; 16]);
    let data = bench.machine.alloc(512);
    for status in [LOW_RAM, HIGH_RAM - 1, u64::MAX] {
        let buffers = [
            readable(header, 16),
            writable(data, 512),
            writable(status, 1),
        ];
        assert_eq!(bench.machine.request(0, &buffers), 0, "{status:#x}");
    }
    let used = bench.machine.request(0, &[readable(header, 16)]);
    assert_eq!((used, bench.machine.counters().guest_faults), (0, 4));
}

#[test]
fn a_file_that_shrank_gives_errors_for_the_missing_sectors_only() {
    // Firecracker 1974.
    let mut bench = Bench::new(|_| {});
    bench.file.as_file().set_len(512 * 8).unwrap();
    assert_eq!(bench.read(7, 512), (0, vec![7; 512]));
    assert_eq!(bench.read(8, 512).0, 1);
    assert_eq!(bench.read(7, 1024).0, 1, "half of it is missing");
    assert_eq!(bench.machine.counters().host_faults, 2);
    assert_eq!(bench.write(8, &[9; 512]), 0, "the file grows again");
    assert_eq!(bench.read(8, 512), (0, vec![9; 512]));
}

#[test]
fn a_removed_file_keeps_working() {
    let mut bench = Bench::new(|_| {});
    fs::remove_file(bench.file.path()).unwrap();
    assert_eq!(bench.write(2, &[5; 512]), 0);
    assert_eq!(bench.read(2, 512), (0, vec![5; 512]));
}

#[test]
fn a_write_that_fails_on_the_host_is_an_error_for_the_guest_alone() {
    let mut bench = Bench::new(|_| {});
    // A descriptor that is open for reading only stands for a host that cannot write.
    let disk = Disk::open(bench.file.path(), true)
        .unwrap()
        .pretend_writable();
    let block = Block::new("d".into(), CacheType::Writeback, disk);
    bench.machine = Machine::new(Box::new(block));
    bench.machine.init();
    assert_eq!(bench.write(0, &[1; 512]), 1);
    let counters = bench.machine.counters();
    assert_eq!(
        (counters.host_faults, counters.last_host_errno),
        (1, libc::EBADF)
    );
    assert_eq!(bench.read(1, 512), (0, vec![1; 512]), "the device goes on");
}

#[test]
fn many_requests_are_served_in_one_turn_with_one_interrupt() {
    let mut bench = Bench::new(|_| {});
    bench.machine.take_interrupts();
    let header = bench.machine.put(&[0; 16]);
    let data = bench.machine.alloc(512);
    let status = bench.machine.alloc(1);
    let buffers = [
        readable(header, 16),
        writable(data, 512),
        writable(status, 1),
    ];
    for _ in 0..60 {
        bench.machine.add(0, &buffers);
    }
    bench.machine.kick(0);
    assert_eq!(
        (0..60)
            .filter(|_| bench.machine.take_used(0).is_some())
            .count(),
        60
    );
    assert_eq!(bench.machine.take_interrupts(), 1);
}

#[test]
fn a_turn_is_bounded_and_the_rest_is_served_in_the_next() {
    let mut bench = Bench::new(|_| {});
    let header = bench.machine.put(&[0; 16]);
    let status = bench.machine.alloc(1);
    for _ in 0..100 {
        bench
            .machine
            .add(0, &[readable(header, 16), writable(status, 1)]);
    }
    let device = Arc::clone(&bench.machine.device);
    let mut device = device.lock().unwrap();
    assert_eq!(device.process_queue(0).unwrap(), Progress::More);
    let served = (0..100)
        .filter(|_| bench.machine.take_used(0).is_some())
        .count();
    assert_eq!(served, BLOCK_REQUESTS_PER_TURN);
    assert_eq!(device.process_queue(0).unwrap(), Progress::Done);
    let served = (0..100)
        .filter(|_| bench.machine.take_used(0).is_some())
        .count();
    assert_eq!(served, 100 - BLOCK_REQUESTS_PER_TURN);
}

#[test]
fn an_overlay_takes_what_is_written_with_either_engine() {
    let file = image(512 * SECTORS);
    let options = OverlayOptions {
        delta: Delta::Memory(None),
        bytes_max: None,
    };
    let disk = Disk::open(file.path(), true).unwrap();
    let disk = disk.with_overlay(options).unwrap();
    let block = Block::new("rootfs".into(), CacheType::Writeback, disk);
    let mut bench = Bench::with(block, file);
    let below = bench.on_host(5);
    assert_eq!(bench.write(5, &[7; 512]), 0);
    assert_eq!(bench.read(5, 512), (0, vec![7; 512]));
    assert_eq!(bench.on_host(5), below);
}

#[test]
fn requests_that_wait_before_driver_ok_are_served_by_it() {
    let mut bench = Bench::new(|_| {});
    let features = bench.machine.offered();
    bench.machine.negotiate(features);
    bench.machine.set_up_queue(0);
    let header = bench.machine.put(&[0; 16]);
    let status = bench.machine.alloc(1);
    for _ in 0..80 {
        bench
            .machine
            .add(0, &[readable(header, 16), writable(status, 1)]);
    }
    bench.machine.set_status(crate::test_support::RUNNING);
    assert_eq!(
        (0..99)
            .filter(|_| bench.machine.take_used(0).is_some())
            .count(),
        80
    );
}

#[test]
fn a_replaced_disk_has_its_own_capacity() {
    let mut bench = Bench::new(|_| {});
    let larger = image(512 * 128);
    {
        let mut block = Block::open(&options(bench.file.path())).unwrap();
        block.replace_disk(Disk::open(larger.path(), false).unwrap());
        bench.machine.front.set_config(block.config());
        bench.machine = Machine::new(Box::new(block));
    }
    bench.machine.init();
    assert_eq!(bench.read(100, 512), (0, vec![100; 512]));
    assert_eq!(bench.read(128, 512).0, 1);
}

#[test]
fn what_is_no_disk_is_refused_at_once_with_its_path_and_reason() {
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::create_dir(path("dir")).unwrap();
    fs::write(path("empty"), b"").unwrap();
    fs::write(path("short"), [0; 511]).unwrap();
    let status = std::process::Command::new("mkfifo")
        .arg(path("fifo"))
        .status()
        .unwrap();
    assert!(status.success());
    symlink("loop", path("loop")).unwrap();
    for (name, reason) in [
        ("dir", "a directory"),
        ("empty", "0 bytes, less than one sector"),
        ("short", "511 bytes, less than one sector"),
        ("fifo", "a FIFO"),
        ("missing", "No such file"),
        ("loop", "symbolic links"),
        ("/dev/zero", "a character device"),
    ] {
        for read_only in [false, true] {
            let mut options = options(&path(name));
            options.read_only = read_only;
            let error = Block::open(&options).unwrap_err();
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            let text = format!("{error}: {}", cause.unwrap_or_default());
            assert!(text.contains(reason), "{name}: {text}");
            assert!(text.contains(name), "{name}: {text}");
        }
    }
    fs::write(path("file"), [0; 512]).unwrap();
    symlink("file", path("link")).unwrap();
    assert_eq!(
        Block::open(&options(&path("link"))).unwrap().len_bytes(),
        512
    );
}

#[test]
fn a_restore_checks_size_and_access_rights() {
    let file = image(512 * SECTORS);
    let state = BlockStateV1 {
        read_only: false,
        flush_offered: true,
        len_bytes: 512 * 64,
    };
    let open = |read_only| Disk::open(file.path(), read_only).unwrap();
    let block = Block::from_state("d".into(), &state, open(false)).unwrap();
    assert_eq!(block.save(), DeviceState::Block(state));
    let found = Block::from_state("d".into(), &state, open(true));
    assert!(
        matches!(found, Err(RestoreDeviceError::DiskReadOnly { .. })),
        "{found:?}"
    );
    file.as_file().set_len(512 * 64 + 1).unwrap();
    let found = Block::from_state("d".into(), &state, open(false));
    assert!(
        matches!(found, Err(RestoreDeviceError::DiskSize { .. })),
        "{found:?}"
    );
}

#[test]
fn a_flush_reaches_the_host_if_that_was_asked_for() {
    // Firecracker 2172: flush was offered, but the host never synced.
    for (cache, host_syncs) in [(CacheType::Writeback, 10), (CacheType::Unsafe, 0)] {
        let mut bench = Bench::new(|options| options.cache = cache);
        for _ in 0..10 {
            assert_eq!(bench.write(0, &[1; 512]), 0);
            assert_eq!(bench.request(4, 0, &[]), (0, 1));
        }
        let counters = bench.machine.counters();
        assert_eq!(
            (counters.flushes, counters.host_syncs),
            (10, host_syncs),
            "{cache:?}"
        );
    }
}

#[test]
fn without_the_flush_feature_each_write_is_safe_when_it_ends() {
    // Virtio 1.2 §5.2.6.2: without VIRTIO_BLK_F_FLUSH, a completed write must be stable.
    let mut bench = Bench::new(|options| options.cache = CacheType::Writeback);
    let features = bench.machine.offered() & !feature::FLUSH;
    bench.machine.init_with(features);
    assert_eq!(bench.write(0, &[1; 512]), 0);
    assert_eq!(bench.machine.counters().host_syncs, 1);
    let device = bench.machine.device.lock().unwrap();
    assert_eq!(device.counters().flush_time().snapshot().count(), 1);
}

/// A disk of `bytes` that lies in a file from byte 4096 on, with its checksums.
fn disk_in_image(bytes: usize) -> (NamedTempFile, DiskPart) {
    let mut file = image(4096);
    file.seek(SeekFrom::End(0)).unwrap();
    let data: Vec<u8> = (0..bytes)
        .map(|at| u8::try_from(at / 4096 % 251).unwrap())
        .collect();
    file.write_all(&data).unwrap();
    let len_bytes = bytes as u64;
    let read = |chunk: &mut [u8], at| file.as_file().read_exact_at(chunk, 4096 + at);
    let sums = chunk_sums(len_bytes, read).unwrap().into();
    let part = DiskPart {
        file: Arc::new(file.reopen().unwrap()),
        base: 4096,
        len_bytes,
        sums,
    };
    (file, part)
}

#[test]
fn a_disk_in_an_image_is_proved_once_for_each_chunk_that_is_read() {
    let chunk = usize::try_from(PROOF_CHUNK_BYTES).unwrap();
    let (file, part) = disk_in_image(2 * chunk + 512);
    let disk = Disk::in_image(part).unwrap();
    assert!(disk.is_read_only());
    let block = Block::new("root".into(), CacheType::Unsafe, disk);
    let mut machine = Machine::new(Box::new(block));
    machine.init();
    let mut bench = Bench {
        machine,
        file,
        queue: 0,
    };
    let sectors_per_chunk = PROOF_CHUNK_BYTES / 512;
    let expected = |chunk: u64| (0, vec![u8::try_from(chunk * 16).unwrap(); 512]);
    assert_eq!(bench.read(0, 512), expected(0));
    assert_eq!(bench.read(2 * sectors_per_chunk, 512), expected(2));
    // The second chunk is damaged at its end: none of it is given out, nor what overlaps it.
    let at = 4096 + 2 * PROOF_CHUNK_BYTES - 1;
    bench.file.as_file().write_all_at(&[0xff], at).unwrap();
    assert_eq!(bench.read(sectors_per_chunk, 512).0, 1);
    assert_eq!(bench.read(sectors_per_chunk - 1, 1024).0, 1);
    assert_eq!(bench.read(sectors_per_chunk - 1, 512), (0, vec![15; 512]));
}

#[test]
fn a_disk_in_an_image_needs_a_sector_and_all_its_checksums() {
    let (_file, part) = disk_in_image(512);
    let with = |len_bytes, sums: &[u64]| DiskPart {
        len_bytes,
        sums: sums.into(),
        ..part.clone()
    };
    for (len_bytes, sums) in [(511, &[1][..]), (512, &[]), (512, &[1, 2]), (1 << 17, &[1])] {
        assert!(
            Disk::in_image(with(len_bytes, sums)).is_none(),
            "{len_bytes}"
        );
    }
    assert!(Disk::in_image(with(512, &[1])).is_some());
}

#[path = "ways_tests.rs"]
mod ways;

#[path = "look_tests.rs"]
mod look;

#[path = "wait_tests.rs"]
mod waits;
