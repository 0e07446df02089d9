//! Disk I/O that is under way while the loop does other things: io_uring (io_uring(7)).

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use io_uring::register::Restriction;
use io_uring::squeue::Entry;
use io_uring::types::{Fd, FsyncFlags};
use io_uring::{EnterFlags, IoUring, opcode};
use rustix::event::{EventfdFlags, eventfd};

use super::guest_buffers::GuestBuffers;

/// What is done with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Fill the buffers from `offset` on.
    Read { offset: u64 },
    /// Write the buffers from `offset` on.
    Write { offset: u64 },
    /// Make what was written safe.
    Sync,
}

/// An operation that is under way, with all that the kernel uses of it: nobody else has them meanwhile.
#[derive(Debug)]
pub(crate) struct Flight<T> {
    pub(crate) file: Arc<File>,
    pub(crate) buffers: GuestBuffers,
    /// The caller's.
    pub(crate) payload: T,
}

/// A ring and the operations that it carries out, at most as many as it has entries.
pub(crate) struct Uring<T> {
    ring: IoUring,
    /// Counts completions.
    completed: OwnedFd,
    /// By the number that the kernel has of them.
    flights: Vec<Option<Flight<T>>>,
    free: Vec<usize>,
    /// Bytes of all their buffers.
    bytes: u64,
    bytes_max: u64,
    /// The kernel would not begin what was prepared, and is not called again.
    is_given_up: bool,
    /// Calls that are to fail as if the host had no memory.
    #[cfg(test)]
    pub(crate) refusals: std::cell::Cell<u32>,
}

