//! A file of a delta, that somebody has changed: it is refused, or the disk is read through it.

use std::sync::LazyLock;
use std::time::Duration;

use lightv_devices::virtio::block::{Block, CacheType, Delta, DeltaAccess, Disk, OverlayOptions};
use xxhash_rust::xxh3::xxh3_64;

use crate::file::InputFile;
use crate::script::{Input, bytes};
use crate::subjects::block::assert_disk_works;
use crate::support::{Machine, readable, writable};

/// Bytes of the disk: a partial block at its end.
const DISK_BYTES: usize = 33 * 4096 + 512;
/// Bytes of a header that its checksum is of.
const COVERED_BYTES: usize = 504;
const CHUNK_BYTES: u32 = 16 << 10;

static BASE: LazyLock<InputFile> = LazyLock::new(|| InputFile::new(&[0x42; DISK_BYTES]));

/// A delta in which two blocks are.
static WRITTEN: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let file = InputFile::new(&[]);
    let disk = open(&file, DeltaAccess::Create).expect("it is empty");
    let mut machine = Machine::new(Box::new(block(disk)));
    machine.init();
    assert_disk_works(&mut machine);
    drop(machine);
    std::fs::read(file.path()).expect("it is in memory")
});

fn open(delta: &InputFile, access: DeltaAccess) -> Option<Disk> {
    let disk = Disk::open(&BASE.path(), true).expect("it is a file");
    let options = OverlayOptions {
        delta: Delta::File {
            path: &delta.path(),
            access,
            patience: Duration::ZERO,
        },
        bytes_max: None,
    };
    disk.with_overlay(options).ok()
}

fn block(disk: Disk) -> Block {
    Block::new("disk".into(), CacheType::Writeback, disk)
}

/// Changes, each two bytes of offset and what stands there. The first byte says how the file is opened, and whether its
/// header's checksum is right.
pub fn run(input: &[u8]) {
    let Some((kind, changes)) = input.split_first() else {
        return;
    };
    let mut file = WRITTEN.clone();
    let mut input = Input::new(changes);
    while !input.is_empty() {
        let Ok(at) = input.arbitrary::<u16>() else {
            break;
        };
        let Ok(data) = bytes(&mut input) else { break };
        for (place, byte) in file.iter_mut().skip(at.into()).zip(data) {
            *place = *byte;
        }
    }
    if kind & 1 == 0 {
        let checksum = xxh3_64(&file[..COVERED_BYTES]);
        file[COVERED_BYTES..512].copy_from_slice(&checksum.to_le_bytes());
    }
    if kind & 2 != 0 {
        file.truncate(file.len() / 2);
    }
    let access = match kind >> 4 {
        0..=5 => DeltaAccess::Continue,
        6..=9 => DeltaAccess::Create,
        _ => DeltaAccess::Read,
    };
    let file = InputFile::new(&file);
    let Some(disk) = open(&file, access) else {
        return;
    };
    let mut machine = Machine::new(Box::new(block(disk)));
    machine.init();
    read_all(&mut machine);
    if access != DeltaAccess::Read {
        assert_disk_works(&mut machine);
    }
}

fn read_all(machine: &mut Machine) {
    for sector in (0..DISK_BYTES as u64 / 512).step_by(CHUNK_BYTES as usize / 512) {
        let header = machine.put(&[&[0; 8][..], &sector.to_le_bytes()].concat());
        let (data, status) = (machine.alloc(CHUNK_BYTES as usize), machine.put(&[0xee]));
        let buffers = [
            readable(header, 16),
            writable(data, CHUNK_BYTES),
            writable(status, 1),
        ];
        machine.request(0, &buffers);
        assert_ne!(machine.get(status, 1), [0xee]);
    }
}
