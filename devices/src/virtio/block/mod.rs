//! The block device (virtio 1.2 §5.2): a raw file or a block device of the host as the guest's disk.

mod backend;
mod config;
mod disk;
mod overlay;
mod proved;
mod request;
pub mod state;
mod worker;

use std::cell::Cell;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use virtio_queue::Queue;

pub use self::backend::{DiskPart, LockDiskError, NotADisk, OpenDiskError};
pub use self::config::{CacheType, feature};
pub use self::disk::{Delta, Disk, OverlayOptions};
pub use self::overlay::{
    DeltaAccess, HeaderFault, OpenDeltaError, Overlay, OverlayError, SavedDelta, StoredDelta,
    StoredPiece, note_boot,
};
pub use self::proved::{PROOF_CHUNK_BYTES, chunk_count, chunk_sums};
pub use self::state::{BlockStateV1, OverlayMapV1, OverlayRunV1};

use self::config::config_space;
use self::worker::{Desk, Desks, Pending, Worker};
use crate::counters::Counters;
use crate::fault::{ActivateError, HostFault, HostOperation, RestoreDeviceError};
use crate::limiter::{Limiter, LimiterOptions};
use crate::limits::{
    BLOCK_BYTES_PER_TURN, BLOCK_BYTES_UNDER_WAY_MAX, BLOCK_QUEUE_SIZE, BLOCK_QUEUES_MAX,
    BLOCK_REQUESTS_PER_SUBMIT, BLOCK_REQUESTS_PER_TURN,
};
use crate::state::DeviceState;
use crate::sys::guest_buffers::GuestBuffers;
use crate::sys::uring::Uring;
use crate::virtio::device::{Activation, DeviceKind, Progress, Sight, VirtioDevice};
use crate::virtio::ring::{Popped, Ring};

/// How the host reads and writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum IoEngine {
    /// By calls that wait: the least work for what the host has in memory, one request at a time for what it has not.
    #[default]
    Sync,
    /// By io_uring: what the host has not in memory is under way while the loop does other things, and as many requests at a
    /// time as the queue has.
    Async,
}

/// A disk to be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockOptions {
    /// Id in the VM's configuration; its first 20 bytes are the serial number that the guest reads.
    pub id: String,
    /// A file or block device of the host. Symbolic links are followed.
    pub path: PathBuf,
    /// The guest may not write; the file is opened for reading only.
    pub read_only: bool,
    /// Whether flushes reach the disk.
    pub cache: CacheType,
}

/// A virtio-blk device.
#[derive(Debug)]
pub struct Block {
    id: String,
    cache: CacheType,
    disk: Disk,
    config: Vec<u8>,
    /// One for each queue.
    queue_sizes: Vec<u16>,
    counters: Arc<Counters>,
    limiter: Limiter,
    /// Of the asynchronous engine; made once, also for a driver that comes later. Should the kernel begin nothing by it any more, calls
    /// that wait do the work.
    uring: Option<Uring<Pending>>,
    /// Since when more waits in a queue than a turn serves, or than there was room for, and nothing is on its way that would call
    /// again.
    again_at: Option<Instant>,
    active: Option<Active>,
    /// A failure of the host that is told when the queue is empty.
    failure: Option<HostFault>,
}

/// What a device has while it works.
#[derive(Debug)]
struct Active {
    rings: Vec<Ring>,
    /// Of requests that are not under way: one for each that has been, so that none is made twice.
    spare: Vec<GuestBuffers>,
    /// The caller looks at the rings: the driver need not notify.
    is_looked_at: bool,
    /// The driver did not accept flush, so a write is only done when it has reached the disk (virtio 1.2 §5.2.6.2).
    is_write_through: bool,
}

impl Block {
    /// Opens a disk; the device is idle.
    ///
    /// # Errors
    /// [`OpenDiskError`] names the path and the reason.
    pub fn open(options: &BlockOptions) -> Result<Self, OpenDiskError> {
        let disk = Disk::open(&options.path, options.read_only)?;
        Ok(Self::new(options.id.clone(), options.cache, disk))
    }

