//! The socket device: packets of the guest over any ring, and programs of the host.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use arbitrary::Result;
use lightv_devices::state::DeviceState;
use lightv_devices::virtio::device::VirtioDevice;
use lightv_devices::virtio::vsock::{self, RECEIVE_QUEUE, TRANSMIT_QUEUE};

use crate::script::{self, Attacked, Input, bytes, low_half, number};
use crate::subjects::{Subject, VsockSubject};
use crate::support::{Machine, readable, writable};

/// Where the host's service is.
const PORT: u32 = 80;
/// The first of the guest's ports; others than those of a driver that behaves.
const GUEST_PORT: u32 = 5000;
/// Packets that may wait for the guest: more than there are steps.
const PACKETS_MAX: usize = 128;
/// Longer than any of them.
const BUFFER_BYTES: u32 = 512;

struct Attack {
    plain: VsockSubject,
    /// Connections, as programs of the host have them.
    streams: Vec<UnixStream>,
}

impl Attack {
    fn new() -> Self {
        let plain = VsockSubject::new();
        let is_set = plain.service.set_nonblocking(true);
        is_set.expect("a socket can be set");
        Self {
            plain,
            streams: Vec::new(),
        }
    }

    fn keep(&mut self, stream: UnixStream) {
        stream.set_nonblocking(true).expect("a socket can be set");
        self.streams.push(stream);
    }

    /// Programs of the host take connections, make some, write, read, close.
    fn act(&mut self, input: &mut Input<'_>) -> Result<()> {
        match input.arbitrary::<u8>()? % 6 {
            0 => {
                if let Ok((stream, _)) = self.plain.service.accept() {
                    self.keep(stream);
                }
            }
            1 => {
                let greeting = bytes(input)?;
                let path = self.plain.folder.path().join("v");
                if let Ok(mut stream) = UnixStream::connect(path) {
                    let _ = stream.write_all(greeting);
                    self.keep(stream);
                }
            }
            2 => {
                let data = bytes(input)?;
                if let Some(stream) = self.streams.last_mut() {
                    let _ = stream.write(data);
                }
            }
            3 => {
                if let Some(stream) = self.streams.last_mut() {
                    let _ = stream.read(&mut [0; 4096]);
                }
            }
            4 => {
                let how = match input.arbitrary::<u8>()? % 2 {
                    0 => std::net::Shutdown::Write,
                    _ => std::net::Shutdown::Read,
                };
                if let Some(stream) = self.streams.last_mut() {
                    let _ = stream.shutdown(how);
                }
            }
            _ => drop(self.streams.pop()),
        }
        Ok(())
    }
}

impl Subject for Attack {
    fn make(&mut self) -> Box<dyn VirtioDevice> {
        self.plain.make()
    }

    fn restore(&mut self, state: DeviceState) -> Box<dyn VirtioDevice> {
        self.plain.restore(state)
    }

    fn assert_works(&mut self, machine: &mut Machine) {
        self.streams.clear();
        self.plain.assert_works(machine);
    }
}

/// A packet's header: right, as far as the input does not say otherwise.
fn header(input: &mut Input<'_>, payload_bytes: usize) -> Result<Vec<u8>> {
    let odd: u8 = input.arbitrary()?;
    let mut field = |bit: u8, right: u64| {
        if odd & bit == 0 {
            Ok(right)
        } else {
            number(input)
        }
    };
    let cids = [
        field(1, u64::from(VsockSubject::CID))?,
        field(2, vsock::HOST_CID)?,
    ];
    let to = field(4, u64::from(PORT))?;
    let length = field(8, payload_bytes as u64)?;
    let kind = field(16, u64::from(vsock::socket_type::STREAM))?;
    let room = field(32, 65_536)?;
    let forwarded = field(64, 0)?;
    let from = u64::from(GUEST_PORT) + u64::from(input.arbitrary::<u8>()? % 4);
    let op = u64::from(input.arbitrary::<u8>()? % 9);
    let flags = u64::from(input.arbitrary::<u8>()? % 4);
    let mut packet = cids.map(u64::to_le_bytes).concat();
    for wide in [from, to, length] {
        packet.extend_from_slice(&low_half(wide).to_le_bytes());
    }
    for narrow in [kind, op] {
        packet.extend_from_slice(&narrow.to_le_bytes()[..2]);
    }
    for wide in [flags, room, forwarded] {
        packet.extend_from_slice(&low_half(wide).to_le_bytes());
    }
    Ok(packet)
}

impl Attacked for Attack {
    fn request(&mut self, machine: &mut Machine, input: &mut Input<'_>) -> Result<()> {
        let kind: u8 = input.arbitrary()?;
        if kind % 4 == 3 {
            let length = u32::from(input.arbitrary::<u16>()?);
            let address = machine.alloc(length as usize);
            machine.add(RECEIVE_QUEUE, &[writable(address, length)]);
            machine.kick(RECEIVE_QUEUE);
            return Ok(());
        }
        let payload = bytes(input)?;
        let packet = [header(input, payload.len())?.as_slice(), payload].concat();
        let step = if kind & 8 == 0 { packet.len() } else { 44 };
        let buffers: Vec<_> = packet
            .chunks(step)
            .map(|part| readable(machine.put(part), u32::try_from(part.len()).unwrap_or(0)))
            .collect();
        machine.add(TRANSMIT_QUEUE, &buffers);
        machine.kick(TRANSMIT_QUEUE);
        Ok(())
    }

    fn host(&mut self, machine: &mut Machine, input: &mut Input<'_>) -> Result<()> {
        self.act(input)?;
        script::serve_backend(machine);
        Ok(())
    }

    fn settle(&mut self, machine: &mut Machine) {
        self.streams.clear();
        // The service is not blocking before the device is seen to work.
        while self.plain.service.accept().is_ok() {}
        for _ in 0..PACKETS_MAX {
            let address = machine.alloc(BUFFER_BYTES as usize);
            machine.add(RECEIVE_QUEUE, &[writable(address, BUFFER_BYTES)]);
        }
        machine.kick(RECEIVE_QUEUE);
        (0..PACKETS_MAX).for_each(|_| script::serve_backend(machine));
    }
}

/// A script.
pub fn run(input: &[u8]) {
    script::attack(&mut Attack::new(), input);
}
