//! A queue of the network device, with the buffers that the device has meanwhile.
//!
//! Without `VIRTIO_F_EVENT_IDX`: with it the queues of `virtio-drivers` notify for each request, whatever the device wants, and cannot do
//! without interrupts while they are polled.

use alloc::boxed::Box;
use core::sync::atomic::{Ordering, fence};

use virtio_drivers::Error;
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::Transport;

use crate::virtio::{Identity, ring};

/// Of a frame, with its header.
pub type Buffer = [u8];

/// Which way frames go.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the device.
    Receive,
    /// To the device.
    Send,
}

impl Way {
    /// Index of the queue (virtio 1.2 §5.1.2).
    const fn index(self) -> u16 {
        match self {
            Self::Receive => 0,
            Self::Send => 1,
        }
    }
}

/// A queue of `SIZE` entries; a frame takes one.
pub struct FrameQueue<const SIZE: usize> {
    queue: VirtQueue<Identity, SIZE>,
    way: Way,
    /// What the device has, by the token of its request.
    lent: [Option<Box<Buffer>>; SIZE],
    /// The device has not been told of all yet.
    has_news: bool,
}

impl<const SIZE: usize> FrameQueue<SIZE> {
    /// The queue of `transport` for frames of this way. The device does not interrupt for it.
    pub fn new(transport: &mut impl Transport, way: Way) -> Result<Self, Error> {
        let mut queue = VirtQueue::new(transport, way.index(), false, false)?;
        queue.set_dev_notify(false);
        Ok(Self {
            queue,
            way,
            lent: [const { None }; SIZE],
            has_news: false,
        })
    }

    /// How many more buffers the device can have.
    pub fn room(&self) -> usize {
        self.queue.available_desc()
    }

    /// Lends the device the first `len` bytes of `buffer`. Gives it back if there is no room.
    pub fn lend(&mut self, mut buffer: Box<Buffer>, len: usize) -> Result<(), Box<Buffer>> {
        let bytes = &mut buffer[..len];
        let added = match self.way {
            // SAFETY: the buffer is kept in `lent`, and nobody touches it, until the device gives the token back.
            Way::Receive => unsafe { self.queue.add(&[], &mut [bytes]) },
            // SAFETY: the same.
            Way::Send => unsafe { self.queue.add(&[bytes], &mut []) },
        };
        match added {
            Ok(token) => {
                self.lent[usize::from(token)] = Some(buffer);
                self.has_news = true;
                Ok(())
            }
            Err(_) => Err(buffer),
        }
    }

    /// The device is done with a buffer.
    pub fn has_done(&self) -> bool {
        self.queue.can_pop()
    }

    /// Takes back the buffer that the device is done with next, and how many bytes it has written.
    pub fn take(&mut self) -> Option<(Box<Buffer>, usize)> {
        let token = self.queue.peek_used()?;
        let mut buffer = self.lent.get_mut(usize::from(token))?.take()?;
        let bytes = &mut buffer[..];
        let written = match self.way {
            // SAFETY: the buffer of this token. Only its address counts, which is that of what was lent.
            Way::Receive => unsafe { self.queue.pop_used(token, &[], &mut [bytes]) },
            // SAFETY: the same.
            Way::Send => unsafe { self.queue.pop_used(token, &[bytes], &mut []) },
        };
        // The token is the next one, which is all that can be wrong.
        let written = written.map_or(0, |written| written as usize);
        let written = written.min(buffer.len());
        Some((buffer, written))
    }

    /// Tells the device of what was lent since the last time, unless it looks by itself.
    pub fn ring(&mut self, transport: &mut impl Transport) {
        if core::mem::take(&mut self.has_news) {
            ring(&self.queue, transport, self.way.index());
        }
    }

    /// Has the device interrupt when it is done with a buffer, or not. Look once more before going to sleep.
    pub fn set_interrupts(&mut self, are_wanted: bool) {
        self.queue.set_dev_notify(are_wanted);
        // The device sees the wish, or what it has done before is seen after this.
        fence(Ordering::SeqCst);
    }
}
