//! The entropy source under test.

use lightv_devices::state::DeviceState;
use lightv_devices::virtio::device::VirtioDevice;
use lightv_devices::virtio::entropy::Entropy;

use super::Subject;
use crate::support::{Machine, writable};

pub(crate) struct EntropySubject;

impl Subject for EntropySubject {
    fn make(&mut self) -> Box<dyn VirtioDevice> {
        Box::new(Entropy::new("entropy".into()))
    }

    fn restore(&mut self, state: DeviceState) -> Box<dyn VirtioDevice> {
        let DeviceState::Entropy(state) = state else {
            panic!("{state:?}")
        };
        Box::new(Entropy::from_state("entropy".into(), state))
    }

    fn assert_works(&mut self, machine: &mut Machine) {
        let data = machine.put(&[0; 64]);
        assert_eq!(machine.request(0, &[writable(data, 64)]), 64);
        assert_ne!(machine.get(data, 64), vec![0; 64]);
    }
}