impl<T> Uring<T> {
    /// A ring for `entries` operations at a time, and no more when their buffers have `bytes_max`.
    ///
    /// # Errors
    /// The kernel's: it has no io_uring that can be restricted (Linux 5.10), or it is not allowed here
    /// (`kernel.io_uring_disabled`, a seccomp filter).
    pub(crate) fn new(entries: u16, bytes_max: u64) -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_r_disabled()
            .build(u32::from(entries))?;
        let completed = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        let submitter = ring.submitter();
        submitter.register_eventfd(completed.as_raw_fd())?;
        // What a ring carries out is no system call, and no filter sees it: this one does these and nothing else, for good.
        submitter.register_restrictions(&mut [
            Restriction::sqe_op(opcode::Readv::CODE),
            Restriction::sqe_op(opcode::Writev::CODE),
            Restriction::sqe_op(opcode::Fsync::CODE),
        ])?;
        submitter.register_enable_rings()?;
        let entries = usize::from(entries);
        Ok(Self {
            ring,
            completed,
            flights: (0..entries).map(|_| None).collect(),
            free: (0..entries).rev().collect(),
            bytes: 0,
            bytes_max,
            is_given_up: false,
            #[cfg(test)]
            refusals: std::cell::Cell::default(),
        })
    }

    /// Readable when an operation has been completed.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.completed.as_fd()
    }

    /// Whether another operation can begin.
    pub(crate) const fn has_room(&self) -> bool {
        !self.free.is_empty() && self.bytes < self.bytes_max
    }

    /// Whether operations are prepared or under way.
    pub(crate) const fn is_busy(&self) -> bool {
        self.free.len() < self.flights.len()
    }

    /// Prepares `operation`; [`submit`](Self::submit) begins it. Gives it back when there is no room.
    pub(crate) fn prepare(
        &mut self,
        operation: Operation,
        flight: Flight<T>,
    ) -> Result<(), Flight<T>> {
        if self.is_given_up {
            return Err(flight);
        }
        let Some(number) = self.free.pop() else {
            return Err(flight);
        };
        let entry = entry(operation, &flight).user_data(number as u64);
        // SAFETY: the entry names a descriptor, a list of vectors and memory that the flight keeps open, in place and
        // mapped. It lies in `flights` from here on, where nothing touches it, until the kernel has said that the operation
        // is complete, or until the ring is given up, which begins nothing then; one that goes away waits for what has begun
        // first. Guest memory may be written at any time.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        match self.flights.get_mut(number) {
            Some(slot) if pushed.is_ok() => {
                self.bytes = self.bytes.saturating_add(flight.buffers.bytes());
                *slot = Some(flight);
                Ok(())
            }
            _ => {
                self.free.push(number);
                Err(flight)
            }
        }
    }

    /// Begins what was prepared.
    ///
    /// # Errors
    /// The kernel's; what has not begun begins with the next call.
    pub(crate) fn submit(&self) -> io::Result<()> {
        self.enter(0)
    }

    /// Waits until at least one operation is complete, if there is one.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn wait(&self) -> io::Result<()> {
        if self.is_busy() {
            self.enter(1)
        } else {
            Ok(())
        }
    }

    /// The same of what has begun already, when the kernel does not begin what was prepared.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn wait_begun(&mut self) -> io::Result<()> {
        if !self.has_begun() {
            return Ok(());
        }
        let flags = EnterFlags::GETEVENTS.bits();
        until_uninterrupted(|| {
            // SAFETY: nothing is begun by this call, and no pointer is given to it.
            unsafe {
                self.ring
                    .submitter()
                    .enter::<libc::sigset_t>(0, 1, flags, None)
            }
        })
    }

    /// Whether the kernel uses the buffers of any operation: it has begun, and nobody has taken it as complete.
    pub(crate) fn has_begun(&mut self) -> bool {
        let busy = self.flights.len().saturating_sub(self.free.len());
        busy > self.ring.submission().len()
    }

    /// Gives back what was prepared, of which the kernel would begin nothing, and begins nothing by this ring any more. Gives nothing
    /// while the kernel [uses any](Self::has_begun).
    pub(crate) fn give_up(&mut self) -> Vec<Flight<T>> {
        if self.has_begun() {
            return Vec::new();
        }
        self.is_given_up = true;
        self.free = (0..self.flights.len()).rev().collect();
        self.bytes = 0;
        self.flights.iter_mut().filter_map(Option::take).collect()
    }

    /// Whether operations may be prepared.
    pub(crate) const fn is_usable(&self) -> bool {
        !self.is_given_up
    }

    fn enter(&self, want: usize) -> io::Result<()> {
        if self.is_given_up {
            return Err(ErrorKind::Unsupported.into());
        }
        #[cfg(test)]
        if let Some(left) = self.refusals.get().checked_sub(1) {
            self.refusals.set(left);
            return Err(ErrorKind::WouldBlock.into());
        }
        until_uninterrupted(|| self.ring.submitter().submit_and_wait(want))
    }

    /// Forgets that [`fd`](Self::fd) is readable: before all that is complete is taken.
    pub(crate) fn acknowledge(&self) {
        // Fails only when the count is 0.
        let _ = rustix::io::read(&self.completed, &mut [0; 8]);
    }

    /// Whether [`next_complete`](Self::next_complete) has something.
    pub(crate) fn has_complete(&mut self) -> bool {
        !self.ring.completion().is_empty()
    }

    /// An operation that is complete, and how many bytes it moved.
    pub(crate) fn next_complete(&mut self) -> Option<(Flight<T>, io::Result<usize>)> {
        let entry = self.ring.completion().next()?;
        let number = usize::try_from(entry.user_data()).ok()?;
        let flight = self.flights.get_mut(number)?.take()?;
        self.free.push(number);
        // Nobody has taken any of them meanwhile.
        self.bytes = self.bytes.saturating_sub(flight.buffers.bytes());
        let result = usize::try_from(entry.result())
            .map_err(|_| io::Error::from_raw_os_error(entry.result().saturating_neg()));
        Some((flight, result))
    }
}

