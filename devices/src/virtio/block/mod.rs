//! The block device (virtio 1.2 §5.2): a raw file or a block device of the host as the guest's disk.

mod backend;
mod config;
mod proved;
mod request;
pub mod state;

use std::cell::Cell;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use virtio_queue::Queue;

pub use self::backend::{Disk, DiskPart, NotADisk, OpenDiskError};
pub use self::config::{CacheType, feature};
pub use self::proved::{PROOF_CHUNK_BYTES, chunk_count, chunk_sums};
pub use self::state::BlockStateV1;

use self::config::config_space;
use self::request::{Action, Request};
use crate::counters::Counters;
use crate::fault::{ActivateError, HostFault, HostOperation, RestoreDeviceError};
use crate::limiter::{Limiter, LimiterOptions};
use crate::limits::{BLOCK_BYTES_PER_TURN, BLOCK_QUEUE_SIZE, BLOCK_REQUESTS_PER_TURN};
use crate::state::DeviceState;
use crate::sys::guest_buffers::GuestBuffers;
use crate::virtio::chain::{Chain, parts, write_at};
use crate::virtio::device::{Activation, DeviceKind, Progress, VirtioDevice};
use crate::virtio::ring::{Popped, Ring};

const QUEUE_SIZES: [u16; 1] = [BLOCK_QUEUE_SIZE];

/// Status byte of a request (virtio 1.2 §5.2.6).
mod status {
    pub(super) const OK: u8 = 0;
    pub(super) const IOERR: u8 = 1;
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
    counters: Arc<Counters>,
    limiter: Limiter,
    active: Option<Active>,
    /// A failure of the host that is told when the queue is empty.
    failure: Option<HostFault>,
}

/// What a device has while it works.
#[derive(Debug)]
struct Active {
    ring: Ring,
    buffers: GuestBuffers,
    /// The driver did not accept flush, so a write is only done when it has reached the disk (virtio 1.2 §5.2.6.2).
    is_write_through: bool,
}

/// What became of a request.
struct Outcome {
    status: u8,
    /// Data bytes put into guest memory, without the status byte.
    bytes_to_guest: u32,
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
        let config = config_space(disk.capacity_sectors());
        Self {
            id,
            cache,
            disk,
            config,
            counters: Arc::default(),
            limiter: Limiter::default(),
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
        self.config = config_space(disk.capacity_sectors());
        self.disk = disk;
    }

    /// Changes what may be transferred, also while at work: when nothing waits any more, by
    /// [`wake_at`](VirtioDevice::wake_at).
    pub fn change_limits(&mut self, options: LimiterOptions) {
        self.limiter.change(options);
    }

    fn serve_turn(&mut self) -> Result<Progress, HostFault> {
        let Some(Active {
            ring,
            buffers,
            is_write_through,
        }) = &mut self.active
        else {
            return Ok(Progress::Done);
        };
        let worker = Worker {
            id: &self.id,
            disk: &self.disk,
            counters: &self.counters,
            syncs_writes: *is_write_through,
            syncs_flushes: self.cache == CacheType::Writeback,
            failure: Cell::new(self.failure.take()),
        };
        ring.pause_kicks();
        let mut bytes_left = BLOCK_BYTES_PER_TURN;
        for _ in 0..BLOCK_REQUESTS_PER_TURN {
            if bytes_left == 0 {
                break;
            }
            if self.limiter.holds_up(|| ring.has_waiting()) {
                // It looks again by itself: the driver need not notify.
                Counters::add_one(&self.counters.throttled_from_guest);
                ring.notify();
                return worker.report().map(|()| Progress::Done);
            }
            match ring.pop() {
                Popped::Chain(chain) => {
                    let (used_bytes, moved_bytes) = worker.serve(ring, &chain, buffers);
                    self.limiter.charge(moved_bytes);
                    ring.complete(chain, used_bytes);
                    bytes_left = bytes_left.saturating_sub(moved_bytes);
                }
                Popped::Malformed => {}
                Popped::Empty => {
                    if !ring.resume_kicks() {
                        ring.notify();
                        return worker.report().map(|()| Progress::Done);
                    }
                }
            }
        }
        ring.notify();
        self.failure = worker.failure.take();
        Ok(Progress::More)
    }
}

/// What serving a request needs, apart from the ring.
struct Worker<'a> {
    id: &'a str,
    disk: &'a Disk,
    counters: &'a Counters,
    syncs_writes: bool,
    syncs_flushes: bool,
    /// The first failure of the host that nobody has been told of.
    failure: Cell<Option<HostFault>>,
}

