//! Vectored I/O straight from and to guest memory.
//!
//! By syscall(2): each of the C library's own functions is a place where a thread may be cancelled, and has two locked
//! instructions for that before and after the call. On x86-64 an offset is one argument, and the one after it is not looked at.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use vm_memory::bitmap::BitmapSlice;
use vm_memory::{GuestAddress, GuestMemoryBackend, VolatileSlice};

use crate::fault::GuestFault;
use crate::memory::{self, GuestMem};
use crate::virtio::chain::Segment;

/// Parts of one system call: the kernel's UIO_MAXIOV.
const PARTS_PER_CALL: usize = 1024;
/// Transferred pieces that are kept at most before the rest moves up.
const FORGET_AT: usize = 256;

/// Pieces of guest memory for one vectored system call. Every piece lies in RAM.
///
/// Kept and refilled, so that requests allocate nothing once it has grown to the longest chain.
pub(crate) struct GuestBuffers {
    /// Slot 0 is for memory of ours that goes first, and empty unless a call uses it.
    vectors: Vec<libc::iovec>,
    /// Index of the first piece that is not yet transferred.
    first: usize,
    bytes: u64,
    /// Keeps alive what `vectors` points to.
    mem: Arc<GuestMem>,
}

// SAFETY: the pointers in `vectors` point into mappings that `mem` keeps alive (or are null), and are used only by
// system calls through `&mut self`; which thread makes them does not matter.
unsafe impl Send for GuestBuffers {}

const EMPTY: libc::iovec = libc::iovec {
    iov_base: std::ptr::null_mut(),
    iov_len: 0,
};

impl GuestBuffers {
    pub(crate) fn new(mem: Arc<GuestMem>) -> Self {
        Self {
            vectors: vec![EMPTY],
            first: 1,
            bytes: 0,
            mem,
        }
    }

    /// Forgets all pieces.
    pub(crate) fn clear(&mut self) {
        self.vectors.truncate(1);
        self.first = 1;
        self.bytes = 0;
    }

    /// Bytes of all pieces that are not yet transferred.
    pub(crate) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Number of pieces that are not yet transferred.
    pub(crate) const fn pieces(&self) -> usize {
        self.vectors.len().saturating_sub(self.first)
    }

    /// Appends a buffer.
    ///
    /// # Errors
    /// [`GuestFault::OutOfRam`] unless all of it lies in RAM; the pieces are then to be cleared.
    pub(crate) fn push(&mut self, segment: Segment) -> Result<(), GuestFault> {
        let (start, bytes) = (GuestAddress(segment.address), segment.bytes as usize);
        // Nearly always all of it lies in one mapping.
        match memory::slice(&self.mem, segment.address, bytes) {
            Some(slice) => self.vectors.push(vector_of(&slice)),
            None => {
                for slice in GuestMemoryBackend::get_slices(&*self.mem, start, bytes) {
                    let slice = slice.map_err(|_| segment.out_of_ram())?;
                    self.vectors.push(vector_of(&slice));
                }
            }
        }
        self.bytes = self.bytes.saturating_add(u64::from(segment.bytes));
        Ok(())
    }

    /// Takes away the first `bytes`, which a call has transferred.
    pub(crate) fn advance(&mut self, bytes: usize) {
        let mut left = bytes;
        self.bytes = self.bytes.saturating_sub(bytes as u64);
        while let Some(vector) = self.vectors.get_mut(self.first) {
            if left < vector.iov_len {
                // Stays inside the piece, by the comparison.
                vector.iov_base = vector.iov_base.wrapping_byte_add(left);
                vector.iov_len = vector.iov_len.saturating_sub(left);
                break;
            }
            left = left.saturating_sub(vector.iov_len);
            self.first = self.first.saturating_add(1);
        }
        // A list that is added to all the time must not grow all the time.
        if self.first > FORGET_AT && self.first <= self.vectors.len() {
            self.vectors.drain(1..self.first);
            self.first = 1;
        }
    }

    /// The pieces that are not yet transferred, for a call that begins now and ends later: the caller keeps `self` unchanged
    /// until then.
    pub(crate) fn vectors(&self) -> (*const libc::iovec, u32) {
        let (vectors, count) = self.pending();
        (vectors.as_ptr(), u32::try_from(count).unwrap_or(0))
    }

