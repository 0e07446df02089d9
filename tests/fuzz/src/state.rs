//! Saved states of devices: what is decoded is refused, or becomes a device that works on whatever is in RAM.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

use lightv_devices::interrupt::Interrupt;
use lightv_devices::serial::Serial;
use lightv_devices::state::{DeviceState, Section, SerialStateV1, TransportStateV1};
use lightv_devices::virtio::block::{Block, Disk};
use lightv_devices::virtio::console::{Console, Output, Streams, TerminalSize};
use lightv_devices::virtio::device::VirtioDevice;
use lightv_devices::virtio::entropy::Entropy;
use lightv_devices::virtio::mmio::{
    ActivateRefused, DeviceLink, DeviceProfile, FrontParts, MmioFront,
};
use lightv_devices::virtio::net::{Net, Tap};
use lightv_vmm::snapshot::irqchip_state::{VmStateV1, is_line_open};
use lightv_vmm::snapshot::vcpu_state::VcpuStateV1;
use virtio_queue::Queue;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use crate::file::InputFile;
use crate::script::{Input, bytes};
use crate::subjects::{BalloonSubject, VsockSubject};
use crate::support::{Machine, guest_mem};

/// Bytes of the disk, as its golden state has it.
const DISK_BYTES: u64 = 8192;
/// Where what an input has for RAM lies.
const RAM_AT: u64 = 0x1_0000;

/// A state that is decoded is encoded to what is decoded to the same.
fn decode<T: Section + PartialEq + std::fmt::Debug>(bytes: &[u8]) -> Option<T> {
    let (state, _) = postcard::take_from_bytes::<T>(bytes).ok()?;
    let encoded = postcard::to_stdvec(&state).expect("a state is plain data");
    let again = postcard::from_bytes::<T>(&encoded).expect("we read what we write");
    assert_eq!(again, state);
    Some(state)
}

/// The device of a state, unless it is refused.
fn device(kind: u8, bytes: &[u8], disk: &InputFile) -> Option<Box<dyn VirtioDevice>> {
    let id = "device".to_owned();
    Some(match kind % 6 {
        0 => {
            let disk = Disk::open(&disk.path(), false).ok()?;
            Box::new(Block::from_state(id, &decode(bytes)?, disk).ok()?)
        }
        1 => {
            let (_, tap) = UnixDatagram::pair().ok()?;
            let tap = Tap::from_frame_socket(OwnedFd::from(tap));
            Box::new(Net::from_state(id, &decode(bytes)?, tap).ok()?)
        }
        2 => Box::new(Entropy::from_state(id, decode(bytes)?)),
        3 => {
            let streams = Streams {
                terminal: None,
                terminal_output: Output::nowhere(),
                stdin: None,
                stdout: Output::nowhere(),
                stderr: Output::nowhere(),
                size: TerminalSize::default(),
            };
            let console = Console::new(id, streams).ok()?;
            Box::new(console.with_state(&decode(bytes)?).ok()?)
        }
        4 => Box::new(BalloonSubject::balloon().with_state(&decode(bytes)?).ok()?),
        _ => {
            let vsock = VsockSubject::new().vsock();
            Box::new(vsock.with_state(&decode(bytes)?).ok()?)
        }
    })
}

/// Whoever owns the device is not asked.
struct NoLink;

impl DeviceLink for NoLink {
    fn activate(&self, _: Vec<Queue>, _: u64) -> Result<(), ActivateRefused> {
        Err(ActivateRefused)
    }

    fn reset(&self) {}

    fn notify(&self, _: u32) {}
}

fn virtio(kind: u8, input: &mut Input<'_>) -> arbitrary::Result<()> {
    let (state, transport, ram) = (bytes(input)?, bytes(input)?, bytes(input)?);
    let disk = InputFile::new(&[0x42; DISK_BYTES as usize]);
    let (Some(device), Some(transport)) = (
        device(kind, state, &disk),
        decode::<TransportStateV1>(transport),
    ) else {
        return Ok(());
    };
    let mem = guest_mem();
    let is_written = mem.write_slice(ram, GuestAddress(RAM_AT));
    is_written.expect("there is RAM");
    let irqfd = EventFd::new(libc::EFD_NONBLOCK).expect("there are descriptors");
    let profile = DeviceProfile::of(device.as_ref());
    let parts = FrontParts {
        interrupt: Interrupt::new(irqfd, Arc::clone(&profile.counters)),
        profile,
        mem: Arc::clone(&mem),
        link: Box::new(NoLink),
        page: None,
    };
    if MmioFront::restore(parts, &transport).is_err() {
        return Ok(());
    }
    let mut machine = Machine::with_mem(device, mem, Some(&transport));
    (0..machine.rings.len()).for_each(|queue| machine.kick(queue));
    machine.serve_backend(1);
    let (transport, state) = machine.save();
    check_saved(&transport, &state);
    machine.init();
    Ok(())
}

/// What is saved anew can be read.
fn check_saved(transport: &TransportStateV1, state: &DeviceState) {
    let read = |bytes: Vec<u8>| decode::<TransportStateV1>(&bytes);
    let saved = postcard::to_stdvec(transport).expect("a state is plain data");
    assert_eq!(read(saved).as_ref(), Some(transport));
    assert!(!format!("{state:?}").is_empty());
}

fn serial(bytes: &[u8]) {
    let Some(state) = decode::<SerialStateV1>(bytes) else {
        return;
    };
    let irqfd = EventFd::new(libc::EFD_NONBLOCK).expect("there are descriptors");
    let Ok(mut serial) = Serial::restore(state, irqfd, Box::new(std::io::sink())) else {
        return;
    };
    serial.enqueue(b"text");
    for port in 0..8 {
        serial.write(port, 0xff);
        serial.read(port);
    }
    let saved = serial.save();
    let irqfd = EventFd::new(libc::EFD_NONBLOCK).expect("there are descriptors");
    let restored = Serial::restore(saved, irqfd, Box::new(std::io::sink()));
    restored.expect("we take what we have saved");
}

/// The first byte says of what the state is.
pub fn run(input: &[u8]) {
    let Some((kind, rest)) = input.split_first() else {
        return;
    };
    match kind % 10 {
        6 => serial(rest),
        7 => {
            if let Some(state) = decode::<VmStateV1>(rest) {
                let open = (0..24).filter(|line| is_line_open(&state, *line)).count();
                assert!(open <= 24);
            }
        }
        8 | 9 => drop(decode::<VcpuStateV1>(rest)),
        kind => {
            // An input that ends too early has no more to say.
            let _ = virtio(kind, &mut Input::new(rest));
        }
    }
}
