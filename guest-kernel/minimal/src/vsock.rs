//! The socket device, and what its driver does not do: acknowledging interrupts.

use virtio_drivers::Error;
use virtio_drivers::device::socket::VirtIOSocket;
use virtio_drivers::transport::mmio::MmioTransport;

use crate::mmio::Window;
use crate::napping::{Nap, Napping};
use crate::virtio::Identity;

/// Bytes of a receive buffer, header included: the host fills each with one packet, of as much as it has, and each costs a turn
/// of both sides. What no packet reaches takes no memory.
const BUFFER_BYTES: usize = 64 << 10;
/// `InterruptStatus` and `InterruptACK` (virtio 1.2 §4.2.2).
const INTERRUPT_STATUS: usize = 0x060;
const INTERRUPT_ACK: usize = 0x064;
/// The queue of packets for the host (virtio 1.2 §5.10.2).
const TRANSMIT: u16 = 1;

/// The driver. It has eight buffers, and knows nothing of the queue of events.
pub type Driver = VirtIOSocket<Identity, Napping, BUFFER_BYTES>;

/// The device and its driver.
pub struct Sockets {
    /// The driver.
    pub driver: Driver,
    registers: Window,
    nap: Nap,
}

impl Sockets {
    /// Sets up the device whose registers are at `registers`.
    pub fn new(transport: MmioTransport<'static>, registers: Window) -> Result<Self, Error> {
        let (transport, nap) = Napping::new(transport, TRANSMIT);
        let driver = Driver::new(transport)?;
        Ok(Self {
            driver,
            registers,
            nap,
        })
    }

    /// Has the CPU sleep while a packet is sent: later than it could be, but another machine of the host has the CPU.
    pub fn sleep_while_sending(&self) {
        self.nap.begin();
    }

    /// Acknowledges interrupts. Look for packets once more before going to sleep.
    pub fn acknowledge(&self) {
        let status: u32 = self.registers.read(INTERRUPT_STATUS);
        self.registers.write(INTERRUPT_ACK, status);
    }
}