impl Worker<'_> {
    /// Tells of a failure when all that waited has been served: a disk that fails fails each time, and what is told in
    /// the middle of it would be told for each request.
    fn report(&self) -> Result<(), HostFault> {
        self.failure.take().map_or(Ok(()), Err)
    }

    /// Serves one request, status byte included. Returns how many bytes of the chain were filled, for the used ring,
    /// and how many bytes of data the request named.
    fn serve(&self, ring: &Ring, chain: &Chain, buffers: &mut GuestBuffers) -> (u32, u64) {
        let (status_at, parsed) = match Request::parse(ring.mem(), chain, self.disk) {
            Ok(found) => found,
            Err(_) => {
                // There is no place for a status byte.
                self.counters.guest_fault();
                return (0, 0);
            }
        };
        let (outcome, moved_bytes) = match parsed {
            Ok(request) => (
                self.execute(&request, chain, (ring, buffers)),
                request.data_bytes,
            ),
            Err(fault) => {
                self.counters.guest_fault();
                (
                    Outcome {
                        status: fault.block_status(),
                        bytes_to_guest: 0,
                    },
                    0,
                )
            }
        };
        if write_at(ring.mem(), chain.writable(), status_at, &[outcome.status]).is_err() {
            self.counters.guest_fault();
            return (0, moved_bytes);
        }
        (outcome.bytes_to_guest.saturating_add(1), moved_bytes)
    }

    fn execute(
        &self,
        request: &Request,
        chain: &Chain,
        (ring, buffers): (&Ring, &mut GuestBuffers),
    ) -> Outcome {
        match request.action {
            Action::Read { offset } => self.read(request, chain, buffers, offset),
            Action::Write { offset } => self.write(request, chain, buffers, offset),
            Action::Flush => {
                let synced = if self.syncs_flushes {
                    self.sync()
                } else {
                    Ok(())
                };
                self.finish(synced, HostOperation::WriteDisk, &self.counters.flushes)
            }
            Action::GetId => self.get_id(ring, chain),
        }
    }

    fn read(
        &self,
        request: &Request,
        chain: &Chain,
        buffers: &mut GuestBuffers,
        offset: u64,
    ) -> Outcome {
        buffers.clear();
        for part in parts(chain.writable(), 0, request.data_bytes) {
            if buffers.push(part).is_err() {
                return self.guest_fault();
            }
        }
        let began = Instant::now();
        let result = self.disk.read(buffers, offset);
        self.counters.read_time.record_since(began);
        // What was transferred before a failure counts too: the guest may see it.
        let moved = request.data_bytes.saturating_sub(buffers.bytes());
        Counters::add(&self.counters.bytes_to_guest, moved);
        let outcome = self.finish(result, HostOperation::ReadDisk, &self.counters.reads);
        Outcome {
            bytes_to_guest: u32::try_from(moved).unwrap_or(0),
            ..outcome
        }
    }

    fn write(
        &self,
        request: &Request,
        chain: &Chain,
        buffers: &mut GuestBuffers,
        offset: u64,
    ) -> Outcome {
        buffers.clear();
        for part in parts(chain.readable(), request::HEADER_BYTES, request.data_bytes) {
            if buffers.push(part).is_err() {
                return self.guest_fault();
            }
        }
        let began = Instant::now();
        let mut result = self.disk.write(buffers, offset);
        self.counters.write_time.record_since(began);
        let moved = request.data_bytes.saturating_sub(buffers.bytes());
        Counters::add(&self.counters.bytes_from_guest, moved);
        if result.is_ok() && self.syncs_writes {
            result = self.sync();
        }
        self.finish(result, HostOperation::WriteDisk, &self.counters.writes)
    }

    fn sync(&self) -> std::io::Result<()> {
        let began = Instant::now();
        self.disk.sync()?;
        self.counters.flush_time.record_since(began);
        Counters::add_one(&self.counters.host_syncs);
        Ok(())
    }

    /// The serial number: the first 20 bytes of the id, filled up with zeros (virtio 1.2 §5.2.6).
    fn get_id(&self, ring: &Ring, chain: &Chain) -> Outcome {
        let mut serial = [0; request::ID_BYTES];
        serial
            .iter_mut()
            .zip(self.id.bytes())
            .for_each(|(target, byte)| *target = byte);
        match write_at(ring.mem(), chain.writable(), 0, &serial) {
            Ok(()) => Outcome {
                status: status::OK,
                bytes_to_guest: request::ID_BYTES_U32,
            },
            Err(_) => self.guest_fault(),
        }
    }

    fn finish(
        &self,
        result: std::io::Result<()>,
        operation: HostOperation,
        counter: &std::sync::atomic::AtomicU64,
    ) -> Outcome {
        let status = match result {
            Ok(()) => {
                Counters::add_one(counter);
                status::OK
            }
            Err(cause) => {
                self.counters.host_fault(&cause);
                let fault = HostFault {
                    device: self.id.to_owned(),
                    operation,
                    cause,
                };
                self.failure.set(Some(self.failure.take().unwrap_or(fault)));
                status::IOERR
            }
        };
        Outcome {
            status,
            bytes_to_guest: 0,
        }
    }

    fn guest_fault(&self) -> Outcome {
        self.counters.guest_fault();
        Outcome {
            status: status::IOERR,
            bytes_to_guest: 0,
        }
    }
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
        config::features(self.disk.is_read_only(), self.cache)
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn activate(&mut self, env: Activation) -> Result<(), ActivateError> {
        ActivateError::unless_idle(&self.id, self.active.is_some())?;
        let buffers = GuestBuffers::new(Arc::clone(&env.mem));
        let has_flush = env.acked_features & feature::FLUSH != 0;
        let is_write_through = self.cache == CacheType::Writeback && !has_flush;
        let [ring] = env.into_rings(&self.id, &self.counters)?;
        self.active = Some(Active {
            ring,
            buffers,
            is_write_through,
        });
        Ok(())
    }

    /// Requests are carried out whole within a call: none waits for the host.
    fn finish(&mut self, _gives_up: &dyn Fn() -> bool) {}

    fn deactivate(&mut self) -> Vec<Queue> {
        // Requests are served to their end, so none is under way here.
        self.limiter.forget_wait();
        self.active
            .take()
            .map(|active| active.ring.into_queue())
            .into_iter()
            .collect()
    }

    fn process_queue(&mut self, index: usize) -> Result<Progress, HostFault> {
        if index == 0 {
            self.serve_turn()
        } else {
            Ok(Progress::Done)
        }
    }

    fn backend_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn wants_backend(&self) -> bool {
        false
    }

    fn process_backend(&mut self) -> Result<(), HostFault> {
        Ok(())
    }

    fn wake_at(&self) -> Option<Instant> {
        self.limiter.blocked_until()
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
mod tests;
