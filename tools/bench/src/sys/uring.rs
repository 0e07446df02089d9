//! The host's own side of a comparison at depth: plain io_uring on aligned buffers.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

use io_uring::types::Fd;
use io_uring::{IoUring, opcode};

/// What direct I/O needs of addresses at most.
const ALIGN: usize = 4096;

/// A request that is done: which buffer it had, and how many bytes it moved.
#[derive(Debug)]
pub(crate) struct Completion {
    pub(crate) buffer: usize,
    pub(crate) result: io::Result<usize>,
}

/// A ring, and a buffer for each request that may be under way.
pub(crate) struct Ring {
    ring: IoUring,
    file: File,
    /// One allocation; each buffer begins at a multiple of [`ALIGN`].
    memory: Vec<u8>,
    start: usize,
    buffer_bytes: usize,
    depth: usize,
    is_busy: Vec<bool>,
}

impl Ring {
    /// For `depth` requests of `buffer_bytes` each on `file`.
    pub(crate) fn new(file: File, depth: usize, buffer_bytes: usize) -> io::Result<Self> {
        let stride = buffer_bytes.next_multiple_of(ALIGN);
        let memory = vec![0x5a; stride * depth + ALIGN];
        let start = memory.as_ptr().align_offset(ALIGN);
        Ok(Self {
            ring: IoUring::new(u32::try_from(depth).unwrap_or(u32::MAX))?,
            file,
            memory,
            start,
            buffer_bytes,
            depth,
            is_busy: vec![false; depth],
        })
    }

    /// Prepares a request at `place` with buffer number `buffer`, which has none under way.
    pub(crate) fn prepare(&mut self, buffer: usize, place: u64, writes: bool) -> io::Result<()> {
        if std::mem::replace(self.is_busy.get_mut(buffer).ok_or_else(full)?, true) {
            return Err(full());
        }
        let at = self.start + buffer * self.buffer_bytes.next_multiple_of(ALIGN);
        let memory = self.memory.get_mut(at..at + self.buffer_bytes);
        let memory = memory.ok_or_else(full)?.as_mut_ptr();
        let length = u32::try_from(self.buffer_bytes).map_err(|_| full())?;
        let file = Fd(self.file.as_raw_fd());
        let entry = if writes {
            opcode::Write::new(file, memory, length)
                .offset(place)
                .build()
        } else {
            opcode::Read::new(file, memory, length)
                .offset(place)
                .build()
        };
        let entry = entry.user_data(buffer as u64);
        // SAFETY: file and buffer are ours until the ring has gone, which waits for all requests (drop); no other request has
        // this buffer, and nothing else reads or writes it.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.map_err(|_| full())
    }

    /// Begins what was prepared, and waits until a request is done.
    pub(crate) fn wait(&mut self) -> io::Result<Completion> {
        loop {
            if let Some(entry) = self.ring.completion().next() {
                let buffer = usize::try_from(entry.user_data()).unwrap_or(usize::MAX);
                if let Some(is_busy) = self.is_busy.get_mut(buffer) {
                    *is_busy = false;
                }
                let result = usize::try_from(entry.result())
                    .map_err(|_| io::Error::from_raw_os_error(-entry.result()));
                return Ok(Completion { buffer, result });
            }
            match self.ring.submitter().submit_and_wait(1) {
                Err(cause) if cause.kind() != io::ErrorKind::Interrupted => return Err(cause),
                _ => {}
            }
        }
    }

    pub(crate) const fn depth(&self) -> usize {
        self.depth
    }
}

fn full() -> io::Error {
    io::ErrorKind::QuotaExceeded.into()
}

impl Drop for Ring {
    fn drop(&mut self) {
        while self.is_busy.contains(&true) {
            if self.wait().is_err() {
                // The kernel may still use it.
                std::mem::forget(std::mem::take(&mut self.memory));
                return;
            }
        }
    }
}
