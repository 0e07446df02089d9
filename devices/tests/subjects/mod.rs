//! Each device under test with its host side: for the tests of all devices, and for fuzzing.

mod balloon;
pub(crate) mod block;
mod console;
mod entropy;
mod net;
mod stream;
mod vsock;

use lightv_devices::state::DeviceState;
use lightv_devices::virtio::device::VirtioDevice;

pub(crate) use self::balloon::BalloonSubject;
pub(crate) use self::block::BlockSubject;
pub(crate) use self::console::ConsoleSubject;
pub(crate) use self::entropy::EntropySubject;
pub(crate) use self::net::NetSubject;
pub(crate) use self::stream::StreamSubject;
pub(crate) use self::vsock::VsockSubject;

use crate::support::Machine;

/// A device under test with its host side.
pub(crate) trait Subject {
    /// A new device on the host side.
    fn make(&mut self) -> Box<dyn VirtioDevice>;
    /// The device in `state` on the host side.
    fn restore(&mut self, state: DeviceState) -> Box<dyn VirtioDevice>;
    /// Panics unless the device in `machine`, which is running, does its work, whatever its guest did before.
    fn assert_works(&mut self, machine: &mut Machine);
    /// Has the device, which is running, use all of its queues.
    fn use_all(&mut self, _machine: &mut Machine) {}
    /// A queue whose chains the device gives back as soon as it has them.
    fn served_queue(&self, machine: &Machine) -> usize {
        machine.rings.len() - 1
    }
}
