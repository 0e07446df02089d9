//! A disk: its requests over any ring. The first byte says which kind of disk.

use arbitrary::Result;
use lightv_devices::state::DeviceState;
use lightv_devices::virtio::block::{Block, CacheType, Delta, Disk, IoEngine, OverlayOptions};
use lightv_devices::virtio::device::VirtioDevice;

use crate::file::InputFile;
use crate::script::{self, Attacked, Input, bytes, number};
use crate::subjects::Subject;
use crate::subjects::block::assert_disk_works;
use crate::support::{Machine, readable, writable};

/// Bytes of the disk: a partial sector at its end.
const DISK_BYTES: usize = 300 * 512 + 7;

/// How the disk is opened.
mod kind {
    pub(super) const READ_ONLY: u8 = 1;
    pub(super) const OVERLAY: u8 = 2;
    pub(super) const DISCARD: u8 = 4;
    pub(super) const QUEUES: u8 = 8;
    pub(super) const ASYNC: u8 = 16;
}

struct Attack {
    kind: u8,
    file: InputFile,
}

impl Attack {
    fn has(&self, bit: u8) -> bool {
        self.kind & bit != 0
    }

    fn disk(&self) -> Disk {
        let is_overlay = self.has(kind::OVERLAY);
        let read_only = is_overlay || self.has(kind::READ_ONLY);
        let mut disk = Disk::open(&self.file.path(), read_only).expect("it is a file");
        if is_overlay {
            let options = OverlayOptions {
                delta: Delta::Memory(None),
                bytes_max: None,
            };
            disk = disk.with_overlay(options).expect("memory is enough");
        }
        if self.has(kind::DISCARD) {
            disk = disk.with_discard();
        }
        disk
    }

    fn finish(&self, block: Block) -> Box<dyn VirtioDevice> {
        let queues = if self.has(kind::QUEUES) { 3 } else { 1 };
        let mut block = block.with_queues(queues);
        // A configuration with both is refused.
        if self.has(kind::ASYNC) && !self.has(kind::OVERLAY) {
            // A host without io_uring has the other way.
            let _ = block.set_engine(IoEngine::Async);
        }
        Box::new(block)
    }
}

impl Subject for Attack {
    fn make(&mut self) -> Box<dyn VirtioDevice> {
        self.finish(Block::new("disk".into(), CacheType::Writeback, self.disk()))
    }

    fn restore(&mut self, state: DeviceState) -> Box<dyn VirtioDevice> {
        let DeviceState::Block(state) = state else {
            panic!("{state:?}")
        };
        let block = Block::from_state("disk".into(), &state, self.disk());
        self.finish(block.expect("it is as it was saved"))
    }

    fn assert_works(&mut self, machine: &mut Machine) {
        assert_disk_works(machine);
    }
}

impl Attacked for Attack {
    fn request(&mut self, machine: &mut Machine, input: &mut Input<'_>) -> Result<()> {
        let kind = match input.arbitrary::<u8>()? % 8 {
            0 | 1 => 0,
            2 | 3 => 1,
            4 => 4,
            5 => 8,
            6 => 11,
            _ => 13,
        };
        let sector = number(input)?;
        let header = [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &sector.to_le_bytes()].concat();
        let header = machine.put(&header);
        let mut buffers = vec![readable(header, 16)];
        let shape: u8 = input.arbitrary()?;
        for _ in 0..shape % 4 {
            // Discards name ranges of sectors in what the device reads.
            buffers.push(if matches!(kind, 1 | 11 | 13) {
                let data = bytes(input)?;
                readable(machine.put(data), u32::try_from(data.len()).unwrap_or(0))
            } else {
                let sectors = u32::from(input.arbitrary::<u8>()? % 32);
                writable(machine.alloc(16 << 10), 512 * sectors)
            });
        }
        buffers.push(writable(machine.alloc(1), 1));
        let queue = script::queue(machine, input)?;
        machine.add(queue, &buffers);
        machine.kick(queue);
        Ok(())
    }

    fn is_as_new(&self) -> bool {
        self.has(kind::OVERLAY) || !self.has(kind::READ_ONLY)
    }
}

/// The first byte says which kind of disk; the rest is a script.
pub fn run(input: &[u8]) {
    let Some((kind, script)) = input.split_first() else {
        return;
    };
    let mut attack = Attack {
        kind: *kind,
        file: InputFile::new(&[0x42; DISK_BYTES]),
    };
    script::attack(&mut attack, script);
}