    /// Whether all pieces begin at a multiple of `address_bytes` and are a multiple of `length_bytes` long.
    pub(crate) fn are_aligned(&self, address_bytes: u64, length_bytes: u64) -> bool {
        let vectors = self.vectors.get(self.first..).unwrap_or_default();
        vectors.iter().all(|vector| {
            let address = vector.iov_base.addr() as u64;
            address.is_multiple_of(address_bytes)
                && (vector.iov_len as u64).is_multiple_of(length_bytes)
        })
    }

    fn pending(&self) -> (&[libc::iovec], libc::c_int) {
        let vectors = self.vectors.get(self.first..).unwrap_or_default();
        let vectors = vectors.get(..PARTS_PER_CALL).unwrap_or(vectors);
        (vectors, count(vectors))
    }

    /// Gives the pieces of the first `bytes` to `call`: the piece in which they end is shorter meanwhile.
    fn with_first<T>(
        &mut self,
        bytes: u64,
        call: impl FnOnce(&[libc::iovec], libc::c_int) -> T,
    ) -> T {
        if bytes >= self.bytes {
            let (vectors, count) = self.pending();
            return call(vectors, count);
        }
        let vectors = self.vectors.get_mut(self.first..).unwrap_or_default();
        let mut left = usize::try_from(bytes).unwrap_or(usize::MAX);
        let mut pieces = 0_usize;
        let mut cut = None;
        for (index, vector) in vectors.iter_mut().enumerate().take(PARTS_PER_CALL) {
            if left == 0 {
                break;
            }
            if vector.iov_len > left {
                cut = Some((index, vector.iov_len));
                vector.iov_len = left;
            }
            left = left.saturating_sub(vector.iov_len);
            pieces = pieces.saturating_add(1);
        }
        let first = vectors.get(..pieces).unwrap_or_default();
        let result = call(first, count(first));
        if let Some((vector, length)) =
            cut.and_then(|(index, length)| Some((vectors.get_mut(index)?, length)))
        {
            vector.iov_len = length;
        }
        result
    }

    /// Reads at most `bytes` from `file` at `offset` into the pieces. May stop early; 0 is the end of the file.
    ///
    /// # Errors
    /// The kernel's, EINTR included.
    pub(crate) fn read_from(
        &mut self,
        file: BorrowedFd<'_>,
        offset: u64,
        bytes: u64,
    ) -> io::Result<usize> {
        let offset = file_offset(offset)?;
        let result = self.with_first(bytes, |vectors, count| {
            let (fd, vectors) = (file.as_raw_fd(), vectors.as_ptr());
            // SAFETY: each vector is a piece of a mapping that `self.mem` keeps alive, or the beginning of one, and guest
            // memory may be written at any time: no Rust reference to it exists. The kernel checks `file`.
            unsafe { libc::syscall(libc::SYS_preadv, fd, vectors, count, offset, 0) }
        });
        bytes_of(result)
    }

    /// As [`read_from`](Self::read_from), but only what the kernel has in memory (preadv2(2), RWF_NOWAIT).
    ///
    /// # Errors
    /// The kernel's: EAGAIN when it has nothing, EOPNOTSUPP when it cannot tell.
    pub(crate) fn read_cached(&mut self, file: BorrowedFd<'_>, offset: u64) -> io::Result<usize> {
        let offset = file_offset(offset)?;
        let (vectors, count) = self.pending();
        let (fd, flags) = (file.as_raw_fd(), libc::RWF_NOWAIT);
        // SAFETY: as for `read_from`.
        let result = unsafe {
            libc::syscall(
                libc::SYS_preadv2,
                fd,
                vectors.as_ptr(),
                count,
                offset,
                0,
                flags,
            )
        };
        bytes_of(result)
    }

    /// Writes at most `bytes` of the pieces to `file` at `offset`. May stop early.
    ///
    /// # Errors
    /// The kernel's, EINTR included.
    pub(crate) fn write_to(
        &mut self,
        file: BorrowedFd<'_>,
        offset: u64,
        bytes: u64,
    ) -> io::Result<usize> {
        let offset = file_offset(offset)?;
        let result = self.with_first(bytes, |vectors, count| {
            let (fd, vectors) = (file.as_raw_fd(), vectors.as_ptr());
            // SAFETY: each vector is a piece of a mapping that `self.mem` keeps alive, or the beginning of one; the kernel
            // copies it, whatever the guest does to it meanwhile.
            unsafe { libc::syscall(libc::SYS_pwritev, fd, vectors, count, offset, 0) }
        });
        bytes_of(result)
    }

