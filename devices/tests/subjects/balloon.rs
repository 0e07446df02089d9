//! The balloon under the tests of all devices.

use std::sync::Arc;

use lightv_devices::state::DeviceState;
use lightv_devices::virtio::balloon::{Balloon, BalloonOptions, MemoryRange, Reclaim};
use lightv_devices::virtio::device::VirtioDevice;
use lightv_devices::virtio::mmio::reg;

use super::Subject;
use crate::support::{Machine, readable, writable};

/// Takes all memory that it is given.
#[derive(Debug)]
struct Host;

impl Reclaim for Host {
    fn release(&self, ranges: &[MemoryRange]) -> std::io::Result<()> {
        assert!(ranges.is_sorted());
        Ok(())
    }
}

pub(crate) struct BalloonSubject;

impl BalloonSubject {
    pub(crate) fn balloon() -> Balloon {
        let options = BalloonOptions {
            id: "balloon".into(),
            target_pages: 256,
            ram_pages: 4352,
            deflate_on_oom: true,
            polling_interval_s: 3600,
            has_hinting: true,
            has_reporting: true,
            reclaim: Arc::new(Host),
        };
        Balloon::new(options).unwrap()
    }
}

impl Subject for BalloonSubject {
    fn make(&mut self) -> Box<dyn VirtioDevice> {
        Box::new(Self::balloon())
    }

    fn restore(&mut self, state: DeviceState) -> Box<dyn VirtioDevice> {
        let DeviceState::Balloon(state) = state else {
            panic!("{state:?}")
        };
        Box::new(Self::balloon().with_state(&state).unwrap())
    }

    fn assert_works(&mut self, machine: &mut Machine) {
        let pfns = machine.put(&[1, 0, 0, 0, 2, 0, 0, 0]);
        for queue in [0, 1] {
            assert_eq!(machine.request(queue, &[readable(pfns, 8)]), 0);
        }
        assert_eq!(machine.request(4, &[writable(0x20_0000, 0x20_0000)]), 0);
        assert_eq!(machine.read32(reg::CONFIG), 256);
    }
}
