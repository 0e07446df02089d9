//! A driver that does what an input says: queues filled by hand, registers, resets, saves. After all of it the device has to
//! work for one that behaves.

use std::sync::Arc;

use arbitrary::{Result, Unstructured};
use lightv_devices::virtio::mmio::reg;
use vm_memory::{Bytes, GuestAddress};

use crate::subjects::Subject;
use crate::support::{Buffer, Desc, HIGH_RAM, LOW_RAM, Machine, readable, writable};

/// Steps of one input: more are not looked at, so that none takes long.
const STEPS_MAX: usize = 64;
/// Offers of one chain: a queue has at most so many entries.
const BUFFERS_MAX: u8 = 8;

/// What an input is read with.
pub(crate) type Input<'a> = Unstructured<'a>;

/// A device under attack.
pub(crate) trait Attacked: Subject {
    /// A request of this device, as far as the input wants it right.
    fn request(&mut self, machine: &mut Machine, input: &mut Input<'_>) -> Result<()>;

    /// The host's side does something.
    fn host(&mut self, _machine: &mut Machine, _input: &mut Input<'_>) -> Result<()> {
        Ok(())
    }

    /// Has the guest take what the host's side still has for it.
    fn settle(&mut self, _machine: &mut Machine) {}

    /// Whether a driver that behaves finds the device as new afterwards.
    fn is_as_new(&self) -> bool {
        true
    }
}

/// Does what `bytes` say, and then sees whether the device works.
pub(crate) fn attack(subject: &mut impl Attacked, bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut machine = Machine::new(subject.make());
    machine.init();
    for _ in 0..STEPS_MAX {
        // An input that ends in the middle of a step is no less of an attack.
        if input.is_empty() || step(subject, &mut machine, &mut input).is_err() {
            break;
        }
    }
    machine.init();
    if subject.is_as_new() {
        subject.settle(&mut machine);
        machine.init();
        subject.assert_works(&mut machine);
    }
}

/// Reads a number of a queue.
pub(crate) fn queue(machine: &Machine, input: &mut Input<'_>) -> Result<usize> {
    let number: u8 = input.arbitrary()?;
    Ok(usize::from(number) % machine.rings.len())
}

/// Reads bytes: their number in one byte, then they.
pub(crate) fn bytes<'a>(input: &mut Input<'a>) -> Result<&'a [u8]> {
    let length = usize::from(input.arbitrary::<u8>()?).min(input.len());
    input.bytes(length)
}

/// Reads a number that is small most of the time.
pub(crate) fn number(input: &mut Input<'_>) -> Result<u64> {
    Ok(match input.arbitrary::<u8>()? {
        0xff => input.arbitrary()?,
        0xfe => u64::from(input.arbitrary::<u32>()?),
        0xfd => u64::from(input.arbitrary::<u16>()?),
        small => u64::from(small),
    })
}

/// Numbers of the fields of 32 bits that an input has of 64.
pub(crate) fn low_half(number: u64) -> u32 {
    u32::try_from(number & 0xffff_ffff).unwrap_or(0)
}

/// Reads an address: of something that there is, of an edge, or any.
fn address(machine: &mut Machine, input: &mut Input<'_>) -> Result<u64> {
    let kind: u8 = input.arbitrary()?;
    let offset = u64::from(input.arbitrary::<u8>()?);
    let index = usize::from(kind >> 4) % machine.rings.len();
    let rings = machine.rings[index];
    Ok(match kind & 0xf {
        0 => machine.alloc(4096),
        1 => rings.table + offset,
        2 => rings.available + offset,
        3 => rings.used + offset,
        4 => LOW_RAM - offset,
        5 => HIGH_RAM + offset,
        6 => HIGH_RAM - offset,
        7 => 0xd000_0000 + offset,
        8 => u64::MAX - offset,
        9 => offset,
        _ => input.arbitrary()?,
    })
}

fn buffer(machine: &mut Machine, input: &mut Input<'_>) -> Result<Buffer> {
    let kind: u8 = input.arbitrary()?;
    Ok(match kind % 4 {
        0 => {
            let data = bytes(input)?;
            let length = u32::try_from(data.len()).unwrap_or(0);
            readable(machine.put(data), length)
        }
        1 => {
            let length: u16 = input.arbitrary()?;
            writable(machine.alloc(length.into()), length.into())
        }
        kind => {
            let address = address(machine, input)?;
            let length = low_half(number(input)?);
            if kind == 2 {
                readable(address, length)
            } else {
                writable(address, length)
            }
        }
    })
}