    /// A device with a disk that is open already; idle.
    #[must_use]
    pub fn new(id: String, cache: CacheType, disk: Disk) -> Self {
        let config = config_space(&disk, 1);
        Self {
            id,
            cache,
            disk,
            config,
            queue_sizes: vec![BLOCK_QUEUE_SIZE],
            counters: Arc::default(),
            limiter: Limiter::default(),
            uring: None,
            again_at: None,
            active: None,
            failure: None,
        }
    }

    /// A device as it was saved, on a disk that the caller has found for it; idle.
    ///
    /// # Errors
    /// The disk has another size, or other access rights, than when it was saved.
    pub fn from_state(
        id: String,
        state: &BlockStateV1,
        disk: Disk,
    ) -> Result<Self, RestoreDeviceError> {
        state.check(&id, &disk)?;
        Ok(Self::new(id, state.cache(), disk))
    }

    /// Length of the disk in bytes, as the host has it: not rounded down to sectors.
    #[must_use]
    pub const fn len_bytes(&self) -> u64 {
        self.disk.len_bytes()
    }

    /// The disk.
    #[must_use]
    pub const fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Takes another disk, also while at work; the old one is closed. The caller shows the new
    /// [`config`](VirtioDevice::config) by [`MmioFront::set_config`](crate::virtio::mmio::MmioFront::set_config).
    pub fn replace_disk(&mut self, disk: Disk) {
        // What is under way ends on the disk on which it began.
        self.land_all();
        self.config = config_space(&disk, self.queues());
        self.disk = disk;
        // What has waited for room has it now, and nothing is under way any more that would say so.
        self.again_at = self.active.is_some().then(Instant::now);
    }

    /// Forgets all that was written into the disk's overlay; false when it has none. The driver is not asked: what it knows of
    /// the disk's contents does not hold any more.
    ///
    /// # Errors
    /// The kernel's; the disk is its base then too, and cannot be written to until a reset succeeds.
    pub fn reset_overlay(&mut self) -> io::Result<bool> {
        self.land_all();
        match self.disk.overlay_mut() {
            Some(overlay) => overlay.reset().map(|()| true),
            None => Ok(false),
        }
    }

    /// Makes what a delta in a file has safe, also without a flush of the driver: it is to outlive the machine.
    ///
    /// # Errors
    /// The host's.
    pub fn settle(&mut self) -> Result<(), HostFault> {
        if self.disk.overlay().is_none() {
            return Ok(());
        }
        self.land_all();
        let synced = self.disk.sync();
        synced.map_err(|cause| {
            self.counters.host_fault(&cause);
            HostFault {
                device: self.id.clone(),
                operation: HostOperation::WriteDisk,
                cause,
            }
        })
    }

    /// Changes what may be transferred, also while at work: when nothing waits any more, by
    /// [`wake_at`](VirtioDevice::wake_at).
    pub fn change_limits(&mut self, options: LimiterOptions) {
        self.limiter.change(options);
    }

    /// Number of queues, 1 to [`BLOCK_QUEUES_MAX`].
    fn queues(&self) -> u16 {
        u16::try_from(self.queue_sizes.len()).unwrap_or(BLOCK_QUEUES_MAX)
    }

    /// Offers `count` queues, 1 to [`BLOCK_QUEUES_MAX`]; what is beyond is the next of them. To be called while no driver has
    /// seen the device.
    #[must_use]
    pub fn with_queues(mut self, count: u16) -> Self {
        let count = count.clamp(1, BLOCK_QUEUES_MAX);
        self.queue_sizes = vec![BLOCK_QUEUE_SIZE; count.into()];
        self.config = config_space(&self.disk, count);
        self
    }

