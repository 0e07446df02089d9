//! A disk with many requests under way: for measurements. The driver of [`blk`](crate::blk) has one.

use core::ptr::NonNull;
use core::sync::atomic::{Ordering, fence};

use guest_text::cmdline::MmioDevice;
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::Transport;
use virtio_drivers::transport::mmio::MmioTransport;
use virtio_drivers::{Error, Result};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::patience::Patience;
use crate::shim;
use crate::time;
use crate::virtio::{Identity, negotiate, ring};

/// Entries of the queue: a request takes three.
const QUEUE_SIZE: usize = 128;
/// Requests that may be under way.
pub const DEPTH_MAX: usize = QUEUE_SIZE / 3;
/// `VIRTIO_F_VERSION_1` (virtio 1.2 §6). Not `VIRTIO_F_EVENT_IDX`: with it this queue's driver notifies for each request,
/// whatever the device wants, and cannot do without interrupts while it polls.
const FEATURES: u64 = 1 << 32;

/// What a request does with the disk (virtio 1.2 §5.2.6).
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// To memory.
    Read,
    /// To the disk.
    Write,
}

/// `struct virtio_blk_req` before the data.
#[repr(C)]
#[derive(Clone, Copy, Default, IntoBytes, FromBytes, Immutable)]
struct Header {
    kind: u32,
    reserved: u32,
    sector: u64,
}

/// What the device reads and writes of a request besides its data. A cache line of its own: what only the driver uses must
/// not wait for the processor on which the device is.
#[repr(C, align(64))]
struct Shared {
    header: Header,
    status: [u8; 1],
}

/// A request's place in memory, and the data's.
pub struct Slot {
    shared: Shared,
    data: &'static mut [u8],
    direction: Direction,
    began_ns: u64,
}

impl Slot {
    /// For requests of `data`'s length.
    pub fn new(data: &'static mut [u8], direction: Direction) -> Self {
        Self {
            shared: Shared {
                header: Header::default(),
                status: [0],
            },
            data,
            direction,
            began_ns: 0,
        }
    }
}

/// The device and its driver.
pub struct DeepDisk {
    transport: MmioTransport<'static>,
    queue: VirtQueue<Identity, QUEUE_SIZE>,
    /// Those under way, by the token of their request.
    busy: [Option<&'static mut Slot>; QUEUE_SIZE],
    capacity_bytes: u64,
    patience: Patience,
}

impl DeepDisk {
    /// Takes the device at `place` from whatever drove it.
    ///
    /// # Safety
    /// A disk's registers are there, and no other driver touches them any more.
    pub unsafe fn take(place: MmioDevice) -> Option<Result<Self>> {
        let header = NonNull::new(place.base as *mut _)?;
        // SAFETY: the caller's word.
        let transport = unsafe { MmioTransport::new(header, place.len) };
        transport.ok().map(Self::new)
    }

    fn new(mut transport: MmioTransport<'static>) -> Result<Self> {
        negotiate(&mut transport, |offered| offered & FEATURES);
        let (low, high): (u32, u32) = (
            transport.read_config_space(0)?,
            transport.read_config_space(4)?,
        );
        let sectors = u64::from(low) | u64::from(high) << 32;
        let mut queue = VirtQueue::new(&mut transport, 0, false, false)?;
        queue.set_dev_notify(false);
        transport.finish_init();
        Ok(Self {
            transport,
            queue,
            busy: [const { None }; QUEUE_SIZE],
            capacity_bytes: sectors * 512,
            patience: Patience::new(),
        })
    }

    /// Size in bytes.
    pub fn capacity_bytes(&self) -> u64 {
        self.capacity_bytes
    }

    /// Begins a request at byte `place` with `slot`.
    pub fn begin(&mut self, slot: &'static mut Slot, place: u64) -> Result<()> {
        slot.shared.header = Header {
            kind: match slot.direction {
                Direction::Read => 0,
                Direction::Write => 1,
            },
            reserved: 0,
            sector: place / 512,
        };
        slot.began_ns = time::now_ns();
        let header = slot.shared.header.as_bytes();
        let queue = &mut self.queue;
        let (data, status) = (&mut *slot.data, &mut slot.shared.status);
        let token = match slot.direction {
            // SAFETY: the slot lives for ever, and is touched no more before `finish` has popped this token.
            Direction::Read => unsafe { queue.add(&[header], &mut [data, status]) },
            // SAFETY: the same.
            Direction::Write => unsafe { queue.add(&[header, data], &mut [status]) },
        }?;
        let place = self.busy.get_mut(usize::from(token));
        *place.ok_or(Error::WrongToken)? = Some(slot);
        Ok(())
    }

    /// Tells the device of the requests that were begun, unless it looks by itself.
    pub fn notify(&mut self) {
        ring(&self.queue, &mut self.transport, 0);
    }

    /// Tells the device though nothing was begun.
    pub fn ring_doorbell(&mut self) {
        self.transport.notify(0);
    }

    /// Until a request is done.
    pub fn wait(&mut self) {
        let queue = &mut self.queue;
        while !self.patience.look(|| queue.can_pop()) {
            // Ask and acknowledge before looking once more: an interrupt from now on ends the sleep.
            queue.set_dev_notify(true);
            // The wish must be visible before it is looked once more: a request that is done after that is told of.
            fence(Ordering::SeqCst);
            self.transport.ack_interrupt();
            if !queue.can_pop() {
                shim::wait();
                self.patience.note_sleep();
            }
            queue.set_dev_notify(false);
        }
    }

    /// Ends the request that is done next, if one is: its slot, and how long it took, in ns.
    pub fn finish(&mut self) -> Option<Result<(&'static mut Slot, u64)>> {
        let token = self.queue.peek_used()?;
        let slot = self.busy.get_mut(usize::from(token)).and_then(Option::take);
        Some(slot.ok_or(Error::WrongToken).and_then(|slot| {
            self.end(token, slot)?;
            match slot.shared.status {
                [0] => {
                    let ns = time::now_ns() - slot.began_ns;
                    Ok((slot, ns))
                }
                _ => Err(Error::IoError),
            }
        }))
    }

    fn end(&mut self, token: u16, slot: &mut Slot) -> Result<u32> {
        let header = slot.shared.header.as_bytes();
        let queue = &mut self.queue;
        let (data, status) = (&mut *slot.data, &mut slot.shared.status);
        match slot.direction {
            // SAFETY: the buffers that were added with this token.
            Direction::Read => unsafe { queue.pop_used(token, &[header], &mut [data, status]) },
            // SAFETY: the same.
            Direction::Write => unsafe { queue.pop_used(token, &[header, data], &mut [status]) },
        }
    }
}
