//! The heap: all RAM after the image.
//!
//! Sizes are rounded up to powers of two with a free list each; what was never used is handed out in order, small
//! blocks from shared pages, so that few pages are touched. Fresh RAM is zero (every monitor maps it so), hence
//! zeroed allocations do not touch it.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr;

use crate::local::Local;

const PAGE_BYTES: usize = 4096;
const BLOCK_BYTES_MIN: usize = 16;
/// Blocks above this size are whole pages and are not reused: only the memory workload asks for them, once.
const BLOCK_BYTES_MAX: usize = 2 << 20;
const CLASSES: usize = (BLOCK_BYTES_MAX / BLOCK_BYTES_MIN).trailing_zeros() as usize + 1;

unsafe extern "C" {
    #[link_name = "image_end"]
    static IMAGE_END: u8;
}

/// First address after the image, page-aligned.
pub fn image_end() -> usize {
    &raw const IMAGE_END as usize
}

struct Free {
    next: *mut Free,
}

struct Heap {
    /// Never used: `fresh..end`, `fresh` page-aligned.
    fresh: usize,
    end: usize,
    /// Rest of the page that small blocks are cut from.
    small: usize,
    small_end: usize,
    free: [*mut Free; CLASSES],
}

struct GlobalHeap(Local<Heap>);

#[global_allocator]
static HEAP: GlobalHeap = GlobalHeap(Local::new(Heap {
    fresh: 0,
    end: 0,
    small: 0,
    small_end: 0,
    free: [ptr::null_mut(); CLASSES],
}));

/// Gives the heap the RAM from the image's end to `ram_end`.
pub fn init(ram_end: usize) {
    HEAP.0
        .with(|heap| (heap.fresh, heap.end) = (image_end(), ram_end));
}

/// Bytes never handed out yet.
pub fn fresh_bytes() -> usize {
    HEAP.0.with(|heap| heap.end.saturating_sub(heap.fresh))
}

/// Size of the block for `layout`, and its class if blocks of that size are reused.
fn block(layout: Layout) -> (usize, Option<usize>) {
    let wanted = layout.size().max(layout.align()).max(BLOCK_BYTES_MIN);
    if wanted > BLOCK_BYTES_MAX {
        return (wanted.next_multiple_of(PAGE_BYTES), None);
    }
    let bytes = wanted.next_power_of_two();
    (
        bytes,
        Some((bytes / BLOCK_BYTES_MIN).trailing_zeros() as usize),
    )
}

impl Heap {
    /// A used block of this class.
    fn reuse(&mut self, class: usize) -> Option<*mut u8> {
        let block = self.free[class];
        if block.is_null() {
            return None;
        }
        // SAFETY: what is on the list was put there by `put` and has not been handed out since.
        self.free[class] = unsafe { (*block).next };
        Some(block.cast())
    }

    /// A fresh block, all zero; null if there is no more RAM.
    fn fresh(&mut self, bytes: usize, align: usize) -> *mut u8 {
        if bytes >= PAGE_BYTES {
            return self.fresh_pages(bytes, align);
        }
        let start = self.small.next_multiple_of(bytes);
        if start + bytes <= self.small_end {
            self.small = start + bytes;
            return start as *mut u8;
        }
        let page = self.fresh_pages(PAGE_BYTES, PAGE_BYTES);
        if !page.is_null() {
            self.small = page as usize + bytes;
            self.small_end = page as usize + PAGE_BYTES;
        }
        page
    }

    fn fresh_pages(&mut self, bytes: usize, align: usize) -> *mut u8 {
        let start = self.fresh.next_multiple_of(align.max(PAGE_BYTES));
        match start.checked_add(bytes) {
            Some(end) if end <= self.end => {
                self.fresh = end.next_multiple_of(PAGE_BYTES);
                start as *mut u8
            }
            _ => ptr::null_mut(),
        }
    }

    fn put(&mut self, block: *mut u8, class: usize) {
        let block = block.cast::<Free>();
        // SAFETY: the block is at least 16 bytes, aligned to its size, and its owner has given it back.
        unsafe {
            block.write(Free {
                next: self.free[class],
            })
        };
        self.free[class] = block;
    }
}

// SAFETY: blocks are at least as large and as aligned as asked, lie in RAM that nothing else uses (image_end..ram_end),
// and are handed out to one owner at a time.
unsafe impl GlobalAlloc for GlobalHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let (bytes, class) = block(layout);
        self.0.with(|heap| {
            class
                .and_then(|c| heap.reuse(c))
                .unwrap_or_else(|| heap.fresh(bytes, layout.align()))
        })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let (bytes, class) = block(layout);
        self.0.with(|heap| match class.and_then(|c| heap.reuse(c)) {
            Some(used) => {
                // SAFETY: the block has `bytes` bytes and no owner yet.
                unsafe { used.write_bytes(0, bytes) };
                used
            }
            None => heap.fresh(bytes, layout.align()),
        })
    }

    unsafe fn dealloc(&self, block_start: *mut u8, layout: Layout) {
        if let (_, Some(class)) = block(layout) {
            self.0.with(|heap| heap.put(block_start, class));
        }
    }
}
