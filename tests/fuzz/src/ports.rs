//! What is no virtio device: serial port, keyboard controller, pvpanic, control device.

use std::sync::LazyLock;

use arbitrary::Result;
use lightv_devices::control::{Doorbell, copy_print_buffer};
use lightv_devices::i8042::I8042;
use lightv_devices::limits::PRINT_BYTES_MAX;
use lightv_devices::memory::GuestMem;
use lightv_devices::pvpanic;
use lightv_devices::serial::Serial;
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

use crate::script::{Input, bytes, number};

/// Steps of one input.
const STEPS_MAX: usize = 512;
/// Bytes that the serial port keeps for the guest.
const FIFO_BYTES: usize = 64;

/// What prints are copied from.
static MEM: LazyLock<GuestMem> = LazyLock::new(|| {
    let ranges = [(GuestAddress(0), 1 << 20), (GuestAddress(1 << 32), 1 << 16)];
    GuestMem::from_ranges(&ranges).expect("the host has memory")
});

fn eventfd() -> EventFd {
    EventFd::new(libc::EFD_NONBLOCK).expect("there are descriptors")
}

fn serial() -> Serial {
    Serial::new(eventfd(), Box::new(std::io::sink()))
}

struct Ports {
    serial: Serial,
    i8042: I8042,
    print_buffer: Vec<u8>,
}

impl Ports {
    fn step(&mut self, input: &mut Input<'_>) -> Result<()> {
        match input.arbitrary::<u8>()? % 9 {
            0 => {
                self.serial.read(input.arbitrary::<u8>()?.into());
            }
            1 => {
                let port = input.arbitrary::<u8>()? % 9;
                self.serial.write(port.into(), input.arbitrary()?);
            }
            2 => {
                assert!(self.serial.enqueue(bytes(input)?) <= FIFO_BYTES);
            }
            3 => {
                let state = self.serial.save();
                assert!(state.input.len() <= FIFO_BYTES, "{state:?}");
                let restored = Serial::restore(state, eventfd(), Box::new(std::io::sink()));
                self.serial = restored.expect("we take what we have saved");
            }
            4 => {
                let _ = self.i8042.read(input.arbitrary()?);
            }
            5 => {
                let _ = self.i8042.write(input.arbitrary()?, input.arbitrary()?);
            }
            6 => {
                let _ = self.i8042.press_ctrl_alt_del();
            }
            7 => {
                let _ = pvpanic::is_panic(input.arbitrary()?);
            }
            _ => {
                let offset = number(input)?;
                if let Some(Doorbell::Print { addr, len, .. }) =
                    Doorbell::decode(offset, bytes(input)?)
                {
                    let _ = copy_print_buffer(&MEM, addr, len, &mut self.print_buffer);
                    assert!(self.print_buffer.capacity() <= 2 * PRINT_BYTES_MAX);
                }
            }
        }
        Ok(())
    }
}

/// Accesses.
pub fn run(input: &[u8]) {
    let mut ports = Ports {
        serial: serial(),
        i8042: I8042::new(eventfd()),
        print_buffer: Vec::new(),
    };
    let mut input = Input::new(input);
    for _ in 0..STEPS_MAX {
        if input.is_empty() || ports.step(&mut input).is_err() {
            break;
        }
    }
}