/// A chain of buffers, in the queue's table or in one of its own.
fn chain(machine: &mut Machine, input: &mut Input<'_>) -> Result<()> {
    let queue = queue(machine, input)?;
    let flags: u8 = input.arbitrary()?;
    let count = 1 + (flags >> 4) % BUFFERS_MAX;
    let mut buffers = Vec::new();
    for _ in 0..count {
        buffers.push(buffer(machine, input)?);
    }
    if flags & 1 == 0 {
        machine.add(queue, &buffers);
    } else {
        machine.add_indirect(queue, &buffers);
    }
    if flags & 2 == 0 {
        machine.kick(queue);
    }
    Ok(())
}

fn descriptor(machine: &mut Machine, input: &mut Input<'_>) -> Result<()> {
    let queue = queue(machine, input)?;
    let index = u16::from(input.arbitrary::<u8>()?);
    let desc = Desc {
        address: address(machine, input)?,
        bytes: low_half(number(input)?),
        flags: input.arbitrary::<u8>()?.into(),
        next: input.arbitrary::<u8>()?.into(),
    };
    machine.write_desc(machine.rings[queue].table, index, desc);
    Ok(())
}

fn memory(machine: &mut Machine, input: &mut Input<'_>) -> Result<()> {
    let address = address(machine, input)?;
    let data = bytes(input)?;
    // A guest cannot write where it has no memory either.
    let _ = machine.mem.write_slice(data, GuestAddress(address));
    Ok(())
}

/// One access to a register, of any width. What is read is what the page shows.
pub(crate) fn access(machine: &mut Machine, input: &mut Input<'_>) -> Result<()> {
    let kind: u8 = input.arbitrary()?;
    let offset = if kind & 0x80 == 0 {
        4 * u64::from(input.arbitrary::<u8>()?)
    } else {
        u64::from(input.arbitrary::<u16>()?)
    };
    let is_register = offset % 4 == 0 && offset < reg::CONFIG;
    match kind % 8 {
        0..=2 if is_register => {
            machine.read32(offset);
        }
        3 | 4 => machine.write32(offset, low_half(number(input)?)),
        5 => {
            let data = bytes(input)?;
            machine.front.write(offset, data);
        }
        _ => {
            let width = usize::from(input.arbitrary::<u8>()? % 17);
            machine.front.read(offset, &mut vec![0xee; width]);
        }
    }
    Ok(())
}

/// A monitor that is saved and restored: what we have saved we have to take.
pub(crate) fn save_and_restore(subject: &mut impl Subject, machine: &mut Machine) {
    let (transport, state) = machine.save();
    let (mem, rings) = (Arc::clone(&machine.mem), machine.rings.clone());
    *machine = Machine::with_mem(subject.restore(state), mem, Some(&transport));
    machine.rings = rings;
}

/// The host's side is looked at, as far as it is to be watched. That it fails is the host's fault.
pub(crate) fn serve_backend(machine: &Machine) {
    let mut device = machine.device.lock().expect("no device panics");
    if device.wants_backend() {
        let _ = device.process_backend();
    }
}

fn step(subject: &mut impl Attacked, machine: &mut Machine, input: &mut Input<'_>) -> Result<()> {
    match input.arbitrary::<u8>()? % 20 {
        0..=3 => chain(machine, input)?,
        4..=7 => subject.request(machine, input)?,
        8 => {
            let queue = queue(machine, input)?;
            machine.kick(queue);
        }
        9 => descriptor(machine, input)?,
        10 => {
            let queue = queue(machine, input)?;
            machine.offer(queue, input.arbitrary::<u8>()?.into());
        }
        11 => {
            let queue = queue(machine, input)?;
            machine.set_available_index(queue, input.arbitrary()?);
        }
        12 => memory(machine, input)?,
        13 => access(machine, input)?,
        14 => serve_backend(machine),
        15 | 16 => subject.host(machine, input)?,
        17 => {
            let refused: u64 = input.arbitrary()?;
            let features = machine.offered() & !refused;
            machine.init_with(features);
        }
        18 => save_and_restore(subject, machine),
        _ => machine.set_status(0),
    }
    Ok(())
}