    /// Chooses how the host reads and writes. To be called while the device is idle.
    ///
    /// # Errors
    /// The kernel's: it has no io_uring, or does not allow it.
    pub fn set_engine(&mut self, engine: IoEngine) -> io::Result<()> {
        self.uring = match engine {
            IoEngine::Sync => None,
            IoEngine::Async => Some(Uring::new(BLOCK_QUEUE_SIZE, BLOCK_BYTES_UNDER_WAY_MAX)?),
        };
        Ok(())
    }

    /// Gives what serves requests, and what it serves them with, to `work`; `None` while idle.
    fn at_work<T>(
        &mut self,
        work: impl FnOnce(&Worker<'_>, Desks<'_>, &mut Limiter) -> T,
    ) -> Option<T> {
        let Active {
            rings,
            spare,
            is_looked_at,
            is_write_through,
        } = self.active.as_mut()?;
        let worker = Worker {
            id: &self.id,
            disk: &self.disk,
            counters: &self.counters,
            syncs_writes: *is_write_through,
            syncs_flushes: self.cache == CacheType::Writeback,
            failure: Cell::new(self.failure.take()),
        };
        let desks = Desks {
            rings,
            spare,
            is_looked_at: *is_looked_at,
            uring: self.uring.as_mut().filter(|uring| uring.is_usable()),
        };
        let done = work(&worker, desks, &mut self.limiter);
        self.failure = worker.failure.take();
        Some(done)
    }

    fn serve_turn(&mut self, queue: usize) -> Result<Progress, HostFault> {
        let progress = self.at_work(|worker, mut desks, limiter| {
            let mut desk = desks.desk(queue)?;
            desk.ring.pause_kicks();
            let progress = serve_requests(worker, &mut desk, limiter);
            let progress = if worker.submit(desk.uring.as_deref()) {
                progress
            } else {
                Progress::More
            };
            desk.ring.notify();
            Some(progress)
        });
        let progress = progress.flatten().unwrap_or(Progress::Done);
        match self.failure.take() {
            // A disk that fails fails each time, and what is told in the middle of it would be told for each request.
            Some(failure) if progress == Progress::Done => Err(failure),
            failure => {
                self.failure = failure;
                Ok(progress)
            }
        }
    }

    /// Waits until nothing is under way.
    fn land_all(&mut self) {
        self.at_work(|worker, mut desks, _| worker.land_all(&mut desks));
    }
}

/// Serves what waits in the queue, up to the limits of a turn.
fn serve_requests(worker: &Worker<'_>, desk: &mut Desk<'_>, limiter: &mut Limiter) -> Progress {
    let mut bytes_left = BLOCK_BYTES_PER_TURN;
    for request in 1..=BLOCK_REQUESTS_PER_TURN {
        if bytes_left == 0 {
            break;
        }
        let throttled = &worker.counters.throttled_from_guest;
        if limiter.holds_up(throttled, || desk.ring.has_waiting()) {
            // It looks again by itself: the driver need not notify.
            return Progress::Done;
        }
        if !desk.has_room() {
            // Looks again when something has been completed.
            return Progress::Done;
        }
        match desk.ring.pop() {
            Popped::Chain(chain) => {
                let cost = worker.serve(chain, desk);
                limiter.charge(cost.data_bytes);
                bytes_left = bytes_left.saturating_sub(cost.turn_bytes);
                if request.is_multiple_of(BLOCK_REQUESTS_PER_SUBMIT) {
                    // What fails is tried again at the end of the turn.
                    worker.submit(desk.uring.as_deref());
                }
            }
            Popped::Malformed => {}
            Popped::Empty => {
                if desk.is_looked_at || !desk.ring.resume_kicks() {
                    return Progress::Done;
                }
            }
        }
    }
    Progress::More
}

impl VirtioDevice for Block {
    fn id(&self) -> &str {
        &self.id
    }

    fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    fn kind(&self) -> DeviceKind {
        DeviceKind::Block
    }

