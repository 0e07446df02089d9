//! Memory mappings that live as long as the process.
//!
//! Guest RAM and the control device's page are mapped once and never unmapped: the monitor is one VM, and the
//! kernel takes them down with the process. So no pointer to them can dangle.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

use vm_memory::{GuestAddress, GuestRegionMmap, MmapRegion, VolatileSlice};

/// Size of a page in bytes: the unit of mapping and of a snapshot's memory.
pub const PAGE_BYTES: usize = 4096;
/// Size of a large page in bytes.
pub const LARGE_PAGE_BYTES: usize = 2 << 20;

/// What memory is made of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Pages {
    /// Pages of [`PAGE_BYTES`].
    #[default]
    Small,
    /// Such pages, which the kernel may join to large ones (Documentation/admin-guide/mm/transhuge.rst).
    Joined,
    /// Pages of [`LARGE_PAGE_BYTES`] from the kernel's pool (Documentation/admin-guide/mm/hugetlbpage.rst).
    Large,
}

/// A mapping of this process that is never taken down.
#[derive(Debug, Clone, Copy)]
pub struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping is never unmapped, and it is shared with the guest's CPUs anyway: all access goes through
// vm-memory's volatile accessors or system calls, so which thread holds the handle does not matter.
unsafe impl Send for Mapping {}
// SAFETY: as for `Send`; the handle has no interior state of its own.
unsafe impl Sync for Mapping {}

/// Why memory could not be mapped.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// The kernel refused.
    #[error("Cannot map {bytes} bytes of memory")]
    Map {
        /// How much was asked for.
        bytes: usize,
        /// The kernel's reason.
        #[source]
        cause: io::Error,
    },
    /// The kernel's pool of large pages does not suffice, or there is none.
    #[error(
        "Cannot map {bytes} bytes of 2 MiB pages: the kernel's pool has too few free ones (HugePages_Free in /proc/meminfo; \
         `sysctl vm.nr_hugepages=N` makes N)"
    )]
    Pool {
        /// How much was asked for.
        bytes: usize,
        /// The kernel's reason.
        #[source]
        cause: io::Error,
    },
    /// A part lies outside the mapping, or is not made of whole pages.
    #[error(
        "Part {offset:#x}+{bytes:#x} does not lie on whole pages inside a mapping of {mapping_bytes:#x} bytes"
    )]
    Part {
        /// First byte of the part.
        offset: usize,
        /// Length of the part.
        bytes: usize,
        /// Length of the mapping.
        mapping_bytes: usize,
    },
}

