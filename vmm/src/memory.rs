//! Guest RAM.
//!
//! One private mapping for each side of the hole, zeroed. A restore lays views of the image's memory over it
//! ([`GuestRam::overlay`]): what the guest only reads stays shared by all its clones, what it writes becomes its own.
//! Pages that the image does not hold are zero, and cost nothing until they are touched. So do those that the guest has given
//! back ([`crate::reclaim`]), whatever they were before.

use std::fs::File;
use std::io;
use std::net::Shutdown;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard};

use lightv_devices::memory::GuestMem;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::arch::host::layout;
use crate::limits;
use crate::lock::lock;
use crate::page_set::PageSet;
use crate::sys::mapping::{MapError, Mapping, Pages};
use crate::sys::uffd::Userfault;

/// How much is copied at a time.
const COPY_BYTES: usize = 256 << 10;

/// RAM of a guest. Lives as long as the process.
#[derive(Debug, Clone)]
pub struct GuestRam {
    parts: Vec<RamPart>,
    mem: Arc<GuestMem>,
    overlays: Vec<RamRun>,
    pages: Pages,
    /// Pages that were never touched come, or have come, from another process.
    served: Option<Arc<Served>>,
    /// Contents of files were copied, not mapped: which pages they are is not known any more.
    has_copies: bool,
    /// Pages that were given back and have zeroes under them since.
    given_back: Arc<Mutex<PageSet>>,
}

/// Memory that another process serves.
#[derive(Debug)]
pub struct Served {
    /// Its end, for as long as pages are missing.
    userfault: Mutex<Option<Userfault>>,
    /// The connection to the process.
    stream: UnixStream,
}

impl Served {
    /// All pages have come: what is not there is zero, and nobody is asked any more.
    pub fn end(&self) {
        let ended = lock(&self.userfault).take();
        // Its end takes a while, for which nobody should wait.
        drop(ended);
    }

    fn is_missing(&self) -> bool {
        lock(&self.userfault).is_some()
    }
}

impl Drop for Served {
    /// Of a machine that could not be built: whoever serves it has nothing more to do.
    fn drop(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// RAM on one side of the hole.
#[derive(Debug, Clone, Copy)]
pub struct RamPart {
    /// Guest-physical address of its first byte.
    pub base: GuestAddress,
    /// Where it lies in this process.
    pub mapping: Mapping,
}

/// A stretch of RAM that lies in a file: whole pages, inside one [`RamPart`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RamRun {
    /// Guest-physical address in bytes.
    pub address: u64,
    /// Length in bytes.
    pub bytes: u64,
    /// Offset in the file in bytes.
    pub file_offset: u64,
}

/// Why guest RAM could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum RamError {
    /// The host has no memory to map, or no mappings left.
    #[error("Cannot map {bytes} bytes of guest RAM")]
    Map {
        /// What was to be mapped.
        bytes: u64,
        /// The reason.
        #[source]
        cause: MapError,
    },
    /// A run is not inside RAM.
    #[error("Memory run {:#x}+{:#x} does not lie in guest RAM", run.address, run.bytes)]
    RunOutside {
        /// The run.
        run: RamRun,
    },
    /// A file of memory could not be read.
    #[error("Cannot read guest memory from offset {:#x} of its file", run.file_offset)]
    Read {
        /// What was being read.
        run: RamRun,
        /// The kernel's reason.
        #[source]
        cause: io::Error,
    },
    /// The parts do not fit together; a bug in `layout`.
    #[error("Guest RAM of {bytes} bytes has an impossible layout")]
    Layout {
        /// Size asked for.
        bytes: u64,
    },
}

impl GuestRam {
    /// Maps `bytes` of RAM, zeroed, untouched.
    ///
    /// # Errors
    /// [`RamError`].
    pub fn allocate(bytes: u64) -> Result<Self, RamError> {
        Self::allocate_of(bytes, Pages::Small)
    }