    /// Sends `header` and then the pieces as one frame.
    ///
    /// # Errors
    /// The kernel's, EINTR included.
    pub(crate) fn send_frame(&mut self, fd: BorrowedFd<'_>, header: &[u8]) -> io::Result<usize> {
        let start = header.as_ptr().cast_mut().cast::<libc::c_void>();
        if let Some(slot) = self.vectors.first_mut() {
            *slot = libc::iovec {
                iov_base: start,
                iov_len: header.len(),
            };
        }
        let count = count(&self.vectors);
        // SAFETY: slot 0 is `header`, borrowed over the call and only read by it; the others are pieces of mappings
        // that `self.mem` keeps alive.
        let result = unsafe {
            libc::syscall(
                libc::SYS_writev,
                fd.as_raw_fd(),
                self.vectors.as_ptr(),
                count,
            )
        };
        let result = bytes_of(result);
        if let Some(slot) = self.vectors.first_mut() {
            *slot = EMPTY;
        }
        result
    }

    /// Sends `start` and then the pieces by a stream socket, which may take a part of that. It never waits, and no signal comes
    /// of an end that is closed.
    ///
    /// # Errors
    /// The kernel's, EINTR and EAGAIN included.
    pub(crate) fn send_bytes(&mut self, socket: BorrowedFd<'_>, start: &[u8]) -> io::Result<usize> {
        if let Some(slot) = self.vectors.first_mut() {
            *slot = libc::iovec {
                iov_base: start.as_ptr().cast_mut().cast::<libc::c_void>(),
                iov_len: start.len(),
            };
        }
        let message = libc::msghdr {
            msg_name: std::ptr::null_mut(),
            msg_namelen: 0,
            msg_iov: self.vectors.as_mut_ptr(),
            msg_iovlen: self.vectors.len().min(PARTS_PER_CALL),
            msg_control: std::ptr::null_mut(),
            msg_controllen: 0,
            msg_flags: 0,
        };
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: `message` has no name and no control data; slot 0 of its vectors is `start`, borrowed over the call and
        // only read by it, the others are pieces of mappings that `self.mem` keeps alive; there are as many as it says.
        let result = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) };
        let result = bytes_of(result);
        if let Some(slot) = self.vectors.first_mut() {
            *slot = EMPTY;
        }
        result
    }

    /// Receives one frame into the pieces, and what does not fit in them into `rest`.
    ///
    /// # Errors
    /// The kernel's, EINTR included.
    pub(crate) fn receive_frame(
        &mut self,
        fd: BorrowedFd<'_>,
        rest: &mut [u8],
    ) -> io::Result<usize> {
        let iov_base = rest.as_mut_ptr().cast::<libc::c_void>();
        self.vectors.push(libc::iovec {
            iov_base,
            iov_len: rest.len(),
        });
        let vectors = self.vectors.get(self.first..).unwrap_or_default();
        let count = count(vectors);
        // SAFETY: the last vector is `rest`, borrowed exclusively over the call; the others are pieces of mappings that
        // `self.mem` keeps alive and that may be written at any time.
        let result =
            unsafe { libc::syscall(libc::SYS_readv, fd.as_raw_fd(), vectors.as_ptr(), count) };
        let result = bytes_of(result);
        self.vectors.pop();
        result
    }
}

fn vector_of<B: BitmapSlice>(slice: &VolatileSlice<'_, B>) -> libc::iovec {
    libc::iovec {
        iov_base: slice.ptr_guard_mut().as_ptr().cast::<libc::c_void>(),
        iov_len: slice.len(),
    }
}

/// What a call has returned: a number of bytes, or -1.
fn bytes_of(result: impl TryInto<usize>) -> io::Result<usize> {
    result.try_into().map_err(|_| io::Error::last_os_error())
}

/// A count above the kernel's limit is refused by the kernel.
fn count(vectors: &[libc::iovec]) -> libc::c_int {
    libc::c_int::try_from(vectors.len()).unwrap_or(libc::c_int::MAX)
}

fn file_offset(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EOVERFLOW))
}

impl std::fmt::Debug for GuestBuffers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuestBuffers")
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}