    fn features(&self) -> u64 {
        config::features(&self.disk, self.cache, self.queues())
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn activate(&mut self, env: Activation) -> Result<(), ActivateError> {
        ActivateError::unless_idle(&self.id, self.active.is_some())?;
        let has_flush = env.acked_features & feature::FLUSH != 0;
        let is_write_through = self.cache == CacheType::Writeback && !has_flush;
        let rings = env.into_ring_list(&self.id, &self.counters, self.queue_sizes.len())?;
        self.active = Some(Active {
            rings,
            spare: Vec::new(),
            is_looked_at: false,
            is_write_through,
        });
        Ok(())
    }

    /// The disk is waited for, whatever it takes: the kernel uses the guest's memory until then.
    fn finish(&mut self, _gives_up: &dyn Fn() -> bool) {
        self.land_all();
    }

    fn deactivate(&mut self) -> Vec<Queue> {
        self.land_all();
        self.limiter.forget_wait();
        self.again_at = None;
        let rings = self.active.take().map(|active| active.rings);
        let rings = rings.unwrap_or_default().into_iter();
        rings.map(Ring::into_queue).collect()
    }

    fn process_queue(&mut self, index: usize) -> Result<Progress, HostFault> {
        self.serve_turn(index)
    }

    fn backend_fd(&self) -> Option<BorrowedFd<'_>> {
        self.uring.as_ref().map(Uring::fd)
    }

    fn wants_backend(&self) -> bool {
        self.active.is_some() && self.uring.as_ref().is_some_and(Uring::is_usable)
    }

    fn process_backend(&mut self) -> Result<(), HostFault> {
        self.at_work(|worker, mut desks, _| worker.land(&mut desks));
        // What has waited for room, and what has come meanwhile: in each queue, whatever has become of another's requests.
        let mut result = Ok(());
        for queue in 0..self.queue_sizes.len() {
            match self.serve_turn(queue) {
                Ok(Progress::Done) => {}
                Ok(Progress::More) => self.again_at = Some(Instant::now()),
                Err(fault) => result = result.and(Err(fault)),
            }
        }
        result
    }

    fn wake_at(&self) -> Option<Instant> {
        let waits = [self.limiter.blocked_until(), self.again_at];
        waits.into_iter().flatten().min()
    }

    fn is_under_way(&self) -> bool {
        self.uring.as_ref().is_some_and(Uring::is_busy)
    }

    fn rung(&mut self) {
        self.again_at = None;
        self.limiter.forget_due();
    }

    fn begin_looking(&mut self) -> bool {
        let Some(active) = &mut self.active else {
            return false;
        };
        if !active.is_looked_at {
            active.is_looked_at = true;
            active.rings.iter_mut().for_each(Ring::pause_kicks);
        }
        true
    }

    fn look(&mut self, found: &mut dyn FnMut(Sight)) {
        let Some(active) = &self.active else {
            return;
        };
        if let Some(uring) = &mut self.uring {
            if uring.has_complete() {
                // It serves the queues too.
                found(Sight::Backend);
                return;
            }
            if !uring.has_room() {
                return;
            }
        }
        // What a limiter holds up comes by `wake_at`.
        if self.limiter.blocked_until().is_some() {
            return;
        }
        for (queue, ring) in active.rings.iter().enumerate() {
            if ring.has_waiting() {
                found(Sight::Queue(queue));
            }
        }
    }

    fn end_looking(&mut self) {
        let is_held_up = self.limiter.blocked_until().is_some();
        let Some(active) = &mut self.active else {
            return;
        };
        active.is_looked_at = false;
        if !is_held_up {
            for ring in &mut active.rings {
                let _the_caller_looks = ring.resume_kicks();
            }
        }
    }

    fn save(&self) -> DeviceState {
        DeviceState::Block(BlockStateV1 {
            read_only: self.disk.is_read_only(),
            flush_offered: self.cache == CacheType::Writeback,
            len_bytes: self.disk.len_bytes(),
        })
    }
}

#[cfg(test)]
#[expect(clippy::duplicate_mod, reason = "with the synchronous engine")]
mod tests;

#[cfg(test)]
#[expect(
    clippy::duplicate_mod,
    reason = "the same with the asynchronous engine"
)]
#[path = "tests.rs"]
mod async_tests;