    /// The same, of `pages`; `bytes` are whole large ones, if of those.
    ///
    /// # Errors
    /// [`RamError`].
    pub fn allocate_of(bytes: u64, pages: Pages) -> Result<Self, RamError> {
        let (low, high) = layout::ram_ranges(bytes);
        let mut parts = Vec::with_capacity(2);
        for (base, part_bytes) in [(0, low), (layout::HOLE_END, high)] {
            if part_bytes == 0 {
                continue;
            }
            let length = usize::try_from(part_bytes).map_err(|_| RamError::Layout { bytes })?;
            let mapping = Mapping::anonymous_of(length, pages)
                .map_err(|cause| RamError::Map { bytes, cause })?;
            parts.push(RamPart {
                base: GuestAddress(base),
                mapping,
            });
        }
        let regions = parts
            .iter()
            .map(|part| part.mapping.as_region(part.base))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|cause| RamError::Map { bytes, cause })?;
        let mem = GuestMemoryMmap::from_regions(regions).map_err(|_| RamError::Layout { bytes })?;
        Ok(Self {
            parts,
            mem: Arc::new(mem),
            overlays: Vec::new(),
            pages,
            served: None,
            has_copies: false,
            given_back: Arc::default(),
        })
    }

    /// Lays a private view of `run` in `file` over RAM. To be done before the guest can run.
    ///
    /// # Errors
    /// [`RamError`].
    pub fn overlay(&mut self, file: &File, run: RamRun) -> Result<(), RamError> {
        let (part, offset, bytes) = self.locate(run)?;
        part.mapping
            .overlay_file(offset, bytes, file, run.file_offset)
            .map_err(|cause| RamError::Map {
                bytes: run.bytes,
                cause,
            })?;
        self.overlays.push(run);
        Ok(())
    }

    /// Pages that were never touched are not zero, but served by another process, which is behind `stream`, through
    /// `userfault`, until what is returned is told that all have come.
    pub fn serve_by(&mut self, userfault: Userfault, stream: UnixStream) -> Arc<Served> {
        let served = Arc::new(Served {
            userfault: Mutex::new(Some(userfault)),
            stream,
        });
        self.served = Some(Arc::clone(&served));
        served
    }

    /// Whether another process serves pages that were never touched.
    #[must_use]
    pub fn is_served(&self) -> bool {
        self.served
            .as_ref()
            .is_some_and(|served| served.is_missing())
    }

    /// Lays `runs` of `file` over RAM: as private views, or copied, when they are more than
    /// [`limits::MEMORY_RUNS_MAX`] or RAM is of large pages, of which a part cannot be replaced. To be done before the guest can
    /// run.
    ///
    /// # Errors
    /// [`RamError`].
    pub fn lay(&mut self, file: &File, runs: &[RamRun]) -> Result<(), RamError> {
        let is_copied = runs.len() > limits::MEMORY_RUNS_MAX || self.pages == Pages::Large;
        self.has_copies |= is_copied;
        for run in runs {
            if is_copied {
                self.copy(file, *run)?;
            } else {
                self.overlay(file, *run)?;
            }
        }
        Ok(())
    }

    fn copy(&self, file: &File, run: RamRun) -> Result<(), RamError> {
        let mut buffer = vec![0; COPY_BYTES];
        let mut done = 0;
        while done < run.bytes {
            let left = usize::try_from(run.bytes - done).unwrap_or(usize::MAX);
            let chunk = buffer.get_mut(..left.min(COPY_BYTES)).unwrap_or_default();
            file.read_exact_at(chunk, run.file_offset + done)
                .map_err(|cause| RamError::Read { run, cause })?;
            let address = GuestAddress(run.address + done);
            let written = self.mem.write_slice(chunk, address);
            written.map_err(|_| RamError::RunOutside { run })?;
            done += chunk.len() as u64;
        }
        Ok(())
    }

    /// Keeps RAM out of core dumps; to be called when its mappings are complete.
    pub fn exclude_from_core_dumps(&self) {
        for part in &self.parts {
            part.mapping.exclude_from_core_dumps();
        }
    }

    /// Pages that were given back and have zeroes under them since, also if the guest has written them again.
    pub fn given_back(&self) -> MutexGuard<'_, PageSet> {
        lock(&self.given_back)
    }

    /// Whether the page at `address` came with what RAM was made of: as a view of a file, or served by another process.
    #[must_use]
    pub fn is_view(&self, address: u64) -> bool {
        let holds = |run: &RamRun| (run.address..run.address + run.bytes).contains(&address);
        self.is_served() || self.overlays.iter().any(holds)
    }

    /// Whether the page at `address` was zero for sure before the machine ran.
    #[must_use]
    pub fn began_as_zero(&self, address: u64) -> bool {
        !self.has_copies && self.served.is_none() && !self.is_view(address)
    }

    /// Gives `address..+bytes` its own pages now; see [`Mapping::populate_for_write`].
    ///
    /// # Errors
    /// [`RamError`]; nothing is lost then.
    pub fn populate_for_write(&self, address: u64, bytes: u64) -> Result<(), RamError> {
        let run = RamRun {
            address,
            bytes,
            file_offset: 0,
        };
        let (part, offset, length) = self.locate(run)?;
        part.mapping
            .populate_for_write(offset, length)
            .map_err(|cause| RamError::Map { bytes, cause })
    }

    /// Has the files under `runs` read ahead, up to [`limits::READ_AHEAD_BYTES_MAX`] of them. A hint: what is refused is read when
    /// the guest touches it.
    pub fn read_ahead(&self, runs: &[RamRun]) {
        let mut left = limits::READ_AHEAD_BYTES_MAX;
        for run in runs {
            let part = RamRun {
                bytes: run.bytes.min(left),
                ..*run
            };
            left -= part.bytes;
            if let Ok((part, offset, bytes)) = self.locate(part) {
                let _ = part.mapping.read_ahead(offset, bytes);
            }
        }
    }

    /// Where `run` lies: part, offset in it, and length.
    ///
    /// # Errors
    /// [`RamError::RunOutside`].
    pub fn locate(&self, run: RamRun) -> Result<(&RamPart, usize, usize), RamError> {
        let outside = || RamError::RunOutside { run };
        let bytes = usize::try_from(run.bytes).map_err(|_| outside())?;
        for part in &self.parts {
            let Some(offset) = run.address.checked_sub(part.base.0) else {
                continue;
            };
            let Ok(offset) = usize::try_from(offset) else {
                continue;
            };
            if offset
                .checked_add(bytes)
                .is_some_and(|end| end <= part.mapping.bytes())
            {
                return Ok((part, offset, bytes));
            }
        }
        Err(outside())
    }

    /// Has all pages given back to the host when what is returned is dropped, unless it is told to keep them.
    pub fn discard_unless_kept(&self) -> DiscardGuard {
        DiscardGuard(Some(self.clone()))
    }

    /// Length in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.parts
            .iter()
            .map(|part| part.mapping.bytes() as u64)
            .sum()
    }

    /// RAM as devices see it.
    #[must_use]
    pub const fn mem(&self) -> &Arc<GuestMem> {
        &self.mem
    }

    /// The mappings, in address order.
    #[must_use]
    pub fn parts(&self) -> &[RamPart] {
        &self.parts
    }
}

/// RAM of a machine that is being built: its pages are given back when the build fails, since a process that is asked
/// by the REST API can be asked again.
#[derive(Debug)]
#[must_use]
pub struct DiscardGuard(Option<GuestRam>);

impl DiscardGuard {
    /// The machine is built.
    pub fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for DiscardGuard {
    fn drop(&mut self) {
        for part in self.0.iter().flat_map(GuestRam::parts) {
            part.mapping.discard();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_across_the_end_or_in_the_hole_is_refused() {
        let ram = GuestRam::allocate(layout::HOLE_START + (16 << 20)).unwrap();
        for (address, bytes) in [
            (layout::HOLE_START - 4096, 8192),
            (layout::HOLE_START, 4096),
            (layout::HOLE_END + (16 << 20), 4096),
            (u64::MAX - 4095, 4096),
        ] {
            let found = ram.populate_for_write(address, bytes);
            assert!(
                matches!(found, Err(RamError::RunOutside { .. })),
                "{address:#x}: {found:?}"
            );
        }
        assert!(ram.populate_for_write(layout::HOLE_END, 4096).is_ok());
    }
}
