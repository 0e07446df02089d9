//! Carries out requests: at once, or by io_uring.
//!
//! ```text
//!   serve --> execute ---------------------------> conclude: status byte, used ring
//!        \--> start --> kernel --> land --> settle ---^
//!                         ^           |
//!                         +-- rest ---+
//! ```

use std::cell::Cell;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread::sleep;
use std::time::Instant;

use super::disk::Disk;
use super::request::{self, Action, Request};
use crate::counters::Counters;
use crate::fault::{GuestFault, HostFault, HostOperation};
use crate::limits::{BLOCK_SUBMIT_PATIENCE, BLOCK_SUBMIT_STEP};
use crate::sys::guest_buffers::GuestBuffers;
use crate::sys::uring::{Flight, Operation, Uring};
use crate::virtio::chain::{Chain, parts, write_at};
use crate::virtio::ring::Ring;

/// Status byte of a request (virtio 1.2 §5.2.6).
mod status {
    pub(super) const OK: u8 = 0;
    pub(super) const IOERR: u8 = 1;
    pub(super) const UNSUPP: u8 = 2;
}

/// What became of a request.
struct Outcome {
    status: u8,
    /// Data bytes put into guest memory, without the status byte.
    bytes_to_guest: u32,
}

/// What a request has cost.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Cost {
    /// Bytes of data that it names: what a limiter counts.
    pub(super) data_bytes: u64,
    /// Bytes by which a turn is measured: those, or of the stretch that was discarded or made zero, which a host may have to
    /// write.
    pub(super) turn_bytes: u64,
}

/// A request that is under way.
#[derive(Debug)]
pub(super) struct Pending {
    /// Where it came from, and goes back to.
    queue: usize,
    chain: Chain,
    status_at: u64,
    request: Request,
    began: Instant,
    /// Since when its data is written, and is being made safe.
    syncs_since: Option<Instant>,
}

/// What requests of all queues are served with.
pub(super) struct Desks<'a> {
    pub(super) rings: &'a mut [Ring],
    /// Lists of buffers that no request uses.
    pub(super) spare: &'a mut Vec<GuestBuffers>,
    /// The rings are looked at: drivers need not notify.
    pub(super) is_looked_at: bool,
    /// Of the asynchronous engine.
    pub(super) uring: Option<&'a mut Uring<Pending>>,
}

impl Desks<'_> {
    /// The one for `queue`, if there is such a queue.
    pub(super) fn desk(&mut self, queue: usize) -> Option<Desk<'_>> {
        Some(Desk {
            ring: self.rings.get_mut(queue)?,
            queue,
            spare: self.spare,
            is_looked_at: self.is_looked_at,
            uring: self.uring.as_deref_mut(),
        })
    }
}

/// What requests of one queue are served with.
pub(super) struct Desk<'a> {
    pub(super) ring: &'a mut Ring,
    queue: usize,
    /// Lists of buffers that no request uses.
    pub(super) spare: &'a mut Vec<GuestBuffers>,
    /// The ring is looked at: the driver need not notify.
    pub(super) is_looked_at: bool,
    /// Of the asynchronous engine.
    pub(super) uring: Option<&'a mut Uring<Pending>>,
}

impl Desk<'_> {
    /// Whether another request can begin.
    pub(super) fn has_room(&self) -> bool {
        self.uring.as_ref().is_none_or(|uring| uring.has_room())
    }

    fn buffers(&mut self) -> GuestBuffers {
        let spare = self.spare.pop();
        let mut buffers = spare.unwrap_or_else(|| GuestBuffers::new(Arc::clone(self.ring.mem())));
        buffers.clear();
        buffers
    }
}

/// What serving a request needs, apart from the queue.
pub(super) struct Worker<'a> {
    pub(super) id: &'a str,
    pub(super) disk: &'a Disk,
    pub(super) counters: &'a Counters,
    pub(super) syncs_writes: bool,
    pub(super) syncs_flushes: bool,
    /// The first failure of the host that nobody has been told of.
    pub(super) failure: Cell<Option<HostFault>>,
}

