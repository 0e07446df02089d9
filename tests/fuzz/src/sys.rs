//! An allocator with a limit, for the fuzzer's own is of no use without the hooks of a sanitizer; and signals.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr;

use crate::ALLOCATION_BYTES_MAX;

/// The system's allocator, which gives no more than the limit at a time: what asks for more ends the process.
#[derive(Debug)]
pub(crate) struct Limited;

// SAFETY: all is the system's, but that more than the limit is refused, as any allocator may.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() > ALLOCATION_BYTES_MAX {
            return ptr::null_mut();
        }
        // SAFETY: the caller keeps to the contract of this method, which is the system's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: as above; `place` is of `System`, for there is no other.
        unsafe { System.dealloc(place, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if layout.size() > ALLOCATION_BYTES_MAX {
            return ptr::null_mut();
        }
        // SAFETY: as for `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        if bytes > ALLOCATION_BYTES_MAX {
            return ptr::null_mut();
        }
        // SAFETY: as for `dealloc`.
        unsafe { System.realloc(place, layout, bytes) }
    }
}

/// A write to a socket whose other end is gone is an error, as in every program whose `main` is Rust's.
pub(crate) fn ignore_sigpipe() {
    // SAFETY: no handler is installed, and nobody else has one for this signal.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}