/// Calls the kernel, again when a signal has come in between.
fn until_uninterrupted(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<()> {
    loop {
        match call() {
            Err(cause) if cause.kind() == ErrorKind::Interrupted => {}
            other => return other.map(|_count| ()),
        }
    }
}

fn entry<T>(operation: Operation, flight: &Flight<T>) -> Entry {
    let file = Fd(flight.file.as_raw_fd());
    match operation {
        Operation::Read { offset } => {
            let (vectors, count) = flight.buffers.vectors();
            opcode::Readv::new(file, vectors, count)
                .offset(offset)
                .build()
        }
        Operation::Write { offset } => {
            let (vectors, count) = flight.buffers.vectors();
            opcode::Writev::new(file, vectors, count)
                .offset(offset)
                .build()
        }
        Operation::Sync => opcode::Fsync::new(file).flags(FsyncFlags::DATASYNC).build(),
    }
}

impl<T> Drop for Uring<T> {
    /// The kernel uses the flights until they are complete. Should it not even wait for them, they stay for ever. What has not begun
    /// goes with the ring.
    fn drop(&mut self) {
        let _ = self.submit();
        while self.has_begun() {
            let waited = self.wait_begun();
            if self.next_complete().is_none() && waited.is_err() {
                std::mem::forget(std::mem::take(&mut self.flights));
                return;
            }
        }
    }
}

impl<T> std::fmt::Debug for Uring<T> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let busy = self.flights.len().saturating_sub(self.free.len());
        out.debug_struct("Uring")
            .field("busy", &busy)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestAddress;

    use super::*;
    use crate::memory::GuestMem;
    use crate::virtio::chain::Segment;

    fn flight(file: &Arc<File>, mem: &Arc<GuestMem>) -> Flight<()> {
        let mut buffers = GuestBuffers::new(Arc::clone(mem));
        let (address, bytes) = (0, 500);
        buffers.push(Segment { address, bytes }).unwrap();
        Flight {
            file: Arc::clone(file),
            buffers,
            payload: (),
        }
    }

    #[test]
    fn what_has_begun_is_waited_for_although_the_kernel_begins_nothing_more() {
        use std::io::Write as _;

        let mem = Arc::new(GuestMem::from_ranges(&[(GuestAddress(0), 4096)]).unwrap());
        let (reader, mut writer) = io::pipe().unwrap();
        let slow = Arc::new(File::from(OwnedFd::from(reader)));
        let file = Arc::new(tempfile::tempfile().unwrap());
        let mut uring = Uring::new(8, u64::MAX).unwrap();
        let read = Operation::Read { offset: 0 };
        let write = Operation::Write { offset: 0 };
        assert!(uring.prepare(read, flight(&slow, &mem)).is_ok());
        uring.submit().unwrap();
        uring.refusals.set(u32::MAX);
        assert!(uring.prepare(write, flight(&file, &mem)).is_ok());
        assert!(uring.wait().is_err() && uring.has_begun());
        assert!(uring.give_up().is_empty(), "the kernel uses one");
        writer.write_all(b"bytes").unwrap();
        uring.wait_begun().unwrap();
        let (_, result) = uring.next_complete().unwrap();
        assert_eq!(result.unwrap(), 5);
        assert!(uring.is_busy() && !uring.has_begun());
        assert_eq!(uring.give_up().len(), 1);
        assert!(!uring.is_busy() && !uring.is_usable());
        uring.refusals.set(0);
        assert!(uring.submit().is_err());
        drop(uring);
        assert_eq!(file.metadata().unwrap().len(), 0, "it never began");
    }

    #[test]
    fn there_is_room_for_so_many_operations_and_bytes() {
        let mem = Arc::new(GuestMem::from_ranges(&[(GuestAddress(0), 4096)]).unwrap());
        let file = Arc::new(tempfile::tempfile().unwrap());
        file.set_len(4096).unwrap();
        for (entries, bytes_max, fit) in [(8, 1000, 2), (2, u64::MAX, 2), (8, 1001, 3)] {
            let mut uring = Uring::new(entries, bytes_max).unwrap();
            for _ in 0..3 {
                let mut prepared = 0;
                while uring.has_room() {
                    let operation = Operation::Read { offset: 0 };
                    assert!(uring.prepare(operation, flight(&file, &mem)).is_ok());
                    prepared += 1;
                }
                assert_eq!(prepared, fit, "{entries} {bytes_max}");
                while uring.is_busy() {
                    uring.wait().unwrap();
                    while uring.next_complete().is_some() {}
                }
                assert!(uring.has_room());
            }
        }
    }
}
