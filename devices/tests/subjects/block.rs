//! A disk under test: a file.

use std::io::Write;

use lightv_devices::state::DeviceState;
use lightv_devices::virtio::block::{Block, BlockOptions, CacheType, Disk};
use lightv_devices::virtio::device::VirtioDevice;
use tempfile::NamedTempFile;

use super::Subject;
use crate::support::{Machine, readable, writable};

pub(crate) struct BlockSubject {
    file: NamedTempFile,
}

impl BlockSubject {
    pub(crate) fn new() -> Self {
        let mut file = NamedTempFile::new().unwrap();
        file.write_all(&[0x42; 8192]).unwrap();
        Self { file }
    }
}

impl Subject for BlockSubject {
    fn make(&mut self) -> Box<dyn VirtioDevice> {
        let options = BlockOptions {
            id: "disk".into(),
            path: self.file.path().into(),
            read_only: false,
            cache: CacheType::Writeback,
        };
        Box::new(Block::open(&options).unwrap())
    }

    fn restore(&mut self, state: DeviceState) -> Box<dyn VirtioDevice> {
        let DeviceState::Block(state) = state else {
            panic!("{state:?}")
        };
        let disk = Disk::open(self.file.path(), false).unwrap();
        Box::new(Block::from_state("disk".into(), &state, disk).unwrap())
    }

    fn assert_works(&mut self, machine: &mut Machine) {
        assert_disk_works(machine);
    }
}

/// Panics unless the disk takes a sector and gives it back.
pub(crate) fn assert_disk_works(machine: &mut Machine) {
    // Type 1 writes, type 0 reads (virtio 1.2 §5.2.6).
    let mut header = [0; 16];
    header[0] = 1;
    let (written, read) = (machine.put(&[0x42; 512]), machine.alloc(512));
    let (header, status) = (machine.put(&header), machine.put(&[0xee]));
    let write = [
        readable(header, 16),
        readable(written, 512),
        writable(status, 1),
    ];
    assert_eq!(machine.request(0, &write), 1);
    assert_eq!(machine.get(status, 1), [0]);
    let (header, status) = (machine.put(&[0; 16]), machine.put(&[0xee]));
    let buffers = [
        readable(header, 16),
        writable(read, 512),
        writable(status, 1),
    ];
    assert_eq!(machine.request(0, &buffers), 513);
    assert_eq!(
        (machine.get(read, 512), machine.get(status, 1)),
        (vec![0x42; 512], vec![0])
    );
}
