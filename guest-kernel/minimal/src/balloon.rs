//! The memory balloon (virtio 1.2 §5.5), one request at a time.
//!
//! `virtio-drivers` has no driver for it, so this is one on its queues.

use alloc::boxed::Box;

use virtio_drivers::Error;
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::Transport;
use virtio_drivers::transport::mmio::MmioTransport;

use crate::virtio::{Identity, negotiate, ring};

/// Bytes of a page of the balloon.
pub const PAGE_BYTES: usize = 4096;
/// Pages that go in or out by one request.
pub const PAGES_PER_REQUEST: usize = 256;
/// Commands of hinting that are no number of a run.
const HINT_STOP: u32 = 0;
const HINT_FIRST_RUN: u32 = 2;
/// Entries of each queue: one is used.
const QUEUE_SIZE: usize = 8;
/// A tag and a value.
const STAT_BYTES: usize = 10;
/// Entries of a report.
const STATS: usize = 4;

/// `VIRTIO_F_VERSION_1` and the features of virtio 1.2 §5.5.3.
mod feature {
    pub const VERSION_1: u64 = 1 << 32;
    pub const STATS_VQ: u64 = 1 << 1;
    pub const DEFLATE_ON_OOM: u64 = 1 << 2;
    pub const FREE_PAGE_HINT: u64 = 1 << 3;
    pub const REPORTING: u64 = 1 << 5;
    pub const ALL: u64 = VERSION_1 | STATS_VQ | DEFLATE_ON_OOM | FREE_PAGE_HINT | REPORTING;
}

/// Fields of the configuration.
mod field {
    pub const NUM_PAGES: usize = 0;
    pub const ACTUAL: usize = 4;
    pub const HINT_COMMAND: usize = 8;
}

type Queue = VirtQueue<Identity, QUEUE_SIZE>;
/// A report of statistics: tags and values.
pub type Report = [(u16, u64); STATS];

/// The device and its driver.
pub struct Balloon {
    transport: MmioTransport<'static>,
    inflate: Queue,
    deflate: Queue,
    stats: Option<Stats>,
    hinting: Option<Queue>,
    reporting: Option<Queue>,
    pfns: Box<[u8; 4 * PAGES_PER_REQUEST]>,
    /// The last command of hinting that was carried out.
    hinted: u32,
}

struct Stats {
    queue: Queue,
    buffer: Box<[u8; STAT_BYTES * STATS]>,
    /// Of the buffer, while the device has it.
    token: Option<u16>,
}

impl Balloon {
    /// Sets up the device with all that it offers.
    pub fn new(mut transport: MmioTransport<'static>) -> Result<Self, Error> {
        let features = negotiate(&mut transport, |offered| offered & feature::ALL);
        // Numbered as Linux does: only those that there are.
        let mut index = 0;
        let mut next = |is_there: bool| -> Result<Option<Queue>, Error> {
            if !is_there {
                return Ok(None);
            }
            let queue = Queue::new(&mut transport, index, false, false)?;
            index += 1;
            Ok(Some(queue))
        };
        let has = |bit| features & bit != 0;
        let inflate = next(true)?.ok_or(Error::Unsupported)?;
        let deflate = next(true)?.ok_or(Error::Unsupported)?;
        let stats = next(has(feature::STATS_VQ))?.map(|queue| Stats {
            queue,
            buffer: Box::new([0; STAT_BYTES * STATS]),
            token: None,
        });
        let hinting = next(has(feature::FREE_PAGE_HINT))?;
        let reporting = next(has(feature::REPORTING))?;
        transport.finish_init();
        Ok(Self {
            transport,
            inflate,
            deflate,
            stats,
            hinting,
            reporting,
            pfns: Box::new([0; 4 * PAGES_PER_REQUEST]),
            hinted: HINT_STOP,
        })
    }

    /// Pages that the host wants.
    pub fn wanted_pages(&self) -> usize {
        let pages = self.transport.read_config_space::<u32>(field::NUM_PAGES);
        pages.map_or(0, |pages| pages as usize)
    }

    /// Tells the host how many pages there are.
    pub fn tell_actual(&mut self, pages: usize) -> Result<(), Error> {
        let pages = u32::try_from(pages).unwrap_or(u32::MAX);
        self.transport.write_config_space(field::ACTUAL, pages)
    }