impl Worker<'_> {
    /// Serves one request, or begins to.
    pub(super) fn serve(&self, chain: Chain, desk: &mut Desk<'_>) -> Cost {
        let Ok((status_at, parsed)) = Request::parse(desk.ring.mem(), &chain, self.disk) else {
            // There is no place for a status byte.
            self.counters.guest_fault();
            desk.ring.complete(chain, 0);
            return Cost::default();
        };
        let request = match parsed {
            Ok(request) => request,
            Err(fault) => {
                self.counters.guest_fault();
                let outcome = Outcome {
                    status: fault.block_status(),
                    bytes_to_guest: 0,
                };
                self.conclude(desk.ring, (chain, status_at), &outcome);
                return Cost::default();
            }
        };
        let cost = request.cost();
        let mut buffers = desk.buffers();
        if gather(&request, &chain, &mut buffers).is_err() {
            self.conclude(desk.ring, (chain, status_at), &self.guest_fault());
        } else if desk.uring.is_some() && self.may_wait(&request) {
            let pending = Pending {
                queue: desk.queue,
                chain,
                status_at,
                request,
                began: Instant::now(),
                syncs_since: None,
            };
            self.start(pending, buffers, desk);
            return cost;
        } else {
            let outcome = self.execute(&request, (desk.ring, &chain), &mut buffers);
            self.conclude(desk.ring, (chain, status_at), &outcome);
        }
        desk.spare.push(buffers);
        cost
    }

    /// Whether the host may be waited for, for what is done with the disk's file alone.
    fn may_wait(&self, request: &Request) -> bool {
        if self.disk.overlay().is_some() {
            return false;
        }
        match request.action {
            Action::Read { .. } | Action::Write { .. } => request.data_bytes > 0,
            Action::Flush => self.syncs_flushes,
            Action::GetId | Action::Discard { .. } | Action::WriteZeroes { .. } => false,
        }
    }

    /// Begins a request, unless the host has what it reads in memory.
    fn start(&self, pending: Pending, mut buffers: GuestBuffers, desk: &mut Desk<'_>) {
        if let Action::Read { offset } = pending.request.action
            && self.disk.raw().read_cached(&mut buffers, offset)
        {
            self.settle(pending, buffers, Ok(()), desk);
            return;
        }
        self.fly(pending, buffers, desk);
    }

    /// Begins what is left of a request.
    fn fly(&self, pending: Pending, buffers: GuestBuffers, desk: &mut Desk<'_>) {
        let Request { action, data_bytes } = pending.request;
        let moved = data_bytes.saturating_sub(buffers.bytes());
        let operation = match action {
            Action::Read { offset } => Operation::Read {
                offset: self.disk.raw().place(offset.saturating_add(moved)),
            },
            Action::Write { offset } if pending.syncs_since.is_none() => Operation::Write {
                offset: self.disk.raw().place(offset.saturating_add(moved)),
            },
            _ => Operation::Sync,
        };
        let at = match operation {
            Operation::Read { offset } | Operation::Write { offset } => offset,
            Operation::Sync => 0,
        };
        let flight = Flight {
            file: Arc::clone(self.disk.raw().file_for(&buffers, at)),
            buffers,
            payload: pending,
        };
        let refused = match &mut desk.uring {
            Some(uring) => uring.prepare(operation, flight).err(),
            None => Some(flight),
        };
        // There is room for each request of a queue; were there none, it would have failed.
        if let Some(flight) = refused {
            let failed = Err(ErrorKind::ResourceBusy.into());
            self.settle(flight.payload, flight.buffers, failed, desk);
        }
    }

    /// Begins what [`serve`](Self::serve) and [`land`](Self::land) have prepared; false when that has to be tried again.
    pub(super) fn submit(&self, uring: Option<&Uring<Pending>>) -> bool {
        let submitted = uring.map_or(Ok(()), Uring::submit);
        if let Err(cause) = submitted {
            self.note_failure(HostOperation::SubmitDisk, cause);
            return false;
        }
        true
    }

    /// Concludes all requests that are complete, and goes on with those of which a part is.
    pub(super) fn land(&self, desks: &mut Desks<'_>) {
        if let Some(uring) = &desks.uring {
            uring.acknowledge();
        }
        while let Some((flight, result)) =
            desks.uring.as_mut().and_then(|uring| uring.next_complete())
        {
            if let Some(mut desk) = desks.desk(flight.payload.queue) {
                self.land_one(flight, result, &mut desk);
            }
        }
        self.submit(desks.uring.as_deref());
        desks.rings.iter_mut().for_each(Ring::notify);
    }

    /// Waits until nothing is under way: the kernel uses the guest's memory until then, whatever it says meanwhile. What it would
    /// not begin for [`BLOCK_SUBMIT_PATIENCE`] fails.
    pub(super) fn land_all(&self, desks: &mut Desks<'_>) {
        let mut refused_since = None;
        while let Some(uring) = desks.uring.as_deref_mut().filter(|uring| uring.is_busy()) {
            if let Err(cause) = uring.wait() {
                self.note_failure(HostOperation::SubmitDisk, cause);
                if uring.has_begun() {
                    refused_since = None;
                    if uring.wait_begun().is_err() {
                        sleep(BLOCK_SUBMIT_STEP);
                    }
                } else {
                    let since = *refused_since.get_or_insert_with(Instant::now);
                    if since.elapsed() >= BLOCK_SUBMIT_PATIENCE {
                        return self.give_up(desks);
                    }
                    sleep(BLOCK_SUBMIT_STEP);
                }
            }
            self.land(desks);
        }
    }

    /// The kernel begins nothing any more: what was prepared fails.
    fn give_up(&self, desks: &mut Desks<'_>) {
        let flights = desks.uring.as_deref_mut().map(Uring::give_up);
        for flight in flights.unwrap_or_default() {
            if let Some(mut desk) = desks.desk(flight.payload.queue) {
                let failed = Err(ErrorKind::ResourceBusy.into());
                self.settle(flight.payload, flight.buffers, failed, &mut desk);
            }
        }
        desks.rings.iter_mut().for_each(Ring::notify);
    }

    fn land_one(&self, flight: Flight<Pending>, result: io::Result<usize>, desk: &mut Desk<'_>) {
        let Flight {
            mut buffers,
            payload: mut pending,
            ..
        } = flight;
        let moves_data = pending.syncs_since.is_none() && pending.request.action != Action::Flush;
        let done = match result {
            Ok(0) if moves_data => Err(ErrorKind::UnexpectedEof.into()),
            Ok(bytes) if moves_data => {
                buffers.advance(bytes);
                if buffers.bytes() > 0 {
                    return self.fly(pending, buffers, desk);
                }
                Ok(())
            }
            Ok(_) => Ok(()),
            Err(cause) if cause.kind() == ErrorKind::Interrupted => {
                return self.fly(pending, buffers, desk);
            }
            Err(cause) => Err(cause),
        };
        let is_write = matches!(pending.request.action, Action::Write { .. });
        if done.is_ok() && is_write && self.syncs_writes && pending.syncs_since.is_none() {
            pending.syncs_since = Some(Instant::now());
            return self.fly(pending, buffers, desk);
        }
        self.settle(pending, buffers, done, desk);
    }

    /// A request that was begun has ended.
    fn settle(
        &self,
        pending: Pending,
        buffers: GuestBuffers,
        result: io::Result<()>,
        desk: &mut Desk<'_>,
    ) {
        let Pending {
            queue: _,
            chain,
            status_at,
            request,
            began,
            syncs_since,
        } = pending;
        let is_flush = request.action == Action::Flush;
        let synced_since = syncs_since.or(is_flush.then_some(began));
        if let Some(since) = synced_since.filter(|_| result.is_ok()) {
            self.note_sync(since);
        }
        let outcome = self.note(&request, began, buffers.bytes(), result);
        self.conclude(desk.ring, (chain, status_at), &outcome);
        desk.spare.push(buffers);
    }

    /// Carries out a request whose data is gathered in `buffers`.
    fn execute(
        &self,
        request: &Request,
        (ring, chain): (&Ring, &Chain),
        buffers: &mut GuestBuffers,
    ) -> Outcome {
        let began = Instant::now();
        let result = match request.action {
            Action::GetId => return self.get_id(ring, chain),
            Action::Read { offset } => self.disk.read(buffers, offset),
            Action::Write { offset } => {
                let written = self.disk.write(buffers, offset);
                if self.syncs_writes {
                    written.and_then(|()| self.sync())
                } else {
                    written
                }
            }
            Action::Flush if self.syncs_flushes => self.sync(),
            Action::Flush => Ok(()),
            Action::Discard { offset, bytes }
            | Action::WriteZeroes {
                offset,
                bytes,
                may_unmap: true,
            } => self.disk.punch(offset, bytes),
            Action::WriteZeroes { offset, bytes, .. } => self.disk.zero(offset, bytes),
        };
        self.note(request, began, buffers.bytes(), result)
    }

    fn sync(&self) -> io::Result<()> {
        let began = Instant::now();
        self.disk.sync()?;
        self.note_sync(began);
        Ok(())
    }

    /// What was begun at `began` has made the disk safe.
    fn note_sync(&self, began: Instant) {
        self.counters.flush_time.record_since(began);
        Counters::add_one(&self.counters.host_syncs);
    }

    /// Counts a request, of whose data `left` bytes were not moved. What was moved before a failure counts too: the guest may
    /// see it.
    fn note(
        &self,
        request: &Request,
        began: Instant,
        left: u64,
        result: io::Result<()>,
    ) -> Outcome {
        let counters = self.counters;
        let moved = request.data_bytes.saturating_sub(left);
        match request.action {
            Action::Read { .. } => {
                counters.read_time.record_since(began);
                Counters::add(&counters.bytes_to_guest, moved);
                let outcome = self.outcome(result, HostOperation::ReadDisk, &counters.reads);
                Outcome {
                    bytes_to_guest: u32::try_from(moved).unwrap_or(0),
                    ..outcome
                }
            }
            Action::Write { .. } => {
                counters.write_time.record_since(began);
                Counters::add(&counters.bytes_from_guest, moved);
                self.outcome(result, HostOperation::WriteDisk, &counters.writes)
            }
            Action::Flush | Action::GetId => {
                self.outcome(result, HostOperation::WriteDisk, &counters.flushes)
            }
            Action::Discard { .. } | Action::WriteZeroes { .. } => match result {
                // The file system, or the disk under it, cannot: the driver does without.
                Err(cause) if cause.kind() == ErrorKind::Unsupported => Outcome {
                    status: status::UNSUPP,
                    bytes_to_guest: 0,
                },
                result => self.outcome(result, HostOperation::WriteDisk, &counters.discards),
            },
        }
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

    fn outcome(
        &self,
        result: io::Result<()>,
        operation: HostOperation,
        counter: &AtomicU64,
    ) -> Outcome {
        let status = match result {
            Ok(()) => {
                Counters::add_one(counter);
                status::OK
            }
            Err(cause) => {
                self.note_failure(operation, cause);
                status::IOERR
            }
        };
        Outcome {
            status,
            bytes_to_guest: 0,
        }
    }

    fn note_failure(&self, operation: HostOperation, cause: io::Error) {
        self.counters.host_fault(&cause);
        let fault = HostFault {
            device: self.id.to_owned(),
            operation,
            cause,
        };
        self.failure.set(Some(self.failure.take().unwrap_or(fault)));
    }

    fn guest_fault(&self) -> Outcome {
        self.counters.guest_fault();
        Outcome {
            status: status::IOERR,
            bytes_to_guest: 0,
        }
    }

    /// Gives a chain back, its status byte written.
    fn conclude(&self, ring: &mut Ring, (chain, status_at): (Chain, u64), outcome: &Outcome) {
        let status = [outcome.status];
        let used = match write_at(ring.mem(), chain.writable(), status_at, &status) {
            Ok(()) => outcome.bytes_to_guest.saturating_add(1),
            Err(_) => {
                self.counters.guest_fault();
                0
            }
        };
        ring.complete(chain, used);
    }
}

impl Request {
    const fn cost(&self) -> Cost {
        let data_bytes = self.data_bytes;
        let turn_bytes = match self.action {
            Action::Discard { bytes, .. } | Action::WriteZeroes { bytes, .. } => bytes,
            Action::Read { .. } | Action::Write { .. } | Action::Flush | Action::GetId => {
                data_bytes
            }
        };
        Cost {
            data_bytes,
            turn_bytes,
        }
    }
}

/// Collects the data's buffers.
///
/// # Errors
/// They do not lie in RAM.
fn gather(request: &Request, chain: &Chain, buffers: &mut GuestBuffers) -> Result<(), GuestFault> {
    let (segments, skip) = match request.action {
        Action::Read { .. } => (chain.writable(), 0),
        Action::Write { .. } => (chain.readable(), request::HEADER_BYTES),
        _ => return Ok(()),
    };
    parts(segments, skip, request.data_bytes).try_for_each(|part| buffers.push(part))
}
