//! A network card: frames of the guest over any ring, frames of the host, a tap or a network in user space.

use std::io::{Read, Write};

use arbitrary::Result;
use lightv_devices::state::DeviceState;
use lightv_devices::virtio::device::VirtioDevice;
use lightv_devices::virtio::net::{RECEIVE_QUEUE, TRANSMIT_QUEUE};

use crate::script::{self, Attacked, Input, bytes};
use crate::subjects::{NetSubject, StreamSubject, Subject};
use crate::support::{Machine, readable, writable};

/// Bytes of the header before a frame (virtio 1.2 §5.1.6).
const HEADER_BYTES: usize = 12;
/// Frames of the host that may wait: one a step.
const FRAMES_MAX: usize = 64;
/// Longer than any of them.
const BUFFER_BYTES: u32 = 512;

/// Queues of a card with one pair: one with more has a control queue too.
const QUEUES_OF_A_PAIR: usize = 2;

/// A frame with its header, in up to four buffers; or buffers for frames; or a command to the card.
fn request(machine: &mut Machine, input: &mut Input<'_>) -> Result<()> {
    let kind: u8 = input.arbitrary()?;
    let has_pairs = machine.rings.len() > QUEUES_OF_A_PAIR;
    if has_pairs && kind & 0x30 == 0x30 {
        let data = bytes(input)?;
        let (command, answer) = (machine.put(data), machine.alloc(1));
        let length = u32::try_from(data.len()).unwrap_or(0);
        let queue = machine.rings.len() - 1;
        machine.add(queue, &[readable(command, length), writable(answer, 1)]);
        machine.kick(queue);
        return Ok(());
    }
    let pair = usize::from(has_pairs && kind & 4 != 0);
    let [receive, transmit] = queues_of(pair);
    if kind & 1 == 1 {
        let length = u32::from(input.arbitrary::<u16>()?);
        let address = machine.alloc(length as usize);
        machine.add(receive, &[writable(address, length)]);
        machine.kick(receive);
        return Ok(());
    }
    let header: [u8; HEADER_BYTES] = match kind & 2 {
        0 => [0; HEADER_BYTES],
        _ => input.arbitrary()?,
    };
    let frame = [&header, bytes(input)?].concat();
    let step = 1 + frame.len() / (1 + usize::from(kind >> 6));
    let buffers: Vec<_> = frame
        .chunks(step)
        .map(|part| readable(machine.put(part), u32::try_from(part.len()).unwrap_or(0)))
        .collect();
    machine.add(transmit, &buffers);
    machine.kick(transmit);
    Ok(())
}

fn queues_of(pair: usize) -> [usize; 2] {
    [RECEIVE_QUEUE, TRANSMIT_QUEUE].map(|of| of + QUEUES_OF_A_PAIR * pair)
}

impl Attacked for NetSubject {
    fn request(&mut self, machine: &mut Machine, input: &mut Input<'_>) -> Result<()> {
        request(machine, input)
    }

    fn host(&mut self, machine: &mut Machine, input: &mut Input<'_>) -> Result<()> {
        let frame = [&[0; HEADER_BYTES], bytes(input)?].concat();
        for host in &self.hosts {
            let _ = host.send(&frame);
            let _ = host.recv(&mut [0; 64]);
        }
        script::serve_backend(machine);
        Ok(())
    }

    fn settle(&mut self, machine: &mut Machine) {
        self.use_all(machine);
        (0..self.hosts.len()).for_each(|pair| take_frames(machine, pair));
    }
}

/// Gives the card buffers for frames, until it has none any more.
fn take_frames(machine: &mut Machine, pair: usize) {
    let [queue, _] = queues_of(pair);
    for _ in 0..FRAMES_MAX {
        let address = machine.alloc(BUFFER_BYTES as usize);
        machine.add(queue, &[writable(address, BUFFER_BYTES)]);
    }
    machine.kick(queue);
    for _ in 0..FRAMES_MAX {
        script::serve_backend(machine);
    }
}

/// The card, and whether its network still keeps to the form of frames.
#[derive(Default)]
struct Stream {
    plain: StreamSubject,
    is_broken: bool,
}

impl Subject for Stream {
    fn make(&mut self) -> Box<dyn VirtioDevice> {
        self.plain.make()
    }

    fn restore(&mut self, state: DeviceState) -> Box<dyn VirtioDevice> {
        self.is_broken = false;
        self.plain.restore(state)
    }

    fn assert_works(&mut self, machine: &mut Machine) {
        self.plain.assert_works(machine);
    }
}

impl Attacked for Stream {
    fn request(&mut self, machine: &mut Machine, input: &mut Input<'_>) -> Result<()> {
        request(machine, input)
    }

    fn host(&mut self, machine: &mut Machine, input: &mut Input<'_>) -> Result<()> {
        let kind: u8 = input.arbitrary()?;
        let frame = bytes(input)?;
        if let Some(host) = &mut self.plain.host {
            if kind & 1 == 0 {
                let length = u32::try_from(frame.len()).unwrap_or(0).to_be_bytes();
                let _ = host.write_all(&length);
            }
            self.is_broken = true;
            let _ = host.write_all(frame);
            let _ = host.read(&mut [0; 4096]);
        }
        script::serve_backend(machine);
        Ok(())
    }

    fn is_as_new(&self) -> bool {
        !self.is_broken
    }
}

/// The first byte says what is behind the card; the rest is a script.
pub fn run(input: &[u8]) {
    let Some((kind, script)) = input.split_first() else {
        return;
    };
    match kind % 3 {
        0 => script::attack(&mut NetSubject::with(1), script),
        1 => script::attack(&mut Stream::default(), script),
        _ => script::attack(&mut NetSubject::with(2), script),
    }
}