    /// Gives the host the pages at these addresses, at most [`PAGES_PER_REQUEST`].
    pub fn inflate(&mut self, pages: impl Iterator<Item = usize>) -> Result<(), Error> {
        let bytes = write_pfns(&mut self.pfns, pages);
        let pfns = &self.pfns[..bytes];
        self.inflate
            .add_notify_wait_pop(&[pfns], &mut [], &mut self.transport)?;
        Ok(())
    }

    /// Takes the pages at these addresses back.
    pub fn deflate(&mut self, pages: impl Iterator<Item = usize>) -> Result<(), Error> {
        let bytes = write_pfns(&mut self.pfns, pages);
        let pfns = &self.pfns[..bytes];
        self.deflate
            .add_notify_wait_pop(&[pfns], &mut [], &mut self.transport)?;
        Ok(())
    }

    /// Whether the device takes reports of free pages.
    pub const fn has_reporting(&self) -> bool {
        self.reporting.is_some()
    }

    /// Tells that `memory`, whole pages, is free. What is in it is undefined then.
    pub fn report(&mut self, memory: &mut [u8]) -> Result<(), Error> {
        let queue = self.reporting.as_mut().ok_or(Error::Unsupported)?;
        queue.add_notify_wait_pop(&[], &mut [memory], &mut self.transport)?;
        Ok(())
    }

    /// If the host wants to know what is free: tells that `memory` is. What is in it is undefined then, and it must not be used
    /// until the host is done. True if it was told.
    pub fn hint_if_asked(&mut self, memory: &mut [u8]) -> Result<bool, Error> {
        let Some(queue) = &mut self.hinting else {
            return Ok(false);
        };
        let asked = self
            .transport
            .read_config_space::<u32>(field::HINT_COMMAND)?;
        if asked == self.hinted {
            return Ok(false);
        }
        self.hinted = asked;
        if asked < HINT_FIRST_RUN {
            return Ok(false);
        }
        queue.add_notify_wait_pop(&[&asked.to_le_bytes()], &mut [], &mut self.transport)?;
        for part in memory.chunks_mut(4 << 20) {
            queue.add_notify_wait_pop(&[], &mut [part], &mut self.transport)?;
        }
        queue.add_notify_wait_pop(&[&HINT_STOP.to_le_bytes()], &mut [], &mut self.transport)?;
        Ok(true)
    }

    /// If the host waits for statistics: tells those of `report`. True if they were told.
    pub fn tell_stats_if_asked(&mut self, report: impl FnOnce() -> Report) -> Result<bool, Error> {
        let Some(stats) = &mut self.stats else {
            return Ok(false);
        };
        if let Some(token) = stats.token {
            if !stats.queue.can_pop() {
                return Ok(false);
            }
            // SAFETY: the buffer of this token.
            unsafe { stats.queue.pop_used(token, &[&stats.buffer[..]], &mut []) }?;
        }
        for (entry, (tag, value)) in stats.buffer.chunks_mut(STAT_BYTES).zip(report()) {
            entry[..2].copy_from_slice(&tag.to_le_bytes());
            entry[2..].copy_from_slice(&value.to_le_bytes());
        }
        // SAFETY: the buffer is kept and not touched until the token is popped above.
        stats.token = Some(unsafe { stats.queue.add(&[&stats.buffer[..]], &mut []) }?);
        ring(&stats.queue, &mut self.transport, 2);
        Ok(true)
    }

    /// Acknowledges interrupts. Look for work once more before going to sleep.
    pub fn acknowledge(&mut self) {
        self.transport.ack_interrupt();
    }
}

/// Writes the numbers of pages, and gives how many bytes they are.
fn write_pfns(pfns: &mut [u8; 4 * PAGES_PER_REQUEST], pages: impl Iterator<Item = usize>) -> usize {
    let mut bytes = 0;
    for (place, page) in pfns.chunks_mut(4).zip(pages) {
        let pfn = u32::try_from(page / PAGE_BYTES).unwrap_or(u32::MAX);
        place.copy_from_slice(&pfn.to_le_bytes());
        bytes += 4;
    }
    bytes
}