impl Mapping {
    /// Maps `bytes` of zeroed private memory, without reserving swap for it.
    ///
    /// # Errors
    /// [`MapError::Map`].
    pub fn anonymous(bytes: usize) -> Result<Self, MapError> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, -1, 0) };
        match NonNull::new(address.cast::<u8>()) {
            Some(start) if address != libc::MAP_FAILED => Ok(Self { start, bytes }),
            _ => Err(MapError::Map {
                bytes,
                cause: io::Error::last_os_error(),
            }),
        }
    }

    /// The same, of `pages`: aligned to large ones where there may be some, and with all of [`Pages::Large`] reserved, so that no
    /// first touch can fail for want of them. `bytes` are whole large pages then.
    ///
    /// # Errors
    /// [`MapError`].
    pub fn anonymous_of(bytes: usize, pages: Pages) -> Result<Self, MapError> {
        match pages {
            Pages::Small => Self::anonymous(bytes),
            Pages::Joined => {
                let whole = Self::anonymous(bytes + LARGE_PAGE_BYTES)?.aligned(bytes);
                whole.advise(0, bytes, libc::MADV_HUGEPAGE)?;
                Ok(whole)
            }
            Pages::Large => Self::large(bytes),
        }
    }

    /// The first `bytes` from where a large page can begin. What lies around them stays mapped, and is never touched.
    fn aligned(self, bytes: usize) -> Self {
        let skipped = self.address().next_multiple_of(LARGE_PAGE_BYTES) - self.address();
        let bytes = bytes.min(self.bytes.saturating_sub(skipped));
        let start = NonNull::new(self.part(skipped).cast()).unwrap_or(self.start);
        Self { start, bytes }
    }

    fn large(bytes: usize) -> Result<Self, MapError> {
        let flags =
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB | libc::MAP_HUGE_2MB;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, -1, 0) };
        match NonNull::new(address.cast::<u8>()) {
            Some(start) if address != libc::MAP_FAILED => Ok(Self { start, bytes }),
            _ => Err(MapError::Pool {
                bytes,
                cause: io::Error::last_os_error(),
            }),
        }
    }

    /// Has the file under `bytes` at `offset` read ahead, without waiting for it.
    ///
    /// # Errors
    /// [`MapError`]; the guest then waits for each page.
    pub fn read_ahead(&self, offset: usize, bytes: usize) -> Result<(), MapError> {
        self.advise(offset, bytes, libc::MADV_WILLNEED)
    }

    /// Replaces `bytes` at `offset` by a private, writable view of `file` from `file_offset` on. All three must be
    /// multiples of a page, the part inside the mapping.
    ///
    /// # Errors
    /// [`MapError`].
    pub fn overlay_file(
        &self,
        offset: usize,
        bytes: usize,
        file: &File,
        file_offset: u64,
    ) -> Result<(), MapError> {
        self.check_part(offset, bytes)?;
        let file_offset = i64::try_from(file_offset).map_err(|_| MapError::Map {
            bytes,
            cause: io::Error::from_raw_os_error(libc::EOVERFLOW),
        })?;
        // `wrapping_add` stays inside the mapping by the check above.
        let target = self
            .start
            .as_ptr()
            .wrapping_add(offset)
            .cast::<libc::c_void>();
        let flags = libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let fd = file.as_raw_fd();
        // SAFETY: MAP_FIXED replaces only pages of this mapping (checked above), to which no Rust reference exists:
        // they are reached through raw pointers and volatile accessors alone.
        let address = unsafe { libc::mmap(target, bytes, protection, flags, fd, file_offset) };
        if address == libc::MAP_FAILED {
            return Err(MapError::Map {
                bytes,
                cause: io::Error::last_os_error(),
            });
        }
        Ok(())
    }

    /// Gives `bytes` at `offset` their own pages now, as a write to each would, in one call.
    ///
    /// # Errors
    /// [`MapError`]; the pages are then populated when the guest touches them.
    pub fn populate_for_write(&self, offset: usize, bytes: usize) -> Result<(), MapError> {
        self.advise(offset, bytes, libc::MADV_POPULATE_WRITE)
    }

    /// Lets `bytes` at `offset` go: what was written there is gone, and the host has its memory back. They read as zero then,
    /// or as the file that lies there.
    ///
    /// # Errors
    /// [`MapError`]; nothing has changed then.
    pub fn let_go(&self, offset: usize, bytes: usize) -> Result<(), MapError> {
        self.advise(offset, bytes, libc::MADV_DONTNEED)
    }

    fn advise(&self, offset: usize, bytes: usize, advice: libc::c_int) -> Result<(), MapError> {
        self.check_part(offset, bytes)?;
        let target = self.part(offset);
        // SAFETY: the range lies in this mapping (checked above) and stays mapped, whatever the advice; no Rust reference to
        // it exists, and all who read it, through raw pointers and volatile accessors, take any contents.
        let result = unsafe { libc::madvise(target, bytes, advice) };
        if result == 0 {
            Ok(())
        } else {
            Err(MapError::Map {
                bytes,
                cause: io::Error::last_os_error(),
            })
        }
    }

    /// Replaces `bytes` at `offset`, whatever lies there, by zeroed private memory that is kept out of core dumps, and so is
    /// one mapping with its neighbours of this kind.
    ///
    /// # Errors
    /// [`MapError`]; what was there is there still.
    pub fn replace(&self, offset: usize, bytes: usize) -> Result<(), MapError> {
        self.check_part(offset, bytes)?;
        let target = self.part(offset);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: MAP_FIXED replaces only pages of this mapping (checked above), to which no Rust reference exists; the range
        // is mapped before and after.
        let address = unsafe { libc::mmap(target, bytes, protection, flags, -1, 0) };
        if address == libc::MAP_FAILED {
            return Err(MapError::Map {
                bytes,
                cause: io::Error::last_os_error(),
            });
        }
        // SAFETY: the range that was just mapped; the advice changes no contents.
        unsafe { libc::madvise(target, bytes, libc::MADV_DONTDUMP) };
        Ok(())
    }

    /// Where the byte at `offset` lies, which is inside: `wrapping_add` stays there.
    fn part(&self, offset: usize) -> *mut libc::c_void {
        self.start.as_ptr().wrapping_add(offset).cast()
    }

    /// Replaces the whole by zeroed private memory again: what it held, and views of files, are let go.
    pub fn discard(&self) {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let target = self.start.as_ptr().cast::<libc::c_void>();
        // SAFETY: MAP_FIXED replaces exactly this mapping, to which no Rust reference exists; it stays valid for its
        // length. When the kernel refuses, it is as it was, and costs memory.
        unsafe { libc::mmap(target, self.bytes, protection, flags, -1, 0) };
    }

    /// Keeps the mapping out of core dumps: they hold no guest memory.
    pub fn exclude_from_core_dumps(&self) {
        let target = self.start.as_ptr().cast::<libc::c_void>();
        // SAFETY: the whole of this mapping; the advice changes no contents. An old kernel that refuses it costs
        // only a larger core file.
        unsafe { libc::madvise(target, self.bytes, libc::MADV_DONTDUMP) };
    }

    /// Address in this process.
    #[must_use]
    pub fn address(&self) -> usize {
        self.start.as_ptr() as usize
    }

    /// Length in bytes.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// This mapping as guest RAM at `base`.
    ///
    /// # Errors
    /// [`MapError::Map`] when `base` plus the length passes 2^64.
    pub fn as_region(&self, base: GuestAddress) -> Result<GuestRegionMmap<()>, MapError> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_NORESERVE;
        // SAFETY: the mapping is valid for its length and lives as long as the process.
        let region =
            unsafe { MmapRegion::build_raw(self.start.as_ptr(), self.bytes, protection, flags) };
        region
            .ok()
            .and_then(|region| GuestRegionMmap::new(region, base))
            .ok_or_else(|| MapError::Map {
                bytes: self.bytes,
                cause: io::Error::from_raw_os_error(libc::EINVAL),
            })
    }

    /// The whole mapping, for volatile access: the guest may be reading it.
    #[must_use]
    pub fn as_volatile_slice(&self) -> VolatileSlice<'_> {
        // SAFETY: `start..+bytes` is one live mapping that is never unmapped, and no Rust reference to it exists.
        unsafe { VolatileSlice::new(self.start.as_ptr(), self.bytes) }
    }

    const fn check_part(&self, offset: usize, bytes: usize) -> Result<(), MapError> {
        let whole = offset.is_multiple_of(PAGE_BYTES) && bytes.is_multiple_of(PAGE_BYTES);
        match offset.checked_add(bytes) {
            Some(end) if whole && bytes > 0 && end <= self.bytes => Ok(()),
            _ => Err(MapError::Part {
                offset,
                bytes,
                mapping_bytes: self.bytes,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_outside_or_off_page_are_refused() {
        let mapping = Mapping::anonymous(4 * PAGE_BYTES).unwrap();
        for (offset, bytes) in [
            (1, PAGE_BYTES),
            (0, 1),
            (0, 0),
            (4 * PAGE_BYTES, PAGE_BYTES),
            (usize::MAX - 4095, PAGE_BYTES),
        ] {
            assert!(
                mapping.populate_for_write(offset, bytes).is_err(),
                "{offset:#x}+{bytes:#x}"
            );
        }
        assert!(mapping.populate_for_write(PAGE_BYTES, PAGE_BYTES).is_ok());
    }

    #[test]
    fn joined_pages_begin_where_a_large_page_can() {
        let bytes = 3 * LARGE_PAGE_BYTES;
        let mapping = Mapping::anonymous_of(bytes, Pages::Joined).unwrap();
        assert!(mapping.address().is_multiple_of(LARGE_PAGE_BYTES));
        assert_eq!(mapping.bytes(), bytes);
        assert!(mapping.populate_for_write(0, bytes).is_ok());
    }

    #[test]
    fn a_pool_that_does_not_suffice_is_named() {
        // More than any host has.
        let refused = Mapping::anonymous_of(1 << 46, Pages::Large).unwrap_err();
        assert!(refused.to_string().contains("HugePages_Free"), "{refused}");
    }
}
